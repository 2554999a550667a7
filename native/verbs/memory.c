/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory verbs: sealed memfds, bound to a node, every page present; overwritten and read back
 * before they are given up.
 *
 * Rule: a lease's memory is sealed F_SEAL_GROW | F_SEAL_SEAL before anyone else sees it, so that
 * nobody can add F_SEAL_SHRINK and defeat the truncation. A scrub writes through one mapping and
 * reads through another.
 *
 * Does not pass descriptors and does not look at counters: proof comes from another source (the
 * agent).
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

enum {
	NODES_MAX = 1024,
	PAGES_PER_QUERY = 512,
};

/* One window is mapped at a time: page tables stay small and a scrub's progress can be told. */
static const uint64_t WINDOW_BYTES = UINT64_C(1) << 30;

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static unsigned int log2_of(uint64_t power)
{
	return (unsigned int)__builtin_ctzll(power);
}

static int bind_to_node(void *start, uint64_t bytes, int node)
{
	unsigned long mask[NODES_MAX / (8 * sizeof(unsigned long))] = { 0 };
	if (node >= NODES_MAX)
		return -EINVAL;
	const unsigned int bits = 8 * sizeof(unsigned long);
	mask[(unsigned int)node / bits] |= 1ul << ((unsigned int)node % bits);
	if (syscall(SYS_mbind, start, bytes, MPOL_BIND, mask, NODES_MAX + 1, MPOL_MF_STRICT) != 0) {
		/* A kernel without NUMA has one node, and everything is on it. */
		return errno == ENOSYS && node == 0 ? 0 : -errno;
	}
	return 0;
}

static int touch(void *start, uint64_t bytes, int advice)
{
	while (madvise(start, bytes, advice) != 0) {
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
	return 0;
}

/* Ask the kernel where every page is; -EXDEV when one is not on `node`. */
static int check_placement(char *start, uint64_t bytes, uint64_t page_bytes, int node)
{
	void *pages[PAGES_PER_QUERY];
	int status[PAGES_PER_QUERY];
	for (uint64_t at = 0; at < bytes;) {
		unsigned long count = 0;
		for (; count < PAGES_PER_QUERY && at < bytes; count++, at += page_bytes)
			pages[count] = start + at;
		if (syscall(SYS_move_pages, 0, count, pages, NULL, status, 0) != 0)
			return errno == ENOSYS && node == 0 ? 0 : -errno;
		for (unsigned long i = 0; i < count; i++) {
			if (status[i] < 0)
				return status[i];
			if (status[i] != node)
				return -EXDEV;
		}
	}
	return 0;
}

static int fill(int fd, uint64_t bytes, uint64_t page_bytes, int node)
{
	for (uint64_t at = 0; at < bytes; at += WINDOW_BYTES) {
		uint64_t length = smaller(WINDOW_BYTES, bytes - at);
		char *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)at);
		if (start == MAP_FAILED)
			return -errno;
		int rc = node < 0 ? 0 : bind_to_node(start, length, node);
		if (rc == 0)
			rc = touch(start, length, MADV_POPULATE_WRITE);
		if (rc == 0 && node >= 0)
			rc = check_placement(start, length, page_bytes, node);
		munmap(start, length);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/*
 * Make a memfd of `bytes`, every page present, on `node` (-1: any), sealed. `hugepage_bytes` 0
 * means normal pages. All or nothing; -EXDEV when the kernel placed a page elsewhere.
 */
int leased_mem_create(
	const char *name, uint64_t bytes, uint64_t hugepage_bytes, int node, int *fd_out)
{
	unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	const uint64_t page_bytes =
		hugepage_bytes ? hugepage_bytes : (uint64_t)sysconf(_SC_PAGESIZE);
	if (hugepage_bytes != 0) {
		if ((hugepage_bytes & (hugepage_bytes - 1)) != 0)
			return -EINVAL;
		flags |= MFD_HUGETLB | log2_of(hugepage_bytes) << MFD_HUGE_SHIFT;
	}
	if (bytes == 0 || bytes % page_bytes != 0 || bytes > INT64_MAX)
		return -EINVAL;
	int fd = memfd_create(name, flags);
	if (fd < 0)
		return -errno;
	int rc = ftruncate(fd, (off_t)bytes) == 0 ? 0 : -errno;
	if (rc == 0)
		rc = fill(fd, bytes, page_bytes, node);
	if (rc == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL) != 0)
		rc = -errno;
	if (rc != 0) {
		close(fd);
		return rc;
	}
	*fd_out = fd;
	return 0;
}

