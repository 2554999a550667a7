/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: how a GPU does: fields, errors, repairs, temperature, power, clocks, links, fabric.
 *
 * Rule: a field that this GPU has not got says NOT_SUPPORTED by itself; the others of the same call
 * still answer.
 *
 * Does not invent change: energy grows with power and time, all else is what a test said.
 */
#include "nvml.h"

#include <string.h>

static uint64_t energy_mj(const struct gpu *gpu)
{
	const uint64_t lasted_ms = (now_ns() - machine_open()->loaded_ns) / 1000000;
	return gpu->energy_mj + gpu->power_mw * lasted_ms / 1000;
}

static nvmlReturn_t nvlink_field(const struct gpu *gpu, nvmlFieldValue_t *field)
{
	uint64_t sent = 0, received = 0;
	for (uint32_t i = 0; i < LINKS_MAX; i++)
		if (gpu->link[i].up && (field->scopeId == i || field->scopeId == NONE)) {
			sent += gpu->link[i].sent;
			received += gpu->link[i].received;
		}
	WANT(field->scopeId == NONE || (field->scopeId < LINKS_MAX && gpu->link[field->scopeId].up),
		NVML_ERROR_INVALID_ARGUMENT);
	field->value.ullVal = field->fieldId == 202 ? sent : received;
	return NVML_SUCCESS;
}

static uint64_t links_up(const struct gpu *gpu)
{
	uint64_t up = 0;
	for (uint32_t i = 0; i < LINKS_MAX; i++)
		up += gpu->link[i].up;
	return up;
}

static nvmlReturn_t number_field(const struct gpu *gpu, nvmlFieldValue_t *field)
{
	const struct {
		unsigned id;
		uint64_t value;
	} table[] = {
		{ 1, gpu->ecc },
		{ 2, gpu->ecc },
		{ 29, 0 },
		{ 30, 0 },
		{ 31, gpu->retired_pending },
		{ 74, gpu->throttle_ns },
		{ 75, gpu->throttle_ns },
		{ 76, 0 },
		{ 77, 0 },
		{ 78, 0 },
		{ 79, 0 },
		{ 80, 0 },
		{ 81, 0 },
		{ 82, gpu->temperature_memory_c },
		{ 83, energy_mj(gpu) },
		{ 91, links_up(gpu) },
		{ 142, gpu->remap_correctable },
		{ 143, gpu->remap_uncorrectable },
		{ 144, gpu->remap_pending },
		{ 145, gpu->remap_failure },
		{ 185, gpu->power_mw },
		{ 186, gpu->power_mw },
		{ 189, gpu->power_limit_mw },
		{ 190, gpu->power_limit_mw },
		{ 226, gpu->recovery_action == 1 },
		{ 227, gpu->recovery_action == 4 },
		{ 230, gpu->recovery_action },
		{ 269, 0 },
		{ 270, 0 },
		{ 271, 0 },
	};
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].id == field->fieldId) {
			field->value.ullVal = table[i].value;
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_SUPPORTED;
}

/* Which of the fields above are 64 bits wide in the real library. */
static bool wide(unsigned field)
{
	return (field >= 74 && field <= 83 && field != 82) || field == 202 || field == 204 ||
	       (field >= 269 && field <= 271);
}

/* With MIG instances on it a GPU is not asked for its rows. */
static bool has_instances(const struct gpu *gpu)
{
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		if (gpu->instance[i].used)
			return true;
	return false;
}

