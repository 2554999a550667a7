/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a GPU: chunks of 2 MiB, whose they are, and what is in them.
 *
 * Rule: every byte can be read back as it was last written, by whoever gets the chunk next; memory
 * that was let go is zero only if the GPU's driver scrubs (`scrub_on_free`). A chunk with one value
 * throughout is that value and no bytes, so that filling 141 GB takes milliseconds; any other lies
 * in the GPU's sparse file.
 *
 * Does not model addresses: `cuda_memory.c` gives each process its own.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RESERVED UINT32_MAX
#define UNITS    8u /* of memory, as MIG placements count */
#define MIB      (UINT64_C(1) << 20)

static struct chunk *tables[GPUS_MAX];
static int contents[GPUS_MAX];

uint64_t chunk_count(uint32_t gpu)
{
	return machine_open()->gpu[gpu].total_mib * MIB / CHUNK_BYTES;
}

/* What the driver does not keep for itself. */
static uint64_t usable_count(uint32_t gpu)
{
	const struct gpu *const it = &machine_open()->gpu[gpu];
	return (it->total_mib - it->reserved_mib) * MIB / CHUNK_BYTES;
}

static int open_part(uint32_t gpu, const char *part)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/fb/gpu%u.%s", machine_root(), gpu, part);
	return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
}

struct chunk *chunks_of(uint32_t gpu)
{
	if (tables[gpu])
		return tables[gpu];
	const size_t bytes = chunk_count(gpu) * sizeof(struct chunk);
	const int fd = open_part(gpu, "chunks");
	if (fd < 0)
		return NULL;
	void *const table = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (table == MAP_FAILED)
		return NULL;
	contents[gpu] = open_part(gpu, "data");
	tables[gpu] = table;
	return table;
}

/* A GPU comes into being: everything free and zero, the driver's own part at the top. */
void memory_layout(uint32_t gpu)
{
	const uint64_t count = chunk_count(gpu);
	const int table = open_part(gpu, "chunks"), data = open_part(gpu, "data");
	if (table < 0 || data < 0 || ftruncate(table, (off_t)(count * sizeof(struct chunk))) ||
		ftruncate(data, (off_t)(count * CHUNK_BYTES)) || fchmod(table, 0666) ||
		fchmod(data, 0666))
		return;
	close(table);
	close(data);
	struct chunk *const chunks = chunks_of(gpu);
	for (uint64_t i = usable_count(gpu); chunks && i < count; i++)
		chunks[i].allocation = RESERVED;
}

struct range {
	uint64_t from, to;
};

/* Which chunks a target may use: all but the reserved, or its instance's units. */
static struct range range_of(struct target target)
{
	struct gpu *const gpu = &machine_open()->gpu[target.gpu];
	const uint64_t usable = usable_count(target.gpu);
	if (target.gi == NONE)
		return (struct range){ 0, usable };
	const struct gpu_instance *const instance = instance_find(target.gpu, target.gi);
	if (!instance)
		return (struct range){ 0, 0 };
	const struct mig_profile *const profile = &gpu->profile[instance->profile];
	const uint64_t from = instance->start * (usable / UNITS);
	uint64_t count = profile->size * (usable / UNITS);
	if (count > profile->memory_mib * MIB / CHUNK_BYTES)
		count = profile->memory_mib * MIB / CHUNK_BYTES;
	return (struct range){ from, from + count };
}

uint64_t memory_total_bytes(struct target target)
{
	if (target.gi == NONE)
		return machine_open()->gpu[target.gpu].total_mib * MIB;
	const struct range range = range_of(target);
	return (range.to - range.from) * CHUNK_BYTES;
}

uint64_t memory_free_bytes(struct target target)
{
	const struct chunk *const chunks = chunks_of(target.gpu);
	const struct range range = range_of(target);
	uint64_t free = 0;
	for (uint64_t i = range.from; chunks && i < range.to; i++)
		free += chunks[i].allocation == 0;
	return free * CHUNK_BYTES;
}

uint64_t memory_used_bytes(struct target target)
{
	const struct range range = range_of(target);
	return (range.to - range.from) * CHUNK_BYTES - memory_free_bytes(target);
}

struct allocation *allocation_find(uint32_t number)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; number && i < ALLOCATIONS_MAX; i++)
		if (machine->allocation[i].number == number)
			return &machine->allocation[i];
	return NULL;
}

static struct allocation *allocation_slot(void)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < ALLOCATIONS_MAX; i++)
		if (!machine->allocation[i].number)
			return &machine->allocation[i];
	return NULL;
}

/* NULL: not so much is free, and nothing was taken. What was in it stays in it. */
struct allocation *memory_take(struct target target, uint32_t client, uint64_t bytes)
{
	struct machine *const machine = machine_open();
	struct gpu *const gpu = &machine->gpu[target.gpu];
	struct chunk *const chunks = chunks_of(target.gpu);
	const uint64_t wanted = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
	struct allocation *const allocation = allocation_slot();
	if (!chunks || !allocation || !wanted || memory_free_bytes(target) / CHUNK_BYTES < wanted)
		return NULL;
	const struct range range = range_of(target);
	const uint32_t number = ++machine->next_allocation;
	uint64_t taken = 0, at = range.from > gpu->first_free ? range.from : gpu->first_free;
	for (; at < range.to && taken < wanted; at++) {
		if (chunks[at].allocation)
			continue;
		chunks[at].allocation = number;
		chunks[at].position = (uint32_t)taken++;
	}
	if (range.from <= gpu->first_free)
		gpu->first_free = (uint32_t)at;
	*allocation = (struct allocation){
		.number = number,
		.gpu = target.gpu,
		.gi = target.gi,
		.client = client,
		.chunks = (uint32_t)wanted,
		.bytes = bytes,
	};
	return allocation;
}

