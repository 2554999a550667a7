/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going on where an earlier reaper was killed: leases from the state file, memfds from systemd's
 * store, cgroups and processes by an identity that cannot be mistaken.
 *
 * Rule: what is not found is not guessed. A cgroup or process that is gone has nobody to cut; one
 * that could not be opened for another reason is tried again at the cut, which is not clean before
 * that. A cut that did not end well is begun again. A memfd that is missing must come back with an
 * ARM from the agent within the re-arm time, or the lease is cut then (if its deadline does not
 * come first). A slot that cannot be read is cut if its identity can, and said out loud if it
 * cannot.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FIRST_INHERITED_FD = 3 };

static bool gone(int rc)
{
	return rc == -ENOENT || rc == -ESRCH || rc == -ENODEV;
}

/* How many descriptors slots may hold: a cut may have of those that arming never takes, but not
 * those that it kills with. */
static uint32_t room(const struct reaper *r, const struct slot *slot)
{
	return slot->moving.phase == LEASED_REAPER_ARMED ? r->fds_max : r->fds_cutting;
}

/* Open what a slot found in the state file has lost: at our start, and as long as it is out of
 * reach. */
void reopen(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	const bool lost = slot->cgroup_lost || slot->holder_lost;
	const bool full = r->fds_used + 2 > room(r, slot);
	slot->cgroup_lost = slot->holder_lost = false;
	r->fds_used -= table_fds(slot);
	if (slot->identity.cgroup[0] != '\0' && slot->cgroup_fd < 0) {
		int fd = full ? -EMFILE
			      : cgroup_reopen(
					slot->identity.cgroup, slot->identity.cgroup_inode);
		slot->cgroup_fd = fd >= 0 ? fd : -1;
		slot->cgroup_lost = fd < 0 && !gone(fd);
	}
	if (slot->identity.holder_pid != 0 && slot->pidfd < 0) {
		int fd = full ? -EMFILE
			      : holder_reopen(
					slot->identity.holder_pid, &slot->identity.holder_start);
		slot->pidfd = fd >= 0 ? fd : -1;
		slot->holder_lost = fd < 0 && !gone(fd);
	}
	r->fds_used += table_fds(slot);
	if (!lost && (slot->cgroup_lost || slot->holder_lost))
		say(LOG_CRIT, "event=out_of_reach lease=%s cgroup=%d holder=%d",
			hex_of(slot->identity.id), slot->cgroup_lost, slot->holder_lost);
}

/* Whether the cut that an earlier reaper has reported is over: everybody gone, every object
 * revoked. */
static bool ended_well(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	return state_read_report(r, at, &slot->report) &&
	       (slot->report.flags & LEASED_REAPER_CLEAN) != 0;
}

static void load(struct reaper *r)
{
	for (uint32_t at = 0; at < r->slot_count; at++) {
		struct slot_identity identity = { .sequence = 0 };
		struct slot_moving moving = { .sequence = 0 };
		bool corrupt = false;
		bool used = state_read(r, at, &identity, &moving, &corrupt);
		r->slots_corrupt += corrupt;
		if (corrupt)
			say(LOG_CRIT, "event=slot_corrupt slot=%u lease=%s", at,
				used ? hex_of(identity.id) : "unknown");
		if (!used && corrupt)
			memset(&r->records[at], 0, sizeof r->records[at]);
		struct slot *slot = &r->slots[at];
		if (used && table_find(r, identity.id) == NONE) {
			slot->identity = identity;
			slot->moving = moving;
			table_put_at(r, at);
			if (moving.phase == LEASED_REAPER_ARMED && !board_resume(r, at))
				slot->moving.phase = LEASED_REAPER_CUTTING;
			if (moving.phase == LEASED_REAPER_ENDED && !ended_well(r, at))
				slot->moving.phase = LEASED_REAPER_CUTTING;
		} else if (!corrupt) {
			/* A free slot's sequences go on, or its old copy would outrank the next
			 * lease in it. */
			slot->identity.sequence = identity.sequence;
			slot->moving.sequence = moving.sequence;
		}
	}
}

