/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The projection of records as rows (collector/metering/projection.py), column by column.
 *
 * Rule: as in chain.c: only records of which all is plain are projected here: in their place, of a
 * kind that the plan knows, with numbers that fit. Before the first that is not, it stops; whoever
 * asked projects that one and puts its rows in between. The frames are trusted as far as their hash
 * goes: they were verified when they came, bodies and all, and their file's digest since. So of a
 * body only the places of its fields are looked for; no byte outside it is read, whatever it says.
 *
 * Does not know events: which kinds are what, and where a field stands, is the plan's.
 */
#include "chain.h"
#include "digests.h"
#include "frame.h"
#include "projection.h"

#include <errno.h>

enum { FIELDS_MAX = 16, PARTY_BYTES_MIN = 7 };

/* ---- columns ---- */

static bool acts_have_room(struct leased_projector *p)
{
	struct leased_acts *acts = &p->acts;
	if (acts->count < p->acts_room)
		return true;
	const size_t room = p->acts_room ? 2 * p->acts_room : ROWS_FIRST;
	if (!WIDER(acts, sequence, room) || !WIDER(acts, boot, room) ||
		!WIDER(acts, lease_hi, room) || !WIDER(acts, lease_lo, room) ||
		!WIDER(acts, act, room) || !WIDER(acts, at_ns, room) ||
		!WIDER(acts, sealed_ns, room) || !WIDER(acts, deadline_ns, room) ||
		!WIDER(acts, terms, room) || !WIDER(acts, ref, room) || !WIDER(acts, has, room))
		return false;
	p->acts_room = room;
	return true;
}

static bool holds_have_room(struct leased_projector *p)
{
	struct leased_holds *holds = &p->holds;
	if (holds->count < p->holds_room)
		return true;
	const size_t room = p->holds_room ? 2 * p->holds_room : ROWS_FIRST;
	if (!WIDER(holds, sequence, room) || !WIDER(holds, slot, room) ||
		!WIDER(holds, party_hi, room) || !WIDER(holds, party_lo, room) ||
		!WIDER(holds, capacity, room))
		return false;
	p->holds_room = room;
	return true;
}

static bool add_act(struct leased_projector *p, const struct leased_act *row)
{
	if (!acts_have_room(p))
		return false;
	struct leased_acts *acts = &p->acts;
	const size_t at = acts->count++;
	acts->sequence[at] = row->sequence;
	acts->boot[at] = row->boot;
	acts->lease_hi[at] = row->lease_hi;
	acts->lease_lo[at] = row->lease_lo;
	acts->act[at] = row->act;
	acts->at_ns[at] = row->at_ns;
	acts->sealed_ns[at] = row->sealed_ns;
	acts->deadline_ns[at] = row->deadline_ns;
	acts->terms[at] = row->terms;
	acts->ref[at] = row->ref;
	acts->has[at] = row->has;
	acts->missing |= (uint8_t)~row->has;
	return true;
}

/*
 * Add what somebody holds. Its party is kind, tier and priority, a byte each, the tenant with its
 * length in four bytes before it, and the tag as it is in a subject. 0 or -ENOMEM.
 */
static int add_hold(struct leased_projector *p, const struct leased_hold *row,
	const uint8_t *tenant, size_t tenant_bytes, const uint8_t *tag, size_t tag_bytes)
{
	struct parties *parties = &p->parties;
	struct leased_holds *holds = &p->holds;
	const size_t bytes = PARTY_BYTES_MIN + tenant_bytes + tag_bytes;
	uint8_t *const party = parties_room(parties, bytes);
	size_t which;
	if (!holds_have_room(p) || party == NULL)
		return -ENOMEM;
	const uint32_t tenant_le = htole32((uint32_t)tenant_bytes);
	party[0] = (uint8_t)row->kind;
	party[1] = (uint8_t)row->tier;
	party[2] = (uint8_t)row->priority;
	memcpy(party + 3, &tenant_le, sizeof tenant_le);
	memcpy(party + PARTY_BYTES_MIN, tenant, tenant_bytes);
	memcpy(party + PARTY_BYTES_MIN + tenant_bytes, tag, tag_bytes);
	if (!parties_know(parties, bytes, &which))
		return -ENOMEM;
	const size_t at = holds->count++;
	holds->sequence[at] = row->sequence;
	holds->slot[at] = row->slot;
	holds->party_hi[at] = parties->keys[which].hi;
	holds->party_lo[at] = parties->keys[which].lo;
	holds->capacity[at] = row->capacity;
	return 0;
}

