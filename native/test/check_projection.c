/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The projection on hostile bytes, each run on memory that ends where the data does: every byte of
 * a record changed, every length of it, noise. What rows there must be is held elsewhere
 * (tests/property/economics/test_native_projection.py).
 */
#include "check.h"
#include "verbs.h"

#include <stdlib.h>
#include <string.h>

enum { SHAPES = 20, BODY = 96, FRAME_MAX = 112 + BODY + 7, ROUNDS = 200000 };

/* [event id, lease id, subject, at, deadline]; the subject is
 * [tenant, tag?, priority, [[name, kind, tier?, capacity] ...]] */
static const struct leased_shape shapes[SHAPES] = {
	[1] = { .what = LEASED_SHAPE_FIELDS, .count = 5, .first = 2 },
	[2] = { .what = LEASED_SHAPE_BYTES, .count = 16 },
	[3] = { .what = LEASED_SHAPE_BYTES, .count = 16 },
	[4] = { .what = LEASED_SHAPE_FIELDS, .count = 4, .first = 7 },
	[5] = { .what = LEASED_SHAPE_INTEGER },
	[6] = { .what = LEASED_SHAPE_INTEGER },
	[7] = { .what = LEASED_SHAPE_TEXT },
	[8] = { .what = LEASED_SHAPE_TEXT, .nil = 1 },
	[9] = { .what = LEASED_SHAPE_ENUM, .members = 7 },
	[10] = { .what = LEASED_SHAPE_LIST, .first = 11 },
	[11] = { .what = LEASED_SHAPE_FIELDS, .count = 4, .first = 12 },
	[12] = { .what = LEASED_SHAPE_TEXT },
	[13] = { .what = LEASED_SHAPE_ENUM, .members = 31 },
	[14] = { .what = LEASED_SHAPE_ENUM, .members = 31, .nil = 1 },
	[15] = { .what = LEASED_SHAPE_INTEGER },
};
static const char good[] = "\x95\xc4\x10"
			   "eeeeeeeeeeeeeeee\xc4\x10llllllllllllllll"
			   "\x94\xa4"
			   "acme\xb2"
			   "a tag that is long\x01\x92"
			   "\x94\xa1x\x03\xc0\xcd\x03\xe8\x94\xa1y\x00\x01\x05"
			   "\xcc\xc8\xcd\x10\x00";

/* Who holds the first of it. */
static const char first[] = "\x03\xff\x01\x04\x00\x00\x00"
			    "acme\xb2"
			    "a tag that is long";

static unsigned noise(void)
{
	static uint64_t state = 7;
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(state >> 33);
}

static void put(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> 8 * i);
}

static size_t make_frame(uint8_t *frame, unsigned kind, size_t body)
{
	const size_t length = (body + 112 + 7) & ~(size_t)7;
	memset(frame, 0, length);
	put(frame, length, 4);
	put(frame + 8, 5, 8);
	put(frame + 24, kind, 2);
	frame[26] = 1;
	put(frame + 28, body, 4);
	put(frame + 40, 300, 8);
	memcpy(frame + 80, good, body);
	return length;
}

static int64_t taken(struct leased_projector *projector, const struct leased_plan *plan,
	const uint8_t *frame, size_t size)
{
	struct leased_projecting at = { .sequence = 5, .watermark_ns = 100, .boot = 1 };
	uint8_t *copy = malloc(size ? size : 1);
	if (copy == NULL)
		abort();
	memcpy(copy, frame, size);
	const int64_t count = leased_projector_take(projector, plan, &at, copy, size, 10);
	free(copy);
	return count;
}

