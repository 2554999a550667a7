/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent may ask, entry by entry.
 *
 * Rule: everything about an entry is checked before anything changes; an entry that is refused
 * leaves no trace, and its descriptors are closed by the caller. A lease whose deadline has passed
 * is not armed, renewed or changed any more, whether or not its cut has begun: late loses.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* One packet at a time is answered, from here. */
static struct {
	struct leased_reaper_header header;
	char body[LEASED_REAPER_PACKET_BYTES_MAX - sizeof(struct leased_reaper_header)];
} answer;

struct request {
	uint32_t client;
	const struct leased_reaper_header *header;
	const char *body;
	uint64_t now_ns;
	int *fds;
	uint32_t fd_count;
	uint32_t fds_taken;
	struct holder last; /* see holder_describe */
};

/* What an ARM entry brings along, checked. */
struct brought {
	int cgroup_fd;
	int pidfd; /* of the request; taken over only at the end */
	uint64_t cgroup_inode;
	struct holder holder;
	uint32_t memfds;
	int *memfd;
	uint64_t memfd_inode[LEASED_REAPER_MEMFDS_MAX];
};

static void answer_begin(const struct request *request, uint16_t kind)
{
	memset(&answer.header, 0, sizeof answer.header);
	answer.header.magic = LEASED_REAPER_MAGIC;
	answer.header.version = LEASED_REAPER_VERSION;
	answer.header.kind = kind;
	answer.header.serial = request->header->serial;
	answer.header.boot_ns = request->now_ns;
}

static void answer_send(struct reaper *r, const struct request *request, size_t body_bytes,
	const int *fds, uint32_t n)
{
	clients_send(r, request->client, &answer, sizeof answer.header + body_bytes, fds, n);
}

static void refuse(struct reaper *r, const struct request *request, int status)
{
	answer_begin(request, LEASED_REAPER_ERROR);
	answer.header.status = status;
	answer_send(r, request, 0, NULL, 0);
}

/* The lease's slot, as up to date as the board. */
static uint32_t find(struct reaper *r, const uint8_t *id)
{
	uint32_t at = table_find(r, id);
	if (at != NONE && r->slots[at].moving.phase == LEASED_REAPER_ARMED)
		board_read(r, at);
	return at;
}

/* ---- ARM ---- */

static int check_brought(
	struct request *request, const struct leased_reaper_arm *entry, struct brought *brought)
{
	for (uint32_t i = 0; i < brought->memfds; i++) {
		int rc = memfd_check(brought->memfd[i], &brought->memfd_inode[i]);
		if (rc != 0)
			return rc;
	}
	if (brought->pidfd >= 0) {
		int rc = holder_describe(brought->pidfd, &request->last, &brought->holder);
		if (rc != 0)
			return rc;
	}
	if (entry->cgroup[0] != '\0') {
		brought->cgroup_fd = cgroup_open(entry->cgroup, &brought->cgroup_inode);
		if (brought->cgroup_fd < 0)
			return brought->cgroup_fd;
	}
	return 0;
}

/* Whether an armed lease may become what the entry says. */
static int check_again(const struct slot *slot, const struct leased_reaper_arm *entry,
	const struct brought *brought, uint64_t now_ns)
{
	if (slot->moving.phase != LEASED_REAPER_ARMED || slot->moving.deadline_ns <= now_ns)
		return -ETIME;
	if (entry->generation < slot->moving.generation)
		return -ESTALE;
	/* A renewal on the board is seen before its generation is: what it overtook is late, and
	 * not wrong. */
	if (entry->generation == slot->moving.generation &&
		entry->deadline_ns != slot->moving.deadline_ns)
		return entry->deadline_ns < slot->moving.deadline_ns ? -ESTALE : -EINVAL;
	if (brought->cgroup_fd >= 0 && slot->identity.cgroup[0] != '\0' &&
		slot->identity.cgroup_inode != brought->cgroup_inode)
		return -EEXIST;
	if (brought->holder.pid != 0 && slot->identity.holder_pid != 0 &&
		(slot->identity.holder_pid != brought->holder.pid ||
			slot->identity.holder_start != brought->holder.start))
		return -EEXIST;
	return 0;
}

static uint32_t find_memfd(const struct slot *slot, uint64_t inode)
{
	for (uint32_t i = 0; i < slot->identity.memfds; i++) {
		if (slot->identity.memfd_inode[i] == inode)
			return i;
	}
	return slot->identity.memfds;
}

