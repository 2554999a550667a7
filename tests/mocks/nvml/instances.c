/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MIG: GPU instances, compute instances, and the capability files that show them.
 *
 * Rule: an instance has units of memory from `start` on that no other instance has, and a
 * capability node of its own. Its number follows from its size and place, and its UUID from its
 * numbers, so that the same layout made again looks the same.
 *
 * Does not change the mode: that is `nvml_mig.c`'s, or a command's.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

struct gpu_instance *instance_find(uint32_t gpu, uint32_t gi)
{
	struct gpu *const it = &machine_open()->gpu[gpu];
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		if (it->instance[i].used && it->instance[i].id == gi)
			return &it->instance[i];
	return NULL;
}

struct compute_instance *compute_find(uint32_t gpu, uint32_t gi, uint32_t ci)
{
	struct gpu_instance *const instance = instance_find(gpu, gi);
	for (uint32_t i = 0; instance && i < COMPUTE_INSTANCES_MAX; i++)
		if (instance->compute[i].used && instance->compute[i].id == ci)
			return &instance->compute[i];
	return NULL;
}

struct mig_profile *profile_find(uint32_t gpu, uint32_t id)
{
	struct gpu *const it = &machine_open()->gpu[gpu];
	for (uint32_t i = 0; i < PROFILES_MAX; i++)
		if (it->profile[i].used && it->profile[i].id == id)
			return &it->profile[i];
	return NULL;
}

static bool place_free(const struct gpu *gpu, uint32_t start, uint32_t size)
{
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++) {
		const struct gpu_instance *const other = &gpu->instance[i];
		if (other->used && other->start < start + size &&
			start < other->start + gpu->profile[other->profile].size)
			return false;
	}
	return true;
}

static uint32_t slices_used(const struct gpu *gpu)
{
	uint32_t used = 0;
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		if (gpu->instance[i].used)
			used += gpu->profile[gpu->instance[i].profile].slices;
	return used;
}

static uint32_t made_of(const struct gpu *gpu, const struct mig_profile *profile)
{
	uint32_t made = 0;
	for (uint32_t i = 0; i < GPU_INSTANCES_MAX; i++)
		made += gpu->instance[i].used && &gpu->profile[gpu->instance[i].profile] == profile;
	return made;
}

/* How many more instances of a profile could be made one after the other. */
uint32_t placements_free(uint32_t gpu, const struct mig_profile *profile)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	uint32_t free = 0, end = 0;
	for (uint32_t i = 0; i < profile->start_count; i++)
		if (profile->start[i] >= end && place_free(it, profile->start[i], profile->size)) {
			free++;
			end = profile->start[i] + profile->size;
		}
	const uint32_t by_count = profile->most - made_of(it, profile);
	const uint32_t by_slices = (7 - slices_used(it)) / profile->slices;
	free = free < by_count ? free : by_count;
	return free < by_slices ? free : by_slices;
}

static uint32_t number_of(uint32_t size, uint32_t start)
{
	switch (size) {
	case 8: return 0;
	case 4: return 1 + start / 4;
	case 2: return 3 + start / 2;
	default: return 7 + start;
	}
}

static void name_instance(char *uuid, size_t size, const struct gpu *gpu, uint32_t gi, uint32_t ci)
{
	uint64_t hash[2] = { UINT64_C(0xcbf29ce484222325), UINT64_C(0x84222325cbf29ce4) };
	char seed[96];
	snprintf(seed, sizeof seed, "%s/%u/%u", gpu->uuid, gi, ci);
	for (const char *at = seed; *at; at++)
		for (int i = 0; i < 2; i++)
			hash[i] = (hash[i] ^ (unsigned char)*at) * UINT64_C(0x100000001b3);
	snprintf(uuid, size, "MIG-%08x-%04x-5%03x-a%03x-%012llx", (unsigned)(hash[0] >> 32),
		(unsigned)(hash[0] >> 16 & 0xffff), (unsigned)(hash[0] & 0xfff),
		(unsigned)(hash[1] >> 52),
		(unsigned long long)(hash[1] & UINT64_C(0xffffffffffff)));
}

