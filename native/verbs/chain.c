/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain at the speed of SHA-256: strides over plain records, their bodies, and the tree.
 *
 * Rule: a verb here only ever says that what it went over is plain: whole, linked, hashed, in its
 * place, and nothing about it needs to be thought about. It stops before the first record of which
 * it cannot say that, and judges nothing: what is wrong with it, or remarkable, is the verifier's
 * word (chain/verifier.py, chain/canonical.py), which reads that record itself. No byte outside
 * [data, data + size) is read, whatever the bytes say.
 *
 * Does not know events: which kinds are plain and how a body is built is handed in.
 */
#include "../verbs.h"

#include "digests.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* Offsets within a frame, and its limits (chain/FORMAT.md section 2). */
enum {
	AT_CRC = 4,
	AT_SEQUENCE = 8,
	AT_BATCH = 16,
	AT_KIND = 24,
	AT_SCHEMA = 26,
	AT_FLAGS = 27,
	AT_BODY_BYTES = 28,
	AT_BOOT = 40,
	AT_PREV = 48,
	HEADER_BYTES = 80,
	HASH_BYTES = LEASED_HASH_BYTES,
	FRAME_BYTES_MIN = HEADER_BYTES + HASH_BYTES,
	FRAME_BYTES_MAX = 65536,
	FLAG_LAST = 1,
	FLAGS_KNOWN = 3,
	SCHEMA = 1,
};

static uint16_t le16(const uint8_t *from)
{
	uint16_t raw;
	memcpy(&raw, from, sizeof raw);
	return le16toh(raw);
}

static uint32_t le32(const uint8_t *from)
{
	uint32_t raw;
	memcpy(&raw, from, sizeof raw);
	return le32toh(raw);
}

static uint64_t le64(const uint8_t *from)
{
	uint64_t raw;
	memcpy(&raw, from, sizeof raw);
	return le64toh(raw);
}

/* ---- records ---- */

/* The bytes of the frame if all of it holds and nothing is remarkable, else 0. `left` are there. */
static size_t plain_frame(const struct leased_stride *at, const uint8_t *frame, size_t left)
{
	if (left < FRAME_BYTES_MIN)
		return 0;
	const size_t length = le32(frame), body_bytes = le32(frame + AT_BODY_BYTES);
	if (length > FRAME_BYTES_MAX || length > left || body_bytes > FRAME_BYTES_MAX ||
		length != ((body_bytes + FRAME_BYTES_MIN + 7) & ~(size_t)7))
		return 0;
	const uint64_t batch = le64(frame + AT_BATCH), boot_ns = le64(frame + AT_BOOT);
	const unsigned kind = le16(frame + AT_KIND), flags = frame[AT_FLAGS];
	if (le64(frame + AT_SEQUENCE) != at->sequence ||
		memcmp(frame + AT_PREV, at->head, HASH_BYTES) != 0 || flags > FLAGS_KNOWN ||
		(at->open ? batch != at->batch : batch <= at->batch) || boot_ns < at->boot_ns ||
		boot_ns >= at->limit_ns || kind >= LEASED_KINDS || !at->plain[kind] ||
		frame[AT_SCHEMA] != SCHEMA)
		return 0;
	const uint8_t *padding = frame + HEADER_BYTES + body_bytes;
	const uint8_t *hash = frame + length - HASH_BYTES;
	while (padding < hash) {
		if (*padding++ != 0)
			return 0;
	}
	uint8_t digest[HASH_BYTES];
	SHA256_CTX context;
	SHA256_Init(&context);
	SHA256_Update(&context, at->prefix, sizeof at->prefix);
	SHA256_Update(&context, frame + AT_SEQUENCE, HEADER_BYTES - AT_SEQUENCE + body_bytes);
	SHA256_Final(digest, &context);
	if (memcmp(digest, hash, HASH_BYTES) != 0)
		return 0;
	const uint32_t crc = leased_crc32(
		leased_crc32(0, frame, AT_CRC), frame + AT_SEQUENCE, length - AT_SEQUENCE);
	return crc == le32(frame + AT_CRC) ? length : 0;
}

/*
 * Walk plain records from `at->offset` on, at most `most`; their offsets, kinds and hashes go to
 * the arrays. The number of records; `at` stands behind the last of them.
 */
size_t leased_chain_stride(struct leased_stride *at, const uint8_t *data, size_t size, size_t most,
	uint64_t *offsets, uint16_t *kinds, uint8_t *hashes)
{
	size_t count = 0;
	while (count < most && at->offset < size) {
		const uint8_t *frame = data + at->offset;
		const size_t length = plain_frame(at, frame, size - at->offset);
		if (length == 0)
			break;
		offsets[count] = at->offset;
		kinds[count] = le16(frame + AT_KIND);
		memcpy(at->head, frame + length - HASH_BYTES, HASH_BYTES);
		memcpy(hashes + count * HASH_BYTES, at->head, HASH_BYTES);
		at->sequence++;
		at->batch = le64(frame + AT_BATCH);
		at->open = !(frame[AT_FLAGS] & FLAG_LAST);
		at->boot_ns = le64(frame + AT_BOOT);
		at->offset += length;
		count++;
	}
	return count;
}

