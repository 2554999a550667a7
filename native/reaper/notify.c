/* SPDX-License-Identifier: Apache-2.0 */
/*
 * systemd's notification socket: readiness, the watchdog, and the store that keeps our memfds while
 * we are dead.
 *
 * Rule: without NOTIFY_SOCKET all of this is silently nothing. A datagram that cannot be sent at
 * once is not waited for: a memfd that was not stored is found missing after a restart, and the
 * lease is cut then.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static bool put(struct reaper *r, const char *text, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} room;
	struct iovec iov = { .iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (r->notify_fd < 0)
		return true;
	if (fd >= 0) {
		memset(&room, 0, sizeof room);
		message.msg_control = room.bytes;
		message.msg_controllen = sizeof room.bytes;
		struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
	}
	return sendmsg(r->notify_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

void notify_open(struct reaper *r)
{
	const char *name = getenv("NOTIFY_SOCKET");
	const char *usec = getenv("WATCHDOG_USEC");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	r->notify_fd = -1;
	r->watchdog_due_ns = NEVER;
	if (name == NULL || (name[0] != '/' && name[0] != '@') ||
		strlen(name) >= sizeof address.sun_path)
		return;
	size_t length = strlen(name);
	memcpy(address.sun_path, name, length);
	if (name[0] == '@')
		address.sun_path[0] = '\0';
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	socklen_t bytes =
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (name[0] == '/'));
	if (connect(fd, (const struct sockaddr *)&address, bytes) != 0) {
		close(fd);
		return;
	}
	r->notify_fd = fd;
	if (usec != NULL) {
		r->watchdog_ns = strtoull(usec, NULL, 10) * NS_PER_US / 2;
		r->watchdog_due_ns = r->watchdog_ns ? 0 : NEVER;
	}
}

void notify_say(struct reaper *r, const char *text)
{
	(void)put(r, text, -1);
}

/* Names are "<lease id hex>.<number>": they come back in any order. */
void notify_store(struct reaper *r, const uint8_t *id, uint32_t number, int fd)
{
	char text[128];
	if (r->notify_fd < 0)
		return;
	snprintf(text, sizeof text, "FDSTORE=1\nFDNAME=%s.%u\nFDPOLL=0", hex_of(id), number);
	if (!put(r, text, fd))
		say(LOG_WARNING, "event=store_failed lease=%s errno=%d", hex_of(id), errno);
}

void notify_unstore(struct reaper *r, const uint8_t *id, uint32_t number)
{
	char text[128];
	if (r->notify_fd < 0)
		return;
	snprintf(text, sizeof text, "FDSTOREREMOVE=1\nFDNAME=%s.%u", hex_of(id), number);
	(void)put(r, text, -1);
}
