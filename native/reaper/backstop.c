/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backstop: when no agent takes over after a cut, or the cut does not end (the agent fences
 * then, and scrubs nothing), a child overwrites and truncates the lease's memory, so that a process
 * outside the lease that kept a descriptor or a mapping loses access too.
 *
 * Rule: the child holds nothing but the memfds and stderr (above all no socket and no lock of
 * ours), and what it did is believed only if it exited by itself with 0. One that was killed is
 * followed by another that only truncates, until the memory is gone: whoever kept it may shrink it
 * under the hand that overwrites it (SIGBUS), but cannot keep it from being truncated.
 *
 * Does not run while the connection that claimed the lease is heard of: the agent scrubs then.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint64_t RETRY_NS = 100 * NS_PER_MS;

enum { FIRST_FD = STDERR_FILENO + 1 };

/* In the child: move the memfds to the first numbers after stderr and close everything else.
 * Returns how many. */
static int keep_only(const struct slot *slot)
{
	int kept[LEASED_REAPER_MEMFDS_MAX];
	int count = 0;
	for (size_t i = 0; i < LEASED_REAPER_MEMFDS_MAX; i++) {
		if (slot->memfd[i] >= 0)
			kept[count++] = slot->memfd[i];
	}
	/* In ascending order no target number is still needed as a source. */
	for (int i = 0; i < count; i++) {
		for (int j = i + 1; j < count; j++) {
			if (kept[j] < kept[i]) {
				int swap = kept[i];
				kept[i] = kept[j];
				kept[j] = swap;
			}
		}
		if (kept[i] != FIRST_FD + i)
			dup2(kept[i], FIRST_FD + i);
	}
	syscall(SYS_close_range, (unsigned int)(FIRST_FD + count), ~0u, 0);
	return count;
}

static void overwrite_one(int fd, struct backstop_result *result)
{
	struct stat st;
	uint64_t overwritten = 0, residue = 0;
	int rc = fstat(fd, &st) == 0
			 ? leased_mem_scrub(fd, 0, (uint64_t)st.st_size, &overwritten, &residue)
			 : -errno;
	result->overwritten += overwritten;
	result->residue += residue;
	if (rc != 0 && result->scrub_error == 0)
		result->scrub_error = -rc;
}

static void truncate_one(int fd, struct backstop_result *result)
{
	uint64_t left = 0;
	int rc = leased_mem_truncate(fd, &left);
	result->blocks_left += left;
	if (rc != 0 && result->truncate_error == 0)
		result->truncate_error = -rc;
}

static _Noreturn void child(const struct slot *slot, struct backstop_result *result)
{
	const struct sched_param ordinary = { .sched_priority = 0 };
	(void)sched_setscheduler(0, SCHED_OTHER, &ordinary);
	(void)prctl(PR_SET_NAME, "leased-backstop");
	(void)prctl(PR_SET_DUMPABLE, 0); /* what it maps must be in no core */
	result->at_ns[0] = boot_now();
	int count = keep_only(slot);
	for (int i = 0; i < count && !slot->overwriting_failed; i++)
		overwrite_one(FIRST_FD + i, result);
	result->at_ns[1] = boot_now();
	for (int i = 0; i < count; i++)
		truncate_one(FIRST_FD + i, result);
	result->at_ns[2] = boot_now();
	_exit(0);
}

/* A child and its pidfd, or neither: one that nobody watches would work beside the next. Returns
 * the pid, 0 in the child, or -errno. */
static pid_t begin(int *pidfd)
{
	long pid = syscall(SYS_clone, (unsigned long)CLONE_PIDFD | SIGCHLD, NULL, pidfd, NULL, 0);
	return pid < 0 ? -errno : (pid_t)pid;
}

static void later(struct reaper *r, uint32_t at)
{
	r->slots[at].backstop_ns = boot_now() + RETRY_NS;
	cut_schedule(r, at);
}

void backstop_run(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	uint32_t number = 0;
	int pidfd = -1;
	if (slot->child != NONE) {
		const uint32_t child = slot->child;
		backstop_ended(r, child);
		if (r->backstops[child].pidfd >= 0)
			later(r, at); /* it is being done */
		return;
	}
	for (; number < BACKSTOPS_MAX; number++) {
		if (r->backstops[number].pidfd >= 0 && r->backstops[number].slot == NONE)
			backstop_ended(r, number);
		if (r->backstops[number].pidfd < 0)
			break;
	}
	if (number == BACKSTOPS_MAX) {
		later(r, at);
		return;
	}
	memset(&r->results[number], 0, sizeof r->results[number]);
	pid_t pid = begin(&pidfd);
	if (pid == 0)
		child(slot, &r->results[number]);
	if (pid < 0) {
		say(LOG_ERR, "event=backstop_failed lease=%s errno=%d", hex_of(slot->identity.id),
			-(int)pid);
		later(r, at);
		return;
	}
	r->backstops[number] = (struct backstop){ .pidfd = pidfd, .slot = at };
	slot->child = number;
	say(LOG_WARNING, "event=backstop lease=%s pid=%d", hex_of(slot->identity.id), (int)pid);
	if (watch_add(r, pidfd, EPOLLIN, WATCH_BACKSTOP, number) == 0)
		slot->backstop_ns = NEVER;
	else
		slot->backstop_ns = boot_now() + RETRY_NS;
	cut_schedule(r, at);
}

