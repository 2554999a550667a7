/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: MIG mode, GPU instances, compute instances and the devices that they make.
 *
 * Rule: what a profile is called by (an enum in NVML's own order) and what an instance is made by
 * (the profile's id on this GPU) are two numbers, as in the real library. Destroying what is still
 * used is IN_USE.
 *
 * Does not reset the GPU when the mode changes: without clients there is nothing to lose.
 */
#include "nvml.h"

#include <stdio.h>
#include <string.h>

/* Slices by NVML's order of profiles, for compute instances. */
static const uint32_t compute_slices[] = { 1, 2, 3, 4, 7, 8, 6, 1 };
#define COMPUTE_PROFILES (sizeof compute_slices / sizeof compute_slices[0])

EXPORTED nvmlReturn_t nvmlDeviceGetMigMode(
	nvmlDevice_t device, unsigned *current, unsigned *pending)
{
	ENTER(device, MIG);
	WANT(GPU_OF(target)->mig_capable, NVML_ERROR_NOT_SUPPORTED);
	*current = GPU_OF(target)->mig_mode;
	*pending = GPU_OF(target)->mig_pending;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceSetMigMode(
	nvmlDevice_t device, unsigned mode, nvmlReturn_t *activation)
{
	WANT(mode <= 1, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(device, LOCKED);
	struct gpu *const gpu = GPU_OF(target);
	WANT(gpu->mig_capable, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	WANT(nvml_is_root(), nvml_leave(NVML_ERROR_NO_PERMISSION));
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		WANT(!gpu->instance[i].used, nvml_leave(NVML_ERROR_IN_USE));
	gpu->mig_pending = mode;
	*activation = NVML_ERROR_IN_USE;
	if (!instance_clients(target.gpu, NONE)) {
		*activation = NVML_SUCCESS;
		gpu->mig_mode = mode;
		gpu->compute_mode = gpu->accounting = 0;
	}
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count)
{
	ENTER(device, 0);
	*count = GPU_OF(target)->mig_capable ? 7 : 0;
	return NVML_SUCCESS;
}

/* The index counts the compute instances that are there; it may have holes in the real library. */
EXPORTED nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(
	nvmlDevice_t device, unsigned index, nvmlDevice_t *mig)
{
	ENTER(device, LOCKED);
	const struct gpu *const gpu = GPU_OF(target);
	WANT(gpu->mig_capable, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	WANT(index < 7, nvml_leave(NVML_ERROR_INVALID_ARGUMENT));
	for (uint32_t i = 0; gpu->mig_mode && i < GPU_INSTANCES_MAX; i++)
		for (uint32_t j = 0; gpu->instance[i].used && j < COMPUTE_INSTANCES_MAX; j++)
			if (gpu->instance[i].compute[j].used && index-- == 0) {
				*mig = (nvmlDevice_t)(uintptr_t)nvml_handle(
					(struct target){ target.gpu, gpu->instance[i].id, j });
				return nvml_leave(*mig ? NVML_SUCCESS : NVML_ERROR_MEMORY);
			}
	return nvml_leave(NVML_ERROR_NOT_FOUND);
}

EXPORTED nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is)
{
	ENTER(device, MIG);
	*is = target.ci != NONE;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id)
{
	ENTER(device, MIG);
	WANT(target.gi != NONE, NVML_ERROR_NOT_SUPPORTED);
	*id = target.gi;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id)
{
	ENTER(device, MIG);
	WANT(target.ci != NONE, NVML_ERROR_NOT_SUPPORTED);
	*id = target.ci;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
	nvmlDevice_t device, nvmlDevice_t *parent)
{
	ENTER(device, MIG | LOCKED);
	WANT(target.ci != NONE, nvml_leave(NVML_ERROR_INVALID_ARGUMENT));
	*parent = (nvmlDevice_t)(uintptr_t)nvml_handle((struct target){ target.gpu, NONE, NONE });
	return nvml_leave(*parent ? NVML_SUCCESS : NVML_ERROR_MEMORY);
}

EXPORTED nvmlReturn_t nvmlDeviceGetAttributes_v2(
	nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
	ENTER(device, MIG | LOCKED);
	WANT(target.ci != NONE, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	const struct compute_instance *const compute =
		compute_find(target.gpu, target.gi, target.ci);
	const struct mig_profile *const profile =
		&GPU_OF(target)->profile[instance_find(target.gpu, target.gi)->profile];
	*attributes = (nvmlDeviceAttributes_t){
		.multiprocessorCount = profile->sms / profile->slices * compute->slices,
		.sharedCopyEngineCount = profile->engines,
		.sharedDecoderCount = profile->decoders,
		.sharedEncoderCount = profile->encoders,
		.sharedJpegCount = profile->jpegs,
		.sharedOfaCount = profile->ofas,
		.gpuInstanceSliceCount = profile->slices,
		.computeInstanceSliceCount = compute->slices,
		.memorySizeMB = profile->memory_mib,
	};
	return nvml_leave(NVML_SUCCESS);
}

static nvmlReturn_t describe(
	struct target target, unsigned wanted, nvmlGpuInstanceProfileInfo_v2_t *info)
{
	const struct gpu *const gpu = GPU_OF(target);
	WANT(gpu->mig_capable, NVML_ERROR_NOT_SUPPORTED);
	for (uint32_t i = 0; i < PROFILES_MAX; i++) {
		const struct mig_profile *const profile = &gpu->profile[i];
		if (!profile->used || profile->profile != wanted)
			continue;
		info->id = profile->id;
		info->isP2pSupported = 0;
		info->sliceCount = profile->slices;
		info->instanceCount = profile->most;
		info->multiprocessorCount = profile->sms;
		info->copyEngineCount = profile->engines;
		info->decoderCount = profile->decoders;
		info->encoderCount = profile->encoders;
		info->jpegCount = profile->jpegs;
		info->ofaCount = profile->ofas;
		info->memorySizeMB = profile->memory_mib;
		snprintf(info->name, sizeof info->name, "MIG %s", profile->name);
		return NVML_SUCCESS;
	}
	return NVML_ERROR_NOT_SUPPORTED;
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(
	nvmlDevice_t device, unsigned profile, nvmlGpuInstanceProfileInfo_v2_t *info)
{
	ENTER(device, 0);
	WANT(info->version == NVML_VERSION(nvmlGpuInstanceProfileInfo_v2_t, 2),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	return describe(target, profile, info);
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(
	nvmlDevice_t device, unsigned profile, nvmlGpuInstanceProfileInfo_t *info)
{
	ENTER(device, 0);
	nvmlGpuInstanceProfileInfo_v2_t whole;
	const nvmlReturn_t result = describe(target, profile, &whole);
	if (result == NVML_SUCCESS)
		memcpy(info, &whole.id, offsetof(nvmlGpuInstanceProfileInfo_t, memorySizeMB));
	if (result == NVML_SUCCESS)
		info->memorySizeMB = whole.memorySizeMB;
	return result;
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(
	nvmlDevice_t device, unsigned id, nvmlGpuInstancePlacement_t *placements, unsigned *count)
{
	ENTER(device, 0);
	const struct mig_profile *const profile = profile_find(target.gpu, id);
	WANT(profile, NVML_ERROR_INVALID_ARGUMENT);
	const bool enough = placements && *count >= profile->start_count;
	for (uint32_t i = 0; enough && i < profile->start_count; i++)
		placements[i] = (nvmlGpuInstancePlacement_t){ profile->start[i], profile->size };
	*count = profile->start_count;
	return enough || !placements ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(
	nvmlDevice_t device, unsigned id, unsigned *count)
{
	ENTER(device, LOCKED);
	const struct mig_profile *const profile = profile_find(target.gpu, id);
	WANT(GPU_OF(target)->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	WANT(profile, nvml_leave(NVML_ERROR_INVALID_ARGUMENT));
	*count = placements_free(target.gpu, profile);
	return nvml_leave(NVML_SUCCESS);
}

static nvmlReturn_t create(
	struct target target, unsigned id, uint32_t start, nvmlGpuInstance_t *made)
{
	const struct mig_profile *const profile = profile_find(target.gpu, id);
	WANT(GPU_OF(target)->mig_mode, NVML_ERROR_NOT_SUPPORTED);
	WANT(nvml_is_root(), NVML_ERROR_NO_PERMISSION);
	WANT(profile, NVML_ERROR_INVALID_ARGUMENT);
	const struct gpu_instance *const instance = instance_create(target.gpu, profile, start);
	WANT(instance, NVML_ERROR_INSUFFICIENT_RESOURCES);
	*made = (nvmlGpuInstance_t)(uintptr_t)nvml_handle(
		(struct target){ target.gpu, instance->id, NONE });
	return *made ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORTED nvmlReturn_t nvmlDeviceCreateGpuInstance(
	nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instance)
{
	ENTER(device, LOCKED);
	return nvml_leave(create(target, id, NONE, instance));
}

EXPORTED nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned id,
	const nvmlGpuInstancePlacement_t *placement, nvmlGpuInstance_t *instance)
{
	ENTER(device, LOCKED);
	return nvml_leave(create(target, id, placement->start, instance));
}

static bool in_use(struct target target)
{
	struct gpu *const gpu = GPU_OF(target);
	if (gpu->mig_in_use) {
		gpu->mig_in_use--;
		return true;
	}
	return instance_clients(target.gpu, target.gi) > 0;
}

EXPORTED nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t handle)
{
	ENTER(handle, LOCKED);
	WANT(nvml_is_root(), nvml_leave(NVML_ERROR_NO_PERMISSION));
	struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	for (uint32_t i = 0; i < COMPUTE_INSTANCES_MAX; i++)
		WANT(!instance->compute[i].used, nvml_leave(NVML_ERROR_IN_USE));
	WANT(!in_use(target), nvml_leave(NVML_ERROR_IN_USE));
	instance_destroy(target.gpu, instance);
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstances(
	nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instances, unsigned *count)
{
	ENTER(device, LOCKED);
	const struct gpu *const gpu = GPU_OF(target);
	WANT(gpu->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	*count = 0; /* the caller has room for as many as the profile allows */
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		if (gpu->instance[i].used && gpu->profile[gpu->instance[i].profile].id == id)
			instances[(*count)++] = (nvmlGpuInstance_t)(uintptr_t)nvml_handle(
				(struct target){ target.gpu, gpu->instance[i].id, NONE });
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetGpuInstanceById(
	nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instance)
{
	ENTER(device, LOCKED);
	WANT(GPU_OF(target)->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	WANT(instance_find(target.gpu, id), nvml_leave(NVML_ERROR_NOT_FOUND));
	*instance =
		(nvmlGpuInstance_t)(uintptr_t)nvml_handle((struct target){ target.gpu, id, NONE });
	return nvml_leave(*instance ? NVML_SUCCESS : NVML_ERROR_MEMORY);
}

EXPORTED nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *info)
{
	ENTER(handle, LOCKED);
	const struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	const struct mig_profile *const profile = &GPU_OF(target)->profile[instance->profile];
	*info = (nvmlGpuInstanceInfo_t){
		.device = (nvmlDevice_t)(uintptr_t)nvml_handle(
			(struct target){ target.gpu, NONE, NONE }),
		.id = instance->id,
		.profileId = profile->id,
		.placement = { instance->start, profile->size },
	};
	return nvml_leave(NVML_SUCCESS);
}

static nvmlReturn_t describe_compute(struct target target, unsigned wanted, unsigned engine,
	nvmlComputeInstanceProfileInfo_v2_t *info)
{
	WANT(engine == 0 && wanted < COMPUTE_PROFILES, NVML_ERROR_INVALID_ARGUMENT);
	const struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	const struct mig_profile *const profile = &GPU_OF(target)->profile[instance->profile];
	const uint32_t slices = compute_slices[wanted];
	WANT(slices <= profile->slices && (slices != 3 || profile->slices != 4),
		NVML_ERROR_NOT_SUPPORTED);
	info->id = wanted;
	info->sliceCount = slices;
	info->instanceCount = profile->slices / slices;
	info->multiprocessorCount = profile->sms / profile->slices * slices;
	info->sharedCopyEngineCount = profile->engines;
	info->sharedDecoderCount = profile->decoders;
	info->sharedEncoderCount = profile->encoders;
	info->sharedJpegCount = profile->jpegs;
	info->sharedOfaCount = profile->ofas;
	if (slices == profile->slices)
		snprintf(info->name, sizeof info->name, "MIG %s", profile->name);
	else
		snprintf(info->name, sizeof info->name, "MIG %uc.%s", slices, profile->name);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t handle,
	unsigned profile, unsigned engine, nvmlComputeInstanceProfileInfo_v2_t *info)
{
	WANT(info->version == NVML_VERSION(nvmlComputeInstanceProfileInfo_v2_t, 2),
		NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	ENTER(handle, LOCKED);
	return nvml_leave(describe_compute(target, profile, engine, info));
}

EXPORTED nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t handle,
	unsigned profile, unsigned engine, nvmlComputeInstanceProfileInfo_t *info)
{
	ENTER(handle, LOCKED);
	nvmlComputeInstanceProfileInfo_v2_t whole;
	const nvmlReturn_t result = describe_compute(target, profile, engine, &whole);
	if (result == NVML_SUCCESS)
		memcpy(info, &whole.id, sizeof *info);
	return nvml_leave(result);
}

EXPORTED nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
	nvmlGpuInstance_t handle, unsigned id, unsigned *count)
{
	WANT(id < COMPUTE_PROFILES, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(handle, LOCKED);
	*count = compute_slices_left(
		target.gpu, instance_find(target.gpu, target.gi), compute_slices[id]);
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(
	nvmlGpuInstance_t handle, unsigned id, nvmlComputeInstance_t *made)
{
	WANT(id < COMPUTE_PROFILES, NVML_ERROR_INVALID_ARGUMENT);
	ENTER(handle, LOCKED);
	WANT(nvml_is_root(), nvml_leave(NVML_ERROR_NO_PERMISSION));
	struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	const struct compute_instance *const compute =
		compute_create(target.gpu, instance, compute_slices[id]);
	WANT(compute, nvml_leave(NVML_ERROR_INSUFFICIENT_RESOURCES));
	*made = (nvmlComputeInstance_t)(uintptr_t)nvml_handle(
		(struct target){ target.gpu, target.gi, compute->id });
	return nvml_leave(*made ? NVML_SUCCESS : NVML_ERROR_MEMORY);
}

static uint32_t profile_of(const struct compute_instance *compute)
{
	for (uint32_t i = 0; i < COMPUTE_PROFILES; i++)
		if (compute_slices[i] == compute->slices)
			return i;
	return NONE;
}

EXPORTED nvmlReturn_t nvmlGpuInstanceGetComputeInstances(
	nvmlGpuInstance_t handle, unsigned id, nvmlComputeInstance_t *instances, unsigned *count)
{
	ENTER(handle, LOCKED);
	const struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	*count = 0;
	for (uint32_t i = 0; i < COMPUTE_INSTANCES_MAX; i++)
		if (instance->compute[i].used && profile_of(&instance->compute[i]) == id)
			instances[(*count)++] = (nvmlComputeInstance_t)(uintptr_t)nvml_handle(
				(struct target){ target.gpu, target.gi, i });
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(
	nvmlGpuInstance_t handle, unsigned id, nvmlComputeInstance_t *made)
{
	ENTER(handle, LOCKED);
	WANT(compute_find(target.gpu, target.gi, id), nvml_leave(NVML_ERROR_NOT_FOUND));
	*made = (nvmlComputeInstance_t)(uintptr_t)nvml_handle(
		(struct target){ target.gpu, target.gi, id });
	return nvml_leave(*made ? NVML_SUCCESS : NVML_ERROR_MEMORY);
}

EXPORTED nvmlReturn_t nvmlComputeInstanceGetInfo_v2(
	nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info)
{
	ENTER(handle, MIG | LOCKED);
	const struct compute_instance *const compute =
		compute_find(target.gpu, target.gi, target.ci);
	*info = (nvmlComputeInstanceInfo_t){
		.device = (nvmlDevice_t)(uintptr_t)nvml_handle(
			(struct target){ target.gpu, NONE, NONE }),
		.gpuInstance = (nvmlGpuInstance_t)(uintptr_t)nvml_handle(
			(struct target){ target.gpu, target.gi, NONE }),
		.id = compute->id,
		.profileId = profile_of(compute),
		.placement = { compute->start, compute->slices },
	};
	return nvml_leave(NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t handle)
{
	ENTER(handle, MIG | LOCKED);
	WANT(nvml_is_root(), nvml_leave(NVML_ERROR_NO_PERMISSION));
	WANT(!in_use(target), nvml_leave(NVML_ERROR_IN_USE));
	compute_destroy(target.gpu, instance_find(target.gpu, target.gi),
		compute_find(target.gpu, target.gi, target.ci));
	return nvml_leave(NVML_SUCCESS);
}
