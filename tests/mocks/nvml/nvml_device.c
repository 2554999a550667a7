/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: which devices there are, what they are, their memory and their modes.
 *
 * Rule: an index counts the GPUs that are neither removed nor draining, so it moves when one of
 * them does; a UUID, a bus address and a serial do not.
 *
 * Does not list processes.
 */
#define _GNU_SOURCE
#include "nvml.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

EXPORTED nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
	ENTER_SYSTEM();
	*count = 0;
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++)
		*count += nvml_visible(gpu);
	return NVML_SUCCESS;
}

/* Attach, then give the handle. */
static nvmlReturn_t give(struct target target, nvmlDevice_t *device)
{
	const uint32_t lost = machine_open()->gpu[target.gpu].lost;
	/* R550 and later: nvidia-smi's "Unable to determine the device handle: Unknown Error". */
	WANT(!lost, lost == 1 ? NVML_ERROR_GPU_IS_LOST : NVML_ERROR_UNKNOWN);
	const nvmlReturn_t attached = nvml_attach(target.gpu);
	WANT(attached == NVML_SUCCESS, attached);
	machine_lock();
	const struct nvmlDevice_st *const handle = nvml_handle(target);
	machine_unlock();
	*device = (nvmlDevice_t)(uintptr_t)handle;
	return handle ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
	ENTER_SYSTEM();
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++)
		if (nvml_visible(gpu) && index-- == 0) {
			const int fault = fault_meet(__func__, gpu);
			return fault >= 0 ? fault
					  : give((struct target){ gpu, NONE, NONE }, device);
		}
	return NVML_ERROR_INVALID_ARGUMENT;
}

static void bus_id(const struct gpu *gpu, int digits, char *to, size_t size)
{
	snprintf(to, size, "%0*X:%02X:%02X.0", digits, gpu->pci_domain, gpu->pci_bus,
		gpu->pci_device);
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *address, nvmlDevice_t *device)
{
	ENTER_SYSTEM();
	unsigned domain, bus, slot;
	if (sscanf(address, "%x:%x:%x.", &domain, &bus, &slot) != 3) {
		domain = 0;
		WANT(sscanf(address, "%x:%x.", &bus, &slot) == 2, NVML_ERROR_INVALID_ARGUMENT);
	}
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++) {
		const struct gpu *const it = &machine_open()->gpu[gpu];
		if (nvml_visible(gpu) && it->pci_domain == domain && it->pci_bus == bus &&
			it->pci_device == slot)
			return give((struct target){ gpu, NONE, NONE }, device);
	}
	return NVML_ERROR_NOT_FOUND;
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
	ENTER_SYSTEM();
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++)
		if (nvml_visible(gpu) && strcmp(machine_open()->gpu[gpu].serial, serial) == 0)
			return give((struct target){ gpu, NONE, NONE }, device);
	return NVML_ERROR_NOT_FOUND;
}

static bool find_instance(const char *uuid, struct target *target)
{
	const struct gpu *const gpu = GPU_OF(*target);
	for (uint32_t i = 0; gpu->mig_mode && i < GPU_INSTANCES_MAX; i++)
		for (uint32_t j = 0; gpu->instance[i].used && j < COMPUTE_INSTANCES_MAX; j++) {
			const struct compute_instance *const it = &gpu->instance[i].compute[j];
			if (!it->used || strcasecmp(it->uuid, uuid) != 0)
				continue;
			target->gi = gpu->instance[i].id;
			target->ci = it->id;
			return true;
		}
	return false;
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	ENTER_SYSTEM();
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++) {
		struct target target = { gpu, NONE, NONE };
		if (!nvml_visible(gpu))
			continue;
		if (strcasecmp(machine_open()->gpu[gpu].uuid, uuid) == 0 ||
			find_instance(uuid, &target)) {
			const int fault = fault_meet(__func__, gpu);
			return fault >= 0 ? fault : give(target, device);
		}
	}
	return NVML_ERROR_NOT_FOUND;
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
	WANT(uuid->version == NVML_VERSION(nvmlUUID_t, 1), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	WANT(uuid->type == 1, NVML_ERROR_NOT_SUPPORTED); /* in text */
	return nvmlDeviceGetHandleByUUID(uuid->value.str, device);
}

static nvmlReturn_t text(const char *from, char *to, unsigned length)
{
	WANT(to, NVML_ERROR_INVALID_ARGUMENT);
	WANT(strlen(from) < length, NVML_ERROR_INSUFFICIENT_SIZE);
	memcpy(to, from, strlen(from) + 1);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length)
{
	ENTER(device, MIG);
	if (target.ci == NONE)
		return text(GPU_OF(target)->uuid, uuid, length);
	const struct compute_instance *const compute =
		compute_find(target.gpu, target.gi, target.ci);
	WANT(compute, NVML_ERROR_INVALID_ARGUMENT);
	return text(compute->uuid, uuid, length);
}