/* ---- bodies ---- */

/* Bytes of a value by its first: 0 where more must be asked, and of what no body has. */
static const uint8_t WHOLE[256] = {
	[0x00 ... 0x7f] = 1, [0xa0] = 1, [0xa1] = 2, [0xa2] = 3, [0xa3] = 4, [0xa4] = 5,
	[0xa5] = 6, [0xa6] = 7, [0xa7] = 8, [0xa8] = 9, [0xa9] = 10, [0xaa] = 11, [0xab] = 12,
	[0xac] = 13, [0xad] = 14, [0xae] = 15, [0xaf] = 16, [0xb0] = 17, [0xb1] = 18,
	[0xb2] = 19, [0xb3] = 20, [0xb4] = 21, [0xb5] = 22, [0xb6] = 23, [0xb7] = 24,
	[0xb8] = 25, [0xb9] = 26, [0xba] = 27, [0xbb] = 28, [0xbc] = 29, [0xbd] = 30,
	[0xbe] = 31, [0xbf] = 32, [0xc0] = 1, [0xc2 ... 0xc3] = 1, [0xcc] = 2, [0xcd] = 3,
	[0xce] = 5, [0xcf] = 9, [0xd0] = 2, [0xd1] = 3, [0xd2] = 5, [0xd3] = 9,
	[0xe0 ... 0xff] = 1,
};

/* Past what a length stands in front of: bytes, text, or, as `more` values, an array. */
static const uint8_t *past_long(const uint8_t *p, const uint8_t *end, size_t *more)
{
	const unsigned head = *p++;
	const unsigned power = head == 0xdc		     ? 1
			       : head >= 0xd9 && head <= 0xdb ? head - 0xd9
			       : head >= 0xc4 && head <= 0xc6 ? head - 0xc4
							      : 3;
	size_t length = 0;
	if (power > 2 || (size_t)(end - p) < (size_t)1 << power)
		return NULL;
	for (const uint8_t *const past = p + (1u << power); p < past; p++)
		length = length << 8 | *p;
	if (head == 0xdc) {
		*more += length;
		return p;
	}
	return (size_t)(end - p) < length ? NULL : p + length;
}

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

/* Past a value, whatever it is: what it may be was asked when it came. NULL where it does not end
 * before `end`. */
static const uint8_t *past_value(const uint8_t *p, const uint8_t *end)
{
	for (size_t left = 1; left > 0; left--) {
		if (p >= end)
			return NULL;
		const unsigned head = *p;
		const size_t whole = WHOLE[head];
		if (whole != 0) {
			if ((size_t)(end - p) < whole)
				return NULL;
			p += whole;
		} else if ((head & 0xf0) == 0x90) {
			left += head & 0x0f;
			p++;
		} else {
			p = past_long(p, end, &left);
			if (p == NULL)
				return NULL;
		}
	}
	return p;
}

/* Where each of the first `count` fields of a value of many begins, and the last of them ends; or
 * false. */
