/* SPDX-License-Identifier: Apache-2.0 */
/* The parties of parties.h. */
#include "parties.h"
#include "columns.h"
#include "digests.h"
#include "frame.h"

#include <string.h>

enum { BYTES_FIRST = 4096 };

uint8_t *parties_room(struct parties *parties, size_t bytes)
{
	const size_t begin = parties->count ? parties->ends[parties->count - 1] : 0;
	if (bytes > INT32_MAX || begin + bytes > INT32_MAX)
		return NULL;
	while (begin + bytes > parties->bytes_room) {
		const size_t room = parties->bytes_room ? 2 * parties->bytes_room : BYTES_FIRST;
		if (!WIDER(parties, bytes, room))
			return NULL;
		parties->bytes_room = room;
	}
	if (parties->count == parties->room) {
		const size_t room = parties->room ? 2 * parties->room : ROWS_FIRST;
		if (!WIDER(parties, ends, room) || !WIDER(parties, keys, room))
			return NULL;
		parties->room = room;
	}
	return parties->bytes + begin;
}

/* What finds the bytes again in a map; whether they are the same is compared. */
static void mark_of(const struct map *map, const uint8_t *data, size_t bytes, uint64_t mark[2])
{
	uint64_t word, one = map->seed[0] ^ bytes, two = map->seed[1];
	for (size_t at = 0; at < bytes; at += sizeof word) {
		const size_t left = bytes - at;
		word = 0;
		memcpy(&word, data + at, left < sizeof word ? left : sizeof word);
		const unsigned __int128 product = (unsigned __int128)(word ^ one) * (two | 1);
		one = (uint64_t)product ^ (uint64_t)(product >> 64);
		two += one;
	}
	mark[0] = one;
	mark[1] = two;
}

bool parties_know(struct parties *parties, size_t bytes, size_t *which)
{
	const size_t begin = parties->count ? parties->ends[parties->count - 1] : 0;
	const uint8_t *const party = parties->bytes + begin;
	uint64_t mark[2];
	mark_of(&parties->marks, party, bytes, mark);
	struct map_cell *cell = map_find(&parties->marks, mark);
	if (cell->value) {
		const size_t at = cell->value - 1, from = at ? parties->ends[at - 1] : 0;
		*which = at;
		if (parties->ends[at] - from == bytes &&
			memcmp(parties->bytes + from, party, bytes) == 0)
			return true;
	}
	uint8_t digest[LEASED_HASH_BYTES];
	const struct leased_message message = { party, bytes, digest };
	leased_sha256_each(party, 0, &message, 1);
	*which = parties->count;
	parties->keys[*which] = (struct party_key){ big_endian(digest), big_endian(digest + 8) };
	parties->ends[parties->count++] = (uint32_t)(begin + bytes);
	return map_put(&parties->marks, cell, mark, parties->count);
}
