/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Node verbs: what a path (mostly an entry of /proc/P/fd) leads to, as the kernel numbers devices.
 *
 * Rule: the file system behind the path is not asked anything (AT_STATX_DONT_SYNC): a process may
 * hold a file of a network mount whose server is gone, and looking at it must not hang.
 *
 * Does not open anything: opening a device may change it.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

static int number_of(const char *path, mode_t kind, uint32_t *major, uint32_t *minor)
{
	struct statx seen;
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE, &seen) != 0)
		return -errno;
	if ((seen.stx_mode & S_IFMT) != kind)
		return 0;
	*major = seen.stx_rdev_major;
	*minor = seen.stx_rdev_minor;
	return 1;
}

/* 1 and its numbers if `path` leads to a character device, 0 if to anything else. */
int leased_node_char(const char *path, uint32_t *major, uint32_t *minor)
{
	return number_of(path, S_IFCHR, major, minor);
}

/* The same of block devices. */
int leased_node_block(const char *path, uint32_t *major, uint32_t *minor)
{
	return number_of(path, S_IFBLK, major, minor);
}
