/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA: contexts, streams, events, and waiting.
 *
 * Rule: the first context of a process on a device makes it a client, if the compute mode lets it;
 * the last one's end unmakes it. Who dies leaves it to the driver to find out.
 *
 * Does not run kernels: `cuda_module.c` does, and a stream only remembers one that goes on.
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static struct CUctx_st contexts[CONTEXTS_MAX];
static struct CUstream_st streams[STREAMS_MAX];
static _Thread_local CUcontext now_current;

struct client *cuda_client(const struct cuda_device *device)
{
	return device->client ? client_find(device->client) : NULL;
}

CUresult cuda_enter_current(const char *call, int *device)
{
	const CUcontext context = now_current;
	const CUresult entered = cuda_enter(call, context && context->used ? context->device : -1);
	if (entered)
		return entered;
	if (!context || !context->used)
		return cuda_leave(CUDA_ERROR_INVALID_CONTEXT);
	*device = context->device;
	const CUresult healthy = cuda_healthy(cuda_device(context->device));
	return healthy ? cuda_leave(healthy) : CUDA_SUCCESS;
}

static uint32_t compute_mode(struct target target)
{
	const struct compute_instance *const compute =
		target.ci == NONE ? NULL : compute_find(target.gpu, target.gi, target.ci);
	return compute ? compute->compute_mode : machine_open()->gpu[target.gpu].compute_mode;
}