static int overwrite(int fd, uint64_t at, uint64_t length)
{
	void *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)at);
	if (start == MAP_FAILED)
		return -errno;
	int rc = touch(start, length, MADV_POPULATE_WRITE);
	if (rc == 0)
		memset(start, 0, length);
	munmap(start, length);
	return rc;
}

static uint64_t count_nonzero(const uint64_t *words, size_t n)
{
	uint64_t count = 0;
	for (size_t i = 0; i < n; i++)
		count += words[i] != 0;
	return count;
}

/* Words that are not zero. The common case is one OR over everything; counting is done only where
 * it says so. */
static uint64_t read_residue(const void *start, uint64_t length)
{
	enum { STRIDE = 8, BLOCK = 8192 };
	const uint64_t *words = start;
	const size_t total = (size_t)(length / sizeof(uint64_t));
	uint64_t residue = 0;
	for (size_t at = 0; at < total; at += BLOCK) {
		size_t n = total - at < BLOCK ? total - at : BLOCK;
		uint64_t seen[STRIDE] = { 0 };
		for (size_t i = 0; i + STRIDE <= n; i += STRIDE) {
			for (size_t j = 0; j < STRIDE; j++)
				seen[j] |= words[at + i + j];
		}
		uint64_t all = 0;
		for (size_t j = 0; j < STRIDE; j++)
			all |= seen[j];
		if (all != 0)
			residue += count_nonzero(words + at, n);
	}
	return residue;
}

static int read_back(int fd, uint64_t at, uint64_t length, uint64_t *residue)
{
	void *start = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)at);
	if (start == MAP_FAILED)
		return -errno;
	int rc = touch(start, length, MADV_POPULATE_READ);
	if (rc == 0)
		*residue += read_residue(start, length) * sizeof(uint64_t);
	munmap(start, length);
	return rc;
}

/*
 * Overwrite the first `bytes` with zero, then read them back through a second mapping.
 * `*overwritten` counts bytes written and `*residue` bytes in 64-bit words that did not read back
 * as zero, also when the call fails half-way. A file that is shorter than `bytes` (its holder
 * shrank it, or the backstop has already run) is scrubbed as far as it goes and `*overwritten` says
 * how far: pages that left the file are the kernel's again, and the proof counts them.
 */
int leased_mem_scrub(int fd, uint64_t bytes, uint64_t *overwritten, uint64_t *residue)
{
	struct stat st;
	*overwritten = 0;
	*residue = 0;
	if (fstat(fd, &st) != 0)
		return -errno;
	bytes = smaller(bytes, (uint64_t)st.st_size);
	for (uint64_t at = 0; at < bytes; at += WINDOW_BYTES) {
		uint64_t length = smaller(WINDOW_BYTES, bytes - at);
		int rc = overwrite(fd, at, length);
		if (rc != 0)
			return rc;
		*overwritten += length;
	}
	for (uint64_t at = 0; at < bytes; at += WINDOW_BYTES) {
		int rc = read_back(fd, at, smaller(WINDOW_BYTES, bytes - at), residue);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/* Give every page up; `*blocks_left` is what the file still has (512-byte blocks): anything but 0
 * is a failed truncate. */
int leased_mem_truncate(int fd, uint64_t *blocks_left)
{
	*blocks_left = 0;
	while (ftruncate(fd, 0) != 0) {
		if (errno != EINTR)
			return -errno;
	}
	return leased_mem_blocks(fd, blocks_left);
}

/* How many 512-byte blocks the file has. */
int leased_mem_blocks(int fd, uint64_t *blocks)
{
	struct stat st;
	if (fstat(fd, &st) != 0)
		return -errno;
	*blocks = (uint64_t)st.st_blocks;
	return 0;
}