static bool take_apart(const struct leased_shape *shape, size_t count, const uint8_t *p,
	const uint8_t *end, const uint8_t *begins[FIELDS_MAX])
{
	if (p >= end || shape->what != LEASED_SHAPE_FIELDS || shape->count >= FIELDS_MAX ||
		count > shape->count || *p != (0x90 | shape->count))
		return false;
	p++;
	for (size_t i = 0; i < count; i++) {
		begins[i] = p;
		p = past_value(p, end);
		if (p == NULL)
			return false;
	}
	begins[count] = p;
	return true;
}

/* A number that is not negative and fits. */
static bool number_at(const uint8_t *p, int64_t *value)
{
	uint64_t raw = 0;
	const unsigned head = *p++;
	if (head < 0x80) {
		*value = head;
		return true;
	}
	if (head < 0xcc || head > 0xcf)
		return false;
	for (unsigned bytes = 1u << (head & 3); bytes > 0; bytes--)
		raw = raw << 8 | *p++;
	*value = (int64_t)raw;
	return raw <= INT64_MAX;
}

/* A moment: one later than any that can come is the last of all. */
static bool moment_at(const uint8_t *p, int64_t *value)
{
	if (number_at(p, value))
		return true;
	*value = INT64_MAX;
	return *p == 0xcf;
}

/* The same that fits a byte. */
static bool small_at(const uint8_t *p, int8_t *value)
{
	int64_t wide;
	if (!number_at(p, &wide) || wide > INT8_MAX)
		return false;
	*value = (int8_t)wide;
	return true;
}

/* Where a text's letters begin; NULL for what is none. */
static const uint8_t *letters_at(const uint8_t *p)
{
	const unsigned head = *p;
	if ((head & 0xe0) == 0xa0)
		return p + 1;
	return head >= 0xd9 && head <= 0xdb ? p + 1 + (1u << (head - 0xd9)) : NULL;
}

/* What a subject holds from a record on: a row for each allotment. 1, 0 to judge, -ENOMEM. */
static int hold(struct leased_projector *p, const struct leased_plan *plan, int64_t sequence,
	const uint8_t *const subject[FIELDS_MAX], const struct leased_shape *allotments)
{
	const uint8_t *at = subject[plan->allotments], *end = subject[plan->allotments + 1];
	const uint8_t *tenant = letters_at(subject[plan->tenant]);
	const uint8_t *tag = subject[plan->tag];
	const size_t count = *at & 0x0f;
	struct leased_hold rows[FIELDS_MAX] = { { .slot = 0 } };
	int8_t priority;
	if ((*at & 0xf0) != 0x90 || allotments->what != LEASED_SHAPE_LIST || tenant == NULL ||
		!small_at(subject[plan->priority], &priority))
		return 0;
	const size_t tenant_bytes = (size_t)(subject[plan->tenant + 1] - tenant);
	const size_t tag_bytes = (size_t)(subject[plan->tag + 1] - tag);
	at++;
	for (size_t slot = 0; slot < count; slot++) {
		const uint8_t *fields[FIELDS_MAX];
		const struct leased_shape *one = &plan->shapes[allotments->first];
		struct leased_hold *row = &rows[slot];
		*row = (struct leased_hold){ .sequence = sequence, .slot = (int16_t)slot,
			.tier = -1, .priority = priority };
		if (!take_apart(one, one->count, at, end, fields))
			return 0;
		const uint8_t *const tier = fields[plan->tier];
		if (!small_at(fields[plan->kind], &row->kind) ||
			(*tier != 0xc0 && !small_at(tier, &row->tier)) ||
			!number_at(fields[plan->capacity], &row->capacity))
			return 0;
		at = fields[one->count];
	}
	for (size_t slot = 0; slot < count; slot++) {
		const int added = add_hold(p, &rows[slot], tenant, tenant_bytes, tag, tag_bytes);
		if (added < 0)
			return added;
	}
	return 1;
}