/* Become a client: the memory that a context costs comes with it. */
static CUresult attach(struct cuda_device *device)
{
	cuda_sweep(device);
	const struct gpu *const gpu = &machine_open()->gpu[device->target.gpu];
	const uint32_t mode = compute_mode(device->target);
	if (gpu->draining || mode == 2 ||
		(mode == 3 && client_conflicts(device->target, (uint32_t)getpid())))
		return CUDA_ERROR_DEVICE_UNAVAILABLE;
	struct client *const client = client_begin(device->target, device->fd);
	if (!client)
		return CUDA_ERROR_OUT_OF_MEMORY;
	device->client = client->number;
	if (gpu->context_mib &&
		!memory_take(device->target, client->number, gpu->context_mib << 20)) {
		client_end(client, device->fd);
		device->client = 0;
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return CUDA_SUCCESS;
}

static CUresult create(CUcontext *context, CUdevice device, int primary)
{
	struct cuda_device *const it = cuda_device(device);
	if (!it)
		return CUDA_ERROR_INVALID_DEVICE;
	const CUresult healthy = cuda_healthy(it);
	if (healthy)
		return healthy;
	const CUresult attached = cuda_client(it) ? CUDA_SUCCESS : attach(it);
	if (attached)
		return attached;
	for (int i = 0; i < CONTEXTS_MAX; i++) {
		if (contexts[i].used)
			continue;
		contexts[i] = (struct CUctx_st){ .used = 1, .device = device, .primary = primary };
		cuda_client(it)->contexts++;
		*context = &contexts[i];
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORTED CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device)
{
	(void)flags;
	CUDA_ENTER(device);
	const CUresult result = create(context, device, 0);
	if (!result)
		now_current = *context;
	return cuda_leave(result);
}

EXPORTED CUresult cuCtxCreate_v4(
	CUcontext *context, void *parameters, unsigned flags, CUdevice device)
{
	(void)parameters;
	return cuCtxCreate_v2(context, flags, device);
}

static CUresult destroy(CUcontext context)
{
	if (context < contexts || context >= contexts + CONTEXTS_MAX || !context->used)
		return CUDA_ERROR_INVALID_CONTEXT;
	struct cuda_device *const device = cuda_device(context->device);
	struct client *const client = cuda_client(device);
	context->used = 0;
	if (now_current == context)
		now_current = NULL;
	for (int i = 0; i < STREAMS_MAX; i++)
		if (streams[i].device == context->device)
			streams[i].spinning = 0;
	if (!client || --client->contexts)
		return CUDA_SUCCESS;
	client_running(client, false);
	client_end(client, device->fd);
	device->client = 0;
	cuda_sweep(device); /* memory that only it held goes at once */
	return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxDestroy_v2(CUcontext context)
{
	CUDA_ENTER(-1);
	return cuda_leave(destroy(context));
}

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	CUDA_ENTER(device);
	for (int i = 0; i < CONTEXTS_MAX; i++)
		if (contexts[i].used && contexts[i].primary && contexts[i].device == device) {
			contexts[i].primary++;
			*context = &contexts[i];
			return cuda_leave(CUDA_SUCCESS);
		}
	return cuda_leave(create(context, device, 1));
}

EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	CUDA_ENTER(device);
	for (int i = 0; i < CONTEXTS_MAX; i++)
		if (contexts[i].used && contexts[i].primary && contexts[i].device == device)
			return cuda_leave(
				--contexts[i].primary ? CUDA_SUCCESS : destroy(&contexts[i]));
	return cuda_leave(CUDA_ERROR_INVALID_CONTEXT);
}

EXPORTED CUresult cuCtxSetCurrent(CUcontext context)
{
	CUDA_ENTER(-1);
	now_current = context;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxGetCurrent(CUcontext *context)
{
	CUDA_ENTER(-1);
	*context = now_current;
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxGetDevice(CUdevice *device)
{
	CUDA_ENTER_CURRENT();
	*device = current;
	return cuda_leave(CUDA_SUCCESS);
}

static CUresult read_word(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	return memory_read(gpu, chunk, from, with, bytes) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

static bool spins(struct CUstream_st *stream)
{
	uint32_t flag = 0;
	if (stream->spinning && stream->flag &&
		(cuda_each(stream->flag, sizeof flag, read_word, &flag) || flag))
		stream->spinning = 0;
	return stream->spinning;
}

bool cuda_spinning(int device)
{
	bool any = false;
	for (int i = 0; i < STREAMS_MAX; i++)
		if (streams[i].device == device)
			any |= spins(&streams[i]);
	struct client *const client = cuda_client(cuda_device(device));
	if (client && !any)
		client_running(client, false);
	return any;
}

/* The stream that a call means; NULL and the two legacy handles are the first of the device. */
static struct CUstream_st *stream_of(CUstream stream, int device)
{
	if ((uintptr_t)stream > 2)
		return stream;
	streams[device].device = device;
	return &streams[device];
}

void cuda_spin(CUstream stream, int device, CUdeviceptr flag)
{
	struct CUstream_st *const it = stream_of(stream, device);
	it->spinning = 1;
	it->flag = flag;
	client_running(cuda_client(cuda_device(device)), true);
}

/* Wait, with nothing locked, for as long as `stream` (NULL: any of the device) has a kernel on it.
 */
static CUresult wait_while_spinning(int device, struct CUstream_st *stream)
{
	for (;;) {
		const bool more = stream ? spins(stream) : cuda_spinning(device);
		const CUresult healthy = cuda_healthy(cuda_device(device));
		if (!more || healthy) {
			cuda_spinning(device);
			return cuda_leave(healthy);
		}
		machine_unlock();
		pthread_mutex_unlock(&process_lock);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
		pthread_mutex_lock(&process_lock);
		machine_lock();
	}
}

EXPORTED CUresult cuCtxSynchronize(void)
{
	CUDA_ENTER_CURRENT();
	return wait_while_spinning(current, NULL);
}

EXPORTED CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
	(void)flags;
	CUDA_ENTER_CURRENT();
	for (int i = DEVICES_MAX; i < STREAMS_MAX; i++)
		if (!streams[i].used) {
			streams[i] = (struct CUstream_st){ .used = 1, .device = current };
			*stream = &streams[i];
			return cuda_leave(CUDA_SUCCESS);
		}
	return cuda_leave(CUDA_ERROR_OUT_OF_MEMORY);
}

EXPORTED CUresult cuStreamDestroy_v2(CUstream stream)
{
	CUDA_ENTER_CURRENT();
	stream->used = 0; /* what runs on it goes on */
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuStreamSynchronize(CUstream stream)
{
	CUDA_ENTER_CURRENT();
	return wait_while_spinning(current, stream_of(stream, current));
}

EXPORTED CUresult cuStreamQuery(CUstream stream)
{
	CUDA_ENTER_CURRENT();
	return cuda_leave(spins(stream_of(stream, current)) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

struct CUevent_st {
	struct CUstream_st *stream;
	uint64_t at_ns;
};

EXPORTED CUresult cuEventCreate(CUevent *event, unsigned flags)
{
	(void)flags;
	CUDA_ENTER_CURRENT();
	*event = calloc(1, sizeof **event);
	return cuda_leave(*event ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

EXPORTED CUresult cuEventDestroy_v2(CUevent event)
{
	CUDA_ENTER_CURRENT();
	free(event);
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuEventRecord(CUevent event, CUstream stream)
{
	CUDA_ENTER_CURRENT();
	event->stream = stream_of(stream, current);
	event->at_ns = now_ns();
	return cuda_leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuEventQuery(CUevent event)
{
	CUDA_ENTER_CURRENT();
	return cuda_leave(
		event->stream && spins(event->stream) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

EXPORTED CUresult cuEventSynchronize(CUevent event)
{
	CUDA_ENTER_CURRENT();
	return wait_while_spinning(current, event->stream);
}

EXPORTED CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
	CUDA_ENTER_CURRENT();
	*ms = (float)((double)(to->at_ns - from->at_ns) / 1e6);
	return cuda_leave(CUDA_SUCCESS);
}

/* A process that ends in good order takes its contexts down, as the real library does. */
__attribute__((destructor)) static void end(void)
{
	for (int i = 0; i < DEVICES_MAX; i++) {
		struct cuda_device *const device = cuda_device(i);
		if (!device || !device->client || cuda_enter("exit", i))
			continue;
		struct client *const client = cuda_client(device);
		if (client) {
			client_running(client, false);
			client_end(client, device->fd);
		}
		cuda_leave(CUDA_SUCCESS);
	}
}
