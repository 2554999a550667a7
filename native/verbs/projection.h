/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a projector holds of its block: shared by projection.c, which fills it, and lives.c, which
 * settles it.
 */
#ifndef LEASED_PROJECTION_H
#define LEASED_PROJECTION_H

#include "columns.h"
#include "map.h"
#include "parties.h"
#include "../verbs.h"

#include <stdlib.h>
#include <string.h>

struct leased_projector {
	struct leased_acts acts;
	struct leased_holds holds;
	struct leased_lives lives;
	struct parties parties;
	struct map terms; /* of a lease, as the block last saw them; 0 is never there */
	size_t acts_room, holds_room, lives_room;
};

#endif
