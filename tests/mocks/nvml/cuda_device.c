/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA: which devices this process can reach, and what they are.
 *
 * Rule: nothing is reached but by opening its node: without nvidiactl there is no device, without
 * nvidia-uvm nothing works, and a GPU whose node is refused is not there. A MIG device wants the
 * two capability nodes as well, or CAP_SYS_ADMIN, which the driver takes for every capability; only
 * one is enumerated, as CUDA does.
 *
 * Does not make contexts.
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

pthread_mutex_t process_lock = PTHREAD_MUTEX_INITIALIZER;
static struct cuda_device devices[DEVICES_MAX];
static int device_count;
static int initialised_in;

struct cuda_device *cuda_device(int device)
{
	return device >= 0 && device < device_count ? &devices[device] : NULL;
}

CUresult cuda_leave(CUresult result)
{
	machine_unlock();
	pthread_mutex_unlock(&process_lock);
	return result;
}

CUresult cuda_enter(const char *call, int device)
{
	if (initialised_in != getpid())
		return CUDA_ERROR_NOT_INITIALIZED;
	const struct cuda_device *const it = cuda_device(device);
	const int fault = fault_meet(call, it ? it->target.gpu : NONE);
	if (fault >= 0)
		return fault ? fault : CUDA_LIE;
	pthread_mutex_lock(&process_lock);
	machine_lock();
	return CUDA_SUCCESS;
}

/* Ask through a description of its own: our client's would not see its own lock. */
void cuda_sweep(const struct cuda_device *device)
{
	const int gpu = gpu_open(device->target.gpu), ctl = node_open("nvidiactl", O_RDWR);
	if (gpu >= 0 && ctl >= 0)
		machine_sweep(device->target.gpu, gpu, ctl);
	if (gpu >= 0)
		close(gpu);
	if (ctl >= 0)
		close(ctl);
}

CUresult cuda_healthy(const struct cuda_device *device)
{
	const struct gpu *const gpu = &machine_open()->gpu[device->target.gpu];
	if (!machine_open()->loaded || gpu->lost || gpu->removed)
		return CUDA_ERROR_UNKNOWN;
	return CUDA_SUCCESS;
}

static void device_add(struct target target, int fd)
{
	if (device_count < DEVICES_MAX)
		devices[device_count++] = (struct cuda_device){ .target = target, .fd = fd };
}

static bool capable(struct target target)
{
	if (may_administer())
		return true;
	const int gi = cap_open(target.gpu, target.gi, NONE);
	const int ci = cap_open(target.gpu, target.gi, target.ci);
	return gi >= 0 && ci >= 0; /* both stay open, as the driver wants them */
}

static bool any_mig(void)
{
	return device_count && devices[0].target.ci != NONE;
}

static void add_instances(uint32_t gpu, const char *uuid, int fd)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		for (uint32_t j = 0; it->instance[i].used && j < COMPUTE_INSTANCES_MAX; j++) {
			const struct compute_instance *const compute = &it->instance[i].compute[j];
			const struct target target = { gpu, it->instance[i].id, j };
			if (compute->used && !any_mig() &&
				(!uuid || strncasecmp(compute->uuid, uuid, strlen(uuid)) == 0) &&
				capable(target))
				device_add(target, fd);
		}
}

/* One GPU, or what of it `uuid` (the beginning of one, or NULL) means. */
static void add_gpu(uint32_t gpu, const char *uuid)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	if (!it->present || it->removed || it->draining || it->lost || any_mig())
		return;
	const bool mig = uuid && strncasecmp(uuid, "MIG-", 4) == 0;
	if (uuid && !mig && strncasecmp(it->uuid, uuid, strlen(uuid)) != 0)
		return;
	if (mig && !it->mig_mode)
		return;
	const int fd = gpu_open(gpu);
	if (fd < 0)
		return;
	const int before = device_count;
	if (it->mig_mode)
		add_instances(gpu, mig ? uuid : NULL, fd);
	else
		device_add((struct target){ gpu, NONE, NONE }, fd);
	if (device_count == before)
		close(fd);
}

static uint32_t gpu_at(unsigned index)
{
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++)
		if (machine_open()->gpu[gpu].present && !machine_open()->gpu[gpu].removed &&
			!index--)
			return gpu;
	return NONE;
}