void check_projection(void)
{
	const uint32_t roots[LEASED_SCHEMAS * LEASED_KINDS] = { [16] = 1, [18] = 1 };
	const size_t body = sizeof good - 1;
	struct leased_plan plan = { .shapes = shapes, .roots = roots, .boot_ns_max = INT64_MAX,
		.effective = 3, .subject = 2, .tenant = 0, .tag = 1, .priority = 2, .allotments = 3,
		.kind = 1, .tier = 2, .capacity = 3 };
	struct leased_projector *projector = leased_projector_new();
	uint8_t frame[FRAME_MAX];
	const uint8_t *bytes;
	const uint32_t *ends;
	if (projector == NULL || body > BODY)
		abort();
	memset(plan.act, LEASED_ACT_JUDGED, sizeof plan.act);
	plan.act[16] = 1;
	plan.act[18] = 2;
	plan.act[17] = 0;
	plan.act[66] = LEASED_ACT_TIMELESS;
	plan.deadline[16] = plan.deadline[18] = 4;
	plan.tells[16] = LEASED_TELLS;
	plan.tells[18] = LEASED_TELLS_CHANGES;

	int64_t count = taken(projector, &plan, frame, make_frame(frame, 16, body));
	count += taken(projector, &plan, frame, make_frame(frame, 18, body));
	const struct leased_acts *acts = leased_projector_acts(projector);
	const struct leased_holds *holds = leased_projector_holds(projector);
	check("a grant and its renewal are two acts, and are held once",
		count == 2 && acts->count == 2 && holds->count == 2 && acts->at_ns[0] == 200 &&
			acts->deadline_ns[1] == 4096 && acts->terms[0] == acts->terms[1] &&
			holds->capacity[0] == 1000 && holds->party_hi[0] != holds->party_hi[1] &&
			leased_projector_parties(projector, &bytes, &ends) == 2 &&
			ends[0] == sizeof first - 1 && memcmp(bytes, first, ends[0]) == 0);
	struct leased_projector *whole_life = leased_projector_new();
	if (whole_life == NULL)
		abort();
	count = taken(whole_life, &plan, frame, make_frame(frame, 16, body));
	count += taken(whole_life, &plan, frame, make_frame(frame, 18, body));
	struct leased_act end = { .act = LEASED_RECLAIMED, .boot = 1, .at_ns = 250 };
	memcpy(&end.lease_hi, leased_projector_acts(whole_life)->lease_hi, sizeof end.lease_hi);
	memcpy(&end.lease_lo, leased_projector_acts(whole_life)->lease_lo, sizeof end.lease_lo);
	const int settled = leased_projector_act(whole_life, &end) == 0 &&
			    leased_projector_settle(whole_life) == 0;
	const struct leased_lives *lives = leased_projector_lives(whole_life);
	check("a lease that ends in its block is a life, and no act or hold is left of it",
		count == 2 && settled && lives->count == 2 && lives->granted_ns[1] == 200 &&
			lives->torn_ns[1] == 250 && lives->ended_ns[1] == 250 && lives->missing &&
			lives->capacity[0] == 1000 && lives->slot[1] == 1 &&
			leased_projector_acts(whole_life)->count == 0 &&
			leased_projector_holds(whole_life)->count == 0);
	leased_projector_free(whole_life);
	const size_t length = make_frame(frame, 16, body);
	int cut = 1;
	for (size_t size = 0; size < length; size++)
		cut = cut && taken(projector, &plan, frame, size) == 0;
	check("a record that is cut is not taken", cut);
	for (unsigned round = 0; round < ROUNDS; round++) {
		static const unsigned kinds[] = { 16, 16, 16, 18, 17, 66, 99 };
		const size_t size = make_frame(frame, kinds[noise() % 7], body);
		for (unsigned change = noise() % 4; change > 0; change--) {
			const size_t at = noise() % 3 ? 80 + noise() % body : noise() % size;
			frame[at] = noise() % 2 ? (uint8_t)noise() : frame[at] ^ 1;
		}
		taken(projector, &plan, frame, size);
	}
	int whole = leased_projector_settle(projector) == 0;
	const size_t parties = leased_projector_parties(projector, &bytes, &ends);
	for (size_t at = 1; at < parties; at++)
		whole = whole && ends[at] >= ends[at - 1] + 7;
	check("noise is read to its end and no further, and parties are whole", whole);
	leased_projector_free(projector);
}
