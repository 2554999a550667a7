/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the mock libcuda share: the driver API's types, this process' devices, contexts
 * and mappings.
 *
 * Rule: what another process must see lies in the machine; what only this process can use
 * (addresses, handles) lies here, under `process_lock`, taken before the machine's.
 */
#ifndef LEASED_MOCK_CUDA_H
#define LEASED_MOCK_CUDA_H

#include "machine.h"

typedef int CUresult;
enum {
	CUDA_SUCCESS = 0,
	CUDA_ERROR_INVALID_VALUE = 1,
	CUDA_ERROR_OUT_OF_MEMORY = 2,
	CUDA_ERROR_NOT_INITIALIZED = 3,
	CUDA_ERROR_DEVICE_UNAVAILABLE = 46,
	CUDA_ERROR_NO_DEVICE = 100,
	CUDA_ERROR_INVALID_DEVICE = 101,
	CUDA_ERROR_INVALID_IMAGE = 200,
	CUDA_ERROR_INVALID_CONTEXT = 201,
	CUDA_ERROR_INVALID_PTX = 218,
	CUDA_ERROR_OPERATING_SYSTEM = 304,
	CUDA_ERROR_INVALID_HANDLE = 400,
	CUDA_ERROR_NOT_FOUND = 500,
	CUDA_ERROR_NOT_READY = 600,
	CUDA_ERROR_ILLEGAL_ADDRESS = 700,
	CUDA_ERROR_LAUNCH_FAILED = 719,
	CUDA_ERROR_NOT_PERMITTED = 800,
	CUDA_ERROR_NOT_SUPPORTED = 801,
	CUDA_ERROR_SYSTEM_NOT_READY = 802,
	CUDA_ERROR_UNKNOWN = 999,
};

typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;

typedef struct {
	unsigned char bytes[16];
} CUuuid;

typedef struct {
	char reserved[64];
} CUipcMemHandle;

typedef struct {
	int type, id;
} CUmemLocation;

typedef struct {
	int type, requestedHandleTypes;
	CUmemLocation location;
	void *win32HandleMetaData;
	unsigned char allocFlags[8];
} CUmemAllocationProp;

#define DEVICES_MAX  8
#define CONTEXTS_MAX 32
#define MAPPINGS_MAX 4096
#define STREAMS_MAX  64

struct cuda_device {
	struct target target;
	int fd; /* the description that carries this process' client */
	uint32_t client;
};

struct CUctx_st {
	int used, device, primary;
};

/* A range of addresses, and the chunks behind it. */
struct mapping {
	CUdeviceptr base;
	uint64_t bytes;
	int device, imported;
	uint32_t allocation, *chunks;
	void *handle; /* of memory, where it was mapped by one */
};

/* A stream with a kernel on it that goes on until `flag` is set. NULL is the first. */
struct CUstream_st {
	int used, spinning, device;
	CUdeviceptr flag;
};

extern pthread_mutex_t process_lock;

/* Enter by __func__: initialised in this process, fault, context. Leaves both locks taken. */
CUresult cuda_enter(const char *call, int device);
CUresult cuda_enter_current(const char *call, int *device);
CUresult cuda_leave(CUresult result);

struct cuda_device *cuda_device(int device); /* NULL: there is no such device */
void cuda_sweep(const struct cuda_device *device);
CUresult cuda_healthy(const struct cuda_device *device);
struct client *cuda_client(const struct cuda_device *device);

struct mapping *mapping_add(int device, const struct allocation *allocation, int imported);
struct mapping *mapping_at(CUdeviceptr at, uint64_t bytes);
void mapping_drop(struct mapping *mapping);
/* Call `act` on every part of a range that lies in one chunk. */
typedef CUresult (*cuda_act)(
	uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with);
CUresult cuda_each(CUdeviceptr at, uint64_t bytes, cuda_act act, void *with);

bool cuda_spinning(int device); /* also ends what was told to end */
void cuda_spin(CUstream stream, int device, CUdeviceptr flag);

/* What a call meets that is to say that it did what it did not do ("return:0"). */
#define CUDA_LIE (-1)

#define CUDA_ENTER(device)                                                                         \
	do {                                                                                       \
		const CUresult entered = cuda_enter(__func__, device);                             \
		if (entered)                                                                       \
			return entered == CUDA_LIE ? CUDA_SUCCESS : entered;                       \
	} while (0)

#define CUDA_ENTER_CURRENT()                                                                       \
	int current;                                                                               \
	do {                                                                                       \
		const CUresult entered = cuda_enter_current(__func__, &current);                   \
		if (entered)                                                                       \
			return entered == CUDA_LIE ? CUDA_SUCCESS : entered;                       \
	} while (0)

#define REFUSE_UNLESS(condition, result)                                                           \
	do {                                                                                       \
		if (!(condition))                                                                  \
			return cuda_leave(result);                                                 \
	} while (0)

#endif
