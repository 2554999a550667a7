/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of armed leases: a fixed array, a free list and an open-addressing index by lease id.
 *
 * Rule: everything is allocated in `table_make`; a full table is an answer (ENOSPC), never an
 * allocation.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Shared with our children, who never write to it: after a fork no page has to be copied, at a
 * deadline least of all. */
static void *reserve(size_t bytes)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	return start == MAP_FAILED ? NULL : start;
}

static void blank(struct slot *slot)
{
	memset(slot, 0, sizeof *slot);
	slot->cgroup_fd = slot->pidfd = -1;
	for (size_t i = 0; i < LEASED_REAPER_MEMFDS_MAX; i++)
		slot->memfd[i] = -1;
	slot->due_ns = slot->missing_ns = slot->backstop_ns = NEVER;
	slot->heap_at = slot->claimant = slot->armer = slot->child = NONE;
	slot->outbox_next = slot->outbox_previous = slot->next_free = NONE;
	slot->objects_next = NONE;
}

/* Make the table as large as the state file, and take as many descriptors as the system lets us. */
int table_make(struct reaper *r)
{
	uint32_t index_size = 64;
	while (index_size < 2 * r->slot_count)
		index_size *= 2;
	r->index_mask = index_size - 1;
	r->slots = reserve(r->slot_count * sizeof *r->slots);
	r->heap = reserve(r->slot_count * sizeof *r->heap);
	r->index = reserve(index_size * sizeof *r->index);
	if (r->slots == NULL || r->heap == NULL || r->index == NULL)
		return -ENOMEM;
	memset(r->index, 0xff, index_size * sizeof *r->index);
	r->first_free = NONE;
	for (uint32_t at = r->slot_count; at-- > 0;) {
		blank(&r->slots[at]);
		r->slots[at].next_free = r->first_free;
		r->first_free = at;
	}
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) != 0)
		return -errno;
	files.rlim_cur = files.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &files);
	uint64_t most = files.rlim_max > UINT32_MAX / 2 ? UINT32_MAX / 2 : files.rlim_max;
	r->fds_max = most > FDS_SPARE ? (uint32_t)most - FDS_SPARE : 0;
	int lowest = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0); /* as many are open below it */
	const uint64_t own = FDS_OWN + (lowest < 0 ? most : (uint64_t)lowest);
	if (lowest >= 0)
		close(lowest);
	r->fds_cutting = r->fds_max + FDS_SPARE / 2u;
	if (most - (most < own ? most : own) < r->fds_cutting)
		r->fds_cutting = (uint32_t)(most - (most < own ? most : own));
	return 0;
}

static uint32_t hash_of(const struct reaper *r, const uint8_t *id)
{
	/* Ids are uniformly random; mixing keeps a peer that chooses them from filling one run. */
	uint64_t a, b;
	memcpy(&a, id, 8);
	memcpy(&b, id + 8, 8);
	a = (a ^ (b >> 31)) * UINT64_C(0x9e3779b97f4a7c15);
	a = (a ^ b ^ (a >> 29)) * UINT64_C(0xbf58476d1ce4e5b9);
	return (uint32_t)(a >> 32) & r->index_mask;
}

uint32_t table_find(const struct reaper *r, const uint8_t *id)
{
	for (uint32_t i = hash_of(r, id); r->index[i] != NONE; i = (i + 1) & r->index_mask) {
		if (memcmp(r->slots[r->index[i]].identity.id, id, LEASED_REAPER_ID_BYTES) == 0)
			return r->index[i];
	}
	return NONE;
}

static void index_add(struct reaper *r, uint32_t at)
{
	uint32_t i = hash_of(r, r->slots[at].identity.id);
	while (r->index[i] != NONE)
		i = (i + 1) & r->index_mask;
	r->index[i] = at;
}

/* Take an entry out and close the gap, so that no tombstones gather. */
static void index_remove(struct reaper *r, uint32_t at)
{
	uint32_t hole = hash_of(r, r->slots[at].identity.id);
	while (r->index[hole] != at)
		hole = (hole + 1) & r->index_mask;
	r->index[hole] = NONE;
	for (uint32_t i = (hole + 1) & r->index_mask; r->index[i] != NONE;
		i = (i + 1) & r->index_mask) {
		uint32_t home = hash_of(r, r->slots[r->index[i]].identity.id);
		if (((i - home) & r->index_mask) >= ((i - hole) & r->index_mask)) {
			r->index[hole] = r->index[i];
			r->index[i] = NONE;
			hole = i;
		}
	}
}

/* A blank slot for `id`, or NONE when the table is full. The caller fills it in or releases it. */
uint32_t table_take(struct reaper *r, const uint8_t *id)
{
	uint32_t at = r->first_free;
	if (at == NONE)
		return NONE;
	uint64_t identity_sequence = r->slots[at].identity.sequence;
	uint64_t moving_sequence = r->slots[at].moving.sequence;
	r->first_free = r->slots[at].next_free;
	blank(&r->slots[at]);
	r->slots[at].identity.sequence = identity_sequence;
	r->slots[at].moving.sequence = moving_sequence;
	memcpy(r->slots[at].identity.id, id, LEASED_REAPER_ID_BYTES);
	index_add(r, at);
	r->slots_used++;
	return at;
}

/* As `table_take`, but for the slot a resumed lease already has; its identity is filled in. Called
 * in no fixed order. */
void table_put_at(struct reaper *r, uint32_t at)
{
	uint32_t *link = &r->first_free;
	while (*link != at)
		link = &r->slots[*link].next_free;
	*link = r->slots[at].next_free;
	r->slots[at].next_free = NONE;
	index_add(r, at);
	r->slots_used++;
}

/* Close everything a slot holds and give it back; what it was stays known only to the state file's
 * sequences. */
void table_release(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	heap_drop(r, at);
	index_remove(r, at);
	if (slot->cgroup_fd >= 0)
		close(slot->cgroup_fd);
	if (slot->pidfd >= 0)
		close(slot->pidfd);
	for (size_t i = 0; i < LEASED_REAPER_MEMFDS_MAX; i++) {
		if (slot->memfd[i] >= 0)
			close(slot->memfd[i]);
	}
	r->fds_used -= table_fds(slot);
	uint64_t identity_sequence = slot->identity.sequence;
	uint64_t moving_sequence = slot->moving.sequence;
	blank(slot);
	slot->identity.sequence = identity_sequence;
	slot->moving.sequence = moving_sequence;
	slot->next_free = r->first_free;
	r->first_free = at;
	r->slots_used--;
}

/* How many descriptors a slot holds. */
uint32_t table_fds(const struct slot *slot)
{
	uint32_t count = (slot->cgroup_fd >= 0 ? 1u : 0u) + (slot->pidfd >= 0 ? 1u : 0u);
	for (size_t i = 0; i < LEASED_REAPER_MEMFDS_MAX; i++)
		count += slot->memfd[i] >= 0 ? 1u : 0u;
	return count;
}