/*
 * Walk the links, and nothing but the links, of at most `most` frames from data[0] on: as many
 * whole batches as end within `limit` bytes, but at least one; with `whole` false, all `most`
 * wherever they end. Their hashes, as they are written, go to `hashes` (room for `most`).
 *
 * 0 and the records and bytes, or -EBADMSG and in `bytes` where a frame does not continue the
 * chain, or -ENODATA and where one is cut short.
 */
int leased_chain_links(const uint8_t *data, size_t size, size_t most, size_t limit, bool whole,
	uint8_t *hashes, size_t *records, size_t *bytes)
{
	uint8_t head[HASH_BYTES];
	size_t end = 0, count = 0;
	*records = *bytes = 0;
	if (size < FRAME_BYTES_MIN)
		return -ENODATA;
	memcpy(head, data + AT_PREV, HASH_BYTES);
	while (count < most) {
		const uint8_t *frame = data + end;
		const size_t left = size - end;
		const size_t length = left < FRAME_BYTES_MIN ? 0 : le32(frame);
		const bool linked = length >= FRAME_BYTES_MIN &&
				    memcmp(frame + AT_PREV, head, HASH_BYTES) == 0;
		if (left >= FRAME_BYTES_MIN && linked && whole && *records && end + length > limit)
			return 0;
		if (!linked || length > left) {
			*bytes = end;
			return left < FRAME_BYTES_MIN || linked ? -ENODATA : -EBADMSG;
		}
		end += length;
		memcpy(head, data + end - HASH_BYTES, HASH_BYTES);
		memcpy(hashes + count * HASH_BYTES, head, HASH_BYTES);
		count++;
		if (!whole || frame[AT_FLAGS] & FLAG_LAST) {
			*records = count;
			*bytes = end;
			if (whole && end >= limit)
				return 0;
		}
	}
	return 0;
}

/*
 * Where the last frame of data[0, size) begins, by the lengths alone. 0 and the place, -ENODATA and
 * where less than a frame is left, -EBADMSG and where a length is none.
 */
int leased_chain_last(const uint8_t *data, size_t size, size_t *at)
{
	size_t offset = 0;
	for (;;) {
		*at = offset;
		if (size - offset < FRAME_BYTES_MIN)
			return -ENODATA;
		const size_t length = le32(data + offset);
		if (length < FRAME_BYTES_MIN || length > FRAME_BYTES_MAX)
			return -EBADMSG;
		if (length >= size - offset)
			return 0;
		offset += length;
	}
}

/* ---- the tree of RFC 6962 ---- */

/* Two nodes that stand side by side become the one above them, in the place of the first. */
static void join(uint8_t *nodes)
{
	uint8_t node[1 + 2 * HASH_BYTES];
	SHA256_CTX context;
	node[0] = 1;
	memcpy(node + 1, nodes, 2 * HASH_BYTES);
	SHA256_Init(&context);
	SHA256_Update(&context, node, sizeof node);
	SHA256_Final(nodes, &context);
}

/*
 * Append `count` leaves to a tree of `size`, whose peaks stand in `peaks`, the largest first: one
 * for each bit of its size (room for 64). The number of peaks.
 */
unsigned leased_tree_extend(uint64_t size, uint8_t *peaks, const uint8_t *leaves, size_t count)
{
	unsigned held = (unsigned)__builtin_popcountll(size);
	for (size_t i = 0; i < count; i++, size++) {
		memcpy(peaks + held * HASH_BYTES, leaves + i * HASH_BYTES, HASH_BYTES);
		held++;
		for (uint64_t carry = size; carry & 1; carry >>= 1) {
			join(peaks + (held - 2) * HASH_BYTES);
			held--;
		}
	}
	return held;
}

/* ---- bodies: MessagePack in the strict profile of chain/canonical.py ---- */

static uint64_t be(const uint8_t *from, unsigned bytes)
{
	uint64_t value = 0;
	for (unsigned i = 0; i < bytes; i++)
		value = value << 8 | from[i];
	return value;
}

/* Past an integer in its shortest form; NULL for anything else. `small`: its value if below 64. */
static const uint8_t *past_integer(const uint8_t *p, const uint8_t *end, unsigned *small)
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

/* Past so many bytes with a head of one, two or four bytes of length, the shortest that fits. */
static const uint8_t *past_string(
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
	if (text) {
		/* ASCII is UTF-8; whether more is, the verifier says. */
		for (size_t i = 0; i < length; i++) {
			if (p[i] & 0x80)
				return NULL;
		}
	}
	return p + length;
}

/* Past the head of an array; its length. */
static const uint8_t *past_array_head(const uint8_t *p, const uint8_t *end, size_t *count)
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

/*
 * How many of the records, from the first on, have the one legal encoding of a body of their kind.
 * `roots[kind]` is the shape of a body, 0 where there is none. The frames were walked.
 */
size_t leased_chain_bodies(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *data, size_t size, const uint64_t *offsets, const uint16_t *kinds,
	size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (kinds[i] >= LEASED_KINDS || roots[kinds[i]] == 0 || offsets[i] > size ||
			size - offsets[i] < HEADER_BYTES)
			return i;
		const uint8_t *frame = data + offsets[i];
		const size_t body_bytes = le32(frame + AT_BODY_BYTES);
		if (frame[AT_SCHEMA] != SCHEMA || body_bytes > size - offsets[i] - HEADER_BYTES)
			return i;
		const uint8_t *body = frame + HEADER_BYTES, *end = body + body_bytes;
		if (past(shapes, roots[kinds[i]], body, end) != end)
			return i;
	}
	return count;
}
