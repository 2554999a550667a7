/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain's verbs on hostile bytes, each run on memory that ends where the data does: every byte
 * of a chain changed, every length of it, and noise for bodies.
 */
#include "check.h"
#include "verbs.h"
#include "verbs/digests.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RECORDS = 24, DATA_MAX = RECORDS * 400, SHAPES = 12 };

static const uint8_t PREFIX[LEASED_PREFIX_BYTES] = "a log";
static uint8_t data[DATA_MAX];
static size_t begins[RECORDS + 1];

static unsigned noise(void)
{
	static uint64_t state = 42;
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(state >> 33);
}

static void put(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> 8 * i);
}

/* Batches of three, of one to 200 bytes of body. */
static void make_chain(void)
{
	uint8_t head[32] = { 0 };
	size_t at = 0;
	for (unsigned i = 0; i < RECORDS; i++) {
		uint8_t *frame = data + at;
		const size_t body = 1 + noise() % 200, length = (body + 112 + 7) & ~(size_t)7;
		begins[i] = at;
		put(frame, length, 4);
		put(frame + 8, i, 8);
		put(frame + 16, 2 + i / 3, 8);
		put(frame + 24, 16 + i % 4, 2);
		frame[26] = 1;
		frame[27] = i % 3 == 2;
		put(frame + 28, body, 4);
		put(frame + 40, 100 + i, 8);
		memcpy(frame + 48, head, 32);
		for (size_t b = 0; b < body; b++)
			frame[80 + b] = (uint8_t)noise();
		SHA256_CTX context;
		SHA256_Init(&context);
		SHA256_Update(&context, PREFIX, sizeof PREFIX);
		SHA256_Update(&context, frame + 8, 72 + body);
		SHA256_Final(head, &context);
		memcpy(frame + length - 32, head, 32);
		put(frame + 4, crc32(crc32(0, frame, 4), frame + 8, (unsigned)(length - 8)), 4);
		at += length;
	}
	begins[RECORDS] = at;
}

/* How many records a stride takes of a copy of so many bytes. */
static size_t taken(const uint8_t *from, size_t size)
{
	static uint64_t offsets[RECORDS];
	static uint16_t kinds[RECORDS];
	static uint8_t hashes[RECORDS * LEASED_HASH_BYTES];
	static uint8_t bodies[RECORDS];
	/* One byte of anything is a body; most of these are longer. */
	static const struct leased_shape shapes[2] = { [1] = { .what = LEASED_SHAPE_INTEGER } };
	static const uint32_t roots[LEASED_SCHEMAS * LEASED_KINDS] = { [16] = 1, [17] = 1 };
	uint8_t *copy = malloc(size ? size : 1);
	struct leased_stride at = {
		.shapes = shapes, .roots = roots, .batch = 1, .limit_ns = UINT64_MAX
	};
	size_t records, bytes, last;
	if (copy == NULL)
		abort();
	memcpy(copy, from, size);
	memcpy(at.prefix, PREFIX, sizeof PREFIX);
	memset(at.plain, 1, sizeof at.plain);
	const size_t count =
		leased_chain_stride(&at, copy, size, RECORDS, offsets, kinds, hashes, bodies);
	/* What these say is compared with the rules elsewhere; here, that they read no further. */
	leased_chain_links(copy, size, RECORDS, 1000, true, hashes, &records, &bytes);
	leased_chain_links(copy, size, RECORDS, 0, false, hashes, &records, &bytes);
	leased_chain_last(copy, size, &last);
	free(copy);
	return count;
}

static void check_records(void)
{
	const size_t size = begins[RECORDS];
	int held = taken(data, size) == RECORDS, cut = 1;
	check("a whole chain is plain", held);
	for (unsigned i = 0; i < RECORDS; i++) {
		for (size_t at = begins[i]; at < begins[i + 1]; at++) {
			for (unsigned bit = 0; bit < 8; bit++) {
				data[at] ^= (uint8_t)(1u << bit);
				held = held && taken(data, size) == i;
				data[at] ^= (uint8_t)(1u << bit);
			}
			cut = cut && taken(data, at) == i;
		}
	}
	check("every bit changed ends the stride before its record", held);
	check("every length ends the stride before the record that is cut", cut);
	for (unsigned round = 0; round < 200000; round++) {
		const size_t at = noise() % size, bytes = 1 + noise() % 8;
		uint8_t kept[8];
		memcpy(kept, data + at, sizeof kept);
		for (size_t b = 0; b < bytes && at + b < size; b++)
			data[at + b] = (uint8_t)noise();
		taken(data, size - noise() % 64);
		memcpy(data + at, kept, sizeof kept);
	}
}