bool holds_memory(const struct slot *slot)
{
	for (size_t i = 0; i < LEASED_REAPER_MEMFDS_MAX; i++) {
		if (slot->memfd[i] >= 0)
			return true;
	}
	return false;
}

/* Whether some of it was lost with an earlier reaper. */
bool misses_memory(const struct slot *slot)
{
	for (uint32_t i = 0; i < slot->identity.memfds; i++) {
		if (slot->memfd[i] < 0)
			return true;
	}
	return false;
}

static void record(struct reaper *r, uint32_t at, const struct backstop_result *result)
{
	struct slot *slot = &r->slots[at];
	struct leased_reaper_report *report = &slot->report;
	if (report->steps + 3 > LEASED_REAPER_STEPS_MAX)
		return;
	/* What was lost with an earlier reaper was not overwritten, and nobody may think so. */
	const int missing = misses_memory(slot) ? ENOENT : 0;
	const int scrub_error = slot->overwriting_failed ? ECHILD
				: missing                ? missing
							 : result->scrub_error;
	const int truncate_error = missing ? missing : result->truncate_error;
	report->step[report->steps++] =
		(struct leased_reaper_step_report){ .step = LEASED_REAPER_STEP_SCRUB,
			.error = scrub_error,
			.began_ns = result->at_ns[0],
			.ended_ns = result->at_ns[1],
			.measured = result->overwritten };
	report->step[report->steps++] =
		(struct leased_reaper_step_report){ .step = LEASED_REAPER_STEP_READ_BACK,
			.error = scrub_error       ? scrub_error
				 : result->residue ? EIO
						   : 0,
			.began_ns = result->at_ns[0],
			.ended_ns = result->at_ns[1],
			.measured = result->residue };
	report->step[report->steps++] =
		(struct leased_reaper_step_report){ .step = LEASED_REAPER_STEP_TRUNCATE,
			.error = truncate_error        ? truncate_error
				 : result->blocks_left ? EIO
						       : 0,
			.began_ns = result->at_ns[1],
			.ended_ns = result->at_ns[2],
			.measured = result->blocks_left };
	report->flags |= LEASED_REAPER_BACKSTOP;
	slot->backstopped = true;
	state_write_report(r, at);
}

/* A child's pidfd is readable. */
void backstop_ended(struct reaper *r, uint32_t number)
{
	struct backstop *one = &r->backstops[number];
	siginfo_t info = { .si_pid = 0 };
	if (one->pidfd < 0 || waitid(P_PIDFD, (id_t)one->pidfd, &info, WEXITED | WNOHANG) != 0 ||
		info.si_pid == 0)
		return;
	bool believed = info.si_code == CLD_EXITED && info.si_status == 0;
	(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, one->pidfd, NULL);
	close(one->pidfd);
	one->pidfd = -1;
	if (one->slot == NONE)
		return;
	uint32_t at = one->slot;
	struct slot *slot = &r->slots[at];
	slot->child = NONE;
	slot->backstop_ns = NEVER;
	if (believed)
		record(r, at, &r->results[number]);
	say(believed ? LOG_NOTICE : LOG_ERR,
		"event=backstop_ended lease=%s ok=%d overwritten=%llu residue=%llu "
		"blocks_left=%llu",
		hex_of(slot->identity.id), believed,
		(unsigned long long)r->results[number].overwritten,
		(unsigned long long)r->results[number].residue,
		(unsigned long long)r->results[number].blocks_left);
	if (!believed) {
		slot->overwriting_failed = true;
		later(r, at);
	} else if ((slot->moving.flags & MOVING_FORGET) != 0 && !slot->given_up) {
		lease_forget(r, at);
	} else {
		cut_schedule(r, at);
	}
}

/* The slot is about to be given back; a child that still works for it finishes for nobody. */
void backstop_forget(struct reaper *r, uint32_t at)
{
	if (r->slots[at].child != NONE)
		r->backstops[r->slots[at].child].slot = NONE;
	r->slots[at].child = NONE;
}
