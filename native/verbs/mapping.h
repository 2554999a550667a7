/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mapping of a part of a file for the time of one verb, placed so that huge pages can be mapped
 * whole, with every page of it present.
 *
 * Rule: nothing is left behind, whatever fails. Not for callers of the verbs.
 */
#ifndef LEASED_MAPPING_H
#define LEASED_MAPPING_H

#include <stdint.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define HUGETLBFS_MAGIC_NUMBER  0x958458f6
#define LEASED_HUGE_BYTES       (UINT64_C(2) << 20)
#define LEASED_DAX_WINDOW_BYTES (UINT64_C(1) << 30)

struct mapping {
	char *start;
	void *reserved;
	uint64_t reserved_bytes;
};

/* Map and let every page be present. */
int mapping_open(struct mapping *map, int fd, uint64_t at, uint64_t length, int protection);

/* Map without touching anything. */
int mapping_place(struct mapping *map, int fd, uint64_t at, uint64_t length, int protection);
int mapping_touch(char *start, uint64_t length, int advice);
void mapping_close(struct mapping *map);

#endif