uint32_t memory_chunks(const struct allocation *allocation, uint32_t *list)
{
	const struct chunk *const chunks = chunks_of(allocation->gpu);
	const uint64_t count = chunk_count(allocation->gpu);
	uint32_t found = 0;
	for (uint64_t i = 0; chunks && i < count && found < allocation->chunks; i++)
		if (chunks[i].allocation == allocation->number) {
			list[chunks[i].position] = (uint32_t)i;
			found++;
		}
	return found;
}

static void empty(uint32_t gpu, uint64_t chunk)
{
	struct chunk *const it = &tables[gpu][chunk];
	if (it->stored)
		fallocate(contents[gpu], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)(chunk * CHUNK_BYTES), (off_t)CHUNK_BYTES);
	it->stored = 0;
}

void memory_drop(struct allocation *allocation)
{
	struct gpu *const gpu = &machine_open()->gpu[allocation->gpu];
	struct chunk *const chunks = chunks_of(allocation->gpu);
	const uint64_t count = chunk_count(allocation->gpu);
	for (uint64_t i = 0; chunks && i < count; i++) {
		if (chunks[i].allocation != allocation->number)
			continue;
		if (gpu->scrub_on_free) {
			empty(allocation->gpu, i);
			chunks[i].fill = 0;
		}
		chunks[i].allocation = 0;
		if (i < gpu->first_free)
			gpu->first_free = (uint32_t)i;
	}
	*allocation = (struct allocation){ 0 };
}

/* Drop what has no owner, unless somebody imported it or a descriptor of it is open somewhere. */
void memory_release_unheld(struct allocation *allocation, int ctl_fd)
{
	struct machine *const machine = machine_open();
	if (allocation->leak)
		return;
	for (uint32_t i = 0; i < HOLDS_MAX; i++)
		if (machine->hold[i].allocation == allocation->number)
			return;
	if (allocation->exported && byte_locked(ctl_fd, EXPORT_LOCK_AT + allocation->number))
		return;
	memory_drop(allocation);
}

bool hold_add(uint32_t allocation, uint32_t client)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < HOLDS_MAX; i++)
		if (!machine->hold[i].allocation) {
			machine->hold[i] = (struct hold){ allocation, client };
			return true;
		}
	return false;
}

void hold_drop(uint32_t allocation, uint32_t client)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < HOLDS_MAX; i++)
		if (machine->hold[i].allocation == allocation &&
			machine->hold[i].client == client) {
			machine->hold[i] = (struct hold){ 0 };
			return;
		}
}

/* The chunk as bytes in the file, so that a part of it can change. */
static int store(uint32_t gpu, uint32_t chunk)
{
	struct chunk *const it = &chunks_of(gpu)[chunk];
	if (it->stored)
		return 0;
	static uint32_t page[4096];
	for (size_t i = 0; i < sizeof page / sizeof page[0]; i++)
		page[i] = it->fill;
	for (uint64_t at = 0; it->fill && at < CHUNK_BYTES; at += sizeof page)
		if (pwrite(contents[gpu], page, sizeof page, (off_t)(chunk * CHUNK_BYTES + at)) < 0)
			return -errno;
	it->stored = 1;
	return 0;
}

int memory_read(uint32_t gpu, uint32_t chunk, uint64_t from, void *to, uint64_t bytes)
{
	const struct chunk *const it = &chunks_of(gpu)[chunk];
	if (it->stored)
		return pread(contents[gpu], to, bytes, (off_t)(chunk * CHUNK_BYTES + from)) ==
				       (ssize_t)bytes
			       ? 0
			       : -EIO;
	for (uint64_t i = 0; i < bytes; i++)
		((unsigned char *)to)[i] = ((const unsigned char *)&it->fill)[(from + i) % 4];
	return 0;
}

int memory_write(uint32_t gpu, uint32_t chunk, uint64_t from, const void *of, uint64_t bytes)
{
	const int stored = store(gpu, chunk);
	if (stored)
		return stored;
	return pwrite(contents[gpu], of, bytes, (off_t)(chunk * CHUNK_BYTES + from)) ==
			       (ssize_t)bytes
		       ? 0
		       : -EIO;
}

int memory_fill(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, uint32_t value)
{
	if (bytes == CHUNK_BYTES) {
		struct chunk *const it = &chunks_of(gpu)[chunk];
		empty(gpu, chunk);
		it->fill = value;
		return 0;
	}
	uint32_t words[1024];
	for (size_t i = 0; i < 1024; i++)
		words[i] = value;
	for (uint64_t done = 0; done < bytes;) {
		const uint64_t part = bytes - done < sizeof words ? bytes - done : sizeof words;
		const int wrote = memory_write(gpu, chunk, from + done, words, part);
		if (wrote)
			return wrote;
		done += part;
	}
	return 0;
}
