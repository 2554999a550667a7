/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA: memory that more than one process has: IPC handles, and handles of memory (VMM) by
 * descriptor.
 *
 * Rule: an importer holds the memory for itself; the exporter's death does not end that. An
 * exported descriptor is nvidiactl, open, with a lock that says which memory, and holds it too,
 * wherever the descriptor is.
 *
 * Does not export to other machines (fabric handles).
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IPC_MAGIC UINT32_C(0x6d656d69)

struct ipc {
	uint32_t magic, allocation, gpu, client;
};

EXPORTED CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr at)
{
	CUDA_ENTER_CURRENT();
	const struct mapping *const mapping = mapping_at(at, 0);
	REFUSE_UNLESS(mapping && !mapping->imported, CUDA_ERROR_INVALID_VALUE);
	const struct ipc ipc = {
		.magic = IPC_MAGIC,
		.allocation = mapping->allocation,
		.gpu = cuda_device(current)->target.gpu,
		.client = cuda_device(current)->client,
	};
	memset(handle, 0, sizeof *handle);
	memcpy(handle, &ipc, sizeof ipc);
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *at, CUipcMemHandle handle, unsigned flags)
{
	(void)flags;
	CUDA_ENTER_CURRENT();
	const struct cuda_device *const device = cuda_device(current);
	struct ipc ipc;
	memcpy(&ipc, &handle, sizeof ipc);
	const struct allocation *const allocation = allocation_find(ipc.allocation);
	REFUSE_UNLESS(ipc.magic == IPC_MAGIC && allocation && allocation->client == ipc.client,
		CUDA_ERROR_INVALID_HANDLE);
	REFUSE_UNLESS(ipc.gpu == device->target.gpu && allocation->gi == device->target.gi &&
			      ipc.client != device->client,
		CUDA_ERROR_INVALID_CONTEXT);
	REFUSE_UNLESS(hold_add(allocation->number, device->client), CUDA_ERROR_OUT_OF_MEMORY);
	const struct mapping *const mapping = mapping_add(current, allocation, 1);
	if (!mapping)
		hold_drop(allocation->number, device->client);
	REFUSE_UNLESS(mapping, CUDA_ERROR_OUT_OF_MEMORY);
	*at = mapping->base;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuIpcCloseMemHandle(CUdeviceptr at)
{
	CUDA_ENTER_CURRENT();
	struct mapping *const mapping = mapping_at(at, 0);
	REFUSE_UNLESS(mapping && mapping->imported, CUDA_ERROR_INVALID_VALUE);
	hold_drop(mapping->allocation, cuda_device(current)->client);
	mapping_drop(mapping);
	cuda_sweep(cuda_device(current));
	return cuda_leave(CUDA_SUCCESS);
}

/* A handle of memory in this process; mapped or not, it holds the memory until both are gone. */
struct memory_handle {
	uint32_t allocation;
	int device, imported, held, mapped;
};

EXPORTED CUresult cuMemGetAllocationGranularity(
	size_t *bytes, const CUmemAllocationProp *properties, int option)
{
	(void)properties, (void)option;
	*bytes = CHUNK_BYTES;
	return CUDA_SUCCESS;
}

static uint64_t handle_make(int device, uint32_t allocation, int imported)
{
	struct memory_handle *const handle = malloc(sizeof *handle);
	if (handle)
		*handle = (struct memory_handle){ allocation, device, imported, 1, 0 };
	return (uint64_t)(uintptr_t)handle;
}

EXPORTED CUresult cuMemCreate(unsigned long long *handle, size_t bytes,
	const CUmemAllocationProp *properties, unsigned long long flags)
{
	CUDA_ENTER(properties->location.id);
	struct cuda_device *const device = cuda_device(properties->location.id);
	REFUSE_UNLESS(device && cuda_client(device), CUDA_ERROR_INVALID_DEVICE);
	REFUSE_UNLESS(bytes && bytes % CHUNK_BYTES == 0 && !flags && properties->type == 1,
		CUDA_ERROR_INVALID_VALUE);
	struct allocation *const allocation = memory_take(device->target, device->client, bytes);
	REFUSE_UNLESS(allocation, CUDA_ERROR_OUT_OF_MEMORY);
	*handle = handle_make(properties->location.id, allocation->number, 0);
	return cuda_leave(*handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

static void let_go(struct memory_handle *handle)
{
	const struct cuda_device *const device = cuda_device(handle->device);
	struct allocation *const allocation = allocation_find(handle->allocation);
	if (handle->held || handle->mapped)
		return;
	if (allocation && handle->imported)
		hold_drop(handle->allocation, device->client);
	else if (allocation)
		allocation->client = 0;
	free(handle);
	cuda_sweep(device);
}

EXPORTED CUresult cuMemRelease(unsigned long long handle)
{
	CUDA_ENTER(-1);
	struct memory_handle *const it = (struct memory_handle *)(uintptr_t)handle;
	REFUSE_UNLESS(it && it->held, CUDA_ERROR_INVALID_VALUE);
	it->held = 0;
	let_go(it);
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemExportToShareableHandle(
	void *shareable, unsigned long long handle, int type, unsigned long long flags)
{
	CUDA_ENTER(-1);
	const struct memory_handle *const it = (struct memory_handle *)(uintptr_t)handle;
	REFUSE_UNLESS(it && it->held && type == 1 && !flags, CUDA_ERROR_INVALID_VALUE);
	struct allocation *const allocation = allocation_find(it->allocation);
	const int fd = node_open("nvidiactl", O_RDWR);
	REFUSE_UNLESS(allocation && fd >= 0, CUDA_ERROR_OPERATING_SYSTEM);
	if (lock_byte(fd, EXPORT_LOCK_AT + it->allocation, true)) {
		close(fd);
		return cuda_leave(CUDA_ERROR_OPERATING_SYSTEM);
	}
	allocation->exported = 1;
	*(int *)shareable = fd;
	return cuda_leave(CUDA_SUCCESS);
}

/* Which memory a descriptor is of: what the kernel says of its lock. */
static uint32_t exported_by(int fd)
{
	char path[64], line[256];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *const info = fopen(path, "re");
	unsigned long long at = 0;
	while (info && at < EXPORT_LOCK_AT && fgets(line, sizeof line, info))
		if (sscanf(line, "lock: %*d: OFDLCK ADVISORY READ %*d %*s %llu", &at) != 1)
			at = 0;
	if (info)
		fclose(info);
	return at < EXPORT_LOCK_AT ? 0 : (uint32_t)(at - EXPORT_LOCK_AT);
}

EXPORTED CUresult cuMemImportFromShareableHandle(
	unsigned long long *handle, void *shareable, int type)
{
	CUDA_ENTER_CURRENT();
	const struct cuda_device *const device = cuda_device(current);
	const struct allocation *const allocation =
		allocation_find(exported_by((int)(intptr_t)shareable));
	REFUSE_UNLESS(type == 1 && allocation, CUDA_ERROR_INVALID_VALUE);
	REFUSE_UNLESS(allocation->gpu == device->target.gpu && allocation->gi == device->target.gi,
		CUDA_ERROR_INVALID_DEVICE);
	REFUSE_UNLESS(hold_add(allocation->number, device->client), CUDA_ERROR_OUT_OF_MEMORY);
	*handle = handle_make(current, allocation->number, 1);
	return cuda_leave(*handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

static CUdeviceptr reserved_next = UINT64_C(0x6f0000000000);

EXPORTED CUresult cuMemAddressReserve(CUdeviceptr *at, size_t bytes, size_t alignment,
	CUdeviceptr wanted, unsigned long long flags)
{
	(void)alignment, (void)wanted;
	CUDA_ENTER(-1);
	REFUSE_UNLESS(bytes && bytes % CHUNK_BYTES == 0 && !flags, CUDA_ERROR_INVALID_VALUE);
	*at = reserved_next;
	reserved_next += bytes + CHUNK_BYTES;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemAddressFree(CUdeviceptr at, size_t bytes)
{
	(void)at, (void)bytes;
	return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, unsigned long long handle,
	unsigned long long flags)
{
	CUDA_ENTER(-1);
	struct memory_handle *const it = (struct memory_handle *)(uintptr_t)handle;
	const struct allocation *const allocation = it ? allocation_find(it->allocation) : NULL;
	REFUSE_UNLESS(allocation && !offset && !flags && bytes == allocation->bytes,
		CUDA_ERROR_INVALID_VALUE);
	struct mapping *const mapping = mapping_add(it->device, allocation, 2);
	REFUSE_UNLESS(mapping, CUDA_ERROR_OUT_OF_MEMORY);
	mapping->base = at;
	mapping->handle = it;
	it->mapped++;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const void *access, size_t count)
{
	(void)access;
	CUDA_ENTER(-1);
	return cuda_leave(count && mapping_at(at, bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

EXPORTED CUresult cuMemUnmap(CUdeviceptr at, size_t bytes)
{
	CUDA_ENTER(-1);
	struct mapping *const mapping = mapping_at(at, bytes);
	REFUSE_UNLESS(mapping && mapping->handle, CUDA_ERROR_INVALID_VALUE);
	struct memory_handle *const handle = mapping->handle;
	mapping_drop(mapping);
	handle->mapped--;
	let_go(handle);
	return cuda_leave(CUDA_SUCCESS);
}
