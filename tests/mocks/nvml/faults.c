/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults and events: what a call meets on its way in, and what the driver reports.
 *
 * Rule: a fault belongs to one exported symbol (or `*`), perhaps to one GPU, lets `after` calls
 * pass and strikes `count` times. A hung call holds no lock and goes on when its fault is cleared.
 *
 * Does not decide what a result means.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void hang(const struct fault *fault, uint32_t number)
{
	struct machine *const machine = machine_open();
	for (;;) {
		const uint32_t seen = __atomic_load_n(&machine->fault_bell, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&fault->number, __ATOMIC_SEQ_CST) != number)
			return;
		syscall(SYS_futex, &machine->fault_bell, FUTEX_WAIT, seen, NULL, NULL, 0);
	}
}

static struct fault *matching(const char *call, uint32_t gpu)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < FAULTS_MAX; i++) {
		struct fault *const fault = &machine->fault[i];
		if (fault->kind == FAULT_NONE || !fault->count ||
			(fault->gpu != NONE && fault->gpu != gpu) ||
			(strcmp(fault->call, call) != 0 && strcmp(fault->call, "*") != 0))
			continue;
		if (fault->after) {
			fault->after--;
			continue;
		}
		return fault;
	}
	return NULL;
}

int fault_meet(const char *call, uint32_t gpu)
{
	machine_lock();
	struct fault *const fault = matching(call, gpu);
	if (!fault) {
		machine_unlock();
		return -1;
	}
	if (fault->count != NONE)
		fault->count--;
	const struct fault copy = *fault;
	machine_unlock();
	switch ((enum fault_kind)copy.kind) {
	case FAULT_HANG: hang(fault, copy.number); return -1;
	case FAULT_DELAY: {
		const struct timespec time = {
			.tv_sec = copy.argument / 1000,
			.tv_nsec = (long)(copy.argument % 1000) * 1000000,
		};
		nanosleep(&time, NULL);
		return -1;
	}
	case FAULT_RETURN: return (int)copy.argument;
	case FAULT_NONE: break;
	}
	return -1;
}

void event_post(uint32_t gpu, uint32_t gi, uint32_t ci, uint64_t type, uint64_t data, bool system)
{
	struct machine *const machine = machine_open();
	const uint64_t sequence = ++machine->next_event;
	machine->event[sequence % EVENTS_MAX] = (struct event){
		.sequence = sequence,
		.type = type,
		.data = data,
		.gpu = gpu,
		.gi = gi,
		.ci = ci,
		.system = system,
	};
	__atomic_add_fetch(&machine->event_bell, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &machine->event_bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
