/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tracers: whoever holds a killed process of a lease at its exit, from outside.
 *
 * Rule: only a process that is the tracer while its pidfd pins its number is killed, and only for
 * what has been killed before it. A look is bounded: so many threads, so long a chain of tracers of
 * tracers; whatever is left is met by the next look.
 *
 * Does not decide when (cut.c), and does not look into rooms that a holder who is root has made.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../text.h"

enum { THREADS_TEXT_BYTES = 2048, THREADS_MAX = 256, CHAIN_MAX = 4, LOOK_MAX = 192 };

static void end_tracers_of(const struct slot *slot, int pid, int chain, int *left);

static void end_tracer_of(const struct slot *slot, int tid, int chain, int *left)
{
	if (chain == CHAIN_MAX || --*left < 0)
		return;
	int tracer = leased_tracer_of(tid);
	if (tracer <= 1 || tracer == getpid())
		return;
	int pidfd = leased_pidfd_open(tracer);
	if (pidfd < 0)
		return;
	const bool same = leased_tracer_of(tid) == tracer;
	int rc = same ? leased_pidfd_kill_begin(pidfd) : 0;
	close(pidfd);
	if (!same)
		return;
	if (!slot->given_up)
		say(LOG_NOTICE, "event=tracer lease=%s pid=%d of=%d killed=%d",
			hex_of(slot->identity.id), tracer, tid, rc == 0);
	end_tracers_of(slot, tracer, chain + 1, left);
}

static void end_tracers_of(const struct slot *slot, int pid, int chain, int *left)
{
	int tids[THREADS_MAX];
	const int count = leased_threads(pid, tids, THREADS_MAX);
	for (int i = 0; i < count && *left > 0; i++)
		end_tracer_of(slot, tids[i], chain, left);
}

static void end_tracers_in(const struct slot *slot, const char *room, int *left)
{
	char path[LEASED_REAPER_CGROUP_BYTES + 32];
	char text[THREADS_TEXT_BYTES];
	(void)snprintf(path, sizeof path, "%s%s/cgroup.threads", slot->identity.cgroup, room);
	if (read_text(path, text, sizeof text) < 0)
		return; /* no such room, or the leaf is gone */
	for (char *at = text, *end; *at != '\0'; at = *end == '\n' ? end + 1 : end) {
		int tid = (int)strtol(at, &end, 10);
		if (end == at || *end != '\n')
			return; /* the last one may be cut short */
		end_tracer_of(slot, tid, 0, left);
	}
}

/* Kill those who hold at its exit what this slot's cut has killed. */
void tracers_end(const struct slot *slot)
{
	int left = LOOK_MAX;
	if (!slot->holder_gone && slot->identity.holder_pid > 0)
		end_tracers_of(slot, slot->identity.holder_pid, 0, &left);
	left = LOOK_MAX; /* whoever fills the one look does not hide behind it from the other */
	if (!slot->cgroup_gone && slot->identity.cgroup[0] != '\0') {
		end_tracers_in(slot, "", &left);
		end_tracers_in(slot, "/inside", &left);
	}
}
