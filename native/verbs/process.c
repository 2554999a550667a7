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

#include <dirent.h>
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

#include "../clock.h"
#include "../text.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

enum { STATUS_BYTES = 4096, THREADS_MAX = 256 };

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
	const uint64_t until_ns = boot_now() + timeout_ms * NS_PER_MS;
	int rc = leased_pidfd_kill_begin(pidfd);
	if (rc != 0)
		return rc;
	struct pollfd wait = { .fd = pidfd, .events = POLLIN };
	do {
		rc = poll(&wait, 1, left_ms(until_ns));
	} while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return -errno;
	return rc > 0 ? 0 : -ETIMEDOUT;
}

/* A duplicate of descriptor `number` of the process, close-on-exec. Needs the right to trace it. */
int leased_pidfd_take(int pidfd, int number)
{
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	return fd < 0 ? -errno : fd;
}

/*
 * The beginning of a thread's status in /proc, where all that is asked for stands. Its stat is not
 * read: that waits for the end of an exec, and within it for whoever serves a file that is closed.
 */
static int read_status(int tid, char *text, size_t bytes)
{
	(void)snprintf(text, bytes, "/proc/%d/status", tid);
	const ssize_t length = read_text(text, text, bytes);
	return length < 0 ? (int)length : 0;
}

static int number_in(const char *text, const char *name)
{
	const char *found = strstr(text, name);
	return found == NULL ? -EPROTO : atoi(found + strlen(name));
}

/*
 * The process that holds thread `tid` stopped as its tracer; 0 if none does, or -errno (ESRCH,
 * ENOENT: it is gone). One that traces and holds nothing has perhaps never heard of it: a thread
 * may say by itself that its parent traces it (PTRACE_TRACEME).
 */
int leased_tracer_of(int tid)
{
	char text[STATUS_BYTES];
	int rc = read_status(tid, text, sizeof text);
	if (rc < 0 || strstr(text, "\nState:\tt") == NULL)
		return rc;
	int tracer = number_in(text, "\nTracerPid:\t");
	if (tracer <= 0)
		return tracer;
	rc = read_status(tracer, text, sizeof text);
	return rc < 0 ? rc : number_in(text, "\nTgid:\t");
}

/* The threads of a process, the dead that nobody has waited for with them: how many, `most` at
 * most, or -errno. */
int leased_threads(int pid, int *tids, int most)
{
	char text[64];
	_Alignas(struct dirent64) char room[2048];
	int count = 0;
	(void)snprintf(text, sizeof text, "/proc/%d/task", pid);
	int fd = open(text, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t length;
	while (count < most && (length = getdents64(fd, room, sizeof room)) > 0) {
		for (ssize_t at = 0; at < length && count < most;) {
			const struct dirent64 *entry = (const void *)(room + at);
			if (entry->d_name[0] != '.')
				tids[count++] = atoi(entry->d_name);
			at += entry->d_reclen;
		}
	}
	close(fd);
	return count;
}

/* Whether a thread that is no zombie has given up its memory and its descriptors, and waits as the
 * init of a pid namespace for the dead in there, who may be somebody's outside. */
static int waits_for_its_room(const char *text)
{
	const char *pids = strstr(text, "\nNSpid:\t");
	const char *end = pids == NULL ? NULL : strchr(pids + 1, '\n');
	return end != NULL && strncmp(end - 2, "\t1", 2) == 0 &&
	       strstr(text, "\nState:\tS") != NULL && number_in(text, "\nFDSize:\t") == 0 &&
	       strstr(text, "\nThreads:\t") != NULL && strstr(text, "\nVmSize:") == NULL;
}

static int thread_over(int tid)
{
	char text[STATUS_BYTES];
	int rc = read_status(tid, text, sizeof text);
	if (rc < 0)
		return rc;
	if (strstr(text, "\nState:\tZ") != NULL || strstr(text, "\nState:\tX") != NULL)
		return 1;
	return waits_for_its_room(text);
}

/*
 * Whether a process that was killed has nothing any more, though it has not ended for whoever waits
 * for that: a dead thread stays until its tracer takes note, and any thread may have made its
 * parent that. 1, 0, or -errno. `pid` is pinned by the caller's pidfd. Of a process with
 * THREADS_MAX threads or more, or one that was not killed, it is not told.
 */
int leased_process_over(int pid)
{
	char text[STATUS_BYTES];
	int tids[THREADS_MAX];
	int rc = read_status(pid, text, sizeof text);
	if (rc < 0)
		return rc;
	const int threads = number_in(text, "\nThreads:\t");
	if (threads < 0)
		return threads;
	/* There are never more of them after the kill. A listing may end early when one is waited
	 * for meanwhile; then they are fewer than there were. */
	const int count = leased_threads(pid, tids, THREADS_MAX);
	if (count < threads || count == THREADS_MAX)
		return count < 0 ? count : 0;
	for (int i = 0; i < count; i++) {
		rc = thread_over(tids[i]);
		if (rc <= 0)
			return rc;
	}
	return 1;
}

/* SIGKILL me when the thread that forked me ends: for our own workers only. */
int leased_die_with_parent(void)
{
	return prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 ? 0 : -errno;
}