/* CUDA_VISIBLE_DEVICES: numbers or UUIDs; what is wrong ends the list. */
static void enumerate(void)
{
	const char *const visible = getenv("CUDA_VISIBLE_DEVICES");
	if (!visible) {
		for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++)
			add_gpu(gpu, NULL);
		return;
	}
	char copy[1024], *rest = NULL;
	snprintf(copy, sizeof copy, "%s", visible);
	for (char *at = strtok_r(copy, ", ", &rest); at; at = strtok_r(NULL, ", ", &rest)) {
		char *end;
		const unsigned long index = strtoul(at, &end, 10);
		const uint32_t gpu = *end ? NONE : gpu_at((unsigned)index);
		const int before = device_count;
		if (gpu != NONE)
			add_gpu(gpu, NULL);
		else
			for (uint32_t each = 0; *end && each < GPUS_MAX; each++)
				add_gpu(each, at);
		if (device_count == before)
			return;
	}
}

/* Nothing starts on a GPU of a switch's before it has joined the fabric, but a part of it does. */
static bool waits_for_fabric(void)
{
	for (int i = 0; i < device_count; i++) {
		const struct gpu *const it = &machine_open()->gpu[devices[i].target.gpu];
		if (devices[i].target.ci == NONE && it->fabric_state % 3 != 0)
			return true;
	}
	return false;
}

EXPORTED CUresult cuInit(unsigned flags)
{
	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (initialised_in == getpid())
		return CUDA_SUCCESS;
	if (!machine_open())
		return CUDA_ERROR_NO_DEVICE;
	const int fault = fault_meet(__func__, NONE);
	if (fault >= 0)
		return fault;
	if (!machine_open()->loaded || node_open("nvidiactl", O_RDWR) < 0)
		return CUDA_ERROR_NO_DEVICE;
	if (node_open("nvidia-uvm", O_RDWR) < 0)
		return CUDA_ERROR_UNKNOWN;
	pthread_mutex_lock(&process_lock);
	machine_lock();
	device_count = 0;
	enumerate();
	if (waits_for_fabric())
		return cuda_leave(CUDA_ERROR_SYSTEM_NOT_READY);
	if (device_count)
		initialised_in = getpid();
	return cuda_leave(device_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
}

EXPORTED CUresult cuDriverGetVersion(int *version)
{
	if (!machine_open())
		return CUDA_ERROR_INVALID_VALUE;
	*version = (int)machine_open()->cuda;
	return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetCount(int *count)
{
	CUDA_ENTER(-1);
	*count = device_count;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	CUDA_ENTER(ordinal);
	REFUSE_UNLESS(cuda_device(ordinal), CUDA_ERROR_INVALID_DEVICE);
	*device = ordinal;
	return cuda_leave(CUDA_SUCCESS);
}

static const struct gpu *gpu_of(int device)
{
	return &machine_open()->gpu[cuda_device(device)->target.gpu];
}

EXPORTED CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
	CUDA_ENTER(device);
	REFUSE_UNLESS(cuda_device(device), CUDA_ERROR_INVALID_DEVICE);
	snprintf(name, (size_t)length, "%s", gpu_of(device)->name);
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	CUDA_ENTER(device);
	const struct cuda_device *const it = cuda_device(device);
	REFUSE_UNLESS(it, CUDA_ERROR_INVALID_DEVICE);
	const char *text = gpu_of(device)->uuid;
	if (it->target.ci != NONE)
		text = compute_find(it->target.gpu, it->target.gi, it->target.ci)->uuid;
	text += 4; /* GPU- or MIG- */
	for (int i = 0; i < 16; i++) {
		unsigned byte = 0;
		text += *text == '-';
		sscanf(text, "%2x", &byte);
		uuid->bytes[i] = (unsigned char)byte;
		text += 2;
	}
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
	return cuDeviceGetUuid_v2(uuid, device);
}

EXPORTED CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *address)
{
	CUDA_ENTER(-1);
	unsigned domain, bus, slot;
	REFUSE_UNLESS(
		sscanf(address, "%x:%x:%x.", &domain, &bus, &slot) == 3, CUDA_ERROR_INVALID_VALUE);
	for (int i = 0; i < device_count; i++) {
		const struct gpu *const gpu = gpu_of(i);
		if (gpu->pci_domain != domain || gpu->pci_bus != bus || gpu->pci_device != slot)
			continue;
		*device = i;
		return cuda_leave(CUDA_SUCCESS);
	}
	return cuda_leave(CUDA_ERROR_INVALID_DEVICE);
}

