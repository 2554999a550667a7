/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: draining, removing and discovering a GPU.
 *
 * Rule: draining hides the GPU from who asks next and refuses contexts; removing wants it drained
 * and unattached, and makes every handle in every process invalid; so does discovering.
 */
#include "nvml.h"

#include <unistd.h>

static bool find(const nvmlPciInfo_t *info, uint32_t *found)
{
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++) {
		const struct gpu *const it = &machine_open()->gpu[gpu];
		if (it->present && it->pci_domain == info->domain && it->pci_bus == info->bus &&
			it->pci_device == info->device) {
			*found = gpu;
			return true;
		}
	}
	return false;
}

EXPORTED nvmlReturn_t nvmlDeviceModifyDrainState(nvmlPciInfo_t *info, unsigned state)
{
	ENTER_SYSTEM();
	uint32_t gpu;
	WANT(state <= 1, NVML_ERROR_INVALID_ARGUMENT);
	WANT(nvml_is_root(), NVML_ERROR_NO_PERMISSION);
	WANT(find(info, &gpu), NVML_ERROR_INVALID_ARGUMENT);
	WANT(!machine_open()->gpu[gpu].persistence || !state, NVML_ERROR_IN_USE);
	machine_open()->gpu[gpu].draining = state;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceQueryDrainState(nvmlPciInfo_t *info, unsigned *state)
{
	ENTER_SYSTEM();
	uint32_t gpu;
	WANT(find(info, &gpu), NVML_ERROR_INVALID_ARGUMENT);
	*state = machine_open()->gpu[gpu].draining;
	return NVML_SUCCESS;
}

/* Anybody with the node open, this process too, is an attachment: a write lock finds them all. */
static bool attached(uint32_t gpu)
{
	const int fd = gpu_open(gpu);
	if (fd < 0)
		return false;
	bool found = byte_locked(fd, 0);
	for (uint32_t i = 0; i < CLIENTS_MAX && !found; i++)
		found = machine_open()->client[i].kind != CLIENT_NONE &&
			machine_open()->client[i].gpu == gpu;
	close(fd);
	return found;
}

EXPORTED nvmlReturn_t nvmlDeviceRemoveGpu_v2(nvmlPciInfo_t *info, unsigned state, unsigned links)
{
	ENTER_SYSTEM();
	uint32_t gpu;
	WANT(state <= 1 && links <= 1, NVML_ERROR_INVALID_ARGUMENT);
	WANT(nvml_is_root(), NVML_ERROR_NO_PERMISSION);
	WANT(find(info, &gpu), NVML_ERROR_INVALID_ARGUMENT);
	WANT(machine_open()->gpu[gpu].draining, NVML_ERROR_INVALID_STATE);
	machine_lock();
	nvmlReturn_t result = NVML_ERROR_IN_USE;
	if (!attached(gpu)) {
		machine_open()->gpu[gpu].removed = 1;
		machine_open()->gpu[gpu].compute_mode = 0;
		machine_open()->generation++;
		result = NVML_SUCCESS;
	}
	machine_unlock();
	return result;
}

EXPORTED nvmlReturn_t nvmlDeviceRemoveGpu(nvmlPciInfo_t *info)
{
	return nvmlDeviceRemoveGpu_v2(info, 1, 0);
}

EXPORTED nvmlReturn_t nvmlDeviceDiscoverGpus(nvmlPciInfo_t *info)
{
	ENTER_SYSTEM();
	uint32_t gpu;
	WANT(nvml_is_root(), NVML_ERROR_NO_PERMISSION);
	WANT(find(info, &gpu), NVML_ERROR_INVALID_ARGUMENT);
	machine_lock();
	machine_open()->gpu[gpu].removed = machine_open()->gpu[gpu].draining = 0;
	machine_open()->generation++;
	machine_unlock();
	return NVML_SUCCESS;
}
