/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cutter: a process of the reaper that revokes objects, because a driver may take its time and
 * the reaper may not.
 *
 * Rule: it is forked before it is needed and holds nothing but its socket, the control device and
 * stderr. One job at a time; the answer is sent when the kernel has returned, however long that
 * takes. It ends when the reaper does, and finishes what it has begun.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { JOBS = STDERR_FILENO + 1, CONTROL, FIRST_UNUSED, ABOVE = 16, NICE = -20 };

static struct cutter_result revoke_mapping(const struct cutter_job *job)
{
	struct cutter_result result = { .error = 0 };
	char uuid[LEASED_DM_UUID_BYTES];
	int key = 0;
	(void)snprintf(
		uuid, sizeof uuid, "LEASED-%s-%u", hex_of(job->id), (unsigned)job->object.number);
	result.error = -leased_dm_cut(CONTROL, uuid, &key, &result.ended_ns);
	result.keys = key ? 1 : 0;
	return result;
}

static struct cutter_result carry_out(const struct cutter_job *job)
{
	if (job->object.kind == LEASED_REAPER_OBJECT_DM)
		return revoke_mapping(job);
	return (struct cutter_result){ .error = EINVAL };
}

/* Keep two descriptors besides the standard ones, whatever their numbers were. */
static void keep_only(int jobs, int dm_fd)
{
	int high_jobs = fcntl(jobs, F_DUPFD, ABOVE), high_dm = fcntl(dm_fd, F_DUPFD, ABOVE);
	if (high_jobs < 0 || high_dm < 0 || dup2(high_jobs, JOBS) < 0 || dup2(high_dm, CONTROL) < 0)
		_exit(1);
	syscall(SYS_close_range, (unsigned int)FIRST_UNUSED, ~0u, 0);
}

_Noreturn void cutter_run(int jobs, int dm_fd)
{
	const struct sched_param ordinary = { .sched_priority = 0 };
	struct cutter_job job;
	(void)sched_setscheduler(0, SCHED_OTHER, &ordinary);
	/* Not behind whom it cuts off. */
	(void)setpriority(PRIO_PROCESS, 0, NICE);
	(void)prctl(PR_SET_NAME, "leased-cutter");
	keep_only(jobs, dm_fd);
	for (;;) {
		ssize_t got = recv(JOBS, &job, sizeof job, 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got != (ssize_t)sizeof job)
			_exit(0);
		const struct cutter_result result = carry_out(&job);
		/* Nobody may be there any more to hear it. */
		(void)send(JOBS, &result, sizeof result, MSG_NOSIGNAL);
	}
}