/* Project one record that changes a lease. 1, 0 to judge, -ENOMEM. */
static int act(struct leased_projector *p, const struct leased_plan *plan,
	const struct leased_projecting *at, const uint8_t *frame, unsigned kind)
{
	const uint8_t *body = frame + HEADER_BYTES, *end = body + le32(frame + AT_BODY_BYTES);
	const uint8_t *fields[FIELDS_MAX], *subject[FIELDS_MAX];
	const uint32_t root = plan->roots[kind], deadline = plan->deadline[kind];
	const struct leased_shape *shape = &plan->shapes[root];
	const size_t count = larger(larger(plan->effective, plan->subject), deadline) + 1;
	struct leased_act row = { .sequence = (int64_t)at->sequence, .boot = at->boot,
		.act = (int8_t)plan->act[kind], .sealed_ns = at->watermark_ns };
	if (root == 0 || !take_apart(shape, count, body, end, fields) ||
		!moment_at(fields[plan->effective], &row.at_ns))
		return 0;
	if (row.at_ns > row.sealed_ns)
		row.at_ns = row.sealed_ns;
	const uint8_t *lease_id = frame + AT_LEASE;
	row.lease_hi = big_endian(lease_id);
	row.lease_lo = big_endian(lease_id + 8);
	if (deadline) {
		if (!moment_at(fields[deadline], &row.deadline_ns))
			return 0;
		row.has |= LEASED_ACT_DEADLINE;
	}
	if (plan->tells[kind]) {
		const struct leased_shape *whose = &plan->shapes[shape->first + plan->subject];
		const uint8_t *from = fields[plan->subject], *to = fields[plan->subject + 1];
		uint8_t digest[LEASED_HASH_BYTES];
		const struct leased_message message = { from, (size_t)(to - from), digest };
		uint64_t id[2], terms;
		const size_t told = larger(larger(plan->tenant, plan->tag),
					larger(plan->priority, plan->allotments)) + 1;
		if (!take_apart(whose, told, from, to, subject))
			return 0;
		leased_sha256_each(from, 0, &message, 1);
		row.terms = big_endian(digest);
		row.has |= LEASED_ACT_TERMS;
		memcpy(id, lease_id, sizeof id);
		memcpy(&terms, &row.terms, sizeof terms);
		struct map_cell *cell = map_find(&p->terms, id);
		if (terms == 0)
			return 0;
		if (plan->tells[kind] == LEASED_TELLS || cell->value != terms) {
			const int held = hold(p, plan, row.sequence, subject,
				&plan->shapes[whose->first + plan->allotments]);
			if (held <= 0)
				return held;
			if (!map_put(&p->terms, cell, id, terms))
				return -ENOMEM;
		}
	}
	return add_act(p, &row) ? 1 : -ENOMEM;
}

/* ---- what is asked for ---- */

struct leased_projector *leased_projector_new(void)
{
	struct leased_projector *p = calloc(1, sizeof *p);
	if (p != NULL && (!map_begin(&p->terms) || !map_begin(&p->parties.marks))) {
		leased_projector_free(p);
		return NULL;
	}
	return p;
}

void leased_projector_free(struct leased_projector *p)
{
	if (p == NULL)
		return;
	struct leased_acts *a = &p->acts;
	struct leased_holds *h = &p->holds;
	struct leased_lives *l = &p->lives;
	void *all[] = { a->sequence, a->boot, a->lease_hi, a->lease_lo, a->act, a->at_ns,
		a->sealed_ns, a->deadline_ns, a->terms, a->ref, a->has, h->sequence, h->slot,
		h->party_hi, h->party_lo, h->capacity, l->sequence, l->granted_ns, l->torn_ns,
		l->ended_ns, l->released_ns, l->party_hi, l->party_lo, l->capacity, l->boot,
		l->slot, l->released, p->parties.bytes, p->parties.ends,
		p->parties.keys };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		free(all[i]);
	map_end(&p->terms);
	map_end(&p->parties.marks);
	free(p);
}