/* Sealing what a chain says, batch by batch, into memory that ends where the frames do, is the
 * chain. */
static void check_sealing(void)
{
	struct leased_sealing at = { .batch = 2 };
	int same = 1;
	memcpy(at.prefix, PREFIX, sizeof PREFIX);
	for (unsigned first = 0; first < RECORDS; first += 3) {
		const size_t size = begins[first + 3] - begins[first];
		uint8_t *frames = malloc(size), bodies[3 * 200], hashes[3 * LEASED_HASH_BYTES];
		uint32_t body_bytes[3];
		uint16_t kinds[3];
		uint8_t schemas[3];
		size_t used = 0;
		if (frames == NULL)
			abort();
		for (unsigned i = 0; i < 3; i++) {
			uint8_t *frame = data + begins[first + i];
			memcpy(&body_bytes[i], frame + 28, 4);
			memcpy(&kinds[i], frame + 24, 2);
			schemas[i] = frame[26];
			memcpy(bodies + used, frame + 80, body_bytes[i]);
			used += body_bytes[i];
			/* One clock for all of a batch. */
			put(frame + 40, 100 + first, 8);
		}
		at.boot_ns = 100 + first;
		const size_t written = leased_chain_seal(
			&at, bodies, body_bytes, kinds, schemas, 3, true, frames, hashes);
		same = same && written == size && memcmp(frames + size - 32, at.head, 32) == 0;
		memcpy(data + begins[first], frames, size);
		at.batch++;
		free(frames);
	}
	check("what is sealed is a plain chain", same && taken(data, begins[RECORDS]) == RECORDS);
}

static void check_bodies(void)
{
	/* A body of everything: [int, enum, bool, 16 bytes, text, [nil | bytes], list of ints]. */
	const struct leased_shape shapes[SHAPES] = {
		[1] = { .what = LEASED_SHAPE_FIELDS, .count = 7, .first = 2 },
		[2] = { .what = LEASED_SHAPE_INTEGER },
		[3] = { .what = LEASED_SHAPE_ENUM, .members = 5 },
		[4] = { .what = LEASED_SHAPE_BOOL },
		[5] = { .what = LEASED_SHAPE_BYTES, .count = 16 },
		[6] = { .what = LEASED_SHAPE_TEXT },
		[7] = { .what = LEASED_SHAPE_FIELDS, .count = 1, .first = 9 },
		[8] = { .what = LEASED_SHAPE_LIST, .first = 2 },
		[9] = { .what = LEASED_SHAPE_BYTES, .nil = 1 },
	};
	const uint32_t roots[LEASED_SCHEMAS * LEASED_KINDS] = { [16] = 1 };
	const uint8_t good[] = "\x97\xcd\x01\x00\x02\xc3\xc4\x10"
			       "0123456789abcdef\xa3yes\x91\xc0\x93\x01\x02\xff";
	const uint64_t offset = 0;
	const uint16_t kind = 16;
	size_t plain = 0;
	for (unsigned round = 0; round < 400000; round++) {
		const size_t body = round ? noise() % sizeof good : sizeof good - 1;
		uint8_t *frame = malloc(80 + body);
		if (frame == NULL)
			abort();
		memset(frame, 0, 80);
		frame[26] = 1;
		put(frame + 28, body, 4);
		memcpy(frame + 80, good, body);
		for (unsigned change = round ? noise() % 3 : 0; change > 0 && body > 0; change--)
			frame[80 + noise() % body] = (uint8_t)noise();
		plain += leased_chain_bodies(
			shapes, roots, frame, 80 + body, &offset, &kind, 1);
		if (round == 0)
			check("a body of everything is plain", plain == 1);
		put(frame + 28, UINT32_MAX - noise() % 4, 4);
		plain += leased_chain_bodies(
			shapes, roots, frame, 80 + body, &offset, &kind, 1);
		free(frame);
	}
	check("noise is read to its end and no further", plain < 400000);
}

static void check_crc(void)
{
	int same = 1;
	for (size_t size = 0; size < 400; size++) {
		for (size_t begin = 0; begin < 16; begin++) {
			uint8_t *copy = malloc(size + begin + 1);
			if (copy == NULL)
				abort();
			for (size_t i = 0; i < size + begin; i++)
				copy[i] = (uint8_t)noise();
			const uint32_t first = noise();
			same = same && leased_crc32(first, copy + begin, size) ==
					       crc32(first, copy + begin, (unsigned)size);
			free(copy);
		}
	}
	check("the CRC is zlib's", same);
}