/* Take over the memfds that are new; the others are closed with the packet. */
static void take_memfds(struct reaper *r, struct slot *slot, const struct brought *brought)
{
	for (uint32_t i = 0; i < brought->memfds; i++) {
		uint32_t number = find_memfd(slot, brought->memfd_inode[i]);
		if (number < slot->identity.memfds && slot->memfd[number] >= 0)
			continue;
		if (number == slot->identity.memfds)
			slot->identity.memfd_inode[slot->identity.memfds++] =
				brought->memfd_inode[i];
		slot->memfd[number] = brought->memfd[i];
		brought->memfd[i] = -1;
		notify_store(r, slot->identity.id, number, slot->memfd[number]);
	}
	if (!misses_memory(slot))
		slot->missing_ns = NEVER;
}

static bool memfds_fit(const struct slot *slot, const struct brought *brought)
{
	uint32_t count = slot->identity.memfds;
	for (uint32_t i = 0; i < brought->memfds; i++)
		count += find_memfd(slot, brought->memfd_inode[i]) == slot->identity.memfds;
	return count <= LEASED_REAPER_MEMFDS_MAX;
}

static uint32_t find_object(const struct slot *slot, const struct leased_reaper_object *object)
{
	for (uint32_t i = 0; i < slot->identity.objects; i++) {
		if (memcmp(&slot->identity.object[i], object, sizeof *object) == 0)
			return i;
	}
	return slot->identity.objects;
}

static bool objects_fit(const struct slot *slot, const struct leased_reaper_arm *entry)
{
	uint32_t count = slot->identity.objects;
	for (uint32_t i = 0; i < entry->objects; i++)
		count += find_object(slot, &entry->object[i]) == slot->identity.objects;
	return count <= LEASED_REAPER_OBJECTS_MAX;
}

static void take_objects(struct slot *slot, const struct leased_reaper_arm *entry)
{
	for (uint32_t i = 0; i < entry->objects; i++) {
		if (find_object(slot, &entry->object[i]) == slot->identity.objects)
			slot->identity.object[slot->identity.objects++] = entry->object[i];
	}
}

static int arm_into(struct reaper *r, uint32_t at, const struct leased_reaper_arm *entry,
	struct brought *brought, int *pidfd)
{
	struct slot *slot = &r->slots[at];
	const bool fresh = slot->moving.phase == LEASED_REAPER_FREE;
	const struct slot_moving before = slot->moving;
	r->fds_used -= table_fds(slot);
	take_memfds(r, slot, brought);
	take_objects(slot, entry);
	if (brought->cgroup_fd >= 0 && slot->cgroup_fd < 0) {
		slot->cgroup_fd = brought->cgroup_fd;
		slot->identity.cgroup_inode = brought->cgroup_inode;
		memcpy(slot->identity.cgroup, entry->cgroup, sizeof slot->identity.cgroup);
		brought->cgroup_fd = -1;
	}
	if (brought->holder.pid != 0 && slot->pidfd < 0) {
		slot->pidfd = *pidfd;
		slot->identity.holder_pid = brought->holder.pid;
		slot->identity.holder_start = brought->holder.start;
		*pidfd = -1;
	}
	r->fds_used += table_fds(slot);
	slot->moving.generation = entry->generation;
	slot->moving.deadline_ns = entry->deadline_ns;
	slot->moving.phase = LEASED_REAPER_ARMED;
	slot->moving.flags = 0;
	/* A new lease overwrites both copies: what the slot held before must never be fallen back
	 * to. */
	for (int copies = fresh ? 2 : 1; copies > 0; copies--)
		state_write_identity(r, at);
	for (int copies = fresh ? 2 : 1; copies > 0; copies--)
		state_write_moving(r, at);
	if (fresh)
		board_hang(r, at);
	else
		(void)board_move(r, at, &before);
	cut_schedule(r, at);
	return (int)at;
}

static int arm_checked(struct reaper *r, const struct leased_reaper_arm *entry,
	struct brought *brought, int *pidfd, uint64_t now_ns)
{
	uint32_t at = find(r, entry->id);
	if (at != NONE) {
		int rc = check_again(&r->slots[at], entry, brought, now_ns);
		if (rc == 0 && (!memfds_fit(&r->slots[at], brought) ||
				       !objects_fit(&r->slots[at], entry)))
			rc = -E2BIG;
		return rc != 0 ? rc : arm_into(r, at, entry, brought, pidfd);
	}
	at = table_take(r, entry->id);
	return at == NONE ? -ENOSPC : arm_into(r, at, entry, brought, pidfd);
}

