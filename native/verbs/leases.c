/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far each lease of a log is, followed over its records by a table that is handed in
 * (chain/grammar.py).
 *
 * Rule: as in chain.c: it goes on as long as the table says what follows, and stops before the
 * first record of which it does not.
 */
#include "frame.h"
#include "map.h"

#include <errno.h>
#include <stdlib.h>

enum { AHEAD = 8, ID_BYTES = LEASED_ID_BYTES };

struct leased_leases {
	struct map stages;
};

struct leased_leases *leased_leases_new(void)
{
	struct leased_leases *leases = calloc(1, sizeof *leases);
	if (leases != NULL && !map_begin(&leases->stages)) {
		free(leases);
		return NULL;
	}
	return leases;
}

void leased_leases_free(struct leased_leases *leases)
{
	if (leases != NULL)
		map_end(&leases->stages);
	free(leases);
}

/* Put `count` leases at their stages (0: it is there no longer). 0 or -ENOMEM. */
int leased_leases_put(
	struct leased_leases *leases, const uint8_t *ids, const uint8_t *stages, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t id[2];
		memcpy(id, ids + i * ID_BYTES, ID_BYTES);
		if (!map_put(&leases->stages, map_find(&leases->stages, id), id, stages[i]))
			return -ENOMEM;
	}
	return 0;
}

/* The stage of a lease, 0 if it is not there. */
unsigned leased_leases_stage(const struct leased_leases *leases, const uint8_t *id)
{
	uint64_t words[2];
	memcpy(words, id, ID_BYTES);
	return (unsigned)map_find(&leases->stages, words)->value;
}

size_t leased_leases_count(const struct leased_leases *leases)
{
	return leases->stages.count;
}

/* All of them, in no order; the arrays have room for `leased_leases_count`. */
void leased_leases_list(const struct leased_leases *leases, uint8_t *ids, uint8_t *stages)
{
	for (size_t at = 0; at < leases->stages.room; at++) {
		if (leases->stages.cells[at].value == 0)
			continue;
		memcpy(ids, leases->stages.cells[at].id, ID_BYTES);
		ids += ID_BYTES;
		*stages++ = (uint8_t)leases->stages.cells[at].value;
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
		struct map_cell *cell = map_find(&leases->stages, id);
		const unsigned to = moves[cell->value * LEASED_LEASE_KINDS + kind];
		if (to == 0)
			return i;
		if (to == cell->value)
			continue;
		if (!map_put(&leases->stages, cell, id, to == closed ? 0 : to))
			return i;
	}
	return count;
}
