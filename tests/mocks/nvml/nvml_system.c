/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: the beginning and the end, handles, versions, errors.
 *
 * Rule: as the real library (seen with R580), it opens nvidiactl and every GPU's node at the start
 * (attaches), and keeps them until the last shutdown: whoever monitors is seen to hold the GPUs.
 * Asked not to attach it opens none of them, and knows of no GPU. It does not survive a fork.
 */
#define _GNU_SOURCE
#include "nvml.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HANDLES_MAX 512u

static pthread_mutex_t here = PTHREAD_MUTEX_INITIALIZER;
static unsigned initialised;
static pid_t initialised_by;
static bool unattached;
static int ctl = -1;
static int attached[GPUS_MAX] = { -1, -1, -1, -1, -1, -1, -1, -1 };
static struct nvmlDevice_st handles[HANDLES_MAX];
static unsigned handle_count;

static nvmlReturn_t refusal(int error)
{
	switch (error) {
	case -EACCES: return NVML_ERROR_NO_PERMISSION;
	case -ENOENT:
	case -ENXIO: return NVML_ERROR_DRIVER_NOT_LOADED;
	default: return NVML_ERROR_UNKNOWN; /* EPERM: what a device filter says */
	}
}

static nvmlReturn_t begin(const char *call, bool attaches)
{
	if (!machine_open())
		return NVML_ERROR_DRIVER_NOT_LOADED;
	const int fault = fault_meet(call, NONE);
	if (fault >= 0)
		return fault;
	pthread_mutex_lock(&here);
	nvmlReturn_t result = NVML_SUCCESS;
	if (!machine_open()->loaded)
		result = NVML_ERROR_DRIVER_NOT_LOADED;
	else if (!initialised && (ctl = node_open("nvidiactl", O_RDWR)) < 0)
		result = refusal(ctl);
	const bool first = result == NVML_SUCCESS && !initialised++;
	if (first) {
		initialised_by = getpid();
		unattached = !attaches;
	}
	pthread_mutex_unlock(&here);
	/* One that cannot be attached says so when it is asked for. */
	for (uint32_t gpu = 0; first && attaches && gpu < GPUS_MAX; gpu++)
		if (nvml_visible(gpu))
			nvml_attach(gpu);
	return result;
}

bool nvml_visible(uint32_t gpu)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	return !unattached && it->present && !it->removed && !it->draining;
}

EXPORTED nvmlReturn_t nvmlInit_v2(void)
{
	return begin(__func__, true);
}

EXPORTED nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
	WANT(!(flags & ~7u), NVML_ERROR_INVALID_ARGUMENT);
	return begin(__func__, !(flags & 2u));
}

EXPORTED nvmlReturn_t nvmlShutdown(void)
{
	pthread_mutex_lock(&here);
	const bool was = initialised > 0;
	if (was && --initialised == 0) {
		close(ctl);
		ctl = -1;
		for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++) {
			if (attached[gpu] >= 0)
				close(attached[gpu]);
			attached[gpu] = -1;
		}
	}
	pthread_mutex_unlock(&here);
	return was ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

/* A GPU that nobody has is initialised anew, unless its state is kept. */
static void initialise(uint32_t gpu)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	if (it->attach_ms && !it->persistence && !byte_locked(attached[gpu], 0))
		usleep(it->attach_ms * 1000);
}

nvmlReturn_t nvml_attach(uint32_t gpu)
{
	pthread_mutex_lock(&here);
	nvmlReturn_t result = NVML_SUCCESS;
	if (attached[gpu] < 0) {
		attached[gpu] = gpu_open(gpu);
		if (attached[gpu] == -EPERM || attached[gpu] == -EACCES)
			result = NVML_ERROR_NO_PERMISSION;
		else if (attached[gpu] < 0)
			result = NVML_ERROR_GPU_IS_LOST;
		else {
			initialise(gpu);
			lock_byte(attached[gpu], 0, true); /* `nvml_drain.c` asks for it */
		}
	}
	pthread_mutex_unlock(&here);
	return result;
}

nvmlReturn_t nvml_enter_system(const char *call)
{
	WANT(initialised && initialised_by == getpid(), NVML_ERROR_UNINITIALIZED);
	const int fault = fault_meet(call, NONE);
	WANT(fault < 0, fault);
	return machine_open()->loaded ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
}

/* The instance that a handle names may have been destroyed since, and another made in its place. */
static bool still_there(const struct nvmlDevice_st *handle)
{
	const struct target *const target = &handle->target;
	const struct gpu *const gpu = &machine_open()->gpu[target->gpu];
	if (handle->generation != machine_open()->generation || !gpu->present || gpu->removed)
		return false;
	if (target->gi == NONE)
		return true;
	const struct gpu_instance *const instance = instance_find(target->gpu, target->gi);
	if (!instance)
		return false;
	if (target->ci == NONE)
		return instance->serial == handle->serial;
	const struct compute_instance *const compute =
		compute_find(target->gpu, target->gi, target->ci);
	return compute && compute->serial == handle->serial;
}

