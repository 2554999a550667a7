/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lives: leases that began and ended within a block and of which nothing needs to be judged, each
 * put together as one row for each of its allotments (collector/metering/lives.py says when).
 *
 * Rule: a pass over the rows of a block, whoever made them, once there will be no more; what is not
 * plain stays as it is, in its order.
 *
 * Does not read frames (projection.c).
 */
#include "projection.h"

#include <errno.h>

struct life {
	int64_t granted, granted_ns, torn_ns, ended_ns, released_ns, terms;
	int32_t boot;
	bool torn, ended, released, knotty;
};

struct lives {
	struct life *all;
	uint32_t *of_act; /* of each act; one more than the life, 0 for none */
	struct map by_lease;
	uint32_t count;
};

static int64_t later(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

static bool lives_have_room(struct leased_projector *p, size_t room)
{
	struct leased_lives *lives = &p->lives;
	if (room <= p->lives_room)
		return true;
	if (!WIDER(lives, sequence, room) || !WIDER(lives, granted_ns, room) ||
		!WIDER(lives, torn_ns, room) || !WIDER(lives, ended_ns, room) ||
		!WIDER(lives, released_ns, room) || !WIDER(lives, party_hi, room) ||
		!WIDER(lives, party_lo, room) || !WIDER(lives, capacity, room) ||
		!WIDER(lives, boot, room) || !WIDER(lives, slot, room) ||
		!WIDER(lives, released, room))
		return false;
	p->lives_room = room;
	return true;
}

/* A grant was voided: its life is not plain if it had not ended yet. */
static void void_grant(struct lives *lives, int64_t granted)
{
	uint32_t low = 0, high = lives->count;
	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;
		if (lives->all[middle].granted < granted)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < lives->count && lives->all[low].granted == granted && !lives->all[low].ended)
		lives->all[low].knotty = true;
}

/* What an act does to a life that has not ended. */
static void live(struct life *life, const struct leased_acts *acts, size_t row)
{
	const int64_t at_ns = acts->at_ns[row];
	if (acts->boot[row] != life->boot)
		life->knotty = true;
	switch (acts->act[row]) {
	case LEASED_RENEWED:
		if (acts->terms[row] != life->terms)
			life->knotty = true;
		break;
	case LEASED_TORN:
		if (life->torn)
			life->knotty = true;
		life->torn = true;
		life->torn_ns = later(at_ns, life->granted_ns);
		break;
	case LEASED_RECLAIMED:
	case LEASED_UNFENCED:
		life->ended = true;
		if (!life->torn)
			life->torn_ns = later(at_ns, life->granted_ns);
		life->ended_ns = later(at_ns, life->torn_ns);
		break;
	case LEASED_FENCED:
		life->knotty = true;
		break;
	case LEASED_RELEASED:
		if (!life->released)
			life->released_ns = acts->sealed_ns[row];
		life->released = true;
		break;
	default:
		break;
	}
}

/* Follow every act. 0 or -ENOMEM. */
static int follow(struct lives *lives, const struct leased_acts *acts)
{
	for (size_t row = 0; row < acts->count; row++) {
		if (acts->act[row] == LEASED_VOIDED) {
			void_grant(lives, acts->ref[row]);
			continue;
		}
		const uint64_t id[2] = { (uint64_t)acts->lease_hi[row],
			(uint64_t)acts->lease_lo[row] };
		struct map_cell *cell = map_find(&lives->by_lease, id);
		struct life *life = cell->value ? &lives->all[cell->value - 1] : NULL;
		const bool alive = life != NULL && !life->ended;
		if (acts->act[row] != LEASED_GRANTED) {
			if (alive) {
				live(life, acts, row);
				lives->of_act[row] = (uint32_t)cell->value;
			}
			continue;
		}
		if (alive)
			life->knotty = true;
		lives->all[lives->count] = (struct life){ .granted = acts->sequence[row],
			.granted_ns = acts->at_ns[row], .terms = acts->terms[row],
			.boot = acts->boot[row], .knotty = alive };
		lives->of_act[row] = ++lives->count;
		if (!map_put(&lives->by_lease, cell, id, lives->count))
			return -ENOMEM;
	}
	return 0;
}

