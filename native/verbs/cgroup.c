/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cgroup verbs: freeze, kill and ask a leaf whether anyone is left.
 *
 * Rule: whether a cgroup is empty is read from cgroup.events and waited for by POLLPRI (POLLIN is
 * always ready there). A directory that has been removed has nobody in it: ENODEV and ENOENT count
 * as empty.
 *
 * Does not make, configure or remove directories (the agent does).
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "../clock.h"

static int write_text(int dirfd, const char *file, const char *text)
{
	int fd = openat(dirfd, file, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int rc = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -errno;
	close(fd);
	return rc;
}

static int gone_is_fine(int rc)
{
	return rc == -ENOENT || rc == -ENODEV ? 0 : rc;
}

/* Ask every task of the leaf to stop. Does not wait. */
int leased_cgroup_freeze(int dirfd)
{
	return gone_is_fine(write_text(dirfd, "cgroup.freeze", "1"));
}

/* SIGKILL to the whole subtree, safe against concurrent forks. Does not wait. */
int leased_cgroup_kill_begin(int dirfd)
{
	return gone_is_fine(write_text(dirfd, "cgroup.kill", "1"));
}

/*
 * Let the killed exit without waiting for a core: a leaf that has used up its cpu.max would wait
 * for its next period, and a busy host for its turn. Only for a leaf whose every task is killed. 0
 * also where there is no cpu controller.
 */
int leased_cgroup_hasten(int dirfd)
{
	int rc = gone_is_fine(write_text(dirfd, "cpu.max", "max"));
	int weight = gone_is_fine(write_text(dirfd, "cpu.weight", "10000"));
	return rc ? rc : weight;
}

/* A descriptor that polls POLLPRI at each change; read it after each wake. */
int leased_cgroup_events_open(int dirfd)
{
	int fd = openat(dirfd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* 1 while somebody lives in the subtree, 0 when nobody does. */
int leased_cgroup_events_populated(int events_fd)
{
	char text[256];
	ssize_t length = pread(events_fd, text, sizeof text - 1, 0);
	if (length < 0)
		return gone_is_fine(-errno);
	text[length] = '\0';
	const char *found = strstr(text, "populated ");
	if (found == NULL)
		return -EPROTO;
	return found[strlen("populated ")] != '0';
}

/* As above, for a directory. */
int leased_cgroup_populated(int dirfd)
{
	int fd = leased_cgroup_events_open(dirfd);
	if (fd < 0)
		return gone_is_fine(fd);
	int rc = leased_cgroup_events_populated(fd);
	close(fd);
	return rc;
}

/* Kill the subtree and wait until it is empty: 0, or -ETIMEDOUT when somebody is left after
 * `timeout_ms`. */
int leased_cgroup_kill(int dirfd, uint32_t timeout_ms)
{
	const uint64_t until_ns = boot_now() + timeout_ms * NS_PER_MS;
	int events = leased_cgroup_events_open(dirfd);
	if (events < 0)
		return gone_is_fine(events);
	int rc = leased_cgroup_kill_begin(dirfd);
	while (rc == 0) {
		rc = leased_cgroup_events_populated(events);
		if (rc <= 0)
			break;
		const int left = left_ms(until_ns);
		if (left == 0) {
			rc = -ETIMEDOUT;
			break;
		}
		struct pollfd wait = { .fd = events, .events = POLLPRI };
		rc = poll(&wait, 1, left) < 0 && errno != EINTR ? -errno : 0;
	}
	close(events);
	return rc;
}