EXPORTED nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length)
{
	ENTER(device, MIG);
	const struct gpu *const gpu = GPU_OF(target);
	if (target.ci == NONE)
		return text(gpu->name, name, length);
	const struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	WANT(instance, NVML_ERROR_INVALID_ARGUMENT);
	char full[128];
	snprintf(full, sizeof full, "%s MIG %s", gpu->name, gpu->profile[instance->profile].name);
	return text(full, name, length);
}

EXPORTED nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned length)
{
	ENTER(device, 0);
	return text(GPU_OF(target)->serial, serial, length);
}

EXPORTED nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *version, unsigned length)
{
	ENTER(device, 0);
	return text(GPU_OF(target)->vbios, version, length);
}

EXPORTED nvmlReturn_t nvmlDeviceGetBoardPartNumber(nvmlDevice_t device, char *part, unsigned length)
{
	ENTER(device, 0);
	return text(GPU_OF(target)->part, part, length);
}

EXPORTED nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
	ENTER(device, 0);
	*index = 0;
	for (uint32_t gpu = 0; gpu < target.gpu; gpu++)
		*index += nvml_visible(gpu);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor)
{
	ENTER(device, 0);
	*minor = GPU_OF(target)->minor;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info)
{
	ENTER(device, GONE);
	const struct gpu *const gpu = GPU_OF(target);
	*info = (nvmlPciInfo_t){
		.domain = gpu->pci_domain,
		.bus = gpu->pci_bus,
		.device = gpu->pci_device,
		.pciDeviceId = gpu->pci_device_id,
		.pciSubSystemId = gpu->pci_subsystem_id,
	};
	bus_id(gpu, 8, info->busId, sizeof info->busId);
	bus_id(gpu, 4, info->busIdLegacy, sizeof info->busIdLegacy);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetCudaComputeCapability(
	nvmlDevice_t device, int *major, int *minor)
{
	ENTER(device, MIG);
	*major = (int)GPU_OF(target)->cc_major;
	*minor = (int)GPU_OF(target)->cc_minor;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned *node)
{
	ENTER(device, 0);
	WANT(GPU_OF(target)->memory_node != NONE, NVML_ERROR_NOT_SUPPORTED);
	*node = GPU_OF(target)->memory_node;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	ENTER(device, MIG | LOCKED);
	memory->total = memory_total_bytes(target);
	memory->free = memory_free_bytes(target);
	memory->used = memory->total - memory->free; /* with the reserved, as this version does */
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	WANT(memory->version == NVML_VERSION(nvmlMemory_v2_t, 2),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	ENTER(device, MIG | LOCKED);
	memory->total = memory_total_bytes(target);
	memory->free = memory_free_bytes(target);
	memory->used = memory_used_bytes(target);
	memory->reserved = memory->total - memory->free - memory->used;
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
	ENTER(device, MIG);
	memory->bar1Total = GPU_OF(target)->bar1_mib << 20;
	memory->bar1Used = UINT64_C(1) << 20;
	memory->bar1Free = memory->bar1Total - memory->bar1Used;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, int *mode)
{
	ENTER(device, MIG | LOCKED);
	const struct compute_instance *const compute =
		target.ci == NONE ? NULL : compute_find(target.gpu, target.gi, target.ci);
	*mode = (int)(compute ? compute->compute_mode : GPU_OF(target)->compute_mode);
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, int mode)
{
	WANT(mode >= 0 && mode <= 3, NVML_ERROR_INVALID_ARGUMENT);
	WANT(mode != NVML_COMPUTEMODE_EXCLUSIVE_THREAD, NVML_ERROR_NOT_SUPPORTED);
	ENTER(device, MIG | LOCKED);
	WANT(nvml_is_root(), nvml_leave(NVML_ERROR_NO_PERMISSION));
	WANT(target.ci != NONE || !GPU_OF(target)->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	struct compute_instance *const compute =
		target.ci == NONE ? NULL : compute_find(target.gpu, target.gi, target.ci);
	if (compute)
		compute->compute_mode = (uint32_t)mode;
	else
		GPU_OF(target)->compute_mode = (uint32_t)mode;
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned *mode)
{
	ENTER(device, 0);
	*mode = GPU_OF(target)->persistence;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned mode)
{
	WANT(mode <= 1, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	WANT(nvml_is_root(), NVML_ERROR_NO_PERMISSION);
	GPU_OF(target)->persistence = mode;
	return NVML_SUCCESS;
}
