/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded: the LEASED_SHORT-th pwrite of a thread writes half of what it was given, as a disk
 * may. What is true of the kernel's answer is true of the file, so that whoever goes on from where
 * it ended loses nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static _Thread_local long written;

static ssize_t half(int fd, const void *buf, size_t len, off_t off)
{
	static ssize_t (*real)(int, const void *, size_t, off_t);
	const char *at = getenv("LEASED_SHORT");

	if (real == NULL)
		real = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
	if (at != NULL && ++written == atol(at) && len > 1)
		len /= 2;
	return real(fd, buf, len, off);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off) { return half(fd, buf, len, off); }
ssize_t pwrite64(int fd, const void *buf, size_t len, off_t off) { return half(fd, buf, len, off); }
