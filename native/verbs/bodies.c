/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bodies of records: MessagePack in the strict profile of chain/canonical.py, by shapes handed in.
 *
 * Rule: as in chain.c: only what is plainly the one legal encoding is said to be; the rest is the
 * decoder's word. No byte outside the body is read, whatever it says.
 */
#include "chain.h"
#include "frame.h"

#include <stdbool.h>

/* One, two, four or eight bytes, the highest first. */
static inline uint64_t be(const uint8_t *from, unsigned bytes)
{
	uint16_t two;
	uint32_t four;
	uint64_t eight;
	switch (bytes) {
	case 1:
		return *from;
	case 2:
		memcpy(&two, from, sizeof two);
		return be16toh(two);
	case 4:
		memcpy(&four, from, sizeof four);
		return be32toh(four);
	default:
		memcpy(&eight, from, sizeof eight);
		return be64toh(eight);
	}
}

/* Past an integer in its shortest form; NULL for anything else. `small`: its value if below 64. */
static inline const uint8_t *past_integer(const uint8_t *p, const uint8_t *end, unsigned *small)
{
	*small = 64;
	const unsigned head = *p++;
	if (head < 0x80) {
		*small = head < 64 ? head : 64;
		return p;
	}
	if (head >= 0xe0)
		return p;
	if (head < 0xcc || head > 0xd3)
		return NULL;
	const bool negative = head >= 0xd0;
	const unsigned power = head & 3, bytes = 1u << power;
	if ((size_t)(end - p) < bytes)
		return NULL;
	const uint64_t raw = be(p, bytes);
	if (!negative) {
		/* Half the bytes, or for one byte seven bits, must not do. */
		const uint64_t less = power ? (uint64_t)1 << (8 * bytes / 2) : 0x80;
		return raw >= less ? p + bytes : NULL;
	}
	const uint64_t sign = (uint64_t)1 << (8 * bytes - 1);
	if (!(raw & sign))
		return NULL;
	/* The magnitude less one of a negative number, without its sign bit's help. */
	const uint64_t below = ~raw & (sign - 1);
	const uint64_t least = power ? (uint64_t)1 << (8 * bytes / 2 - 1) : 32;
	return below >= least ? p + bytes : NULL;
}

/* Past an integer from 0 to `most`. */
static inline const uint8_t *past_amount(const uint8_t *p, const uint8_t *end, uint64_t most)
{
	unsigned small;
	const unsigned head = *p;
	const uint8_t *const past = past_integer(p, end, &small);
	if (past == NULL || head >= 0xd0)
		return NULL;
	return head < 0x80 || be(p + 1, 1u << (head & 3)) <= most ? past : NULL;
}

/* Past one character of UTF-8 that is not ASCII (RFC 3629); NULL if it is none: cut short, longer
 * than need be, a surrogate, or beyond U+10FFFF. */
static const uint8_t *past_character(const uint8_t *p, const uint8_t *end)
{
	const unsigned head = *p++;
	const unsigned more = head >= 0xf0 ? 3 : head >= 0xe0 ? 2 : 1;
	if (head < 0xc2 || head > 0xf4 || (size_t)(end - p) < more)
		return NULL;
	const unsigned least = head == 0xe0 ? 0xa0 : head == 0xf0 ? 0x90 : 0x80;
	const unsigned most = head == 0xed ? 0x9f : head == 0xf4 ? 0x8f : 0xbf;
	if (*p < least || *p > most)
		return NULL;
	for (unsigned i = 1; i < more; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return NULL;
	}
	return p + more;
}

static inline bool is_utf8(const uint8_t *p, size_t bytes)
{
	const uint8_t *const end = p + bytes;
	uint64_t word;
	while (p < end) {
		if ((size_t)(end - p) >= sizeof word) {
			memcpy(&word, p, sizeof word);
			if ((word & 0x8080808080808080u) == 0) {
				p += sizeof word;
				continue;
			}
		}
		p = *p < 0x80 ? p + 1 : past_character(p, end);
		if (p == NULL)
			return false;
	}
	return true;
}