/*
 * Project plain records from `at->offset` of data[0, size) on, before `end`; `at` stands before the
 * first that is not. Their sequences rise, with gaps where records were removed. How many, or
 * -ENOMEM.
 */
int64_t leased_projector_take(struct leased_projector *p, const struct leased_plan *plan,
	struct leased_projecting *at, const uint8_t *data, size_t size, uint64_t end)
{
	size_t count = 0;
	for (; at->offset < size; count++) {
		const uint8_t *frame = data + at->offset;
		const size_t left = size - at->offset;
		if (left < FRAME_BYTES_MIN)
			break;
		const size_t length = le32(frame), body_bytes = le32(frame + AT_BODY_BYTES);
		const unsigned kind = le16(frame + AT_KIND);
		const uint64_t sequence = le64(frame + AT_SEQUENCE);
		const uint64_t boot_ns = le64(frame + AT_BOOT);
		if (length > left || body_bytes > FRAME_BYTES_MAX ||
			length != ((body_bytes + FRAME_BYTES_MIN + 7) & ~(size_t)7) ||
			sequence < at->sequence || sequence >= end || kind >= LEASED_KINDS ||
			boot_ns > plan->boot_ns_max || plan->act[kind] == LEASED_ACT_JUDGED ||
			/* Of what changes no lease only the time counts, whatever it says. */
			(frame[AT_SCHEMA] != SCHEMA && plan->act[kind] != 0))
			break;
		at->sequence = sequence;
		if (plan->act[kind] != LEASED_ACT_TIMELESS) {
			const int64_t before_ns = at->watermark_ns;
			if ((int64_t)boot_ns > before_ns)
				at->watermark_ns = (int64_t)boot_ns;
			const int done = plan->act[kind] ? act(p, plan, at, frame, kind) : 1;
			if (done < 0)
				return done;
			if (done == 0) {
				at->watermark_ns = before_ns;
				break;
			}
			at->sealed_ns = (int64_t)boot_ns;
		}
		at->sequence++;
		at->offset += length;
	}
	return (int64_t)count;
}

/* Put a row in between. 0 or -ENOMEM. */
int leased_projector_act(struct leased_projector *p, const struct leased_act *row)
{
	return add_act(p, row) ? 0 : -ENOMEM;
}

/* The same of what is held; `tag` as it is in a subject. */
int leased_projector_hold(struct leased_projector *p, const struct leased_hold *row,
	const uint8_t *tenant, size_t tenant_bytes, const uint8_t *tag, size_t tag_bytes)
{
	return add_hold(p, row, tenant, tenant_bytes, tag, tag_bytes);
}

/* The terms of a lease as the block last saw them, 0 if it did not. */
int64_t leased_projector_terms(const struct leased_projector *p, const uint8_t *lease_id)
{
	uint64_t id[2];
	memcpy(id, lease_id, sizeof id);
	return (int64_t)map_find(&p->terms, id)->value;
}

/* Set them. 0 or -ENOMEM. */
int leased_projector_turn(struct leased_projector *p, const uint8_t *lease_id, int64_t terms)
{
	uint64_t id[2];
	memcpy(id, lease_id, sizeof id);
	return map_put(&p->terms, map_find(&p->terms, id), id, (uint64_t)terms) ? 0 : -ENOMEM;
}

/* The columns, as they are until the next row. */
const struct leased_acts *leased_projector_acts(const struct leased_projector *p)
{
	return &p->acts;
}

const struct leased_holds *leased_projector_holds(const struct leased_projector *p)
{
	return &p->holds;
}

const struct leased_lives *leased_projector_lives(const struct leased_projector *p)
{
	return &p->lives;
}

/* The parties whose keys rows have: where each ends in `bytes`. How many. */
size_t leased_projector_parties(const struct leased_projector *p, const uint8_t **bytes,
	const uint32_t **ends)
{
	*bytes = p->parties.bytes;
	*ends = p->parties.ends;
	return p->parties.count;
}
