/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Structured lines on stderr: "<priority>key=value ...".
 *
 * Rule: a log reader that has stopped reading must never stop the reaper, so a line that does not
 * fit now is dropped and counted; the count goes out with the next line that fits.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	LINE_BYTES = 512, /* below PIPE_BUF: a pipe that is writable takes it whole */
	FILE_BYTES_MAX = 16 << 20,
};

/* A detached reaper logs into a file, which must not grow for ever: it starts anew. */
static void bound_file(void)
{
	struct stat st;
	if (fstat(STDERR_FILENO, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > FILE_BYTES_MAX)
		(void)!ftruncate(STDERR_FILENO, 0);
}

static bool put(const char *line, size_t length)
{
	ssize_t done = send(STDERR_FILENO, line, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (done < 0 && errno == ENOTSOCK) {
		struct pollfd ready = { .fd = STDERR_FILENO, .events = POLLOUT };
		if (poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0)
			return false;
		bound_file();
		done = write(STDERR_FILENO, line, length);
	}
	return done >= 0;
}

void say(enum level level, const char *format, ...)
{
	static uint64_t dropped;
	char line[LINE_BYTES];
	va_list arguments;
	int at = dropped ? snprintf(line, sizeof line, "<%d>dropped_lines=%llu ", level,
				   (unsigned long long)dropped)
			 : snprintf(line, sizeof line, "<%d>", level);
	va_start(arguments, format);
	int more = vsnprintf(line + at, sizeof line - (size_t)at - 1, format, arguments);
	va_end(arguments);
	if (at < 0 || more < 0)
		return;
	size_t length = (size_t)at + (size_t)more;
	if (length > sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	dropped = put(line, length) ? 0 : dropped + 1;
}

const char *hex_of(const uint8_t *id)
{
	static char text[2 * LEASED_REAPER_ID_BYTES + 1];
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < LEASED_REAPER_ID_BYTES; i++) {
		text[2 * i] = digits[id[i] >> 4];
		text[2 * i + 1] = digits[id[i] & 15];
	}
	return text;
}