/* Past so many bytes with a head of one, two or four bytes of length, the shortest that fits. */
static inline const uint8_t *past_string(
	const uint8_t *p, const uint8_t *end, const struct leased_shape *shape)
{
	const bool text = shape->what == LEASED_SHAPE_TEXT;
	const unsigned head = *p++, first = text ? 0xd9 : 0xc4;
	size_t length = 0;
	if (text && (head & 0xe0) == 0xa0) {
		length = head & 0x1f;
	} else if (head >= first && head <= first + 2) {
		const unsigned power = head - first, bytes = 1u << power;
		const size_t least = power ? (size_t)1 << (8 * bytes / 2) : text ? 32 : 0;
		if ((size_t)(end - p) < bytes)
			return NULL;
		length = (size_t)be(p, bytes);
		p += bytes;
		if (length < least)
			return NULL;
	} else {
		return NULL;
	}
	if (length > (size_t)(end - p) || (shape->count && length != shape->count))
		return NULL;
	if (text && !is_utf8(p, length))
		return NULL;
	return p + length;
}

/* Past the head of an array; its length. */
static inline const uint8_t *past_array_head(const uint8_t *p, const uint8_t *end, size_t *count)
{
	const unsigned head = *p++;
	if ((head & 0xf0) == 0x90) {
		*count = head & 0x0f;
		return p;
	}
	if (head != 0xdc || end - p < 2)
		return NULL;
	*count = (size_t)be(p, 2);
	return *count >= 16 ? p + 2 : NULL;
}

/* Past a value of the shape; NULL if it is not plainly one. Shapes are a tree: this ends. */
static const uint8_t *past(const struct leased_shape *shapes, uint32_t which, const uint8_t *p,
	const uint8_t *end)
{
	const struct leased_shape *shape = &shapes[which];
	if (p == NULL || p >= end)
		return NULL;
	if (shape->nil && *p == 0xc0)
		return p + 1;
	unsigned small;
	size_t count;
	switch (shape->what) {
	case LEASED_SHAPE_INTEGER:
		return past_integer(p, end, &small);
	case LEASED_SHAPE_AMOUNT:
		return past_amount(p, end, shape->members);
	case LEASED_SHAPE_ENUM:
		p = past_integer(p, end, &small);
		return small < 64 && shape->members >> small & 1 ? p : NULL;
	case LEASED_SHAPE_BOOL:
		return *p == 0xc2 || *p == 0xc3 ? p + 1 : NULL;
	case LEASED_SHAPE_BYTES:
	case LEASED_SHAPE_TEXT:
		return past_string(p, end, shape);
	case LEASED_SHAPE_FIELDS:
		p = past_array_head(p, end, &count);
		if (p == NULL || count != shape->count)
			return NULL;
		for (size_t i = 0; i < count; i++)
			p = past(shapes, shape->first + (uint32_t)i, p, end);
		return p;
	case LEASED_SHAPE_LIST:
		p = past_array_head(p, end, &count);
		if (p == NULL)
			return NULL;
		for (size_t i = 0; i < count && p != NULL; i++)
			p = past(shapes, shape->first, p, end);
		return p;
	default:
		return NULL;
	}
}

static bool is_plain(const struct leased_shape *shapes, const uint32_t *roots, unsigned kind,
	unsigned schema, const uint8_t *body, size_t bytes)
{
	if (kind >= LEASED_KINDS || schema < 1 || schema > LEASED_SCHEMAS)
		return false;
	const uint32_t root = roots[(schema - 1) * LEASED_KINDS + kind];
	return root != 0 && past(shapes, root, body, body + bytes) == body + bytes;
}

bool leased_body_is_plain(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *frame, unsigned kind)
{
	return is_plain(shapes, roots, kind, frame[AT_SCHEMA], frame + HEADER_BYTES,
		le32(frame + AT_BODY_BYTES));
}

/*
 * How many of the records, from the first on, have the one legal encoding of a body of their kind.
 * The frames were walked.
 */
size_t leased_chain_bodies(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *data, size_t size, const uint64_t *offsets, const uint16_t *kinds,
	size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (offsets[i] > size || size - offsets[i] < HEADER_BYTES)
			return i;
		const uint8_t *frame = data + offsets[i];
		if (le32(frame + AT_BODY_BYTES) > size - offsets[i] - HEADER_BYTES ||
			!leased_body_is_plain(shapes, roots, frame, kinds[i]))
			return i;
	}
	return count;
}

/* The same of bodies that stand one behind the other, before they are in any frame. */
size_t leased_chain_unframed(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *bodies, const uint32_t *body_bytes, const uint16_t *kinds,
	const uint8_t *schemas, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (!is_plain(shapes, roots, kinds[i], schemas[i], bodies, body_bytes[i]))
			return i;
		bodies += body_bytes[i];
	}
	return count;
}