static bool is_whole(const struct life *life)
{
	return life->ended && !life->knotty;
}

/* Leave the acts that no whole life is made of. */
static void leave_acts(struct leased_acts *acts, const struct lives *lives)
{
	size_t to = 0;
	acts->missing = 0;
	for (size_t row = 0; row < acts->count; row++) {
		const uint32_t which = lives->of_act[row];
		if (which != 0 && is_whole(&lives->all[which - 1]))
			continue;
		acts->sequence[to] = acts->sequence[row];
		acts->boot[to] = acts->boot[row];
		acts->lease_hi[to] = acts->lease_hi[row];
		acts->lease_lo[to] = acts->lease_lo[row];
		acts->act[to] = acts->act[row];
		acts->at_ns[to] = acts->at_ns[row];
		acts->sealed_ns[to] = acts->sealed_ns[row];
		acts->deadline_ns[to] = acts->deadline_ns[row];
		acts->terms[to] = acts->terms[row];
		acts->ref[to] = acts->ref[row];
		acts->has[to] = acts->has[row];
		acts->missing |= (uint8_t)~acts->has[row];
		to++;
	}
	acts->count = to;
}

static void put_life(struct leased_lives *lives, const struct life *life,
	const struct leased_holds *holds, size_t row)
{
	const size_t to = lives->count++;
	lives->sequence[to] = life->granted;
	lives->boot[to] = life->boot;
	lives->granted_ns[to] = life->granted_ns;
	lives->torn_ns[to] = life->torn_ns;
	lives->ended_ns[to] = life->ended_ns;
	lives->released_ns[to] = life->released_ns;
	lives->released[to] = life->released;
	if (!life->released)
		lives->missing = true;
	lives->slot[to] = holds->slot[row];
	lives->party_hi[to] = holds->party_hi[row];
	lives->party_lo[to] = holds->party_lo[row];
	lives->capacity[to] = holds->capacity[row];
}

/* What whole lives hold goes to them; the rest is left. Both are in the order of records. */
static void leave_holds(struct leased_projector *p, const struct lives *lives)
{
	struct leased_holds *holds = &p->holds;
	size_t to = 0;
	uint32_t which = 0;
	for (size_t row = 0; row < holds->count; row++) {
		const int64_t sequence = holds->sequence[row];
		while (which < lives->count && lives->all[which].granted < sequence)
			which++;
		const struct life *life = which < lives->count ? &lives->all[which] : NULL;
		if (life != NULL && life->granted == sequence && is_whole(life)) {
			put_life(&p->lives, life, holds, row);
			continue;
		}
		holds->sequence[to] = sequence;
		holds->slot[to] = holds->slot[row];
		holds->party_hi[to] = holds->party_hi[row];
		holds->party_lo[to] = holds->party_lo[row];
		holds->capacity[to] = holds->capacity[row];
		to++;
	}
	holds->count = to;
}

/* Put lives together. Nothing is added after. 0 or -ENOMEM. */
int leased_projector_settle(struct leased_projector *p)
{
	const size_t count = p->acts.count;
	struct lives lives = { .all = malloc((count + 1) * sizeof *lives.all),
		.of_act = calloc(count + 1, sizeof *lives.of_act) };
	int rc = -ENOMEM;
	if (map_begin(&lives.by_lease) && lives.all != NULL && lives.of_act != NULL &&
		lives_have_room(p, p->holds.count))
		rc = follow(&lives, &p->acts);
	if (rc == 0) {
		leave_acts(&p->acts, &lives);
		leave_holds(p, &lives);
	}
	map_end(&lives.by_lease);
	free(lives.all);
	free(lives.of_act);
	return rc;
}
