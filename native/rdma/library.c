/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libibverbs.so.1, found at run time.
 *
 * Rule: a host without the library, or with one that lacks a call, is told so in words; nothing
 * else of leased needs it. What is named here are calls of IBVERBS_1.1 and, for addresses that
 * count from 0, ibv_reg_mr_iova of 1.7 (rdma-core 24, 2019).
 *
 * Does not free the library again: its providers would not survive it.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

struct library verbs;

static const struct {
	const char *name;
	size_t at;
} CALLS[] = {
#define CALL(name)                                                                                 \
	{                                                                                          \
		"ibv_" #name, offsetof(struct library, name)                                       \
	}
	CALL(get_device_list),
	CALL(free_device_list),
	CALL(get_device_name),
	CALL(open_device),
	CALL(close_device),
	CALL(query_device),
	CALL(query_port),
	CALL(query_gid),
	CALL(alloc_pd),
	CALL(dealloc_pd),
	CALL(reg_mr_iova),
	CALL(dereg_mr),
	CALL(create_cq),
	CALL(destroy_cq),
	CALL(create_qp),
	CALL(modify_qp),
	CALL(query_qp),
	CALL(destroy_qp),
	CALL(get_async_event),
	CALL(ack_async_event),
#undef CALL
};

/* -ENOENT: no such library; -ENOSYS: one that is too old. */
int library_open(void)
{
	void *found = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	if (found == NULL)
		return failed("load libibverbs.so.1", ENOENT);
	for (size_t i = 0; i < sizeof CALLS / sizeof CALLS[0]; i++) {
		void *call = dlsym(found, CALLS[i].name);
		if (call == NULL)
			return failed(CALLS[i].name, ENOSYS);
		memcpy((char *)&verbs + CALLS[i].at, &call, sizeof call);
	}
	return 0;
}

/* NULL with what failed. -ENODEV: the library knows no such device (also when its provider is not
 * installed). */
struct abi_context *library_open_device(const char *name)
{
	struct abi_context *context = NULL;
	int count = 0;
	struct abi_device **list = verbs.get_device_list(&count);
	if (list == NULL) {
		failed("list the devices", errno);
		return NULL;
	}
	errno = ENODEV;
	for (int i = 0; i < count; i++) {
		if (strcmp(verbs.get_device_name(list[i]), name) == 0)
			context = verbs.open_device(list[i]);
	}
	int error = errno;
	verbs.free_device_list(list);
	if (context == NULL)
		failed("open the device", error);
	errno = error;
	return context;
}
