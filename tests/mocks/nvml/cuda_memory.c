/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA: memory: allocate, fill, copy.
 *
 * Rule: an address means something only in the process that has it, and never means something else
 * later; fresh memory is as it was left. Each allocation takes whole chunks, as large ones do.
 *
 * Does not overlap: an Async call is done when it returns.
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct mapping mappings[MAPPINGS_MAX];
static CUdeviceptr next_address = UINT64_C(0x7f0000000000);

static uint64_t whole_chunks(uint64_t bytes)
{
	return (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
}

struct mapping *mapping_add(int device, const struct allocation *allocation, int imported)
{
	for (int i = 0; i < MAPPINGS_MAX; i++) {
		struct mapping *const it = &mappings[i];
		if (it->base)
			continue;
		uint32_t *const chunks = calloc(allocation->chunks, sizeof *chunks);
		if (!chunks || memory_chunks(allocation, chunks) != allocation->chunks) {
			free(chunks);
			return NULL;
		}
		*it = (struct mapping){
			.base = next_address,
			.bytes = allocation->bytes,
			.device = device,
			.imported = imported,
			.allocation = allocation->number,
			.chunks = chunks,
		};
		next_address += whole_chunks(allocation->bytes) + CHUNK_BYTES; /* a hole between */
		return it;
	}
	return NULL;
}

struct mapping *mapping_at(CUdeviceptr at, uint64_t bytes)
{
	for (int i = 0; i < MAPPINGS_MAX; i++) {
		struct mapping *const it = &mappings[i];
		if (it->base && at >= it->base && at - it->base <= it->bytes &&
			bytes <= it->bytes - (at - it->base))
			return it;
	}
	return NULL;
}

void mapping_drop(struct mapping *mapping)
{
	free(mapping->chunks);
	*mapping = (struct mapping){ 0 };
}

CUresult cuda_each(CUdeviceptr at, uint64_t bytes, cuda_act act, void *with)
{
	const struct mapping *const mapping = mapping_at(at, bytes);
	if (!mapping)
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	const uint32_t gpu = cuda_device(mapping->device)->target.gpu;
	for (uint64_t offset = at - mapping->base, end = offset + bytes; offset < end;) {
		const uint64_t within = offset % CHUNK_BYTES;
		uint64_t part = CHUNK_BYTES - within;
		if (part > end - offset)
			part = end - offset;
		const CUresult result =
			act(gpu, mapping->chunks[offset / CHUNK_BYTES], within, part, with);
		if (result)
			return result;
		offset += part;
	}
	return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
	CUDA_ENTER_CURRENT();
	const struct cuda_device *const device = cuda_device(current);
	cuda_sweep(device);
	*free_bytes = memory_free_bytes(device->target);
	*total_bytes = *free_bytes + memory_used_bytes(device->target);
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes)
{
	CUDA_ENTER_CURRENT();
	const struct cuda_device *const device = cuda_device(current);
	REFUSE_UNLESS(bytes, CUDA_ERROR_INVALID_VALUE);
	cuda_sweep(device);
	struct allocation *const allocation = memory_take(device->target, device->client, bytes);
	REFUSE_UNLESS(allocation, CUDA_ERROR_OUT_OF_MEMORY);
	const struct mapping *const mapping = mapping_add(current, allocation, 0);
	if (!mapping)
		memory_drop(allocation);
	REFUSE_UNLESS(mapping, CUDA_ERROR_OUT_OF_MEMORY);
	*at = mapping->base;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemFree_v2(CUdeviceptr at)
{
	CUDA_ENTER_CURRENT();
	struct mapping *const mapping = mapping_at(at, 0);
	REFUSE_UNLESS(
		mapping && mapping->base == at && !mapping->imported, CUDA_ERROR_INVALID_VALUE);
	struct allocation *const allocation = allocation_find(mapping->allocation);
	mapping_drop(mapping);
	if (allocation) {
		const int ctl = node_open("nvidiactl", O_RDWR);
		allocation->client = 0;
		memory_release_unheld(allocation, ctl);
		if (ctl >= 0)
			close(ctl);
	}
	return cuda_leave(CUDA_SUCCESS);
}

static CUresult fill(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	return memory_fill(gpu, chunk, from, bytes, *(const uint32_t *)with)
		       ? CUDA_ERROR_LAUNCH_FAILED
		       : CUDA_SUCCESS;
}

EXPORTED CUresult cuMemsetD32_v2(CUdeviceptr at, unsigned value, size_t count)
{
	CUDA_ENTER_CURRENT();
	REFUSE_UNLESS(at % 4 == 0, CUDA_ERROR_INVALID_VALUE);
	return cuda_leave(cuda_each(at, count * 4, fill, &value));
}

EXPORTED CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, CUstream stream)
{
	(void)stream;
	return cuMemsetD32_v2(at, value, count);
}

EXPORTED CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t count)
{
	CUDA_ENTER_CURRENT();
	uint32_t word = value * UINT32_C(0x01010101);
	return cuda_leave(cuda_each(at, count, fill, &word));
}

static CUresult to_host(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	char **const at = with;
	const int result = memory_read(gpu, chunk, from, *at, bytes);
	*at += bytes;
	return result ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

EXPORTED CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
	CUDA_ENTER_CURRENT();
	char *at = to;
	return cuda_leave(cuda_each(from, bytes, to_host, &at));
}

static CUresult from_host(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	const char **const at = with;
	const int result = memory_write(gpu, chunk, from, *at, bytes);
	*at += bytes;
	return result ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

EXPORTED CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	CUDA_ENTER_CURRENT();
	const char *at = from;
	return cuda_leave(cuda_each(to, bytes, from_host, &at));
}

EXPORTED CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	(void)stream;
	return cuMemcpyDtoH_v2(to, from, bytes);
}

EXPORTED CUresult cuMemcpyHtoDAsync_v2(
	CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	(void)stream;
	return cuMemcpyHtoD_v2(to, from, bytes);
}
