/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32 of zlib, by carry-less multiplication where the processor has it: a record's CRC must not
 * cost half of what its SHA-256 does.
 *
 * Rule: the same number as zlib's crc32() for the same bytes, on any processor; where there is no
 * such instruction, and for what is left over, zlib computes it.
 *
 * The folding is that of Gopal et al., "Fast CRC Computation for Generic Polynomials Using
 * PCLMULQDQ" (Intel, 2009), with its constants for the reflected polynomial 0xEDB88320.
 */
#include "digests.h"

#define WIDE_BYTES 64u

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdbool.h>

#define FOLD __attribute__((target("pclmul,sse4.1")))

FOLD static inline __m128i fold(__m128i sum, __m128i by, __m128i next)
{
	const __m128i low = _mm_clmulepi64_si128(sum, by, 0x00);
	const __m128i high = _mm_clmulepi64_si128(sum, by, 0x11);
	return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static inline __m128i at(const unsigned char *data)
{
	return _mm_loadu_si128((const void *)data);
}

/* `bytes` is at least 64 and a multiple of 16; `crc` goes in and comes out inverted. */
FOLD static uint32_t folded(uint32_t crc, const unsigned char *data, size_t bytes)
{
	const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
	const __m128i by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
	const __m128i by_8 = _mm_set_epi64x(0, 0x163cd6124);
	const __m128i polynomial = _mm_set_epi64x(0x1f7011641, 0x1db710641);
	const __m128i low_words = _mm_set_epi32(0, -1, 0, -1);
	__m128i a = _mm_xor_si128(at(data), _mm_cvtsi32_si128((int)crc));
	__m128i b = at(data + 16), c = at(data + 32), d = at(data + 48);
	data += WIDE_BYTES;
	bytes -= WIDE_BYTES;
	for (; bytes >= WIDE_BYTES; data += WIDE_BYTES, bytes -= WIDE_BYTES) {
		a = fold(a, by_64, at(data));
		b = fold(b, by_64, at(data + 16));
		c = fold(c, by_64, at(data + 32));
		d = fold(d, by_64, at(data + 48));
	}
	a = fold(fold(fold(a, by_16, b), by_16, c), by_16, d);
	for (; bytes >= 16; data += 16, bytes -= 16)
		a = fold(a, by_16, at(data));
	/* 128 bits to 96, to 64, and Barrett's reduction of these to 32. */
	a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, by_16, 0x10));
	b = _mm_clmulepi64_si128(_mm_and_si128(a, low_words), by_8, 0x00);
	a = _mm_xor_si128(_mm_srli_si128(a, 4), b);
	b = _mm_clmulepi64_si128(_mm_and_si128(a, low_words), polynomial, 0x10);
	b = _mm_clmulepi64_si128(_mm_and_si128(b, low_words), polynomial, 0x00);
	return (uint32_t)_mm_extract_epi32(_mm_xor_si128(a, b), 1);
}

static bool folds(void)
{
	return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}
#endif

uint32_t leased_crc32(uint32_t crc, const unsigned char *data, size_t bytes)
{
#if defined(__x86_64__)
	if (bytes >= WIDE_BYTES && folds()) {
		const size_t wide = bytes & ~(size_t)15;
		crc = ~folded(~crc, data, wide);
		data += wide;
		bytes -= wide;
	}
#endif
	return (uint32_t)crc32(crc, data, (unsigned)bytes);
}