/* The file that says an instance is there, and by which node it is opened. */
static void show_capability(uint32_t gpu, uint32_t gi, uint32_t ci, bool there)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	char name[128], text[96], part[16] = "";
	if (ci != NONE)
		snprintf(part, sizeof part, "ci%u/", ci);
	snprintf(name, sizeof name, "proc/driver/nvidia/capabilities/gpu%u/mig/gi%u/%saccess",
		it->minor, gi, part);
	snprintf(text, sizeof text,
		"DeviceFileMinor: %u\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
		it->cap[gi][ci == NONE ? 0 : 1 + ci]);
	root_write(name, there ? text : NULL);
}

int cap_open(uint32_t gpu, uint32_t gi, uint32_t ci)
{
	const uint32_t minor = machine_open()->gpu[gpu].cap[gi][ci == NONE ? 0 : 1 + ci];
	char name[48];
	snprintf(name, sizeof name, "nvidia-caps/nvidia-cap%u", minor);
	return minor ? node_open(name, O_RDONLY) : -ENOENT;
}

/* `start` NONE: the first place that is free. NULL: there is none. */
struct gpu_instance *instance_create(
	uint32_t gpu, const struct mig_profile *profile, uint32_t start)
{
	struct machine *const machine = machine_open();
	struct gpu *const it = &machine->gpu[gpu];
	if (made_of(it, profile) >= profile->most || slices_used(it) + profile->slices > 7)
		return NULL;
	for (uint32_t i = 0; i < profile->start_count; i++) {
		const uint32_t place = profile->start[i];
		if ((start != NONE && place != start) || !place_free(it, place, profile->size))
			continue;
		const uint32_t id = number_of(profile->size, place);
		struct gpu_instance *const instance = &it->instance[id];
		if (!it->cap[id][0] || instance->used)
			continue;
		*instance = (struct gpu_instance){
			.used = 1,
			.id = id,
			.profile = (uint32_t)(profile - it->profile),
			.start = place,
			.serial = ++machine->next_serial,
		};
		show_capability(gpu, id, NONE, true);
		return instance;
	}
	return NULL;
}

static bool slices_free(const struct gpu_instance *instance, uint32_t start, uint32_t slices)
{
	for (uint32_t i = 0; i < COMPUTE_INSTANCES_MAX; i++) {
		const struct compute_instance *const other = &instance->compute[i];
		if (other->used && other->start < start + slices &&
			start < other->start + other->slices)
			return false;
	}
	return true;
}

/* How many more compute instances of so many slices fit. */
uint32_t compute_slices_left(uint32_t gpu, const struct gpu_instance *instance, uint32_t slices)
{
	const uint32_t all = machine_open()->gpu[gpu].profile[instance->profile].slices;
	uint32_t count = 0;
	for (uint32_t start = 0; slices && start + slices <= all;)
		if (slices_free(instance, start, slices)) {
			count++;
			start += slices;
		} else {
			start++;
		}
	return count;
}

struct compute_instance *compute_create(
	uint32_t gpu, struct gpu_instance *instance, uint32_t slices)
{
	struct machine *const machine = machine_open();
	struct gpu *const it = &machine->gpu[gpu];
	const uint32_t all = it->profile[instance->profile].slices;
	for (uint32_t id = 0; id < COMPUTE_INSTANCES_MAX; id++) {
		struct compute_instance *const compute = &instance->compute[id];
		if (compute->used || !it->cap[instance->id][1 + id])
			continue;
		for (uint32_t start = 0; start + slices <= all; start++) {
			if (!slices_free(instance, start, slices))
				continue;
			*compute = (struct compute_instance){
				.used = 1,
				.id = id,
				.slices = slices,
				.start = start,
				.serial = ++machine->next_serial,
			};
			name_instance(compute->uuid, sizeof compute->uuid, it, instance->id, id);
			show_capability(gpu, instance->id, id, true);
			return compute;
		}
		return NULL;
	}
	return NULL;
}

void compute_destroy(uint32_t gpu, struct gpu_instance *instance, struct compute_instance *compute)
{
	show_capability(gpu, instance->id, compute->id, false);
	compute->used = 0;
}

void instance_destroy(uint32_t gpu, struct gpu_instance *instance)
{
	show_capability(gpu, instance->id, NONE, false);
	instance->used = 0;
}