static int arm_one(
	struct reaper *r, struct request *request, const struct leased_reaper_arm *entry, int *fds)
{
	uint64_t now_ns = request->now_ns;
	int *pidfd = entry->has_pidfd ? fds : NULL;
	struct brought brought = { .cgroup_fd = -1,
		.pidfd = pidfd ? *pidfd : -1,
		.memfds = entry->memfds,
		.memfd = fds + entry->has_pidfd };
	if (entry->deadline_ns > now_ns + r->options.horizon_ns)
		return -ERANGE;
	if (memchr(entry->cgroup, '\0', sizeof entry->cgroup) == NULL)
		return -EINVAL;
	if (r->fds_used + entry->memfds + entry->has_pidfd + 1u > r->fds_max)
		return -EMFILE;
	int rc = objects_check(r, entry->object, entry->objects);
	if (rc == 0)
		rc = check_brought(request, entry, &brought);
	if (rc == 0)
		rc = arm_checked(r, entry, &brought, pidfd, now_ns);
	if (rc >= 0) {
		r->slots[rc].armer = request->client;
		r->slots[rc].arm_serial = r->clients[request->client].serial;
	}
	if (brought.cgroup_fd >= 0)
		close(brought.cgroup_fd);
	return rc;
}

static bool arm(struct reaper *r, struct request *request)
{
	const struct leased_reaper_arm *entry = (const void *)request->body;
	int32_t *status = (void *)answer.body;
	uint64_t wanted = 0;
	for (uint32_t i = 0; i < request->header->count; i++) {
		if (entry[i].has_pidfd > 1 || entry[i].memfds > LEASED_REAPER_MEMFDS_MAX ||
			entry[i].objects > LEASED_REAPER_OBJECTS_MAX)
			return false;
		wanted += entry[i].has_pidfd + (uint64_t)entry[i].memfds;
	}
	if (wanted != request->fd_count)
		return false;
	int *fds = request->fds;
	for (uint32_t i = 0; i < request->header->count; i++) {
		status[i] = arm_one(r, request, &entry[i], fds);
		fds += entry[i].has_pidfd + entry[i].memfds;
	}
	return true;
}

/* ---- RENEW, REVOKE, DISARM ---- */

static int renew_one(struct reaper *r, const struct leased_reaper_renew *entry, uint64_t now_ns)
{
	uint32_t at = find(r, entry->id);
	if (at == NONE)
		return -ENOENT;
	struct slot *slot = &r->slots[at];
	if (slot->moving.phase != LEASED_REAPER_ARMED || slot->moving.deadline_ns <= now_ns)
		return -ETIME;
	if (entry->generation == slot->moving.generation &&
		entry->deadline_ns == slot->moving.deadline_ns)
		return 0; /* asked again because the answer was lost: nothing changes */
	if (entry->generation <= slot->moving.generation)
		return -ESTALE;
	if (entry->deadline_ns > now_ns + r->options.horizon_ns)
		return -ERANGE;
	const struct slot_moving before = slot->moving;
	slot->moving.generation = entry->generation;
	slot->moving.deadline_ns = entry->deadline_ns;
	state_write_moving(r, at);
	const bool moved = board_move(r, at, &before);
	cut_schedule(r, at);
	if (!moved)
		return -ESTALE;
	/* A deadline that has passed on its way here is still the deadline: the lease ends, and
	 * this renewal lost. */
	return entry->deadline_ns <= now_ns ? -ETIME : 0;
}

static int revoke_one(
	struct reaper *r, const struct leased_reaper_revoke *entry, const struct request *request)
{
	uint32_t at = find(r, entry->id);
	if (at == NONE)
		return -ENOENT;
	struct slot *slot = &r->slots[at];
	slot->claimant = request->client;
	slot->claim_serial = r->clients[request->client].serial;
	outbox_drop(r, at);
	slot->wants_report = true;
	if (slot->moving.phase == LEASED_REAPER_ARMED) {
		bool overdue = slot->moving.deadline_ns <= request->now_ns;
		if (!overdue)
			slot->moving.flags = MOVING_ON_REQUEST;
		if (!overdue && (entry->flags & LEASED_REAPER_SPARE_HOLDER) != 0)
			slot->moving.flags |= MOVING_SPARE_HOLDER;
		cut_begin(r, at);
	} else if (slot->moving.phase == LEASED_REAPER_ENDED) {
		outbox_put(r, at);
	}
	return 0;
}

