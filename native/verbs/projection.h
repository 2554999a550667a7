/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a projector holds of its block: shared by projection.c, which fills it, and lives.c, which
 * settles it.
 */
#ifndef LEASED_PROJECTION_H
#define LEASED_PROJECTION_H

#include "map.h"
#include "../verbs.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS_FIRST = 1024 };

/* Who holds something, and as what, each once: rows have their keys. */
struct parties {
	struct map known; /* by the key */
	uint8_t *bytes;
	uint32_t *ends;
	size_t count, room, bytes_room;
};

struct leased_projector {
	struct leased_acts acts;
	struct leased_holds holds;
	struct leased_lives lives;
	struct parties parties;
	struct map terms; /* of a lease, as the block last saw them; 0 is never there */
	size_t acts_room, holds_room, lives_room;
};

static inline bool wider(void *column, size_t room, size_t bytes)
{
	void *old, *new;
	memcpy(&old, column, sizeof old);
	new = realloc(old, room * bytes);
	if (new == NULL)
		return false;
	memcpy(column, &new, sizeof new);
	return true;
}

#define WIDER(rows, column, room) wider(&(rows)->column, room, sizeof *(rows)->column)

#endif