EXPORTED CUresult cuDeviceGetPCIBusId(char *address, int length, CUdevice device)
{
	CUDA_ENTER(device);
	REFUSE_UNLESS(cuda_device(device), CUDA_ERROR_INVALID_DEVICE);
	const struct gpu *const gpu = gpu_of(device);
	snprintf(address, (size_t)length, "%04X:%02X:%02X.0", gpu->pci_domain, gpu->pci_bus,
		gpu->pci_device);
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	CUDA_ENTER(device);
	REFUSE_UNLESS(cuda_device(device), CUDA_ERROR_INVALID_DEVICE);
	const struct target target = cuda_device(device)->target;
	*bytes = memory_free_bytes(target) + memory_used_bytes(target); /* not what is reserved */
	return cuda_leave(CUDA_SUCCESS);
}

static uint32_t multiprocessors(const struct cuda_device *device)
{
	const struct gpu *const gpu = &machine_open()->gpu[device->target.gpu];
	if (device->target.ci == NONE)
		return gpu->sms;
	const struct gpu_instance *const instance =
		instance_find(device->target.gpu, device->target.gi);
	const struct compute_instance *const compute =
		compute_find(device->target.gpu, device->target.gi, device->target.ci);
	const struct mig_profile *const profile = &gpu->profile[instance->profile];
	return profile->sms / profile->slices * compute->slices;
}

EXPORTED CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
	CUDA_ENTER(device);
	REFUSE_UNLESS(cuda_device(device), CUDA_ERROR_INVALID_DEVICE);
	const struct gpu *const gpu = gpu_of(device);
	const struct {
		int attribute;
		uint32_t value;
	} table[] = {
		{ 1, 1024 }, /* threads a block */
		{ 10, 32 },  /* warp */
		{ 16, multiprocessors(cuda_device(device)) }, { 20, gpu->compute_mode },
		{ 33, gpu->pci_bus }, { 34, gpu->pci_device }, { 35, 0 }, /* not TCC */
		{ 41, 1 },                                                /* unified addressing */
		{ 50, gpu->pci_domain }, { 75, gpu->cc_major }, { 76, gpu->cc_minor },
		{ 102, 1 }, /* memory by handles */
		{ 103, 1 }, /* and by descriptors */
	};
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].attribute == attribute) {
			*value = (int)table[i].value;
			return cuda_leave(CUDA_SUCCESS);
		}
	return cuda_leave(CUDA_ERROR_INVALID_VALUE);
}

#define NAME(error)                                                                                \
	{                                                                                          \
		error, #error                                                                      \
	}
static const struct {
	CUresult result;
	const char *name;
} names[] = {
	NAME(CUDA_SUCCESS),
	NAME(CUDA_ERROR_INVALID_VALUE),
	NAME(CUDA_ERROR_OUT_OF_MEMORY),
	NAME(CUDA_ERROR_NOT_INITIALIZED),
	NAME(CUDA_ERROR_DEVICE_UNAVAILABLE),
	NAME(CUDA_ERROR_NO_DEVICE),
	NAME(CUDA_ERROR_INVALID_DEVICE),
	NAME(CUDA_ERROR_INVALID_IMAGE),
	NAME(CUDA_ERROR_INVALID_CONTEXT),
	NAME(CUDA_ERROR_INVALID_PTX),
	NAME(CUDA_ERROR_OPERATING_SYSTEM),
	NAME(CUDA_ERROR_INVALID_HANDLE),
	NAME(CUDA_ERROR_NOT_FOUND),
	NAME(CUDA_ERROR_NOT_READY),
	NAME(CUDA_ERROR_ILLEGAL_ADDRESS),
	NAME(CUDA_ERROR_LAUNCH_FAILED),
	NAME(CUDA_ERROR_NOT_PERMITTED),
	NAME(CUDA_ERROR_NOT_SUPPORTED),
	NAME(CUDA_ERROR_UNKNOWN),
};

EXPORTED CUresult cuGetErrorName(CUresult result, const char **name)
{
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		if (names[i].result == result) {
			*name = names[i].name;
			return CUDA_SUCCESS;
		}
	*name = NULL;
	return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuGetErrorString(CUresult result, const char **text)
{
	return cuGetErrorName(result, text);
}