EXPORTED nvmlReturn_t nvmlDeviceGetFieldValues(
	nvmlDevice_t device, int count, nvmlFieldValue_t *fields)
{
	WANT(count > 0 && fields, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	const struct gpu *const gpu = GPU_OF(target);
	for (int i = 0; i < count; i++) {
		nvmlFieldValue_t *const field = &fields[i];
		field->timestamp = (int64_t)(now_ns() / 1000);
		field->latencyUsec = 0;
		field->value.ullVal = 0;
		field->valueType = wide(field->fieldId) ? NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
							: NVML_VALUE_TYPE_UNSIGNED_INT;
		const bool remaps = field->fieldId >= 142 && field->fieldId <= 145;
		if (field->fieldId == 202 || field->fieldId == 204)
			field->nvmlReturn = (unsigned)nvlink_field(gpu, field);
		else if (remaps && (!gpu->ecc || has_instances(gpu)))
			field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
		else
			field->nvmlReturn = (unsigned)number_field(gpu, field);
	}
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *correctable,
	unsigned *uncorrectable, unsigned *pending, unsigned *failed)
{
	ENTER(device, 0);
	const struct gpu *const gpu = GPU_OF(target);
	WANT(!has_instances(gpu), NVML_ERROR_NOT_SUPPORTED);
	*correctable = gpu->remap_correctable;
	*uncorrectable = gpu->remap_uncorrectable;
	*pending = gpu->remap_pending;
	*failed = gpu->remap_failure;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetRepairStatus(nvmlDevice_t device, nvmlRepairStatus_t *status)
{
	ENTER(device, 0);
	WANT(status->version == NVML_VERSION(nvmlRepairStatus_t, 1),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	status->bChannelRepairPending = GPU_OF(target)->repair_channel;
	status->bTpcRepairPending = GPU_OF(target)->repair_tpc;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetUnrepairableMemoryFlag_v1(
	nvmlDevice_t device, nvmlUnrepairableMemory_v1_t *flag)
{
	ENTER(device, 0);
	flag->unrepairableMemory = GPU_OF(target)->unrepairable;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetEccMode(
	nvmlDevice_t device, unsigned *current, unsigned *pending)
{
	ENTER(device, 0);
	*current = *pending = GPU_OF(target)->ecc;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetTotalEccErrors(
	nvmlDevice_t device, unsigned kind, unsigned counter, unsigned long long *count)
{
	WANT(kind <= 1 && counter <= 1, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	const struct gpu *const gpu = GPU_OF(target);
	WANT(gpu->ecc, NVML_ERROR_NOT_SUPPORTED);
	const uint64_t counts[2][2] = {
		{ gpu->ecc_corrected, gpu->ecc_lifetime_corrected },
		{ gpu->ecc_uncorrected, gpu->ecc_lifetime_uncorrected },
	};
	*count = counts[kind][counter];
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned kind,
	unsigned counter, unsigned location, unsigned long long *count)
{
	WANT(location <= 8, NVML_ERROR_INVALID_ARGUMENT);
	const nvmlReturn_t result = nvmlDeviceGetTotalEccErrors(device, kind, counter, count);
	if (location != 2 && location != 7) /* all of them are in DRAM */
		*count = 0;
	return result;
}

EXPORTED nvmlReturn_t nvmlDeviceGetTemperature(
	nvmlDevice_t device, unsigned sensor, unsigned *degrees)
{
	WANT(sensor == 0, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	*degrees = GPU_OF(target)->temperature_c;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *reading)
{
	WANT(reading->version == NVML_VERSION(nvmlTemperature_v1_t, 1),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	ENTER(device, 0);
	reading->temperature = (int)GPU_OF(target)->temperature_c;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts)
{
	ENTER(device, 0);
	*milliwatts = GPU_OF(target)->power_mw;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts)
{
	ENTER(device, 0);
	*milliwatts = GPU_OF(target)->power_limit_mw;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(
	nvmlDevice_t device, unsigned long long *millijoules)
{
	ENTER(device, 0);
	*millijoules = energy_mj(GPU_OF(target));
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(
	nvmlDevice_t device, unsigned long long *reasons)
{
	ENTER(device, 0);
	*reasons = GPU_OF(target)->clocks_event_reasons;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned kind, unsigned *mhz)
{
	WANT(kind <= 3, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	*mhz = kind == 2 ? GPU_OF(target)->clock_memory_mhz : GPU_OF(target)->clock_mhz;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetPcieThroughput(
	nvmlDevice_t device, unsigned counter, unsigned *kbps)
{
	WANT(counter <= 1, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	*kbps = 0;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active)
{
	ENTER(device, 0);
	WANT(links_up(GPU_OF(target)), NVML_ERROR_NOT_SUPPORTED);
	WANT(link < LINKS_MAX, NVML_ERROR_INVALID_ARGUMENT);
	*active = GPU_OF(target)->link[link].up;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(
	nvmlDevice_t device, unsigned link, nvmlPciInfo_t *info)
{
	ENTER(device, 0);
	WANT(link < LINKS_MAX, NVML_ERROR_INVALID_ARGUMENT);
	const struct link *const it = &GPU_OF(target)->link[link];
	WANT(it->up, NVML_ERROR_INVALID_ARGUMENT);
	memset(info, 0, sizeof *info);
	const struct gpu *const peer = it->gpu < GPUS_MAX ? &machine_open()->gpu[it->gpu] : NULL;
	info->domain = peer ? peer->pci_domain : 0;
	info->bus = peer ? peer->pci_bus : 5; /* a switch of the baseboard */
	info->device = peer ? peer->pci_device : 0;
	info->pciDeviceId = peer ? peer->pci_device_id : 0x22a310de;
	static const char digits[] = "0123456789ABCDEF";
	char *const at = info->busId;
	memcpy(at, "00000000:00:00.0", 17);
	at[9] = digits[info->bus >> 4 & 15];
	at[10] = digits[info->bus & 15];
	at[12] = digits[info->device >> 4 & 15];
	at[13] = digits[info->device & 15];
	memcpy(info->busIdLegacy, at + 4, 13);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info)
{
	ENTER(device, 0);
	const struct gpu *const gpu = GPU_OF(target);
	memset(info->clusterUuid, 0, sizeof info->clusterUuid);
	info->status = gpu->fabric_status;
	info->cliqueId = gpu->fabric_clique;
	info->state = gpu->fabric_state;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfo_v3_t *info)
{
	ENTER(device, 0);
	const struct gpu *const gpu = GPU_OF(target);
	const bool third = info->version == NVML_VERSION(nvmlGpuFabricInfo_v3_t, 3);
	WANT(third || info->version == NVML_VERSION(nvmlGpuFabricInfo_v2_t, 2),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	memset(info->clusterUuid, 0, sizeof info->clusterUuid);
	info->status = gpu->fabric_status;
	info->cliqueId = gpu->fabric_clique;
	info->state = gpu->fabric_state;
	info->healthMask = gpu->fabric_health;
	if (third)
		info->healthSummary = (unsigned char)gpu->fabric_summary;
	return NVML_SUCCESS;
}
