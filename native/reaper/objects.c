/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects: what gives access besides a process being alive, and is revoked at the cut.
 *
 * Rule: revoking is a driver's call, which may wait for a drive, so cutters (cutter.c) do it and we
 * only watch. There are always some that wait for work before anything can be armed with an object;
 * one that does not come back keeps its object and nobody else's: another takes its place, up to
 * CUTTERS_MAX. Whoever finds no cutter stands in line. What failed is tried again at each look at
 * the cut.
 *
 * Does not decide whether a cut is clean (cut.c).
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

void objects_make(struct reaper *r)
{
	r->dm_fd = -1;
	r->line_first = r->line_last = NONE;
	for (uint32_t i = 0; i < CUTTERS_MAX; i++)
		r->cutters[i] = (struct cutter){ .fd = -1, .slot = NONE };
}

/* A place for another cutter, or NONE. Those that ended are waited for here, without waiting. */
static uint32_t vacancy(struct reaper *r)
{
	uint32_t found = NONE;
	for (uint32_t i = 0; i < CUTTERS_MAX; i++) {
		struct cutter *cutter = &r->cutters[i];
		if (cutter->fd < 0 && cutter->pid > 0 &&
			waitpid(cutter->pid, NULL, WNOHANG) == cutter->pid)
			cutter->pid = 0;
		if (found == NONE && cutter->fd < 0 && cutter->pid == 0)
			found = i;
	}
	return found;
}

/* One more cutter; its number or -errno. */
static int hire(struct reaper *r)
{
	int ends[2];
	const uint32_t number = vacancy(r);
	if (number == NONE)
		return -EAGAIN;
	/* Each time until it is there: what was out of reach when we began need not stay so. */
	if (r->dm_fd < 0)
		r->dm_fd = leased_dm_open();
	if (r->dm_fd < 0)
		return r->dm_fd;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
		return -errno;
	pid_t pid = fork();
	if (pid == 0)
		cutter_run(ends[1], r->dm_fd);
	close(ends[1]);
	int rc = pid < 0 ? -errno : watch_add(r, ends[0], EPOLLIN, WATCH_CUTTER, number);
	if (rc < 0) {
		/* A cutter that was forked reads the end of its socket, and goes. */
		close(ends[0]);
		r->cutters[number].pid = pid > 0 ? pid : 0;
		return rc;
	}
	r->cutters[number] = (struct cutter){ .fd = ends[0], .pid = pid, .slot = NONE };
	return (int)number;
}

static uint32_t idle(const struct reaper *r)
{
	for (uint32_t i = 0; i < CUTTERS_MAX; i++) {
		if (r->cutters[i].fd >= 0 && r->cutters[i].slot == NONE)
			return i;
	}
	return NONE;
}

static uint32_t count_idle(const struct reaper *r)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < CUTTERS_MAX; i++)
		count += r->cutters[i].fd >= 0 && r->cutters[i].slot == NONE;
	return count;
}

/*
 * Whether these could be revoked: every kind is known, the control device is open and cutters wait.
 * -EINVAL, -ENODEV and what opening or forking came to.
 */
int objects_check(struct reaper *r, const struct leased_reaper_object *objects, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (objects[i].kind != LEASED_REAPER_OBJECT_DM || objects[i].reserved != 0)
			return -EINVAL;
	}
	if (count == 0)
		return 0;
	while (count_idle(r) < CUTTERS_FIRST) {
		int rc = hire(r);
		if (rc < 0)
			return idle(r) != NONE ? 0 : rc;
	}
	return 0;
}

static void dismiss(struct reaper *r, uint32_t number)
{
	struct cutter *cutter = &r->cutters[number];
	(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, cutter->fd, NULL);
	close(cutter->fd);
	cutter->fd = -1;
	cutter->slot = NONE;
}

static bool give(struct reaper *r, uint32_t number, uint32_t at, uint32_t object)
{
	struct cutter *cutter = &r->cutters[number];
	struct slot *slot = &r->slots[at];
	struct cutter_job job = { .object = slot->identity.object[object] };
	memcpy(job.id, slot->identity.id, sizeof job.id);
	if (send(cutter->fd, &job, sizeof job, MSG_DONTWAIT | MSG_NOSIGNAL) !=
		(ssize_t)sizeof job) {
		dismiss(r, number);
		return false;
	}
	cutter->slot = at;
	cutter->object = object;
	slot->objects_at_work |= 1u << object;
	slot->objects_wanted &= ~(1u << object);
	return true;
}

