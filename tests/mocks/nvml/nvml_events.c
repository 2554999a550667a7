/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: event sets, of devices and of the system.
 *
 * Rule: a set sees what is posted after it registered, once, in order; waiting ends with an event,
 * or with TIMEOUT after the time that was given. More events than the machine keeps (256) are lost,
 * oldest first, as the real queue loses them.
 *
 * Does not wait under the machine's lock.
 */
#define _GNU_SOURCE
#include "nvml.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_KNOWN UINT64_C(0xff9f)

struct nvmlEventSet_st {
	uint64_t seen, types[GPUS_MAX];
};

struct nvmlSystemEventSet_st {
	uint64_t seen, types;
};

EXPORTED nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
	ENTER_SYSTEM();
	*set = calloc(1, sizeof **set);
	WANT(*set, NVML_ERROR_MEMORY);
	(*set)->seen = machine_open()->next_event;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
	ENTER_SYSTEM();
	WANT(set, NVML_ERROR_INVALID_ARGUMENT);
	free(set);
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetSupportedEventTypes(
	nvmlDevice_t device, unsigned long long *types)
{
	ENTER(device, 0);
	*types = EVENTS_KNOWN;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceRegisterEvents(
	nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
	ENTER(device, 0);
	WANT(!(types & ~EVENTS_KNOWN), NVML_ERROR_NOT_SUPPORTED);
	set->types[target.gpu] |= types;
	return NVML_SUCCESS;
}

/* The next event from `*seen` on that the caller wants; where it looked last stays in `*seen`. */
static bool next(uint64_t *seen, const uint64_t *types, bool system, struct event *found)
{
	struct machine *const machine = machine_open();
	bool any = false;
	machine_lock();
	if (machine->next_event > *seen + EVENTS_MAX)
		*seen = machine->next_event - EVENTS_MAX;
	while (!any && *seen < machine->next_event) {
		const struct event *const event = &machine->event[++*seen % EVENTS_MAX];
		any = event->system == system && event->type & types[system ? 0 : event->gpu];
		if (any)
			*found = *event;
	}
	machine_unlock();
	return any;
}

static nvmlReturn_t wait_next(uint64_t *seen, const uint64_t *types, bool system,
	unsigned timeout_ms, struct event *found)
{
	struct machine *const machine = machine_open();
	const uint64_t until = now_ns() + timeout_ms * UINT64_C(1000000);
	for (;;) {
		const uint32_t bell = __atomic_load_n(&machine->event_bell, __ATOMIC_SEQ_CST);
		if (next(seen, types, system, found))
			return NVML_SUCCESS;
		const uint64_t now = now_ns();
		if (now >= until)
			return NVML_ERROR_TIMEOUT;
		const struct timespec left = {
			.tv_sec = (time_t)((until - now) / 1000000000),
			.tv_nsec = (long)((until - now) % 1000000000),
		};
		syscall(SYS_futex, &machine->event_bell, FUTEX_WAIT, bell, &left, NULL, 0);
	}
}

EXPORTED nvmlReturn_t nvmlEventSetWait_v2(
	nvmlEventSet_t set, nvmlEventData_t *data, unsigned timeout_ms)
{
	ENTER_SYSTEM();
	WANT(set && data, NVML_ERROR_INVALID_ARGUMENT);
	struct event event;
	const nvmlReturn_t result = wait_next(&set->seen, set->types, false, timeout_ms, &event);
	WANT(result == NVML_SUCCESS, result);
	*data = (nvmlEventData_t){
		.device = (nvmlDevice_t)(uintptr_t)nvml_handle(
			(struct target){ event.gpu, NONE, NONE }),
		.eventType = event.type,
		.eventData = event.data,
		.gpuInstanceId = event.gi,
		.computeInstanceId = event.ci,
	};
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlSystemEventSetCreate(nvmlSystemEventSetCreateRequest_v1_t *request)
{
	ENTER_SYSTEM();
	WANT(request->version == NVML_VERSION(*request, 1), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	request->set = calloc(1, sizeof *request->set);
	WANT(request->set, NVML_ERROR_MEMORY);
	request->set->seen = machine_open()->next_event;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlSystemEventSetFree(nvmlSystemEventSetFreeRequest_v1_t *request)
{
	WANT(request->version == NVML_VERSION(*request, 1), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	free(request->set);
	request->set = NULL;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlSystemRegisterEvents(nvmlSystemRegisterEventRequest_v1_t *request)
{
	ENTER_SYSTEM();
	WANT(request->version == NVML_VERSION(*request, 1), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	WANT(request->set && !(request->eventTypes & ~UINT64_C(3)), NVML_ERROR_INVALID_ARGUMENT);
	request->set->types |= request->eventTypes;
	return NVML_SUCCESS;
}

/* Answers with the driver unloaded as well: that is what it is for. */
EXPORTED nvmlReturn_t nvmlSystemEventSetWait(nvmlSystemEventSetWaitRequest_v1_t *request)
{
	WANT(machine_open(), NVML_ERROR_UNINITIALIZED);
	WANT(request->version == NVML_VERSION(*request, 1), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	WANT(request->set && request->dataSize, NVML_ERROR_INVALID_ARGUMENT);
	struct event event;
	request->numEvent = 0;
	const nvmlReturn_t result = wait_next(
		&request->set->seen, &request->set->types, true, request->timeoutms, &event);
	WANT(result == NVML_SUCCESS, result);
	const struct gpu *const gpu = &machine_open()->gpu[event.gpu];
	request->data[0] = (nvmlSystemEventData_v1_t){
		.eventType = event.type,
		.gpuId = gpu->pci_domain << 16 | gpu->pci_bus << 8 | gpu->pci_device,
	};
	request->numEvent = 1;
	return NVML_SUCCESS;
}
