/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 of many short messages that do not wait for each other: two at a time on one core.
 *
 * A record's hash is over stored bytes, the previous hash among them, so to verify a chain its
 * records need not be hashed one after the other; nor need the nodes of one level of a tree. One
 * message alone leaves half of the processor's SHA instructions idle, waiting for its last round.
 *
 * Rule: libcrypto's digests for the same bytes, on any processor. The instructions are used where
 * the processor has them and after they have given libcrypto's digests for messages of every length
 * up to three blocks, in this process; everywhere else libcrypto computes them.
 */
#include "digests.h"

#include <endian.h>
#include <string.h>

enum { BLOCK_BYTES = 64 };

void leased_sha256_by_library(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		SHA256_CTX context;
		SHA256_Init(&context);
		SHA256_Update(&context, head, head_bytes);
		SHA256_Update(&context, messages[i].data, messages[i].bytes);
		SHA256_Final(messages[i].digest, &context);
	}
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define SHA __attribute__((target("sha,sse4.1")))

static const uint32_t ROUND[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

/* One message on its way: its two half states, in the order of the instructions, and its blocks. */
struct lane {
	__m128i abef, cdgh;
	const struct leased_message *message;
	size_t head_bytes, block, whole, blocks;
	uint8_t first[BLOCK_BYTES];
	uint8_t tail[2 * BLOCK_BYTES];
};

SHA static inline void begin(struct lane *lane, const uint8_t *head, size_t head_bytes,
	const struct leased_message *message)
{
	const size_t total = head_bytes + message->bytes, rest = total % BLOCK_BYTES;
	const uint64_t bits = htobe64((uint64_t)total * 8);
	lane->abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
	lane->cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
	lane->message = message;
	lane->head_bytes = head_bytes;
	lane->block = 0;
	lane->whole = total / BLOCK_BYTES;
	const size_t padded = rest + 9 <= BLOCK_BYTES ? 1 : 2;
	lane->blocks = lane->whole + padded;
	memset(lane->tail, 0, sizeof lane->tail);
	if (lane->whole) {
		memcpy(lane->first, head, head_bytes);
		memcpy(lane->first + head_bytes, message->data, BLOCK_BYTES - head_bytes);
		memcpy(lane->tail, message->data + message->bytes - rest, rest);
	} else {
		memcpy(lane->tail, head, head_bytes);
		memcpy(lane->tail + head_bytes, message->data, message->bytes);
	}
	lane->tail[rest] = 0x80;
	memcpy(lane->tail + padded * BLOCK_BYTES - sizeof bits, &bits, sizeof bits);
}

static inline const uint8_t *next_block(struct lane *lane)
{
	const size_t block = lane->block++;
	if (block >= lane->whole)
		return lane->tail + (block - lane->whole) * BLOCK_BYTES;
	return block ? lane->message->data + block * BLOCK_BYTES - lane->head_bytes : lane->first;
}

SHA static inline void finish(const struct lane *lane)
{
	const __m128i reversed = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
	const __m128i abcd = _mm_unpackhi_epi64(lane->cdgh, lane->abef);
	const __m128i efgh = _mm_unpacklo_epi64(lane->cdgh, lane->abef);
	uint8_t *digest = lane->message->digest;
	_mm_storeu_si128((void *)digest, _mm_shuffle_epi8(abcd, reversed));
	_mm_storeu_si128((void *)(digest + 16), _mm_shuffle_epi8(efgh, reversed));
}

SHA static inline __m128i words(const uint8_t *block, unsigned quarter)
{
	const __m128i swapped = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
	return _mm_shuffle_epi8(_mm_loadu_si128((const void *)(block + 16 * quarter)), swapped);
}

/* Four rounds of one lane, and four words of its schedule for sixteen rounds later. */
SHA static inline void four_rounds(
	__m128i *abef, __m128i *cdgh, __m128i word[4], unsigned turn, __m128i constants)
{
	__m128i *now = &word[turn & 3];
	const __m128i last = word[(turn + 3) & 3];
	const __m128i sum = _mm_add_epi32(*now, constants);
	*cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, sum);
	*abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(sum, 0x0e));
	if (turn < 12) {
		const __m128i seven_back = _mm_alignr_epi8(last, word[(turn + 2) & 3], 4);
		const __m128i mixed = _mm_sha256msg1_epu32(*now, word[(turn + 1) & 3]);
		*now = _mm_sha256msg2_epu32(_mm_add_epi32(mixed, seven_back), last);
	}
}

