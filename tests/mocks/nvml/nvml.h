/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the mock libnvidia-ml share: handles, and the way into every call.
 *
 * Rule: every call on a device enters by `ENTER_*`: initialised, fault, driver there, handle still
 * good, GPU not lost. Then, and only then, does it look at the machine.
 */
#ifndef LEASED_MOCK_NVML_H
#define LEASED_MOCK_NVML_H

#include "machine.h"
#include "nvml_abi.h"

/* A handle: a GPU, a MIG device, or (for the two other types) an instance. Never freed. */
struct nvmlDevice_st {
	struct target target;
	uint32_t generation;
	uint64_t serial; /* of the compute or GPU instance */
};

#define MIG    1 /* the call takes a MIG device as well */
#define GONE   2 /* the call answers on a lost GPU as well */
#define LOCKED 4 /* and leaves with the machine locked, swept: end it by `leave` */

nvmlReturn_t nvml_enter(
	const char *call, const void *handle, unsigned flags, struct target *target);
nvmlReturn_t nvml_enter_system(const char *call);
nvmlReturn_t nvml_leave(nvmlReturn_t result);
const struct nvmlDevice_st *nvml_handle(struct target target);
nvmlReturn_t nvml_attach(uint32_t gpu);
/* Whether the library knows of it: it is there, nobody drains it, and it was looked for. */
bool nvml_visible(uint32_t gpu);
bool nvml_is_root(void);

#define ENTER(handle, flags)                                                                       \
	struct target target;                                                                      \
	do {                                                                                       \
		const nvmlReturn_t entered = nvml_enter(__func__, handle, flags, &target);         \
		if (entered != NVML_SUCCESS)                                                       \
			return entered;                                                            \
	} while (0)

#define ENTER_SYSTEM()                                                                             \
	do {                                                                                       \
		const nvmlReturn_t entered = nvml_enter_system(__func__);                          \
		if (entered != NVML_SUCCESS)                                                       \
			return entered;                                                            \
	} while (0)

#define WANT(condition, otherwise)                                                                 \
	do {                                                                                       \
		if (!(condition))                                                                  \
			return otherwise;                                                          \
	} while (0)

#define GPU_OF(target) (&machine_open()->gpu[(target).gpu])

#endif
