/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: who uses a device: the three lists, utilization, accounting.
 *
 * Rule: one entry a process and instance, with the pid that made the context. Without memory to
 * write to, or with too little, the answer is how much is needed.
 *
 * Does not list who merely opened the node: the real one does not either.
 */
#define _GNU_SOURCE
#include "nvml.h"

#include <string.h>
#include <time.h>

static bool meant(const struct client *client, struct target target)
{
	return client->kind != CLIENT_NONE && client->gpu == target.gpu &&
	       (target.ci == NONE || (client->gi == target.gi && client->ci == target.ci));
}

static nvmlReturn_t list(struct target target, uint32_t kind, unsigned *count,
	nvmlProcessDetail_v1_t *to, unsigned room)
{
	struct machine *const machine = machine_open();
	unsigned found = 0;
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		const struct client *const client = &machine->client[i];
		if (!meant(client, target) || (kind != CLIENT_NONE && client->kind != kind))
			continue;
		if (found < room)
			to[found] = (nvmlProcessDetail_v1_t){
				.pid = client->pid,
				.usedGpuMemory = client_bytes(client),
				.gpuInstanceId = client->gi,
				.computeInstanceId = client->ci,
			};
		found++;
	}
	*count = found;
	return found <= room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static nvmlReturn_t list_v3(
	struct target target, uint32_t kind, unsigned *count, nvmlProcessInfo_v3_t *to)
{
	static nvmlProcessDetail_v1_t details[CLIENTS_MAX]; /* the machine is locked */
	const unsigned room = to ? *count : 0;
	const nvmlReturn_t result =
		list(target, kind, count, details, room < CLIENTS_MAX ? room : CLIENTS_MAX);
	for (unsigned i = 0; result == NVML_SUCCESS && i < *count; i++)
		to[i] = (nvmlProcessInfo_v3_t){
			.pid = details[i].pid,
			.usedGpuMemory = details[i].usedGpuMemory,
			.gpuInstanceId = details[i].gpuInstanceId,
			.computeInstanceId = details[i].computeInstanceId,
		};
	return result;
}

EXPORTED nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(
	nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v3_t *infos)
{
	ENTER(device, MIG | LOCKED);
	return nvml_leave(list_v3(target, CLIENT_COMPUTE, count, infos));
}

EXPORTED nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(
	nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v3_t *infos)
{
	ENTER(device, MIG | LOCKED);
	return nvml_leave(list_v3(target, CLIENT_GRAPHICS, count, infos));
}

EXPORTED nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(
	nvmlDevice_t device, unsigned *count, nvmlProcessInfo_v3_t *infos)
{
	ENTER(device, MIG | LOCKED);
	return nvml_leave(list_v3(target, CLIENT_MPS, count, infos));
}

EXPORTED nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(
	nvmlDevice_t device, nvmlProcessDetailList_v1_t *details)
{
	static const uint32_t kinds[] = { CLIENT_COMPUTE, CLIENT_GRAPHICS, CLIENT_MPS,
		CLIENT_NONE };
	WANT(details->version == NVML_VERSION(nvmlProcessDetailList_v1_t, 1),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	WANT(details->mode < 4, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, MIG | LOCKED);
	const unsigned room = details->procArray ? details->numProcArrayEntries : 0;
	return nvml_leave(list(target, kinds[details->mode], &details->numProcArrayEntries,
		details->procArray, room));
}

static bool busy(struct target target)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (meant(&machine->client[i], target) && machine->client[i].running)
			return true;
	return false;
}

EXPORTED nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
	ENTER(device, LOCKED);
	const struct gpu *const gpu = GPU_OF(target);
	WANT(!gpu->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	rates->gpu = busy(target) || gpu->latched ? 100 : gpu->utilization;
	rates->memory = gpu->utilization_memory;
	return nvml_leave(NVML_SUCCESS);
}

static uint64_t wall_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* One sample a process that has run anything. */
static unsigned samples(struct target target, nvmlProcessUtilizationInfo_v1_t *to, unsigned room)
{
	struct machine *const machine = machine_open();
	unsigned found = 0;
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		const struct client *const client = &machine->client[i];
		if (!meant(client, target) || !(client->running || client->busy_ns))
			continue;
		if (found < room)
			to[found] = (nvmlProcessUtilizationInfo_v1_t){
				.timeStamp = wall_us(),
				.pid = client->pid,
				.smUtil = client->running ? 100 : 0,
			};
		found++;
	}
	return found;
}

