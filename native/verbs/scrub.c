/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrub verbs: overwrite memory with zero at the speed of the memory, and read it back.
 *
 * Rule: every byte is written, and then read by another way than it was written: another mapping,
 * or for small pages another call. Stores go past the caches where the processor can do that, so
 * that what is read back comes from the memory and a range of persistent memory is clean when the
 * verb returns.
 *
 * Small pages are written and read through the file: mapping 262144 pages of a GiB costs ten times
 * what clearing them costs. What is mapped in large pieces (hugepages, a memfd of huge folios,
 * device-dax) is mapped.
 *
 * Does not decide whether what it read is good enough.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "mapping.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum {
	LINE_BYTES = 64,
	CHUNK_BYTES = 128 << 10, /* stays in a core's own cache between the copy and the look */
};

/* Larger than the caches, so that the reading back of a window does not find it there. */
static const uint64_t WINDOW_BYTES = UINT64_C(64) << 20;

/* A holder may have cut its file to any odd size. Up to the end of its line there is only what is
 * behind the end of the file in the same page, or the caller's own buffer. */
static uint64_t whole_lines(uint64_t length)
{
	return (length + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

/* `start` and `length` are multiples of a cache line. */
static void clear(void *start, uint64_t length)
{
#if defined(__x86_64__)
	const __m128i zero = _mm_setzero_si128();
	for (char *at = start, *end = at + length; at != end; at += LINE_BYTES) {
		_mm_stream_si128((__m128i *)(void *)at, zero);
		_mm_stream_si128((__m128i *)(void *)(at + 16), zero);
		_mm_stream_si128((__m128i *)(void *)(at + 32), zero);
		_mm_stream_si128((__m128i *)(void *)(at + 48), zero);
	}
	_mm_sfence();
#else
	memset(start, 0, length);
#if defined(__aarch64__)
	for (char *at = start, *end = at + length; at != end; at += LINE_BYTES)
		__asm__ volatile("dc civac, %0" : : "r"(at) : "memory");
	__asm__ volatile("dsb sy" : : : "memory");
#else
	__sync_synchronize();
#endif
#endif
}

static uint64_t count_nonzero(const uint64_t *words, size_t n)
{
	uint64_t count = 0;
	for (size_t i = 0; i < n; i++)
		count += words[i] != 0;
	return count;
}

/* Two words that the compiler may keep in one register of any processor. */
typedef uint64_t pair __attribute__((vector_size(16)));

static bool is_zero(const void *start, uint64_t length)
{
	const pair *at = start, *end = at + length / sizeof(pair);
	pair a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
	for (; at != end; at += LINE_BYTES / sizeof(pair)) {
		a |= at[0];
		b |= at[1];
		c |= at[2];
		d |= at[3];
	}
	a |= b | c | d;
	return (a[0] | a[1]) == 0;
}

/* Bytes in 64-bit words that are not zero; `length` is a multiple of a cache line. The common case
 * is one OR over everything; counting is done only where it says so. */
static uint64_t look(const void *start, uint64_t length)
{
	enum { BLOCK = 64 << 10 };
	uint64_t residue = 0;
	for (uint64_t at = 0; at < length; at += BLOCK) {
		const char *block = (const char *)start + at;
		uint64_t n = length - at < BLOCK ? length - at : BLOCK;
		if (!is_zero(block, n))
			residue += count_nonzero((const uint64_t *)(const void *)block,
				(size_t)(n / sizeof(uint64_t)));
	}
	return residue * sizeof(uint64_t);
}

/* ---- large pieces: mapped ---- */

static int clear_mapped(int fd, uint64_t at, uint64_t length)
{
	struct mapping map;
	int rc = mapping_open(&map, fd, at, length, PROT_READ | PROT_WRITE);
	if (rc != 0)
		return rc;
	clear(map.start, whole_lines(length));
	mapping_close(&map);
	return 0;
}

static int look_mapped(int fd, uint64_t at, uint64_t length, uint64_t *residue)
{
	struct mapping map;
	int rc = mapping_open(&map, fd, at, length, PROT_READ);
	if (rc != 0)
		return rc;
	*residue += look(map.start, whole_lines(length));
	mapping_close(&map);
	return 0;
}

/* ---- small pages: through the file ---- */

static int clear_filed(int fd, uint64_t at, uint64_t length)
{
	static char zero[CHUNK_BYTES]; /* never written: it takes no place in the file */
	while (length > 0) {
		size_t n = length < CHUNK_BYTES ? (size_t)length : CHUNK_BYTES;
		ssize_t done = pwrite(fd, zero, n, (off_t)at);
		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0) {
			at += (uint64_t)done;
			length -= (uint64_t)done;
		}
	}
	return 0;
}

static int look_filed(int fd, uint64_t at, uint64_t length, uint64_t *residue)
{
	_Alignas(LINE_BYTES) char buffer[CHUNK_BYTES];
	while (length > 0) {
		size_t n = length < CHUNK_BYTES ? (size_t)length : CHUNK_BYTES;
		memset(buffer + n, 0, whole_lines(n) - n);
		ssize_t done = pread(fd, buffer, n, (off_t)at);
		if (done < 0 && errno != EINTR)
			return -errno;
		if (done >= 0 && (size_t)done < n)
			return -EFAULT; /* whole pages were asked for: it is being cut off */
		if (done > 0) {
			*residue += look(buffer, whole_lines(n));
			at += n;
			length -= n;
		}
	}
	return 0;
}

/* Whether the pages of the file are large: hugepages, or at this place one folio for all of a
 * huge page, which takes one fault to map. */
static int is_large(int fd, uint64_t at, uint64_t length)
{
	struct statfs fs;
	if (fstatfs(fd, &fs) != 0)
		return -errno;
	if (fs.f_type == HUGETLBFS_MAGIC_NUMBER)
		return 1;
	if (length < LEASED_HUGE_BYTES)
		return 0;
	struct rusage before, after;
	struct mapping map;
	if (getrusage(RUSAGE_THREAD, &before) != 0)
		return -errno;
	int rc = mapping_open(&map, fd, at, LEASED_HUGE_BYTES, PROT_READ);
	if (rc != 0)
		return rc;
	mapping_close(&map);
	if (getrusage(RUSAGE_THREAD, &after) != 0)
		return -errno;
	return after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt <= 2;
}

static int scrub_window(
	int fd, uint64_t at, uint64_t length, uint64_t *written, uint64_t *residue)
{
	int large = is_large(fd, at, length);
	if (large < 0)
		return large;
	int rc = large ? clear_mapped(fd, at, length) : clear_filed(fd, at, length);
	if (rc != 0)
		return rc;
	*written += length;
	return large ? look_mapped(fd, at, length, residue) : look_filed(fd, at, length, residue);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/*
 * Overwrite `bytes` from `from` (where a page begins) on with zero and read them back.
 * `*overwritten` counts bytes written and `*residue` bytes in 64-bit words that did not read back
 * as zero, also when the call fails half-way. A file that is shorter (its holder shrank it, or the
 * backstop has already run) is scrubbed as far as it goes and `*overwritten` says how far: pages
 * that left the file are the kernel's again, and the proof counts them.
 */
int leased_mem_scrub(
	int fd, uint64_t from, uint64_t bytes, uint64_t *overwritten, uint64_t *residue)
{
	struct stat st;
	*overwritten = 0;
	*residue = 0;
	if (fstat(fd, &st) != 0)
		return -errno;
	const uint64_t size = (uint64_t)st.st_size;
	const uint64_t end = from > size ? from : from + smaller(bytes, size - from);
	/* Of hugetlbfs the block is the page: 1 GiB cannot be mapped in part. */
	const uint64_t page = (uint64_t)st.st_blksize;
	const uint64_t window = page > WINDOW_BYTES ? page : WINDOW_BYTES;
	for (uint64_t at = from; at < end; at += window) {
		int rc = scrub_window(fd, at, smaller(window, end - at), overwritten, residue);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/* As leased_mem_scrub, of a device-dax node, whose size no stat tells. `from` and `bytes` are
 * multiples of the device's alignment. Memory that cannot be read any more (poison) kills the
 * caller with SIGBUS. */
int leased_dax_scrub(
	int fd, uint64_t from, uint64_t bytes, uint64_t *overwritten, uint64_t *residue)
{
	*overwritten = 0;
	*residue = 0;
	for (uint64_t at = from, end = from + bytes; at < end;) {
		uint64_t length = smaller(LEASED_DAX_WINDOW_BYTES, end - at);
		int rc = clear_mapped(fd, at, length);
		if (rc != 0)
			return rc;
		*overwritten += length;
		rc = look_mapped(fd, at, length, residue);
		if (rc != 0)
			return rc;
		at += length;
	}
	return 0;
}

/* How many bytes of a device-dax node, in 64-bit words, are not zero. Writes nothing. */
int leased_dax_look(int fd, uint64_t from, uint64_t bytes, uint64_t *residue)
{
	*residue = 0;
	for (uint64_t at = from, end = from + bytes; at < end;) {
		uint64_t length = smaller(LEASED_DAX_WINDOW_BYTES, end - at);
		int rc = look_mapped(fd, at, length, residue);
		if (rc != 0)
			return rc;
		at += length;
	}
	return 0;
}
