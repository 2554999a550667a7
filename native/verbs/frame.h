/* SPDX-License-Identifier: Apache-2.0 */
/* Where things are in a record's frame, for the verbs of the chain; reads no further than asked. */
#ifndef LEASED_FRAME_H
#define LEASED_FRAME_H

#include "../verbs.h"

#include <endian.h>
#include <string.h>

/* Offsets within a frame, and its limits (chain/FORMAT.md section 5). */
enum {
	AT_CRC = 4,
	AT_SEQUENCE = 8,
	AT_BATCH = 16,
	AT_KIND = 24,
	AT_SCHEMA = 26,
	AT_FLAGS = 27,
	AT_BODY_BYTES = 28,
	AT_WALL = 32,
	AT_BOOT = 40,
	AT_PREV = 48,
	HEADER_BYTES = 80,
	HASH_BYTES = LEASED_HASH_BYTES,
	FRAME_BYTES_MIN = HEADER_BYTES + HASH_BYTES,
	FRAME_BYTES_MAX = 65536,
	FLAG_LAST = 1,
	FLAGS_KNOWN = 3,
	SCHEMA = 1, /* of nearly every body, and of all of which leases are made */
	AT_LEASE = HEADER_BYTES + 21, /* of an event of a lease */
};

static inline uint16_t le16(const uint8_t *from)
{
	uint16_t raw;
	memcpy(&raw, from, sizeof raw);
	return le16toh(raw);
}

static inline uint32_t le32(const uint8_t *from)
{
	uint32_t raw;
	memcpy(&raw, from, sizeof raw);
	return le32toh(raw);
}

static inline uint64_t le64(const uint8_t *from)
{
	uint64_t raw;
	memcpy(&raw, from, sizeof raw);
	return le64toh(raw);
}

/* Eight bytes as rows have them: signed, the first bits first. */
static inline int64_t big_endian(const uint8_t *from)
{
	uint64_t raw;
	memcpy(&raw, from, sizeof raw);
	return (int64_t)be64toh(raw);
}

#endif