SHA static void compress_one(struct lane *lane)
{
	const uint8_t *block = next_block(lane);
	__m128i abef = lane->abef, cdgh = lane->cdgh;
	__m128i word[4] = { words(block, 0), words(block, 1), words(block, 2), words(block, 3) };
#pragma GCC unroll 16
	for (unsigned turn = 0; turn < 16; turn++)
		four_rounds(&abef, &cdgh, word, turn,
			_mm_load_si128((const void *)(ROUND + 4 * turn)));
	lane->abef = _mm_add_epi32(lane->abef, abef);
	lane->cdgh = _mm_add_epi32(lane->cdgh, cdgh);
}

SHA static void compress_two(struct lane *one, struct lane *two)
{
	const uint8_t *p = next_block(one), *q = next_block(two);
	__m128i abef = one->abef, cdgh = one->cdgh, abef2 = two->abef, cdgh2 = two->cdgh;
	__m128i word[4] = { words(p, 0), words(p, 1), words(p, 2), words(p, 3) };
	__m128i word2[4] = { words(q, 0), words(q, 1), words(q, 2), words(q, 3) };
#pragma GCC unroll 16
	for (unsigned turn = 0; turn < 16; turn++) {
		const __m128i constants = _mm_load_si128((const void *)(ROUND + 4 * turn));
		four_rounds(&abef, &cdgh, word, turn, constants);
		four_rounds(&abef2, &cdgh2, word2, turn, constants);
	}
	one->abef = _mm_add_epi32(one->abef, abef);
	one->cdgh = _mm_add_epi32(one->cdgh, cdgh);
	two->abef = _mm_add_epi32(two->abef, abef2);
	two->cdgh = _mm_add_epi32(two->cdgh, cdgh2);
}

/* The lane has gone on by a block: with the next message if it is through. False: there is none. */
SHA static inline bool goes_on(struct lane *lane, const uint8_t *head, size_t head_bytes,
	const struct leased_message **next, const struct leased_message *end)
{
	if (lane->block < lane->blocks)
		return true;
	finish(lane);
	if (*next == end)
		return false;
	begin(lane, head, head_bytes, (*next)++);
	return true;
}

SHA void leased_sha256_by_two(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count)
{
	const struct leased_message *next = messages, *end = messages + count;
	struct lane lanes[2], *left = &lanes[0];
	if (count == 0)
		return;
	begin(&lanes[0], head, head_bytes, next++);
	if (count > 1) {
		begin(&lanes[1], head, head_bytes, next++);
		for (;;) {
			compress_two(&lanes[0], &lanes[1]);
			if (!goes_on(&lanes[0], head, head_bytes, &next, end)) {
				left = &lanes[1];
				if (left->block == left->blocks) {
					finish(left);
					return;
				}
				break;
			}
			if (!goes_on(&lanes[1], head, head_bytes, &next, end))
				break;
		}
	}
	while (left->block < left->blocks)
		compress_one(left);
	finish(left);
}

bool leased_sha256_has_two(void)
{
	unsigned a, b, c, d;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1 &&
	       __builtin_cpu_supports("sse4.1");
}
#else
void leased_sha256_by_two(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count)
{
	leased_sha256_by_library(head, head_bytes, messages, count);
}

bool leased_sha256_has_two(void)
{
	return false;
}
#endif

/* Whether both give the same digests, of all lengths around the edges of blocks. */
static bool agree(void)
{
	enum { MESSAGES = 3 * BLOCK_BYTES };
	uint8_t data[2 * MESSAGES], ours[MESSAGES][LEASED_HASH_BYTES];
	uint8_t theirs[MESSAGES][LEASED_HASH_BYTES];
	struct leased_message mine[MESSAGES], library[MESSAGES];
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (uint8_t)(i * 167 + 13);
	for (size_t i = 0; i < MESSAGES; i++) {
		mine[i] = (struct leased_message){ data + i, i, ours[i] };
		library[i] = (struct leased_message){ data + i, i, theirs[i] };
	}
	leased_sha256_by_two(data, LEASED_PREFIX_BYTES, mine, MESSAGES);
	leased_sha256_by_library(data, LEASED_PREFIX_BYTES, library, MESSAGES);
	return memcmp(ours, theirs, sizeof ours) == 0;
}

void leased_sha256_each(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count)
{
	enum { UNKNOWN, TWO, LIBRARY };
	static int found = UNKNOWN;
	int how = __atomic_load_n(&found, __ATOMIC_RELAXED);
	if (how == UNKNOWN) {
		how = leased_sha256_has_two() && agree() ? TWO : LIBRARY;
		__atomic_store_n(&found, how, __ATOMIC_RELAXED);
	}
	if (how == TWO)
		leased_sha256_by_two(head, head_bytes, messages, count);
	else
		leased_sha256_by_library(head, head_bytes, messages, count);
}