static void stand_in_line(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	if (slot->in_line)
		return;
	slot->in_line = true;
	slot->objects_next = NONE;
	if (r->line_last == NONE)
		r->line_first = at;
	else
		r->slots[r->line_last].objects_next = at;
	r->line_last = at;
}

static void leave_line(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	if (!slot->in_line)
		return;
	uint32_t before = NONE;
	for (uint32_t i = r->line_first; i != at; i = r->slots[i].objects_next)
		before = i;
	if (before == NONE)
		r->line_first = slot->objects_next;
	else
		r->slots[before].objects_next = slot->objects_next;
	if (r->line_last == at)
		r->line_last = before;
	slot->in_line = false;
}

/* Give out work as long as there are hands. */
static void hand_out(struct reaper *r)
{
	while (r->line_first != NONE) {
		const uint32_t at = r->line_first;
		const struct slot *slot = &r->slots[at];
		if (slot->objects_wanted == 0) {
			leave_line(r, at);
			continue;
		}
		uint32_t number = idle(r);
		if (number == NONE) {
			int hired = hire(r);
			if (hired < 0)
				return;
			number = (uint32_t)hired;
		}
		(void)give(r, number, at, (uint32_t)__builtin_ctz(slot->objects_wanted));
	}
}

/* Begin to revoke what the slot has left, or go on with it. */
void objects_revoke(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	slot->objects_wanted = slot->objects_left & ~slot->objects_at_work;
	if (slot->objects_wanted != 0)
		stand_in_line(r, at);
	hand_out(r);
}

static void note(struct reaper *r, uint32_t at, uint32_t object, const struct cutter_result *result)
{
	struct slot *slot = &r->slots[at];
	struct leased_reaper_step_report *step =
		cut_step(&slot->report, LEASED_REAPER_STEP_OBJECT_REVOKE);
	slot->objects_at_work &= ~(1u << object);
	if (step == NULL)
		return;
	if (result->error != 0) {
		step->ended_ns = boot_now();
		say(LOG_ERR, "event=object_kept lease=%s object=%u errno=%d",
			hex_of(slot->identity.id), object, result->error);
		step->error = result->error;
		return;
	}
	/* The driver may have cleared up for long after that. */
	if (result->ended_ns > step->ended_ns)
		step->ended_ns = result->ended_ns;
	slot->objects_left &= ~(1u << object);
	slot->keys_wiped += result->keys;
	step->measured++;
	if (slot->objects_left != 0)
		return;
	step->error = 0;
	slot->objects_gone = true;
	cut_check(r, at);
}

/* A cutter has answered, or is gone. */
void objects_ended(struct reaper *r, uint32_t number)
{
	struct cutter *cutter = &r->cutters[number];
	struct cutter_result result = { .error = ECHILD };
	if (cutter->fd < 0)
		return;
	ssize_t got = recv(cutter->fd, &result, sizeof result, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	const uint32_t at = cutter->slot, object = cutter->object;
	cutter->slot = NONE;
	if (got != (ssize_t)sizeof result) {
		result = (struct cutter_result){ .error = ECHILD };
		dismiss(r, number);
	}
	if (at != NONE)
		note(r, at, object, &result);
	hand_out(r);
	/* What a storm has hired does not stay. */
	if (cutter->fd >= 0 && cutter->slot == NONE && count_idle(r) > CUTTERS_FIRST)
		dismiss(r, number);
}

/* The slot is about to be given back; a cutter that still works for it finishes for nobody. */
void objects_forget(struct reaper *r, uint32_t at)
{
	leave_line(r, at);
	for (uint32_t i = 0; i < CUTTERS_MAX; i++) {
		/* Its answer is still to come, and must not be taken for another's. */
		if (r->cutters[i].fd >= 0 && r->cutters[i].slot == at)
			dismiss(r, i);
	}
}
