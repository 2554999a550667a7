/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing: the records of a batch, each holding the hash of the one before.
 *
 * Rule: the bytes of chain/FORMAT.md section 5, as chain/sealer.py writes them one by one; a test
 * holds the two together. The caller's arrays have room for all, and `at` stands behind the last
 * record when this returns.
 *
 * Does not encode bodies, sign, or keep anything.
 */
#include "digests.h"
#include "frame.h"

static void put32(uint8_t *to, uint32_t value)
{
	value = htole32(value);
	memcpy(to, &value, sizeof value);
}

static void put64(uint8_t *to, uint64_t value)
{
	value = htole64(value);
	memcpy(to, &value, sizeof value);
}

/* One frame at `frame`, where its schema stands already; its bytes. */
static size_t seal_one(struct leased_sealing *at, const uint8_t *body, uint32_t body_bytes,
	uint16_t kind, uint8_t flags, uint8_t *frame)
{
	const size_t length = ((size_t)body_bytes + FRAME_BYTES_MIN + 7) & ~(size_t)7;
	uint8_t *digest = frame + length - HASH_BYTES;
	put32(frame, (uint32_t)length);
	put64(frame + AT_SEQUENCE, at->sequence);
	put64(frame + AT_BATCH, at->batch);
	kind = htole16(kind);
	memcpy(frame + AT_KIND, &kind, sizeof kind);
	frame[AT_FLAGS] = flags;
	put32(frame + AT_BODY_BYTES, body_bytes);
	put64(frame + AT_WALL, at->wall_ns);
	put64(frame + AT_BOOT, at->boot_ns);
	memcpy(frame + AT_PREV, at->head, HASH_BYTES);
	memcpy(frame + HEADER_BYTES, body, body_bytes);
	memset(frame + HEADER_BYTES + body_bytes, 0, length - FRAME_BYTES_MIN - body_bytes);
	const struct leased_message message = { frame + AT_SEQUENCE,
		HEADER_BYTES - AT_SEQUENCE + body_bytes, digest };
	leased_sha256_each(at->prefix, sizeof at->prefix, &message, 1);
	const uint32_t begun = leased_crc32(0, frame, AT_CRC);
	put32(frame + AT_CRC, leased_crc32(begun, frame + AT_SEQUENCE, length - AT_SEQUENCE));
	memcpy(at->head, digest, HASH_BYTES);
	at->sequence++;
	return length;
}

/*
 * Seal `count` bodies that stand one behind the other; the bytes of their frames. `ends`: the last
 * of them ends its batch.
 */
size_t leased_chain_seal(struct leased_sealing *at, const uint8_t *bodies,
	const uint32_t *body_bytes, const uint16_t *kinds, const uint8_t *schemas, size_t count,
	bool ends, uint8_t *frames, uint8_t *hashes)
{
	size_t written = 0;
	for (size_t i = 0; i < count; i++) {
		const uint8_t flags = ends && i + 1 == count ? FLAG_LAST : 0;
		uint8_t *frame = frames + written;
		frame[AT_SCHEMA] = schemas[i];
		written += seal_one(at, bodies, body_bytes[i], kinds[i], flags, frame);
		memcpy(hashes + i * HASH_BYTES, at->head, HASH_BYTES);
		bodies += body_bytes[i];
	}
	return written;
}
