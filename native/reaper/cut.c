/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cut: deny filter, objects, kill, freeze; then watch until everybody is gone, without waiting
 * for anyone.
 *
 * Rule: the blows fall at once, in that order, and the look at the result comes later: by POLLPRI
 * on cgroup.events, by the pidfd, by the cutters' answers, and by looks at growing intervals. The
 * freeze is for whoever is moved into the leaf afterwards, and comes after the kill: the kernel
 * holds a second notification of cgroup.events back for 10 ms, and the first has to be that nobody
 * is left. A cut that has not ended by the kill deadline is reported unclean and still watched. A
 * report never changes its mind about the past: what failed stays in its steps.
 *
 * A process that was killed stays for as long as a tracer outside holds it at its exit
 * (PTRACE_O_TRACEEXIT; a second SIGKILL changes nothing, seen in Linux 6.1 and 6.18), and its
 * tracer reads its memory. So such a tracer is a holder, too, and is killed (tracers.c).
 *
 * A failed deny or freeze does not make a cut unclean: clean means that nobody is left, and that
 * every object is revoked.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static const uint64_t FIRST_LOOK_NS = 2 * NS_PER_MS; /* by then whoever dies at once is gone */
static const uint64_t LAST_LOOK_NS = 64 * NS_PER_MS;
static const uint64_t LATE_LOOK_NS = NS_PER_S;
static const uint64_t TRACER_NS = 500 * NS_PER_MS; /* an honest tracer lets go in no time */