/* Drop a lease altogether: table, state file, descriptors, systemd's store. */
uint32_t lease_forget(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	outbox_drop(r, at);
	backstop_forget(r, at);
	objects_forget(r, at);
	for (uint32_t i = 0; i < slot->identity.memfds; i++) {
		if (slot->memfd[i] >= 0)
			notify_unstore(r, slot->identity.id, i);
	}
	slot->moving.phase = LEASED_REAPER_FREE;
	slot->moving.flags = 0;
	state_write_moving(r, at);
	board_clear(r, at);
	table_release(r, at);
	return at;
}

static int disarm_one(struct reaper *r, const uint8_t *id)
{
	uint32_t at = table_find(r, id);
	if (at == NONE)
		return 0;
	struct slot *slot = &r->slots[at];
	/* An agent that fenced a lease, or has lost its story, disarms it with somebody inside.
	 * To let go then would be to let them stay: cut, take the memory, and only then forget.
	 */
	if (slot->moving.phase == LEASED_REAPER_ARMED) {
		slot->moving.flags |= MOVING_ON_REQUEST | MOVING_FORGET;
		cut_begin(r, at);
	} else if (slot->moving.phase == LEASED_REAPER_CUTTING || slot->given_up) {
		slot->moving.flags |= MOVING_FORGET;
		state_write_moving(r, at);
	} else {
		lease_forget(r, at);
	}
	return 0;
}

static void change(struct reaper *r, const struct request *request)
{
	const uint32_t count = request->header->count;
	int32_t *status = (void *)answer.body;
	for (uint32_t i = 0; i < count; i++) {
		switch (request->header->kind) {
		case LEASED_REAPER_RENEW:
			status[i] = renew_one(r,
				(const struct leased_reaper_renew *)(const void *)request->body + i,
				request->now_ns);
			break;
		case LEASED_REAPER_REVOKE:
			status[i] = revoke_one(r,
				(const struct leased_reaper_revoke *)(const void *)request->body +
					i,
				request);
			break;
		default:
			status[i] = disarm_one(
				r, (const uint8_t *)request->body + i * LEASED_REAPER_ID_BYTES);
			break;
		}
	}
}

/* ---- LIST, PING ---- */

static uint32_t list_one(struct reaper *r, uint32_t at, struct leased_reaper_listed *entry,
	bool with_fds, int *fds)
{
	struct slot *slot = &r->slots[at];
	uint32_t count = 0;
	memset(entry, 0, sizeof *entry);
	if (slot->moving.phase == LEASED_REAPER_ARMED)
		board_read(r, at);
	entry->slot = at;
	memcpy(entry->id, slot->identity.id, sizeof entry->id);
	entry->generation = slot->moving.generation;
	entry->deadline_ns = slot->moving.deadline_ns;
	entry->pid = slot->identity.holder_pid;
	entry->phase = (uint8_t)slot->moving.phase;
	memcpy(entry->cgroup, slot->identity.cgroup, sizeof entry->cgroup);
	entry->objects = slot->identity.objects;
	memcpy(entry->object, slot->identity.object, sizeof entry->object);
	entry->report = slot->report;
	if (with_fds && slot->pidfd >= 0) {
		entry->has_pidfd = 1;
		fds[count++] = slot->pidfd;
	}
	for (uint32_t i = 0; i < slot->identity.memfds; i++) {
		if (slot->memfd[i] < 0) {
			entry->memfds_missing++;
		} else if (with_fds) {
			entry->memfds++;
			fds[count++] = slot->memfd[i];
		}
	}
	return count;
}

static void list(struct reaper *r, const struct request *request)
{
	enum { FDS_PER_ENTRY_MAX = 1 + LEASED_REAPER_MEMFDS_MAX };
	const struct leased_reaper_list *asked = (const void *)request->body;
	struct leased_reaper_listed *entries = (void *)answer.body;
	int fds[LEASED_REAPER_FDS_MAX];
	uint32_t fd_count = 0, count = 0, at = asked->cursor;
	answer_begin(request, LEASED_REAPER_LIST | LEASED_REAPER_REPLY);
	for (; at < r->slot_count; at++) {
		if ((count + 1) * sizeof *entries > sizeof answer.body ||
			fd_count + FDS_PER_ENTRY_MAX > LEASED_REAPER_FDS_MAX)
			break;
		if (r->slots[at].moving.phase != LEASED_REAPER_FREE)
			fd_count += list_one(
				r, at, &entries[count++], asked->with_fds != 0, fds + fd_count);
	}
	answer.header.count = count;
	answer.header.status = at < r->slot_count ? (int32_t)at : 0;
	answer_send(r, request, count * sizeof *entries, fds, fd_count);
}

