/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mapping of a part of a file: see mapping.h.
 *
 * Does not keep anything: the caller holds the struct.
 */
#define _GNU_SOURCE
#include "mapping.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

/* A small part may lie anywhere. Else room is taken first, and the file put at the first address
 * in it that lies in its huge page as the file's offset does. Device-dax maps at no other, and of
 * 1 GiB alignment no less. */
int mapping_place(struct mapping *map, int fd, uint64_t at, uint64_t length, int protection)
{
	if (length < LEASED_HUGE_BYTES) {
		map->start = mmap(NULL, length, protection, MAP_SHARED, fd, (off_t)at);
		map->reserved = map->start;
		map->reserved_bytes = length;
		return map->start == MAP_FAILED ? -errno : 0;
	}
	const uint64_t align = length % LEASED_DAX_WINDOW_BYTES == 0 ? LEASED_DAX_WINDOW_BYTES
								     : LEASED_HUGE_BYTES;
	map->reserved_bytes = length + align;
	map->reserved = mmap(NULL, map->reserved_bytes, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map->reserved == MAP_FAILED)
		return -errno;
	const uint64_t room = (uint64_t)(uintptr_t)map->reserved;
	const uint64_t place = room + ((at - room) & (align - 1));
	map->start = mmap((void *)(uintptr_t)place, length, protection, MAP_SHARED | MAP_FIXED, fd,
		(off_t)at);
	if (map->start == MAP_FAILED) {
		int rc = -errno;
		munmap(map->reserved, map->reserved_bytes);
		return rc;
	}
	return 0;
}

int mapping_touch(char *start, uint64_t length, int advice)
{
	while (madvise(start, length, advice) != 0) {
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
	return 0;
}

int mapping_open(struct mapping *map, int fd, uint64_t at, uint64_t length, int protection)
{
	int rc = mapping_place(map, fd, at, length, protection);
	if (rc != 0)
		return rc;
	rc = mapping_touch(map->start, length,
		(protection & PROT_WRITE) != 0 ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	if (rc != 0)
		mapping_close(map);
	return rc;
}

void mapping_close(struct mapping *map)
{
	munmap(map->reserved, map->reserved_bytes);
}
