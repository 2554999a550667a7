/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded: the LEASED_KILLED-th call of LEASED_KILLED_AT that a thread makes is never made, for
 * the process is killed on its way in. Calls that change a disk, by the names of the kernel; with
 * LEASED_KILLED_UNDER only those on a file or in a directory below that path count.
 *
 * strace can do this, too, but only by stopping at every call of every kind: behind a filter
 * (--seccomp-bpf) it sends no signal after the first call. What does not go through the C library
 * is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static _Thread_local long made;

static int below(const char *path)
{
	const char *under = getenv("LEASED_KILLED_UNDER");

	return under == NULL || strncmp(path, under, strlen(under)) == 0;
}

static int file_below(int fd)
{
	char link[32], path[PATH_MAX];
	ssize_t len;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof path - 1);
	path[len > 0 ? len : 0] = '\0';
	return below(path);
}

static int named(const char *call)
{
	const char *at = getenv("LEASED_KILLED_AT");

	return at != NULL && strcmp(at, call) == 0;
}

static void count(int counts)
{
	const char *nth = getenv("LEASED_KILLED");

	if (counts && nth != NULL && ++made == atol(nth))
		kill(getpid(), SIGKILL);
}

#define AT_FILE(call, fd) do { if (named(call)) count(file_below(fd)); } while (0)
#define AT_PATH(call, path) do { if (named(call)) count(below(path)); } while (0)
#define AT_NAME(call, dir, path) \
	do { if (named(call)) count((path)[0] == '/' ? below(path) : file_below(dir)); } while (0)
#define NEXT(symbol) ((__typeof__(&symbol))dlsym(RTLD_NEXT, #symbol))

#define ON_FILE(symbol, call, parameters, arguments) \
	int symbol parameters { AT_FILE(call, fd); return NEXT(symbol) arguments; }
#define ON_PATH(symbol, parameters, arguments) \
	int symbol parameters { AT_PATH(#symbol, path); return NEXT(symbol) arguments; }
#define ON_NAME(symbol, parameters, arguments) \
	int symbol parameters { AT_NAME(#symbol, dir, path); return NEXT(symbol) arguments; }
#define WRITES(symbol) \
	ssize_t symbol(int fd, const void *buf, size_t len, off_t off) \
	{ AT_FILE("pwrite64", fd); return NEXT(symbol)(fd, buf, len, off); }

WRITES(pwrite)
WRITES(pwrite64)
ON_FILE(fdatasync, "fdatasync", (int fd), (fd))
ON_FILE(fsync, "fsync", (int fd), (fd))
ON_FILE(flock, "flock", (int fd, int how), (fd, how))
ON_FILE(ftruncate, "ftruncate", (int fd, off_t len), (fd, len))
ON_FILE(ftruncate64, "ftruncate", (int fd, off_t len), (fd, len))
ON_FILE(fallocate, "fallocate", (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
ON_FILE(fallocate64, "fallocate", (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
ON_FILE(posix_fallocate, "fallocate", (int fd, off_t at, off_t len), (fd, at, len))
ON_FILE(posix_fallocate64, "fallocate", (int fd, off_t at, off_t len), (fd, at, len))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_NAME(renameat, (int dir, const char *path, int into, const char *to), (dir, path, into, to))
ON_NAME(unlinkat, (int dir, const char *path, int flags), (dir, path, flags))
ON_NAME(mkdirat, (int dir, const char *path, mode_t mode), (dir, path, mode))

#define MODE(flags) \
	mode_t mode = 0; \
	if ((flags) & (O_CREAT | O_TMPFILE)) { \
		va_list more; \
		va_start(more, flags); \
		mode = va_arg(more, mode_t); \
		va_end(more); \
	}

int open(const char *path, int flags, ...)
{
	MODE(flags)
	AT_NAME("openat", AT_FDCWD, path);
	return NEXT(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	MODE(flags)
	AT_NAME("openat", AT_FDCWD, path);
	return NEXT(open64)(path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
	MODE(flags)
	AT_NAME("openat", dir, path);
	return NEXT(openat)(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
	MODE(flags)
	AT_NAME("openat", dir, path);
	return NEXT(openat64)(dir, path, flags, mode);
}
