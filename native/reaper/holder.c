/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes, cgroups and memfds by an identity that outlives our descriptors: pid and the number of
 * its pidfd's file, or start time; path and inode.
 *
 * Rule: a number alone names nothing; what is reopened by name is compared before it is used.
 * Nothing here trusts that a descriptor is what its sender says.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../text.h"

enum { PIDFS_MAGIC = 0x50494446 /* not in every magic.h */ };
static const uint64_t BY_FILE = 1ull << 63; /* a start that is the inode of the process's file */

/* Field 22 of /proc/PID/stat. The command name (field 2) may hold anything, so the count begins
 * after the last ')'. */
static int start_time(int32_t pid, uint64_t *start)
{
	char path[32], text[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	ssize_t length = read_text(path, text, sizeof text);
	if (length < 0)
		return (int)length;
	char *at = strrchr(text, ')');
	if (at == NULL)
		return -EPROTO;
	at++;
	for (int field = 2; field < 21; field++) {
		at = strchr(at + 1, ' ');
		if (at == NULL)
			return -EPROTO;
	}
	*start = strtoull(at + 1, NULL, 10);
	return 0;
}

bool holder_exited(int pidfd)
{
	struct pollfd wait = { .fd = pidfd, .events = POLLIN };
	return poll(&wait, 1, 0) == 1;
}

/* Linux 6.9 gives every process a file with an inode number of its own for as long as the host
 * runs; before, all pidfds were one file. */
static void note_file(struct holder *holder, int pidfd)
{
	struct statfs fs;
	struct stat st;
	if (fstatfs(pidfd, &fs) == 0 && fs.f_type == PIDFS_MAGIC && fstat(pidfd, &st) == 0) {
		holder->device = st.st_dev;
		holder->inode = st.st_ino;
	}
}

/* What tells it from a later process of the same number. Its stat is read only where it has no
 * file: of one that hangs in an exec we would wait for the end of that (Linux 6.18). */
static int note_start(struct holder *holder, int pidfd)
{
	note_file(holder, pidfd);
	if (holder->inode == 0)
		return start_time(holder->pid, &holder->start);
	holder->start = holder->inode | BY_FILE;
	return 0;
}

static bool is_of(const struct holder *holder, int pidfd)
{
	struct stat st;
	return holder->inode != 0 && fstat(pidfd, &st) == 0 && st.st_dev == holder->device &&
	       st.st_ino == holder->inode;
}

/*
 * Which process a pidfd is, in our pid namespace. -EBADF: not a pidfd. An exited process is
 * described as pid 0 with success: it has nothing left to lose. -EPERM for init and for ourselves,
 * which no lease may take along, and for a pidfd of one thread (PIDFD_THREAD, which is O_EXCL):
 * when that has exited, a signal by it reaches none of the others.
 *
 * `last` is who was described last among the pidfds of one packet: they were all made before any of
 * them was looked at, so two that tell the same pid, each of a process that had not exited when it
 * was looked at, are the same process. Where each process has a file (pidfs), that says so at once.
 */
int holder_describe(int pidfd, struct holder *last, struct holder *described)
{
	char path[48], text[512];
	const int flags = fcntl(pidfd, F_GETFL);
	if (flags < 0)
		return -EBADF;
	if (is_of(last, pidfd) && (flags & O_EXCL) == 0) {
		*described = holder_exited(pidfd) ? (struct holder){ 0 } : *last;
		return 0;
	}
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
	ssize_t length = read_text(path, text, sizeof text);
	if (length < 0)
		return -EBADF;
	const char *found = strstr(text, "\nPid:");
	if (found == NULL)
		return -EBADF;
	if ((flags & O_EXCL) != 0)
		return -EPERM;
	long value = strtol(found + 5, NULL, 10);
	*described = (struct holder){ 0 };
	if (value < 0)
		return 0;
	if (value <= 1 || value == getpid()) /* 0: a process that our namespace does not see */
		return -EPERM;
	struct holder alive = { .start = last->start, .pid = (int32_t)value };
	const bool known = alive.pid == last->pid && last->inode == 0;
	int rc = known ? 0 : note_start(&alive, pidfd);
	if (rc == 0 && !holder_exited(pidfd))
		*described = *last = alive;
	return rc == -ENOENT || rc == -ESRCH ? 0 : rc;
}

/* A pidfd of exactly that process, or -ESRCH when it is gone. What an earlier reaper knew it by
 * becomes what we do. */
int holder_reopen(int32_t pid, uint64_t *start)
{
	struct holder now = { .pid = pid };
	uint64_t found = 0;
	int pidfd = leased_pidfd_open(pid);
	if (pidfd < 0)
		return pidfd;
	int rc = note_start(&now, pidfd);
	if (rc == 0)
		found = now.start;
	if (rc == 0 && ((*start ^ found) & BY_FILE) != 0)
		rc = start_time(pid, &found);
	if (rc == 0 || holder_exited(pidfd))
		rc = found != *start || holder_exited(pidfd) ? -ESRCH : 0;
	if (rc == 0) {
		*start = now.start;
		return pidfd;
	}
	close(pidfd);
	return rc == -ENOENT ? -ESRCH : rc;
}

/* Open a leaf directory of cgroup2. -EPERM: the path leads somewhere else, or to the root of the
 * hierarchy. */
int cgroup_open(const char *path, uint64_t *inode)
{
	struct statfs fs;
	struct stat st;
	if (path[0] != '/')
		return -EINVAL;
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	int rc = 0;
	if (fstatfs(fd, &fs) != 0 || fstat(fd, &st) != 0)
		rc = -errno;
	else if (fs.f_type != CGROUP2_SUPER_MAGIC || faccessat(fd, "cgroup.kill", F_OK, 0) != 0)
		rc = -EPERM; /* the root cgroup has no cgroup.kill, and nobody leases it */
	if (rc != 0) {
		close(fd);
		return rc;
	}
	*inode = st.st_ino;
	return fd;
}

/* The same directory again, or -ENOENT when it is gone (also when another has taken its name). */
int cgroup_reopen(const char *path, uint64_t inode)
{
	uint64_t found = 0;
	int fd = cgroup_open(path, &found);
	if (fd >= 0 && found != inode) {
		close(fd);
		return -ENOENT;
	}
	return fd;
}

/*
 * A memfd that nobody can protect from us: -EBADF when it is not one, -EPERM when its seals forbid
 * truncation or could still be made to.
 */
int memfd_check(int fd, uint64_t *inode)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return -EBADF;
	if ((seals & F_SEAL_SEAL) == 0 || (seals & (F_SEAL_SHRINK | F_SEAL_WRITE)) != 0)
		return -EPERM;
	if (fstat(fd, &st) != 0)
		return -errno;
	*inode = st.st_ino;
	return 0;
}
