/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parties: who holds something in a block, and as what, each once; rows have their keys.
 *
 * Rule: a key is the first half of the SHA-256 of a party's bytes, so that it is the same in every
 * block and log. Few of the holds of a block are of a new one, and a digest takes longer than to
 * see that one is known: it is found again by a mark of its bytes, and they are compared.
 */
#ifndef LEASED_PARTIES_H
#define LEASED_PARTIES_H

#include "map.h"

struct party_key {
	int64_t hi, lo;
};

struct parties {
	struct map marks; /* one more than which */
	uint8_t *bytes;
	uint32_t *ends;
	struct party_key *keys;
	size_t count, room, bytes_room;
};

/* Where so many bytes of one that may be new are to be written; NULL: there is no memory. */
uint8_t *parties_room(struct parties *parties, size_t bytes);

/* Which party it is that was written there. False: there is no memory. */
bool parties_know(struct parties *parties, size_t bytes, size_t *which);

#endif
