/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain at the speed of SHA-256: strides over plain records, and links.
 *
 * Rule: a verb here only ever says that what it went over is plain: whole, linked, hashed, in its
 * place, and nothing about it needs to be thought about. It stops before the first record of which
 * it cannot say that, and judges nothing: what is wrong with it, or remarkable, is the verifier's
 * word (chain/verifier.py, chain/canonical.py), which reads that record itself. No byte outside
 * [data, data + size) is read, whatever the bytes say.
 *
 * Does not know events: which kinds are plain and how a body is built is handed in.
 */
#include "chain.h"
#include "digests.h"
#include "frame.h"

#include <errno.h>
#include <stdbool.h>

/* ---- records ---- */

enum { GROUP = 32 }; /* records that are looked at together: they stay in the nearest cache */

/* A stride's place, moved on by records whose hashes are yet to be compared. */
struct place {
	const uint8_t *frame, *end, *head;
	uint64_t sequence, batch, boot_ns;
	bool open;
};

/* Past the frame, if all but its hash and CRC holds and nothing is remarkable; its bytes, or 0. */
static size_t pass(struct place *at, const struct leased_stride *stride)
{
	const uint8_t *frame = at->frame;
	const size_t left = (size_t)(at->end - frame);
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
		boot_ns >= stride->limit_ns || kind >= LEASED_KINDS || frame[AT_SCHEMA] < 1 ||
		frame[AT_SCHEMA] > LEASED_SCHEMAS ||
		!(stride->plain[kind] >> (frame[AT_SCHEMA] - 1) & 1))
		return 0;
	const uint8_t *padding = frame + HEADER_BYTES + body_bytes;
	const uint8_t *hash = frame + length - HASH_BYTES;
	while (padding < hash) {
		if (*padding++ != 0)
			return 0;
	}
	at->frame += length;
	at->head = hash;
	at->sequence++;
	at->batch = batch;
	at->boot_ns = boot_ns;
	at->open = !(flags & FLAG_LAST);
	return length;
}

static bool crc_holds(const uint8_t *frame, size_t length)
{
	const uint32_t begun = leased_crc32(0, frame, AT_CRC);
	return leased_crc32(begun, frame + AT_SEQUENCE, length - AT_SEQUENCE) ==
	       le32(frame + AT_CRC);
}

/* Take in at most GROUP plain records; how many. `hashes` is where their hashes go. */
static size_t stride_group(struct leased_stride *at, const uint8_t *data, size_t size, size_t most,
	uint64_t *offsets, uint16_t *kinds, uint8_t *hashes, uint8_t *bodies)
{
	struct place places[GROUP + 1];
	struct leased_message messages[GROUP];
	uint8_t digests[GROUP][HASH_BYTES];
	size_t seen = 0, count = 0;
	places[0] = (struct place){ data + at->offset, data + size, at->head, at->sequence,
		at->batch, at->boot_ns, at->open };
	while (seen < GROUP && seen < most) {
		places[seen + 1] = places[seen];
		const uint8_t *frame = places[seen].frame;
		if (pass(&places[seen + 1], at) == 0)
			break;
		const size_t body_bytes = le32(frame + AT_BODY_BYTES);
		messages[seen] = (struct leased_message){ frame + AT_SEQUENCE,
			HEADER_BYTES - AT_SEQUENCE + body_bytes, digests[seen] };
		seen++;
	}
	if (seen == 0)
		return 0;
	leased_sha256_each(at->prefix, sizeof at->prefix, messages, seen);
	for (; count < seen; count++) {
		const uint8_t *frame = places[count].frame;
		const size_t length = (size_t)(places[count + 1].frame - frame);
		if (memcmp(digests[count], places[count + 1].head, HASH_BYTES) != 0 ||
			!crc_holds(frame, length))
			break;
		offsets[count] = (uint64_t)(frame - data);
		kinds[count] = le16(frame + AT_KIND);
		bodies[count] = at->shapes != NULL &&
				leased_body_is_plain(at->shapes, at->roots, frame, kinds[count]);
	}
	memcpy(hashes, digests, count * HASH_BYTES);
	const struct place *reached = &places[count];
	at->offset = (uint64_t)(reached->frame - data);
	at->sequence = reached->sequence;
	at->batch = reached->batch;
	at->boot_ns = reached->boot_ns;
	at->open = reached->open;
	if (count > 0)
		memcpy(at->head, digests[count - 1], HASH_BYTES);
	return count;
}

/*
 * Walk plain records from `at->offset` on, at most `most`; their offsets, kinds and hashes, and
 * whether their bodies fit a shape (without shapes: 0), go to the arrays. The number of records;
 * `at` stands behind the last of them.
 */
size_t leased_chain_stride(struct leased_stride *at, const uint8_t *data, size_t size, size_t most,
	uint64_t *offsets, uint16_t *kinds, uint8_t *hashes, uint8_t *bodies)
{
	size_t count = 0;
	while (count < most && at->offset < size) {
		const size_t wanted = most - count < GROUP ? most - count : GROUP;
		const size_t some = stride_group(at, data, size, wanted, offsets + count,
			kinds + count, hashes + count * HASH_BYTES, bodies + count);
		count += some;
		if (some < wanted)
			break;
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