nvmlReturn_t nvml_enter(const char *call, const void *handle, unsigned flags, struct target *target)
{
	WANT(initialised && initialised_by == getpid(), NVML_ERROR_UNINITIALIZED);
	const struct nvmlDevice_st *const device = handle;
	WANT(device >= handles && device < handles + handle_count, NVML_ERROR_INVALID_ARGUMENT);
	*target = device->target;
	const int fault = fault_meet(call, target->gpu);
	WANT(fault < 0, fault);
	WANT(machine_open()->loaded, NVML_ERROR_DRIVER_NOT_LOADED);
	machine_lock();
	nvmlReturn_t result = NVML_SUCCESS;
	if (!still_there(device))
		result = NVML_ERROR_INVALID_ARGUMENT;
	else if (machine_open()->gpu[target->gpu].lost && !(flags & GONE))
		result = NVML_ERROR_GPU_IS_LOST;
	else if (target->ci != NONE && !(flags & MIG))
		result = NVML_ERROR_INVALID_ARGUMENT;
	if (result == NVML_SUCCESS && flags & LOCKED) {
		machine_sweep(target->gpu, attached[target->gpu], ctl);
		return result;
	}
	machine_unlock();
	return result;
}

nvmlReturn_t nvml_leave(nvmlReturn_t result)
{
	machine_unlock();
	return result;
}

static uint64_t serial_of(struct target target)
{
	if (target.gi == NONE)
		return 0;
	if (target.ci == NONE) {
		const struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
		return instance ? instance->serial : 0;
	}
	const struct compute_instance *const compute =
		compute_find(target.gpu, target.gi, target.ci);
	return compute ? compute->serial : 0;
}

/* The same device gives the same handle, for as long as it is the same device. */
const struct nvmlDevice_st *nvml_handle(struct target target)
{
	const struct nvmlDevice_st wanted = {
		.target = target,
		.generation = machine_open()->generation,
		.serial = serial_of(target),
	};
	pthread_mutex_lock(&here);
	const struct nvmlDevice_st *found = NULL;
	for (unsigned i = 0; i < handle_count && !found; i++)
		if (memcmp(&handles[i].target, &target, sizeof target) == 0 &&
			handles[i].generation == wanted.generation &&
			handles[i].serial == wanted.serial)
			found = &handles[i];
	if (!found && handle_count < HANDLES_MAX) {
		handles[handle_count] = wanted;
		found = &handles[handle_count++];
	}
	pthread_mutex_unlock(&here);
	return found;
}

bool nvml_is_root(void)
{
	return geteuid() == 0;
}

static nvmlReturn_t copy_text(const char *text, char *to, unsigned length)
{
	WANT(to, NVML_ERROR_INVALID_ARGUMENT);
	WANT(strlen(text) < length, NVML_ERROR_INSUFFICIENT_SIZE);
	memcpy(to, text, strlen(text) + 1);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
	ENTER_SYSTEM();
	return copy_text(machine_open()->driver, version, length);
}

EXPORTED nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
	ENTER_SYSTEM();
	return copy_text(machine_open()->nvml, version, length);
}

EXPORTED nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	ENTER_SYSTEM();
	*version = (int)machine_open()->cuda;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
	return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORTED nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
	ENTER_SYSTEM();
	char path[64], text[256];
	snprintf(path, sizeof path, "/proc/%u/comm", pid);
	FILE *const file = fopen(path, "re");
	WANT(file, NVML_ERROR_NOT_FOUND);
	const char *const line = fgets(text, sizeof text, file);
	fclose(file);
	WANT(line, NVML_ERROR_NOT_FOUND);
	text[strcspn(text, "\n")] = '\0';
	return copy_text(text, name, length);
}

EXPORTED const char *nvmlErrorString(nvmlReturn_t result)
{
	static const struct {
		nvmlReturn_t result;
		const char *text;
	} table[] = {
		{ NVML_SUCCESS, "The operation was successful" },
		{ NVML_ERROR_UNINITIALIZED, "Uninitialized" },
		{ NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument" },
		{ NVML_ERROR_NOT_SUPPORTED, "Not Supported" },
		{ NVML_ERROR_NO_PERMISSION, "Insufficient Permissions" },
		{ NVML_ERROR_NOT_FOUND, "Not Found" },
		{ NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size" },
		{ NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded" },
		{ NVML_ERROR_TIMEOUT, "Timeout" },
		{ NVML_ERROR_GPU_IS_LOST, "GPU is lost" },
		{ NVML_ERROR_RESET_REQUIRED, "GPU requires reset" },
		{ NVML_ERROR_IN_USE, "In use by another client" },
		{ NVML_ERROR_MEMORY, "Insufficient Memory" },
		{ NVML_ERROR_NO_DATA, "No data" },
		{ NVML_ERROR_INSUFFICIENT_RESOURCES, "Insufficient Resources" },
		{ NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument version mismatch" },
		{ NVML_ERROR_NOT_READY, "Not Ready" },
		{ NVML_ERROR_GPU_NOT_FOUND, "GPU not found" },
		{ NVML_ERROR_INVALID_STATE, "Invalid state" },
	};
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].result == result)
			return table[i].text;
	return "Unknown Error";
}
