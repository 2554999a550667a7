/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A map from ids of 16 bytes to numbers that are not 0: open addressing, from one cell to the next.
 *
 * Rule: the seed is drawn anew for each map, so that nobody can choose ids that all fall into one
 * place; the order of the cells is no answer to anything.
 */
#ifndef LEASED_MAP_H
#define LEASED_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LEASED_ID_BYTES = 16 };

struct map_cell {
	uint64_t id[2];
	uint64_t value; /* 0: empty */
};

struct map {
	struct map_cell *cells;
	size_t room, count; /* `room` is a power of two, at least twice `count` */
	uint64_t seed[2];
};

/* False: there is no memory. */
bool map_begin(struct map *map);
void map_end(struct map *map);

/* The cell of the id, or the empty one where it belongs. */
struct map_cell *map_find(const struct map *map, const uint64_t id[2]);

/* Put a value, 0 for none, in the cell of an id. False: there is no memory. */
bool map_put(struct map *map, struct map_cell *cell, const uint64_t id[2], uint64_t value);

#endif