/* Messages of all lengths, at the end of what may be read, alone and together. */
static void check_sha256(void)
{
	enum { TOGETHER = 5, LENGTHS = 300 };
	int same = 1;
	if (!leased_sha256_has_two())
		fputs("    not proven here: this processor has no SHA instructions\n", stdout);
	for (size_t length = 0; length < LENGTHS; length++) {
		for (size_t head = 0; head <= 64; head += length % 7 + 1) {
			const size_t count = 1 + noise() % TOGETHER;
			struct leased_message ours[TOGETHER], theirs[TOGETHER];
			uint8_t *copies[TOGETHER], *heads = malloc(head ? head : 1);
			static uint8_t one[TOGETHER][LEASED_HASH_BYTES];
			static uint8_t other[TOGETHER][LEASED_HASH_BYTES];
			if (heads == NULL)
				abort();
			for (size_t i = 0; i < head; i++)
				heads[i] = (uint8_t)noise();
			for (size_t m = 0; m < count; m++) {
				const size_t bytes = m ? noise() % LENGTHS : length;
				copies[m] = malloc(bytes ? bytes : 1);
				if (copies[m] == NULL)
					abort();
				for (size_t i = 0; i < bytes; i++)
					copies[m][i] = (uint8_t)noise();
				ours[m] = (struct leased_message){ copies[m], bytes, one[m] };
				theirs[m] = (struct leased_message){ copies[m], bytes, other[m] };
			}
			leased_sha256_by_library(heads, head, theirs, count);
			if (leased_sha256_has_two()) {
				leased_sha256_by_two(heads, head, ours, count);
				same = same && memcmp(one, other, count * sizeof *one) == 0;
			}
			leased_sha256_each(heads, head, ours, count);
			same = same && memcmp(one, other, count * sizeof *one) == 0;
			for (size_t m = 0; m < count; m++)
				free(copies[m]);
			free(heads);
		}
	}
	check("two messages at a time have libcrypto's digests", same);
}

/* A table of leases beside an array that is searched from its beginning. */
static void check_leases(void)
{
	enum { IDS = 400 };
	static uint8_t ids[IDS][16], stages[IDS], listed[IDS][16], listed_stages[IDS];
	struct leased_leases *leases = leased_leases_new();
	int same = leases != NULL;
	size_t held = 0;
	for (unsigned i = 0; i < IDS; i++) {
		put(ids[i], i % 3 ? i : noise(), 8); /* many side by side, and many not */
		put(ids[i] + 8, i % 2 ? 0x9e3779b97f4a7c15u : i, 8);
	}
	for (unsigned round = 0; round < 100000 && same; round++) {
		const unsigned i = noise() % IDS;
		const uint8_t stage = noise() % 3 ? (uint8_t)(noise() % 10) : 0;
		same = leased_leases_put(leases, ids[i], &stage, 1) == 0;
		held = held + (stage != 0) - (stages[i] != 0);
		stages[i] = stage;
		const unsigned other = noise() % IDS;
		same = same && leased_leases_stage(leases, ids[other]) == stages[other] &&
		       leased_leases_count(leases) == held;
	}
	if (same)
		leased_leases_list(leases, listed[0], listed_stages);
	for (size_t at = 0; at < held && same; at++) {
		unsigned i = 0;
		while (i < IDS && memcmp(ids[i], listed[at], 16) != 0)
			i++;
		same = i < IDS && stages[i] == listed_stages[at];
	}
	leased_leases_free(leases);
	check("leases are where they were put", same);
}

/* Records of a whole chain as those of leases: read to the end of what may be read. */
static void check_following(void)
{
	static uint8_t moves[256 * LEASED_LEASE_KINDS];
	const uint64_t offsets[3] = { 0, begins[1], begins[RECORDS - 1] };
	const uint16_t kinds[3] = { 16, 300, 17 };
	struct leased_leases *leases = leased_leases_new();
	int right = 1;
	moves[0] = 4;
	moves[1] = 9;
	for (size_t size = begins[RECORDS - 1]; size <= begins[RECORDS]; size++) {
		uint8_t *copy = malloc(size);
		if (copy == NULL || leases == NULL)
			abort();
		memcpy(copy, data, size);
		const uint8_t none = 0;
		leased_leases_put(leases, copy + 101, &none, 1);
		const size_t count =
			leased_leases_follow(leases, moves, 9, copy, size, offsets, kinds, 3);
		right = right && count == (size - begins[RECORDS - 1] >= 117 ? 3u : 2u) &&
			leased_leases_stage(leases, copy + 101) == 4 &&
			leased_leases_count(leases) == 1;
		free(copy);
	}
	leased_leases_free(leases);
	check("leases are followed as far as the moves go and the bytes are there", right);
}

void check_chain(void)
{
	make_chain();
	check_records();
	check_sealing();
	check_bodies();
	check_crc();
	check_sha256();
	check_leases();
	check_following();
}
