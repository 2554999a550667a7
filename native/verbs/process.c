/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Process verbs: everything that is done to a process goes through a pidfd, never through a bare
 * number.
 *
 * Rule: a process that is gone is a success (ESRCH counts as done). A wait is for the whole thread
 * group.
 *
 * Does not choose whom to kill.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* A descriptor of process `pid`, close-on-exec. */
int leased_pidfd_open(int pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? -errno : fd;
}

/* Send SIGKILL. Does not wait. */
int leased_pidfd_kill_begin(int pidfd)
{
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) == 0 || errno == ESRCH)
		return 0;
	return -errno;
}

/* SIGKILL and wait until the process has exited: 0, or -ETIMEDOUT after `timeout_ms`. */
int leased_pidfd_kill(int pidfd, uint32_t timeout_ms)
{
	int rc = leased_pidfd_kill_begin(pidfd);
	if (rc != 0)
		return rc;
	struct pollfd wait = { .fd = pidfd, .events = POLLIN };
	for (;;) {
		rc = poll(&wait, 1, timeout_ms > INT32_MAX ? INT32_MAX : (int)timeout_ms);
		if (rc > 0)
			return 0;
		if (rc == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

/* A duplicate of descriptor `number` of the process, close-on-exec. Needs the right to trace it. */
int leased_pidfd_take(int pidfd, int number)
{
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	return fd < 0 ? -errno : fd;
}

/* A number of a thread's status in /proc, or -errno. */
static int status_number(int tid, const char *name)
{
	char text[1024]; /* what is asked for stands near the beginning */
	(void)snprintf(text, sizeof text, "/proc/%d/status", tid);
	int fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t length = read(fd, text, sizeof text - 1);
	int failed = errno;
	close(fd);
	if (length < 0)
		return -failed;
	text[length] = '\0';
	const char *found = strstr(text, name);
	return found == NULL ? -EPROTO : atoi(found + strlen(name));
}

/* The process that traces thread `tid`; 0 if none does, or -errno (ESRCH, ENOENT: it is gone). */
int leased_tracer_of(int tid)
{
	int tracer = status_number(tid, "\nTracerPid:\t");
	return tracer > 0 ? status_number(tracer, "\nTgid:\t") : tracer;
}

/* SIGKILL me when the thread that forked me ends: for our own workers only. */
int leased_die_with_parent(void)
{
	return prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 ? 0 : -errno;
}