static bool parse_name(const char *name, size_t length, uint8_t *id, uint32_t *number)
{
	if (length < 2 * LEASED_REAPER_ID_BYTES + 2 || length > 2 * LEASED_REAPER_ID_BYTES + 4)
		return false;
	for (size_t i = 0; i < 2 * LEASED_REAPER_ID_BYTES; i++) {
		const char c = name[i];
		int value = c >= '0' && c <= '9'   ? c - '0'
			    : c >= 'a' && c <= 'f' ? c - 'a' + 10
						   : -1;
		if (value < 0)
			return false;
		id[i / 2] = (uint8_t)(i % 2 ? (id[i / 2] << 4 | value) : value);
	}
	if (name[2 * LEASED_REAPER_ID_BYTES] != '.')
		return false;
	*number = (uint32_t)strtoul(name + 2 * LEASED_REAPER_ID_BYTES + 1, NULL, 10);
	return *number < LEASED_REAPER_MEMFDS_MAX;
}

/* Give an inherited memfd back to its lease. False: nobody's. */
static bool adopt(struct reaper *r, const char *name, size_t length, int fd)
{
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint32_t number;
	uint64_t inode;
	if (!parse_name(name, length, id, &number))
		return false;
	uint32_t at = table_find(r, id);
	if (at == NONE) {
		notify_unstore(r, id, number);
		return false;
	}
	struct slot *slot = &r->slots[at];
	if (number >= slot->identity.memfds || slot->memfd[number] >= 0 ||
		memfd_check(fd, &inode) != 0 || inode != slot->identity.memfd_inode[number])
		return false;
	slot->memfd[number] = fd;
	r->fds_used++;
	return true;
}

static bool is_listener(int fd)
{
	int listening = 0, type = 0, domain = 0;
	socklen_t length = sizeof listening;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || !listening)
		return false;
	length = sizeof type;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_SEQPACKET)
		return false;
	length = sizeof domain;
	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

/* Descriptors from systemd: match by name, never by order. Returns the listening socket, or -1. */
static int inherit(struct reaper *r)
{
	int listen_fd = -1;
	const char *pid = getenv("LISTEN_PID");
	const char *count = getenv("LISTEN_FDS");
	const char *names = getenv("LISTEN_FDNAMES");
	if (pid == NULL || count == NULL || strtol(pid, NULL, 10) != getpid())
		return listen_fd;
	const int n = (int)strtol(count, NULL, 10);
	for (int i = 0; i < n; i++) {
		const int fd = FIRST_INHERITED_FD + i;
		const size_t length = names ? strcspn(names, ":") : 0;
		(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
		if (listen_fd < 0 && is_listener(fd))
			listen_fd = fd;
		else if (names == NULL || !adopt(r, names, length, fd))
			close(fd);
		if (names != NULL)
			names = names[length] == ':' ? names + length + 1 : names + length;
	}
	return listen_fd;
}

/* Go on after a cut that is over: what memory we have is still to be taken, unless that is done;
 * and who was told to be forgotten is, if nothing is left to do. */
static void go_on(struct reaper *r, uint32_t at, uint64_t now)
{
	struct slot *slot = &r->slots[at];
	slot->backstopped = (slot->report.flags & LEASED_REAPER_BACKSTOP) != 0;
	if (holds_memory(slot) && !slot->backstopped)
		slot->backstop_ns = now + r->options.backstop_ns;
	else if ((slot->moving.flags & MOVING_FORGET) != 0) {
		lease_forget(r, at);
		return;
	}
	cut_schedule(r, at);
}

/* Rebuild the table. Returns the listening socket, if systemd holds one for us, or -1. */
int resume(struct reaper *r)
{
	load(r);
	const int listen_fd = inherit(r);
	const uint64_t now = boot_now();
	for (uint32_t at = 0; at < r->slot_count; at++) {
		struct slot *slot = &r->slots[at];
		if (slot->moving.phase == LEASED_REAPER_FREE)
			continue;
		int rc = objects_check(r, slot->identity.object, slot->identity.objects);
		if (rc != 0)
			say(LOG_CRIT, "event=objects_out_of_reach lease=%s errno=%d",
				hex_of(slot->identity.id), -rc);
		if (slot->moving.phase != LEASED_REAPER_ENDED)
			reopen(r, at);
		if (misses_memory(slot))
			slot->missing_ns = now + r->options.rearm_ns;
		if (slot->moving.phase == LEASED_REAPER_CUTTING)
			cut_begin(r, at);
		else if (slot->moving.phase == LEASED_REAPER_ENDED)
			go_on(r, at, now);
		else
			cut_schedule(r, at);
	}
	if (r->slots_used > 0)
		say(LOG_NOTICE, "event=resumed leases=%u corrupt=%u", r->slots_used,
			r->slots_corrupt);
	return listen_fd;
}
