/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far each lease of a log is, followed over its records by a table that is handed in
 * (chain/grammar.py).
 *
 * Rule: as in chain.c: it goes on as long as the table says what follows, and stops before the
 * first record of which it does not. Ids are in a hash table of open addressing whose seed is drawn
 * anew for each, so that nobody can make a log whose ids all fall into one place; nothing that is
 * told depends on it.
 */
#include "frame.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/random.h>

enum { ROOM_FIRST = 64, AHEAD = 8, ID_BYTES = 16 };

struct cell {
	uint64_t id[2];
	uint64_t stage; /* 0: empty */
};

struct leased_leases {
	struct cell *cells;
	size_t room, count; /* `room` is a power of two, at least twice `count` */
	uint64_t seed;
};

static size_t place_of(const struct leased_leases *leases, const uint64_t id[2])
{
	const unsigned __int128 product =
		(unsigned __int128)(id[0] ^ leases->seed) * (id[1] ^ 0x9e3779b97f4a7c15u);
	return (size_t)((uint64_t)product ^ (uint64_t)(product >> 64) ^ id[0]) & (leases->room - 1);
}

/* The cell of the id, or the empty one where it belongs. */
static struct cell *find(const struct leased_leases *leases, const uint64_t id[2])
{
	size_t at = place_of(leases, id);
	for (;;) {
		struct cell *cell = &leases->cells[at];
		if (cell->stage == 0 || (cell->id[0] == id[0] && cell->id[1] == id[1]))
			return cell;
		at = (at + 1) & (leases->room - 1);
	}
}

static bool grow(struct leased_leases *leases)
{
	struct leased_leases larger = *leases;
	larger.room = leases->room ? 2 * leases->room : ROOM_FIRST;
	larger.cells = calloc(larger.room, sizeof *larger.cells);
	if (larger.cells == NULL)
		return false;
	for (size_t at = 0; at < leases->room; at++) {
		if (leases->cells[at].stage)
			*find(&larger, leases->cells[at].id) = leases->cells[at];
	}
	free(leases->cells);
	*leases = larger;
	return true;
}

/* Empty a cell, and move up what stands behind it only because it was taken. */
static void clear(struct leased_leases *leases, struct cell *cell)
{
	const size_t mask = leases->room - 1;
	size_t gap = (size_t)(cell - leases->cells), at = gap;
	for (;;) {
		at = (at + 1) & mask;
		const struct cell *next = &leases->cells[at];
		if (next->stage == 0)
			break;
		const size_t home = place_of(leases, next->id);
		if (((at - home) & mask) >= ((at - gap) & mask)) {
			leases->cells[gap] = *next;
			gap = at;
		}
	}
	leases->cells[gap].stage = 0;
	leases->count--;
}

/* Put a lease at a stage, 0 for none, in its cell. False: there is no memory. */
static bool put(
	struct leased_leases *leases, struct cell *cell, const uint64_t id[2], unsigned stage)
{
	if (stage == 0) {
		if (cell->stage)
			clear(leases, cell);
		return true;
	}
	if (cell->stage == 0) {
		if (2 * (leases->count + 1) > leases->room) {
			if (!grow(leases))
				return false;
			cell = find(leases, id);
		}
		leases->count++;
		memcpy(cell->id, id, ID_BYTES);
	}
	cell->stage = stage;
	return true;
}

struct leased_leases *leased_leases_new(void)
{
	struct leased_leases *leases = calloc(1, sizeof *leases);
	if (leases == NULL)
		return NULL;
	/* Early in a boot there may be none to draw: then where we lie in memory does. */
	if (getrandom(&leases->seed, sizeof leases->seed, GRND_NONBLOCK) < 0)
		leases->seed = (uint64_t)(uintptr_t)leases;
	if (!grow(leases)) {
		free(leases);
		return NULL;
	}
	return leases;
}

void leased_leases_free(struct leased_leases *leases)
{
	if (leases != NULL)
		free(leases->cells);
	free(leases);
}

/* Put `count` leases at their stages (0: it is there no longer). 0 or -ENOMEM. */
int leased_leases_put(
	struct leased_leases *leases, const uint8_t *ids, const uint8_t *stages, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t id[2];
		memcpy(id, ids + i * ID_BYTES, ID_BYTES);
		if (!put(leases, find(leases, id), id, stages[i]))
			return -ENOMEM;
	}
	return 0;
}

/* The stage of a lease, 0 if it is not there. */
unsigned leased_leases_stage(const struct leased_leases *leases, const uint8_t *id)
{
	uint64_t words[2];
	memcpy(words, id, ID_BYTES);
	return (unsigned)find(leases, words)->stage;
}

size_t leased_leases_count(const struct leased_leases *leases)
{
	return leases->count;
}

/* All of them, in no order; the arrays have room for `leased_leases_count`. */
void leased_leases_list(const struct leased_leases *leases, uint8_t *ids, uint8_t *stages)
{
	for (size_t at = 0; at < leases->room; at++) {
		if (leases->cells[at].stage == 0)
			continue;
		memcpy(ids, leases->cells[at].id, ID_BYTES);
		ids += ID_BYTES;
		*stages++ = (uint8_t)leases->cells[at].stage;
	}
}

/*
 * Follow the records, of frames that were walked, as far as `moves` says to where:
 * moves[stage * LEASED_LEASE_KINDS + kind - LEASED_LEASE_KIND_FIRST], 0 if it does not. `closed` is
 * the stage that is not kept. How many records, from the first on.
 */
size_t leased_leases_follow(struct leased_leases *leases, const uint8_t *moves, unsigned closed,
	const uint8_t *data, size_t size, const uint64_t *offsets, const uint16_t *kinds,
	size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (i + AHEAD < count)
			__builtin_prefetch(data + offsets[i + AHEAD] + AT_LEASE);
		const unsigned kind = kinds[i] - (unsigned)LEASED_LEASE_KIND_FIRST;
		if (kind >= LEASED_LEASE_KINDS)
			continue;
		if (offsets[i] > size || size - offsets[i] < AT_LEASE + ID_BYTES)
			return i;
		uint64_t id[2];
		memcpy(id, data + offsets[i] + AT_LEASE, ID_BYTES);
		struct cell *cell = find(leases, id);
		const unsigned to = moves[cell->stage * LEASED_LEASE_KINDS + kind];
		if (to == 0)
			return i;
		if (to == cell->stage)
			continue;
		if (!put(leases, cell, id, to == closed ? 0 : to))
			return i;
	}
	return count;
}
