/* SPDX-License-Identifier: Apache-2.0 */
/* The map of map.h. */
#include "map.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { ROOM_FIRST = 64 };

static size_t place_of(const struct map *map, const uint64_t id[2])
{
	const unsigned __int128 product =
		(unsigned __int128)(id[0] ^ map->seed[0]) * (id[1] ^ map->seed[1]);
	return (size_t)((uint64_t)product ^ (uint64_t)(product >> 64)) & (map->room - 1);
}

struct map_cell *map_find(const struct map *map, const uint64_t id[2])
{
	size_t at = place_of(map, id);
	for (;;) {
		struct map_cell *cell = &map->cells[at];
		if (cell->value == 0 || (cell->id[0] == id[0] && cell->id[1] == id[1]))
			return cell;
		at = (at + 1) & (map->room - 1);
	}
}

static bool grow(struct map *map)
{
	struct map larger = *map;
	larger.room = map->room ? 2 * map->room : ROOM_FIRST;
	larger.cells = calloc(larger.room, sizeof *larger.cells);
	if (larger.cells == NULL)
		return false;
	for (size_t at = 0; at < map->room; at++) {
		if (map->cells[at].value)
			*map_find(&larger, map->cells[at].id) = map->cells[at];
	}
	free(map->cells);
	*map = larger;
	return true;
}

/* Empty a cell, and move up what stands behind it only because it was taken. */
static void clear(struct map *map, struct map_cell *cell)
{
	const size_t mask = map->room - 1;
	size_t gap = (size_t)(cell - map->cells), at = gap;
	for (;;) {
		at = (at + 1) & mask;
		const struct map_cell *next = &map->cells[at];
		if (next->value == 0)
			break;
		const size_t home = place_of(map, next->id);
		if (((at - home) & mask) >= ((at - gap) & mask)) {
			map->cells[gap] = *next;
			gap = at;
		}
	}
	map->cells[gap].value = 0;
	map->count--;
}

bool map_put(struct map *map, struct map_cell *cell, const uint64_t id[2], uint64_t value)
{
	if (value == 0) {
		if (cell->value)
			clear(map, cell);
		return true;
	}
	if (cell->value == 0) {
		if (2 * (map->count + 1) > map->room) {
			if (!grow(map))
				return false;
			cell = map_find(map, id);
		}
		map->count++;
		memcpy(cell->id, id, LEASED_ID_BYTES);
	}
	cell->value = value;
	return true;
}

bool map_begin(struct map *map)
{
	*map = (struct map){ .cells = NULL };
	/* Early in a boot there may be none to draw: then where we lie in memory does. */
	if (getrandom(map->seed, sizeof map->seed, GRND_NONBLOCK) < (ssize_t)sizeof map->seed) {
		map->seed[0] = (uint64_t)(uintptr_t)map * 0x9e3779b97f4a7c15u;
		map->seed[1] = (uint64_t)(uintptr_t)&map_begin;
	}
	return grow(map);
}

void map_end(struct map *map)
{
	free(map->cells);
	map->cells = NULL;
}
