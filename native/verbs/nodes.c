/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Node verbs: what a path (mostly an entry of /proc/P/fd) leads to, as the kernel numbers devices;
 * and which of some devices the descriptors of a process lead to.
 *
 * Rule: the file system behind the path is not asked anything (AT_STATX_DONT_SYNC): a process may
 * hold a file of a network mount whose server is gone, and looking at it must not hang.
 *
 * Does not open anything: opening a device may change it.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/*
 * Whether a file of which its file system tells nothing (`refused`: EIO where an XFS has lost its
 * drive, EACCES where a FUSE is another user's) is a regular file or a directory all the same. No
 * other has attributes of users, says the kernel itself (ENODATA), before it asks a file system.
 */
static bool is_plain(int dirfd, const char *path, int refused)
{
	char at[32];
	int fd = openat(dirfd, path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return false;
	(void)snprintf(at, sizeof at, "/proc/self/fd/%d", fd);
	const bool plain = getxattr(at, "user.leased", NULL, 0) < 0 && errno == refused;
	close(fd);
	return plain;
}

static int look(int dirfd, const char *path, struct statx *seen)
{
	const int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | AT_EMPTY_PATH;
	if (statx(dirfd, path, flags, STATX_TYPE, seen) == 0)
		return 0;
	const int refused = errno;
	if ((refused != EIO && refused != EACCES) || !is_plain(dirfd, path, refused))
		return -refused;
	*seen = (struct statx){ .stx_mode = S_IFREG };
	return 0;
}

static int number_at(
	int dirfd, const char *path, mode_t kind, uint32_t *major, uint32_t *minor)
{
	struct statx seen;
	int rc = look(dirfd, path, &seen);
	if (rc != 0)
		return rc;
	if ((seen.stx_mode & S_IFMT) != kind)
		return 0;
	*major = seen.stx_rdev_major;
	*minor = seen.stx_rdev_minor;
	return 1;
}

/* 1 and its numbers if `path` leads to a character device, 0 if to anything else. */
int leased_node_char(const char *path, uint32_t *major, uint32_t *minor)
{
	return number_at(AT_FDCWD, path, S_IFCHR, major, minor);
}

/* The same of block devices. */
int leased_node_block(const char *path, uint32_t *major, uint32_t *minor)
{
	return number_at(AT_FDCWD, path, S_IFBLK, major, minor);
}

/*
 * The same of what `path` leads to in the directory `root`, as far as the kernel knows by itself:
 * -EAGAIN where a server would have to be asked.
 */
int leased_node_named(
	const char *root, const char *path, uint32_t type, uint32_t *major, uint32_t *minor)
{
	const struct open_how how = { .flags = O_PATH | O_CLOEXEC,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_CACHED };
	int dirfd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return -errno;
	int fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how);
	int rc = -errno;
	close(dirfd);
	if (fd < 0)
		return rc;
	rc = number_at(fd, "", type == LEASED_DEVICE_BLOCK ? S_IFBLK : S_IFCHR, major, minor);
	close(fd);
	return rc;
}

/* ---- a process's descriptors ---- */

/* 1 if two threads have the same table of descriptors, 0 if not; -errno where it cannot be told. */
int leased_files_shared(int tid, int other)
{
	long rc = syscall(SYS_kcmp, tid, other, KCMP_FILES, 0ul, 0ul);
	return rc < 0 ? -errno : rc == 0;
}

struct search {
	mode_t kind;
	const struct leased_node *nodes;
	uint8_t *found;
	uint32_t n;
	int32_t *rings;
	uint32_t rings_max;
	uint32_t rings_seen;
};

/* What is gone, or was never ours to see. */
static bool is_gone(int rc)
{
	return rc == -ENOENT || rc == -ESRCH || rc == -EACCES || rc == -EPERM || rc == -ENOTDIR;
}

/* An anonymous inode has no type; should a kernel give it one, it is an empty file of no device. */
static bool may_be_ring(const struct statx *seen)
{
	const mode_t kind = seen->stx_mode & S_IFMT;
	return kind == 0 || (kind == S_IFREG && seen->stx_dev_major == 0 && seen->stx_size == 0);
}

static int look_at(struct search *s, int dirfd, const char *name)
{
	static const char ring[] = "anon_inode:[io_uring]";
	char target[sizeof ring];
	struct statx seen;
	int rc = look(dirfd, name, &seen);
	if (rc != 0)
		return is_gone(rc) ? 0 : rc;
	if ((seen.stx_mode & S_IFMT) == s->kind) {
		for (uint32_t i = 0; i < s->n; i++) {
			if (s->nodes[i].major == seen.stx_rdev_major &&
				s->nodes[i].minor == seen.stx_rdev_minor)
				s->found[i] = 1;
		}
		return 0;
	}
	if (!may_be_ring(&seen))
		return 0;
	ssize_t length = readlinkat(dirfd, name, target, sizeof target);
	if (length < 0) /* a path of more than a page is that of a file */
		return is_gone(-errno) || errno == ENAMETOOLONG ? 0 : -errno;
	if ((size_t)length != sizeof ring - 1 || memcmp(target, ring, sizeof ring - 1) != 0)
		return 0;
	if (s->rings_seen < s->rings_max)
		s->rings[s->rings_seen] = atoi(name);
	s->rings_seen++;
	return 0;
}

/*
 * Look at every descriptor in `path` (/proc/P/fd): found[i] becomes 1 where one leads to nodes[i],
 * a device of `type`. Those of io_urings, which may hold more, go to `rings`, as many as fit; how
 * many there are is returned. A process that is gone has none.
 */
int leased_node_search(const char *path, uint32_t type, const struct leased_node *nodes,
	uint8_t *found, uint32_t n, int32_t *rings, uint32_t rings_max)
{
	_Alignas(struct dirent64) char entries[4096];
	struct search s = { .kind = type == LEASED_DEVICE_BLOCK ? S_IFBLK : S_IFCHR,
		.nodes = nodes,
		.found = found,
		.n = n,
		.rings = rings,
		.rings_max = rings_max };
	int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return is_gone(-errno) ? 0 : -errno;
	int rc = 0;
	ssize_t bytes = 0;
	while (rc == 0 && (bytes = getdents64(dirfd, entries, sizeof entries)) > 0) {
		for (ssize_t at = 0; rc == 0 && at < bytes;) {
			const struct dirent64 *entry = (const struct dirent64 *)&entries[at];
			if (entry->d_name[0] != '.')
				rc = look_at(&s, dirfd, entry->d_name);
			at += entry->d_reclen;
		}
	}
	if (bytes < 0)
		rc = is_gone(-errno) ? 0 : -errno;
	close(dirfd);
	return rc != 0 ? rc : (int)s.rings_seen;
}
