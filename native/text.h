/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel tells in small files. One read: such a file is made when it is read.
 */
#ifndef LEASED_TEXT_H
#define LEASED_TEXT_H

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* The beginning of a file, ended by NUL: its length, or -errno. */
static inline ssize_t read_text(const char *path, char *text, size_t bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t length = read(fd, text, bytes - 1);
	int error = errno;
	close(fd);
	if (length < 0)
		return -error;
	text[length] = '\0';
	return length;
}

#endif
