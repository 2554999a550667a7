/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree of RFC 6962 over the hashes of records, held as its peaks.
 *
 * Rule: the peaks are those that adding one leaf after the other would leave; they are made level
 * by level, because nodes of one level do not wait for each other.
 */
#include "digests.h"

#include <string.h>

enum { HASH_BYTES = LEASED_HASH_BYTES, LEAVES = 256, PEAKS_MAX = 65 };

/* Two nodes that stand side by side become the one above them: `count` nodes of the next level. */
static void join(uint8_t *above, const uint8_t *nodes, size_t count)
{
	static const uint8_t NODE = 1;
	struct leased_message messages[LEAVES / 2 + 1];
	for (size_t i = 0; i < count; i++) {
		messages[i].data = nodes + 2 * i * HASH_BYTES;
		messages[i].bytes = 2 * HASH_BYTES;
		messages[i].digest = above + i * HASH_BYTES;
	}
	leased_sha256_each(&NODE, sizeof NODE, messages, count);
}

/* The same as `leased_tree_extend`, of at most LEAVES leaves. */
static unsigned extend(uint64_t size, uint8_t *peaks, const uint8_t *leaves, size_t count)
{
	/* One more than the leaves: the peak at their left, of the level that they complete. */
	uint8_t room[2][(LEAVES + 1) * HASH_BYTES], made[PEAKS_MAX * HASH_BYTES];
	uint8_t *nodes = room[0], *above = room[1];
	unsigned held = (unsigned)__builtin_popcountll(size), fresh = 0;
	memcpy(nodes, leaves, count * HASH_BYTES);
	/* From the lowest level up, until nothing new is left: peaks further up stay. */
	for (uint64_t rest = size; count > 0; rest >>= 1) {
		if (rest & 1) {
			held--;
			memmove(nodes + HASH_BYTES, nodes, count * HASH_BYTES);
			memcpy(nodes, peaks + held * HASH_BYTES, HASH_BYTES);
			count++;
		}
		if (count & 1) {
			count--;
			memcpy(made + fresh * HASH_BYTES, nodes + count * HASH_BYTES, HASH_BYTES);
			fresh++;
		}
		join(above, nodes, count / 2);
		uint8_t *below = nodes;
		nodes = above;
		above = below;
		count /= 2;
	}
	while (fresh > 0) {
		fresh--;
		memcpy(peaks + held * HASH_BYTES, made + fresh * HASH_BYTES, HASH_BYTES);
		held++;
	}
	return held;
}

/*
 * Append `count` leaves to a tree of `size`, whose peaks stand in `peaks`, the largest first: one
 * for each bit of its size (room for 65). The number of peaks.
 */
unsigned leased_tree_extend(uint64_t size, uint8_t *peaks, const uint8_t *leaves, size_t count)
{
	unsigned held = (unsigned)__builtin_popcountll(size);
	while (count > 0) {
		const size_t some = count < LEAVES ? count : LEAVES;
		held = extend(size, peaks, leaves, some);
		size += some;
		leaves += some * HASH_BYTES;
		count -= some;
	}
	return held;
}