int watch_add(struct reaper *r, int fd, uint32_t events, enum watch kind, uint32_t index)
{
	struct epoll_event event = { .events = events, .data.u64 = (uint64_t)kind << 32 | index };
	return epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static uint64_t sooner(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Put the slot where its phase wants it in the heap. */
void cut_schedule(struct reaper *r, uint32_t at)
{
	const struct slot *slot = &r->slots[at];
	switch (slot->moving.phase) {
	case LEASED_REAPER_ARMED:
		heap_set(r, at, sooner(slot->moving.deadline_ns, slot->missing_ns));
		break;
	case LEASED_REAPER_CUTTING: heap_set(r, at, slot->check_ns); break;
	default:
		heap_set(r, at, sooner(slot->given_up ? slot->check_ns : NEVER, slot->backstop_ns));
		break;
	}
}

static struct leased_reaper_step_report *add_step(
	struct leased_reaper_report *report, uint32_t step, uint64_t began_ns)
{
	struct leased_reaper_step_report *at = &report->step[report->steps++];
	*at = (struct leased_reaper_step_report){
		.step = step, .began_ns = began_ns, .ended_ns = began_ns
	};
	return at;
}

struct leased_reaper_step_report *cut_step(struct leased_reaper_report *report, uint32_t step)
{
	for (uint32_t i = 0; i < report->steps; i++) {
		if (report->step[i].step == step)
			return &report->step[i];
	}
	return NULL;
}

/* From here on the directory is not needed any more: its place is taken by cgroup.events. */
static void watch_cgroup(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	int events = leased_cgroup_events_open(slot->cgroup_fd);
	if (events < 0)
		return; /* out of descriptors: the looks at intervals go on through the directory */
	close(slot->cgroup_fd);
	slot->cgroup_fd = events;
	slot->events_open = true;
	(void)watch_add(r, events, EPOLLPRI, WATCH_CGROUP, at);
}

static void deny_devices(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	struct leased_reaper_step_report *step =
		add_step(&slot->report, LEASED_REAPER_STEP_DENY, slot->began_ns);
	step->error =
		-(r->deny_fd < 0 ? r->deny_fd : leased_filter_attach(slot->cgroup_fd, r->deny_fd));
	step->ended_ns = boot_now();
}

/* Whoever is moved there from now on does not run, nor whom the kill has missed. */
static void freeze(struct slot *slot)
{
	const uint64_t began_ns = boot_now();
	const int error = -leased_cgroup_freeze(slot->cgroup_fd);
	if (cut_step(&slot->report, LEASED_REAPER_STEP_FREEZE) != NULL)
		return;
	struct leased_reaper_step_report *step =
		add_step(&slot->report, LEASED_REAPER_STEP_FREEZE, began_ns);
	step->error = error;
	step->ended_ns = boot_now();
}

/* Whoever came in between the kill and the freeze has been met by neither; whom the kill has not
 * ended by now is in the kernel, or waits for a core: let him have one. */
static void kill_the_rest(struct slot *slot)
{
	int fd = cgroup_reopen(slot->identity.cgroup, slot->identity.cgroup_inode);
	if (fd < 0)
		return;
	(void)leased_cgroup_kill_begin(fd);
	if (!slot->hastened)
		(void)leased_cgroup_hasten(fd);
	slot->hastened = true;
	close(fd);
}

static void strike_objects(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	const uint32_t count = slot->identity.objects;
	slot->objects_gone = count == 0;
	slot->objects_left = (1u << count) - 1;
	slot->keys_wiped = 0;
	if (count == 0)
		return;
	(void)add_step(&slot->report, LEASED_REAPER_STEP_OBJECT_REVOKE, boot_now());
	objects_revoke(r, at);
}

/* Kill, and watch who is killed. 0 or an errno. May be repeated. */
static int strike_processes(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	const bool in_leaf = !slot->cgroup_gone && !slot->events_open;
	const int leaf_error = in_leaf ? -leased_cgroup_kill_begin(slot->cgroup_fd) : 0;
	int holder_error = 0;
	if (!slot->holder_gone)
		holder_error = -leased_pidfd_kill_begin(slot->pidfd);
	if (in_leaf)
		freeze(slot);
	if (in_leaf && leaf_error == 0)
		watch_cgroup(r, at);
	if (!slot->holder_gone)
		(void)watch_add(r, slot->pidfd, EPOLLIN, WATCH_HOLDER, at);
	return leaf_error ? leaf_error : holder_error;
}

/* Kill again where that failed, or where an earlier reaper's death had left somebody out of reach.
 * What has been reported of the first time stays. */
static void strike_again(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	struct leased_reaper_step_report *kill = cut_step(&slot->report, LEASED_REAPER_STEP_KILL);
	const bool cgroup = slot->cgroup_lost;
	if (slot->killed || kill == NULL || (kill->error == 0 && !cgroup && !slot->holder_lost))
		return;
	if (cgroup || slot->holder_lost)
		reopen(r, at);
	slot->cgroup_gone = slot->cgroup_gone || (slot->cgroup_fd < 0 && !slot->cgroup_lost);
	slot->holder_gone = slot->holder_gone || (slot->pidfd < 0 && !slot->holder_lost);
	if (cgroup && slot->cgroup_fd >= 0 && r->deny_fd >= 0)
		(void)leased_filter_attach(slot->cgroup_fd, r->deny_fd);
	int error = strike_processes(r, at);
	if (!slot->given_up)
		kill->error = error;
}

/* Begin to cut, as the slot's moving flags say. Harmless to repeat after a restart. */
void cut_begin(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	const bool by_reaper = (slot->moving.flags & MOVING_ON_REQUEST) == 0;
	const bool spare_holder = (slot->moving.flags & MOVING_SPARE_HOLDER) != 0;
	slot->moving.phase = LEASED_REAPER_CUTTING;
	state_write_moving(r, at);
	board_mark(r, at);
	slot->began_ns = boot_now();
	memset(&slot->report, 0, sizeof slot->report);
	memcpy(slot->report.id, slot->identity.id, sizeof slot->report.id);
	slot->report.flags = by_reaper ? LEASED_REAPER_BY_REAPER : 0;
	if (slot->cgroup_lost || slot->holder_lost)
		reopen(r, at);
	slot->cgroup_gone = slot->cgroup_fd < 0 && !slot->cgroup_lost;
	slot->holder_gone = (slot->pidfd < 0 && !slot->holder_lost) || spare_holder;
	slot->killed = slot->hastened = false;
	if (!slot->cgroup_gone)
		deny_devices(r, at);
	strike_objects(r, at);
	struct leased_reaper_step_report *kill =
		add_step(&slot->report, LEASED_REAPER_STEP_KILL, boot_now());
	kill->measured = (uint64_t)!slot->cgroup_gone + (uint64_t)!slot->holder_gone;
	kill->error = strike_processes(r, at);
	slot->interval_ns = FIRST_LOOK_NS;
	slot->check_ns = boot_now() + FIRST_LOOK_NS;
	cut_schedule(r, at);
	cut_check(r, at);
}

static void stop_watching(struct reaper *r, struct slot *slot)
{
	r->fds_used -= table_fds(slot);
	/* Closing is not enough to leave an epoll set while a duplicate is open elsewhere, as a
	 * pidfd's may be. */
	if (slot->cgroup_fd >= 0) {
		(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, slot->cgroup_fd, NULL);
		close(slot->cgroup_fd);
	}
	if (slot->pidfd >= 0) {
		(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, slot->pidfd, NULL);
		close(slot->pidfd);
	}
	slot->cgroup_fd = slot->pidfd = -1;
	r->fds_used += table_fds(slot);
}

static void tell(const struct slot *slot, bool clean)
{
	const bool by_reaper = (slot->report.flags & LEASED_REAPER_BY_REAPER) != 0;
	const int64_t lag =
		(int64_t)(slot->began_ns - slot->moving.deadline_ns) / (int64_t)NS_PER_US;
	say(clean ? LOG_INFO : LOG_ERR,
		"event=cut lease=%s generation=%llu clean=%d by_reaper=%d lag_us=%lld took_us=%llu",
		hex_of(slot->identity.id), (unsigned long long)slot->moving.generation, clean,
		by_reaper, by_reaper ? (long long)lag : 0LL,
		(unsigned long long)((slot->report.cut_ns - slot->began_ns) / NS_PER_US));
}

/* Whether the cut was `clean` is known now: say so in the steps that had an open end. */
static void conclude(struct slot *slot, bool clean, uint64_t now)
{
	struct leased_reaper_step_report *kill = cut_step(&slot->report, LEASED_REAPER_STEP_KILL);
	struct leased_reaper_step_report *revoke =
		cut_step(&slot->report, LEASED_REAPER_STEP_OBJECT_REVOKE);
	if (kill != NULL && !slot->killed) {
		kill->ended_ns = now;
		kill->error = kill->error ? kill->error : ETIMEDOUT;
	}
	if (revoke != NULL && !slot->objects_gone) {
		revoke->ended_ns = now;
		revoke->error = revoke->error ? revoke->error : ETIMEDOUT;
	}
	if (clean && revoke != NULL && slot->keys_wiped > 0 &&
		cut_step(&slot->report, LEASED_REAPER_STEP_KEY) == NULL) {
		struct leased_reaper_step_report *key =
			add_step(&slot->report, LEASED_REAPER_STEP_KEY, slot->began_ns);
		key->ended_ns = revoke->ended_ns;
		key->measured = slot->keys_wiped;
	}
}

/* From when on nobody had access: everybody was gone, and no object let anybody through. */
static uint64_t access_ended(struct slot *slot, uint64_t now)
{
	const struct leased_reaper_step_report *kill =
		cut_step(&slot->report, LEASED_REAPER_STEP_KILL);
	const struct leased_reaper_step_report *revoke =
		cut_step(&slot->report, LEASED_REAPER_STEP_OBJECT_REVOKE);
	if (kill == NULL || revoke == NULL)
		return now;
	return kill->ended_ns > revoke->ended_ns ? kill->ended_ns : revoke->ended_ns;
}

/* The cut is over, well (`clean`) or not. Also called when somebody who had survived the kill
 * deadline is gone at last. */
static void end(struct reaper *r, uint32_t at, bool clean, uint64_t now)
{
	struct slot *slot = &r->slots[at];
	const bool again = slot->given_up;
	conclude(slot, clean, now);
	slot->report.cut_ns = clean ? access_ended(slot, now) : now;
	slot->report.flags |= clean ? LEASED_REAPER_CLEAN : 0;
	slot->given_up = !clean;
	if (clean)
		stop_watching(r, slot);
	if (!again && holds_memory(slot))
		slot->backstop_ns = now + r->options.backstop_ns;
	slot->check_ns = now + LATE_LOOK_NS;
	state_write_report(r, at);
	slot->moving.phase = LEASED_REAPER_ENDED;
	state_write_moving(r, at);
	tell(slot, clean);
	if (clean && (slot->moving.flags & MOVING_FORGET) != 0) {
		if (!holds_memory(slot) || slot->backstopped) {
			lease_forget(r, at);
			return;
		}
		slot->claimant = NONE;
		slot->backstop_ns = now;
	}
	/* At a deadline nobody has asked: the agent waits for being told. */
	const bool by_reaper = (slot->report.flags & LEASED_REAPER_BY_REAPER) != 0;
	if (slot->wants_report || (by_reaper && slot->claimant == NONE && !again))
		outbox_put(r, at);
	cut_schedule(r, at);
}

static bool cgroup_is_empty(const struct slot *slot)
{
	int populated = slot->events_open ? leased_cgroup_events_populated(slot->cgroup_fd)
					  : leased_cgroup_populated(slot->cgroup_fd);
	return populated == 0;
}

/* Whether the holder is dead in all of its threads, though somebody outside has it stay. */
static bool is_over(const struct slot *slot)
{
	return slot->pidfd >= 0 && boot_now() >= slot->began_ns + TRACER_NS &&
	       leased_process_over(slot->identity.holder_pid) == 1;
}

/* See who is gone. Of him nothing more is heard: a pidfd stays readable, and so does cgroup.events
 * until it is read. We would turn without a pause, before everybody on this processor, until the
 * cut has ended, and what the cutters wait for is the kernel's own threads. */
static void look(struct reaper *r, struct slot *slot)
{
	if (!slot->cgroup_gone && cgroup_is_empty(slot)) {
		slot->cgroup_gone = true;
		if (slot->cgroup_fd >= 0)
			(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, slot->cgroup_fd, NULL);
	}
	if (!slot->holder_gone && (holder_exited(slot->pidfd) || is_over(slot))) {
		slot->holder_gone = true;
		if (slot->pidfd >= 0)
			(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, slot->pidfd, NULL);
	}
}

static void note_killed(struct slot *slot, uint64_t now)
{
	struct leased_reaper_step_report *kill = cut_step(&slot->report, LEASED_REAPER_STEP_KILL);
	if (slot->killed || !slot->cgroup_gone || !slot->holder_gone || kill == NULL)
		return;
	slot->killed = true;
	kill->ended_ns = now;
	kill->error = 0;
}

/* Look whether everybody is gone; give up at the kill deadline. */
void cut_check(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	if (slot->moving.phase != LEASED_REAPER_CUTTING && !slot->given_up)
		return;
	look(r, slot);
	uint64_t now = boot_now();
	note_killed(slot, now);
	if (slot->killed && slot->objects_gone) {
		end(r, at, true, now);
	} else if (slot->given_up) {
		strike_again(r, at);
		if (!slot->cgroup_gone)
			kill_the_rest(slot);
		tracers_end(slot);
		objects_revoke(r, at);
		slot->check_ns = now + LATE_LOOK_NS;
		cut_schedule(r, at);
	} else if (now >= slot->began_ns + r->options.kill_ns) {
		end(r, at, false, now);
	} else if (now >= slot->check_ns) {
		if (now >= slot->began_ns + TRACER_NS)
			tracers_end(slot);
		strike_again(r, at);
		if (!slot->cgroup_gone)
			kill_the_rest(slot);
		objects_revoke(r, at);
		slot->interval_ns = sooner(2 * slot->interval_ns, LAST_LOOK_NS);
		slot->check_ns =
			sooner(now + slot->interval_ns, slot->began_ns + r->options.kill_ns);
		cut_schedule(r, at);
	}
}

static void run_ended(struct reaper *r, uint32_t at, uint64_t now)
{
	struct slot *slot = &r->slots[at];
	if (slot->backstop_ns <= now) {
		if (clients_claims(r, slot)) {
			slot->backstop_ns =
				r->clients[slot->claimant].heard_ns + r->options.backstop_ns;
			cut_schedule(r, at);
		} else {
			backstop_run(r, at);
		}
	}
	if (slot->given_up && slot->check_ns <= now)
		cut_check(r, at);
}

/* The deadline that we know has come: cut, unless the agent has moved it meanwhile. */
static void run_armed(struct reaper *r, uint32_t at, uint64_t now)
{
	struct slot *slot = &r->slots[at];
	board_read(r, at);
	if (slot->missing_ns <= now ||
		(slot->moving.deadline_ns <= now && board_close(r, at)))
		cut_begin(r, at);
	else
		cut_schedule(r, at);
}

/* Do what is due, a bounded amount of it, so that packets are read in between. */
void cut_run_due(struct reaper *r)
{
	for (int i = 0; i < DUE_PER_TURN; i++) {
		uint64_t now = boot_now();
		if (heap_first_ns(r) > now)
			return;
		uint32_t at = r->heap[0];
		struct slot *slot = &r->slots[at];
		if (slot->moving.phase == LEASED_REAPER_ARMED)
			run_armed(r, at, now);
		else if (slot->moving.phase == LEASED_REAPER_CUTTING)
			cut_check(r, at);
		else
			run_ended(r, at, now);
	}
}
