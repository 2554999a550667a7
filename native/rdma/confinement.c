/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an owner may do: little, and nothing outside the lease's cgroup.
 *
 * Rule: it enters the lease's cgroup before it makes anything, so that its objects are charged
 * there and whoever kills the cgroup kills it; and it gives its capabilities up before it opens a
 * device (the kernel holds a device to the very credentials that opened it). It stays root without
 * power: a tenant cannot signal, trace or read it.
 *
 * Does not outlive its cgroup, and does not die with whoever started it.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

enum { CONTROL_FD = 3, DOOR_FD = 4 };

static const char OOM_SCORE[] = "-1000";

/* Not the first to go when memory is short: it holds a few pages, and its end ends the lease. */
static void spare_from_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	/* Refused without CAP_SYS_RESOURCE: then it is as likely to go as others. */
	(void)!write(fd, OOM_SCORE, sizeof OOM_SCORE - 1);
	close(fd);
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2];
	memset(none, 0, sizeof none);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return failed("forgo new privileges", errno);
	if (syscall(SYS_capset, &header, none) != 0)
		return failed("drop the capabilities", errno);
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
		return failed("close up", errno);
	return 0;
}

/* So much and no more. Where the limit cannot be raised so far it stays where it is, and the kernel
 * refuses a registration that is beyond it. */
static int limit_pinned(uint64_t bytes)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
		return failed("limit what is pinned", errno);
	const rlim_t before = limit.rlim_max;
	limit.rlim_cur = limit.rlim_max = bytes;
	if (setrlimit(RLIMIT_MEMLOCK, &limit) == 0)
		return 0;
	limit.rlim_cur = limit.rlim_max = before;
	if (errno != EPERM || setrlimit(RLIMIT_MEMLOCK, &limit) != 0)
		return failed("limit what is pinned", errno);
	return 0;
}

/* Enter the cgroup of `procs_fd` (its cgroup.procs); pin `pinned_bytes` at most. */
int confine(int procs_fd, uint64_t pinned_bytes)
{
	const struct rlimit none = { 0, 0 };
	if (write(procs_fd, "0", 1) != 1)
		return failed("enter the lease's cgroup", errno);
	int rc = limit_pinned(pinned_bytes);
	if (rc != 0)
		return rc;
	if (setrlimit(RLIMIT_CORE, &none) != 0)
		return failed("forbid a core file", errno);
	spare_from_oom();
	return drop_capabilities();
}

/* Go on alone, with both ends of the control socket where whoever comes later finds them. Returns
 * in the new process; the old one ends. */
int detach(int control, int door)
{
	pid_t pid = fork();
	if (pid < 0)
		return failed("fork", errno);
	if (pid > 0)
		_exit(0);
	int nothing = open("/dev/null", O_RDWR);
	/* Above every number that is about to be taken. */
	int control_kept = fcntl(control, F_DUPFD, DOOR_FD + 1);
	int door_kept = fcntl(door, F_DUPFD, DOOR_FD + 1);
	if (nothing < 0 || control_kept < 0 || door_kept < 0 || setsid() < 0)
		return failed("detach", errno);
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		(void)dup2(nothing, fd);
	if (dup3(control_kept, CONTROL_FD, O_CLOEXEC) < 0 ||
		dup3(door_kept, DOOR_FD, O_CLOEXEC) < 0)
		return failed("detach", errno);
	(void)syscall(SYS_close_range, DOOR_FD + 1, ~0u, 0);
	(void)!chdir("/");
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_NAME, "leased-rdma", 0, 0, 0);
	return 0;
}