static void ping(struct reaper *r, const struct request *request)
{
	struct leased_reaper_pong *pong = (void *)answer.body;
	answer_begin(request, LEASED_REAPER_PING | LEASED_REAPER_REPLY);
	answer.header.count = 1;
	memset(pong, 0, sizeof *pong);
	memcpy(pong->boot_id, r->boot_id, sizeof pong->boot_id);
	pong->started_ns = r->started_ns;
	pong->horizon_ns = r->options.horizon_ns;
	pong->pid = (uint32_t)getpid();
	pong->slots = r->slot_count;
	pong->slots_used = r->slots_used;
	pong->slots_corrupt = r->slots_corrupt;
	pong->flags = (r->deny_fd >= 0 ? LEASED_REAPER_HAS_FILTER : 0) |
		      (r->memory_locked ? LEASED_REAPER_HAS_LOCKED_MEMORY : 0) |
		      (r->notify_fd >= 0 ? LEASED_REAPER_HAS_FD_STORE : 0);
	answer_send(r, request, sizeof *pong, NULL, 0);
}

static void lend_board(struct reaper *r, const struct request *request)
{
	answer_begin(request, LEASED_REAPER_BOARD | LEASED_REAPER_REPLY);
	answer_send(r, request, 0, &r->board_fd, 1);
}

/* ---- all of them ---- */

static size_t entry_bytes(uint16_t kind)
{
	switch (kind) {
	case LEASED_REAPER_ARM: return sizeof(struct leased_reaper_arm);
	case LEASED_REAPER_RENEW: return sizeof(struct leased_reaper_renew);
	case LEASED_REAPER_REVOKE: return sizeof(struct leased_reaper_revoke);
	case LEASED_REAPER_DISARM: return LEASED_REAPER_ID_BYTES;
	case LEASED_REAPER_LIST: return sizeof(struct leased_reaper_list);
	default: return 0;
	}
}

static bool well_formed(const struct request *request, size_t bytes)
{
	const struct leased_reaper_header *header = request->header;
	const size_t each = entry_bytes(header->kind);
	if (header->kind == LEASED_REAPER_PING || header->kind == LEASED_REAPER_BOARD)
		return bytes == sizeof *header && header->count == 0;
	if (each == 0 || header->count == 0 ||
		bytes != sizeof *header + (uint64_t)header->count * each)
		return false;
	if (header->kind == LEASED_REAPER_LIST && header->count != 1)
		return false;
	return header->kind == LEASED_REAPER_ARM || request->fd_count == 0;
}

/* Handle one packet of at least a header with the right magic. Descriptors that are taken over
 * become -1 in `fds`. */
void request_handle(struct reaper *r, uint32_t client, const char *packet, size_t bytes, int *fds,
	uint32_t fd_count)
{
	struct request request = { .client = client,
		.header = (const void *)packet,
		.body = packet + sizeof(struct leased_reaper_header),
		.now_ns = boot_now(),
		.fds = fds,
		.fd_count = fd_count };
	const struct leased_reaper_header *header = request.header;
	if (header->version != LEASED_REAPER_VERSION) {
		refuse(r, &request, -EPROTONOSUPPORT);
	} else if (!well_formed(&request, bytes)) {
		refuse(r, &request, -EBADMSG);
	} else if (header->kind == LEASED_REAPER_PING) {
		ping(r, &request);
	} else if (header->kind == LEASED_REAPER_BOARD) {
		lend_board(r, &request);
	} else if (header->kind == LEASED_REAPER_LIST) {
		list(r, &request);
	} else {
		if (header->kind != LEASED_REAPER_ARM) {
			change(r, &request);
		} else if (!arm(r, &request)) {
			refuse(r, &request, -EBADMSG);
			return;
		}
		answer_begin(&request, (uint16_t)(header->kind | LEASED_REAPER_REPLY));
		answer.header.count = header->count;
		answer_send(r, &request, header->count * sizeof(int32_t), NULL, 0);
	}
}