EXPORTED nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(
	nvmlDevice_t device, nvmlProcessesUtilizationInfo_v1_t *info)
{
	WANT(info->version == NVML_VERSION(nvmlProcessesUtilizationInfo_v1_t, 1),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	ENTER(device, LOCKED);
	WANT(!GPU_OF(target)->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	const unsigned room = info->procUtilArray ? info->processSamplesCount : 0;
	info->processSamplesCount = samples(target, info->procUtilArray, room);
	WANT(info->processSamplesCount, nvml_leave(NVML_ERROR_NOT_FOUND));
	return nvml_leave(
		info->processSamplesCount <= room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE);
}

EXPORTED nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
	nvmlProcessUtilizationSample_t *to, unsigned *count, unsigned long long since_us)
{
	(void)since_us; /* every sample is of now */
	ENTER(device, LOCKED);
	WANT(!GPU_OF(target)->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	static nvmlProcessUtilizationInfo_v1_t infos[CLIENTS_MAX]; /* the machine is locked */
	const unsigned room = to ? *count : 0;
	*count = samples(target, infos, CLIENTS_MAX);
	WANT(*count, nvml_leave(NVML_ERROR_NOT_FOUND));
	WANT(*count <= room, nvml_leave(NVML_ERROR_INSUFFICIENT_SIZE));
	for (unsigned i = 0; i < *count; i++)
		to[i] = (nvmlProcessUtilizationSample_t){
			.pid = infos[i].pid,
			.timeStamp = infos[i].timeStamp,
			.smUtil = infos[i].smUtil,
		};
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetAccountingMode(nvmlDevice_t device, unsigned *mode)
{
	ENTER(device, 0);
	*mode = GPU_OF(target)->accounting && !GPU_OF(target)->mig_mode;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceSetAccountingMode(nvmlDevice_t device, unsigned mode)
{
	WANT(mode <= 1, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, 0);
	WANT(nvml_is_root(), NVML_ERROR_NO_PERMISSION);
	WANT(!GPU_OF(target)->mig_mode, NVML_ERROR_NOT_SUPPORTED);
	GPU_OF(target)->accounting = mode;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetAccountingBufferSize(nvmlDevice_t device, unsigned *size)
{
	ENTER(device, 0);
	*size = ACCOUNTS_MAX;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetAccountingPids(
	nvmlDevice_t device, unsigned *count, unsigned *pids)
{
	ENTER(device, LOCKED);
	const struct gpu *const gpu = GPU_OF(target);
	unsigned found = 0;
	for (uint32_t i = 0; i < ACCOUNTS_MAX; i++)
		if (gpu->account[i].used) {
			if (pids && found < *count)
				pids[found] = gpu->account[i].pid;
			found++;
		}
	const bool enough = pids && found <= *count;
	*count = found;
	return nvml_leave(enough || !found ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE);
}

EXPORTED nvmlReturn_t nvmlDeviceGetAccountingStats(
	nvmlDevice_t device, unsigned pid, nvmlAccountingStats_t *stats)
{
	ENTER(device, LOCKED);
	const struct gpu *const gpu = GPU_OF(target);
	WANT(!gpu->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	for (uint32_t i = 0; i < ACCOUNTS_MAX; i++) {
		const struct account *const account = &gpu->account[i];
		if (!account->used || account->pid != pid)
			continue;
		const uint64_t now = now_ns();
		const uint64_t lasted =
			account->running ? 0 : account->ended_ns - account->began_ns;
		*stats = (nvmlAccountingStats_t){
			.maxMemoryUsage = account->memory_most,
			.time = lasted / 1000000, /* 0 while it runs, as documented */
			.startTime = wall_us() - (now - account->began_ns) / 1000,
			.isRunning = account->running,
		};
		return nvml_leave(NVML_SUCCESS);
	}
	return nvml_leave(NVML_ERROR_NOT_FOUND);
}

EXPORTED nvmlReturn_t nvmlDeviceClearAccountingPids(nvmlDevice_t device)
{
	ENTER(device, LOCKED);
	WANT(nvml_is_root(), nvml_leave(NVML_ERROR_NO_PERMISSION));
	for (uint32_t i = 0; i < ACCOUNTS_MAX; i++)
		if (!GPU_OF(target)->account[i].running)
			GPU_OF(target)->account[i].used = 0;
	return nvml_leave(NVML_SUCCESS);
}
