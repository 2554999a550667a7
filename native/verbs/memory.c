/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory verbs: sealed memfds, bound to a node, every page present; and given up again.
 *
 * Rule: a lease's memory is sealed F_SEAL_GROW | F_SEAL_SEAL before anyone else sees it, so that
 * nobody can add F_SEAL_SHRINK and defeat the truncation. Normal pages come in huge folios where
 * the kernel has them at hand: then they are given, overwritten and taken back many times as fast.
 * A few of them are written, not mapped: that is one call in place of five.
 *
 * Does not overwrite (scrub.c), pass descriptors or look at counters: proof comes from another
 * source (the agent).
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../clock.h"
#include "mapping.h"

#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif
enum {
	NODES_MAX = 1024,
	PAGES_PER_QUERY = 512,
	WRITTEN_BYTES_MAX = 64 << 10,
};

static const char POSSIBLE_NODES[] = "/sys/devices/system/node/possible";

/* One window is mapped at a time: page tables stay small. */
static const uint64_t WINDOW_BYTES = UINT64_C(1) << 30;

/* Huge folios are asked for in pieces of this size (asking costs some ms however little it is), and
 * no longer when one took this long: the kernel then moves other pages out of the way, which takes
 * longer than small pages would. 128 MiB/s is what the agent calls progress. */
static const uint64_t PIECE_BYTES = UINT64_C(256) << 20;
static const uint64_t PIECE_NS_MAX = UINT64_C(2000) * 1000 * 1000;
static const uint64_t FOLIO_BYTES_MIN = UINT64_C(16) << 20;

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

/* Let the file's pages from `start` on be huge folios; how many bytes of it are. The first byte of
 * each is touched before, so that the kernel takes the folio from that page's node. */
static uint64_t gather(char *start, uint64_t bytes)
{
	uint64_t done = 0;
	while (bytes - done >= LEASED_HUGE_BYTES) {
		uint64_t piece = smaller(PIECE_BYTES, (bytes - done) & ~(LEASED_HUGE_BYTES - 1));
		for (uint64_t at = 0; at < piece; at += LEASED_HUGE_BYTES) {
			if (mapping_touch(start + done + at, 1, MADV_POPULATE_WRITE) != 0)
				return done;
		}
		uint64_t began = boot_now();
		if (madvise(start + done, piece, MADV_COLLAPSE) != 0)
			return done;
		done += piece;
		if (boot_now() - began > PIECE_NS_MAX)
			return done;
	}
	return done;
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

/* Bind, touch and check one window. `*folios`: huge folios are still worth asking for. */
static int fill_window(char *start, uint64_t bytes, uint64_t page_bytes, int node, bool *folios)
{
	int rc = node < 0 ? 0 : bind_to_node(start, bytes, node);
	uint64_t gathered = 0;
	if (rc == 0 && *folios) {
		gathered = gather(start, bytes);
		*folios = bytes - gathered < LEASED_HUGE_BYTES;
	}
	if (rc == 0)
		rc = mapping_touch(start, bytes, MADV_POPULATE_WRITE);
	if (rc == 0 && node >= 0)
		rc = check_placement(start, gathered, LEASED_HUGE_BYTES, node);
	if (rc == 0 && node >= 0)
		rc = check_placement(start + gathered, bytes - gathered, page_bytes, node);
	return rc;
}

/* Whether node 0 is all that this host can have until its next boot: nothing is to be bound to it,
 * and nobody asked. No answer is "no": then both are done. */
static bool is_only_node(int node)
{
	static int only = -1;
	int known = __atomic_load_n(&only, __ATOMIC_RELAXED);
	if (node != 0 || known >= 0)
		return node == 0 && known == 1;
	char said[8] = "";
	int fd = open(POSSIBLE_NODES, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, said, sizeof said - 1);
	if (fd >= 0)
		close(fd);
	known = length > 0 && strcmp(said, "0\n") == 0;
	__atomic_store_n(&only, known, __ATOMIC_RELAXED);
	return known == 1;
}

static int fill_by_writing(int fd, uint64_t bytes)
{
	static const char zeros[WRITTEN_BYTES_MAX];
	for (uint64_t at = 0; at < bytes;) {
		ssize_t written = pwrite(fd, zeros, bytes - at, (off_t)at);
		if (written > 0)
			at += (uint64_t)written;
		else if (written == 0 || errno != EINTR)
			return written == 0 ? -EIO : -errno;
	}
	return 0;
}

static int fill(int fd, uint64_t bytes, uint64_t page_bytes, int node)
{
	bool folios = page_bytes < LEASED_HUGE_BYTES && bytes >= FOLIO_BYTES_MIN;
	for (uint64_t at = 0; at < bytes; at += WINDOW_BYTES) {
		struct mapping map;
		uint64_t length = smaller(WINDOW_BYTES, bytes - at);
		int rc = mapping_place(&map, fd, at, length, PROT_READ | PROT_WRITE);
		if (rc != 0)
			return rc;
		rc = fill_window(map.start, length, page_bytes, node, &folios);
		mapping_close(&map);
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
	if (is_only_node(node))
		node = -1;
	if (rc == 0 && node < 0 && hugepage_bytes == 0 && bytes <= WRITTEN_BYTES_MAX)
		rc = fill_by_writing(fd, bytes);
	else if (rc == 0)
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
