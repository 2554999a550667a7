/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections: who may connect, how packets come in, how answers and reports go out.
 *
 * Rule: the kernel says who a peer is. A peer that does not read its answers is disconnected; only
 * reports wait for it, in a list threaded through the slots, so that no peer can make us allocate
 * or block. Every descriptor that arrives is either taken over by a lease or closed.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const uint64_t DEAF_NS = 100 * NS_PER_MS, AGAIN_NS = 100 * NS_PER_MS;

enum { SEND_BUFFER_BYTES = 1 << 20, SCM_FDS_MAX = 253 };

union fd_room {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(SCM_FDS_MAX * sizeof(int)) + CMSG_SPACE(64)];
};

/* Listen on the runtime directory's socket, or go on with the one systemd holds for us. */
int clients_listen(struct reaper *r, int inherited_fd)
{
	r->listen_fd = inherited_fd;
	if (inherited_fd < 0) {
		struct sockaddr_un address = { .sun_family = AF_UNIX };
		int length = r->options.socket_path
				     ? snprintf(address.sun_path, sizeof address.sun_path, "%s",
					       r->options.socket_path)
				     : snprintf(address.sun_path, sizeof address.sun_path,
					       "%s/reaper.sock", r->options.runtime_dir);
		if (length < 0 || (size_t)length >= sizeof address.sun_path)
			return -ENAMETOOLONG;
		r->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (r->listen_fd < 0)
			return -errno;
		/* The lock on the state file says that whoever bound this name before is gone. */
		unlink(address.sun_path);
		mode_t before = umask(0177);
		int rc = bind(r->listen_fd, (const struct sockaddr *)&address, sizeof address) == 0
				 ? 0
				 : -errno;
		umask(before);
		if (rc == 0 && r->options.peer_uid != 0 &&
			chown(address.sun_path, r->options.peer_uid, (gid_t)-1) != 0)
			rc = -errno;
		if (rc == 0 && listen(r->listen_fd, CLIENTS_MAX) != 0)
			rc = -errno;
		if (rc != 0)
			return rc;
	}
	r->listen_due_ns = r->flush_due_ns = NEVER;
	(void)fcntl(r->listen_fd, F_SETFL, O_NONBLOCK);
	return watch_add(r, r->listen_fd, EPOLLIN, WATCH_LISTEN, 0);
}

static bool may_connect(const struct reaper *r, int fd)
{
	struct ucred peer;
	socklen_t length = sizeof peer;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
		return false;
	if (peer.uid == 0 || peer.uid == r->options.peer_uid)
		return true;
	say(LOG_WARNING, "event=peer_refused uid=%u pid=%d", (unsigned int)peer.uid, (int)peer.pid);
	return false;
}

static void say_no_room(int error)
{
	static uint64_t say_again_ns;
	const uint64_t now = boot_now();
	if (now < say_again_ns)
		return;
	say(LOG_ERR, "event=no_room_for_clients errno=%d", error);
	say_again_ns = now + 10 * NS_PER_S;
}

/* Whoever cannot be let in stays at the door, which stays ready: we would turn without a pause,
 * before everybody on this processor, until there is room. */
static void be_deaf(struct reaper *r, int error)
{
	say_no_room(error);
	(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, r->listen_fd, NULL);
	r->listen_due_ns = boot_now() + DEAF_NS;
}

void clients_listen_again(struct reaper *r)
{
	if (r->listen_due_ns == NEVER || r->listen_due_ns > boot_now())
		return;
	const bool heard = watch_add(r, r->listen_fd, EPOLLIN, WATCH_LISTEN, 0) == 0;
	r->listen_due_ns = heard ? NEVER : boot_now() + DEAF_NS;
}

void clients_accept(struct reaper *r)
{
	const int room = SEND_BUFFER_BYTES;
	int fd = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			be_deaf(r, errno);
		return;
	}
	uint32_t at = 0;
	while (at < CLIENTS_MAX && r->clients[at].fd >= 0)
		at++;
	if (!may_connect(r, fd)) {
		close(fd);
		return;
	}
	int rc = at == CLIENTS_MAX ? -EUSERS : watch_add(r, fd, EPOLLIN, WATCH_CLIENT, at);
	if (rc != 0) {
		say_no_room(-rc);
		close(fd);
		return;
	}
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) != 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	r->clients[at] = (struct client){ .fd = fd,
		.serial = ++r->client_serial,
		.outbox_first = NONE,
		.outbox_last = NONE,
		.heard_ns = boot_now() };
}

void clients_close(struct reaper *r, uint32_t at)
{
	struct client *client = &r->clients[at];
	while (client->outbox_first != NONE)
		outbox_drop(r, client->outbox_first);
	/* A child that has just been forked may still have it. */
	(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, client->fd, NULL);
	close(client->fd);
	client->fd = -1;
}

/* Whether the connection that claimed a lease is there and was heard of lately. */
bool clients_claims(const struct reaper *r, const struct slot *slot)
{
	if (slot->claimant == NONE)
		return false;
	const struct client *client = &r->clients[slot->claimant];
	return client->fd >= 0 && client->serial == slot->claim_serial &&
	       client->heard_ns + r->options.backstop_ns > boot_now();
}

static bool push(
	struct client *client, const void *packet, size_t bytes, const int *fds, uint32_t fd_count)
{
	union fd_room room;
	struct iovec iov = { .iov_base = (void *)(uintptr_t)packet, .iov_len = bytes };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (fd_count > 0) {
		message.msg_control = room.bytes;
		message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, fd_count * sizeof(int));
	}
	ssize_t done;
	do
		done = sendmsg(client->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (done < 0 && errno == EINTR);
	return done == (ssize_t)bytes;
}

/* Answer. A client that has no room for its answer does not read, and is given up; one that is gone
 * has perhaps left more for us to do (to end a lease, before it died), which is read to the end. */
bool clients_send(struct reaper *r, uint32_t at, const void *packet, size_t bytes, const int *fds,
	uint32_t fd_count)
{
	struct client *client = &r->clients[at];
	if (push(client, packet, bytes, fds, fd_count))
		return true;
	client->doomed = errno != EPIPE && errno != ECONNRESET;
	return false;
}

/* Take the descriptors out of a message. More than a packet may carry are closed here. */
static uint32_t collect(struct msghdr *message, int *fds)
{
	uint32_t count = 0;
	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(message); cmsg != NULL;
		cmsg = CMSG_NXTHDR(message, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof fd);
			if (count < SCM_FDS_MAX)
				fds[count++] = fd;
			else
				close(fd);
		}
	}
	return count;
}

/* One packet: true when there may be another. */
static bool read_one(struct reaper *r, uint32_t at)
{
	static char packet[LEASED_REAPER_PACKET_BYTES_MAX] __attribute__((aligned(8)));
	struct client *client = &r->clients[at];
	union fd_room room;
	int fds[SCM_FDS_MAX];
	struct iovec iov = { .iov_base = packet, .iov_len = sizeof packet };
	struct msghdr message = { .msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = room.bytes,
		.msg_controllen = sizeof room.bytes };
	ssize_t got = recvmsg(client->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	/* ECONNRESET: it died with answers of ours unread. Said once, before what it had sent. */
	if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET))
		return false;
	if (got <= 0) {
		client->doomed = true;
		return false;
	}
	uint32_t count = collect(&message, fds);
	const struct leased_reaper_header *header = (const void *)packet;
	bool whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
	if (whole && (size_t)got >= sizeof *header && header->magic == LEASED_REAPER_MAGIC) {
		client->heard_ns = boot_now();
		request_handle(r, at, packet, (size_t)got, fds, count);
	} else {
		client->doomed = true;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	return !client->doomed;
}

void clients_read(struct reaper *r, uint32_t at)
{
	if (r->clients[at].fd < 0)
		return;
	for (int i = 0; i < PACKETS_PER_TURN; i++) {
		if (!read_one(r, at))
			break;
	}
	if (r->clients[at].doomed)
		clients_close(r, at);
}

/* ---- reports ---- */

/* Queue the slot's report for the client that asked last, or if none did for the one that armed it;
 * if it is gone, nobody is told. */
void outbox_put(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	const bool asked = slot->claimant != NONE;
	const uint32_t who = asked ? slot->claimant : slot->armer;
	slot->wants_report = false;
	if (slot->in_outbox || who == NONE)
		return;
	struct client *client = &r->clients[who];
	if (client->fd < 0 || client->serial != (asked ? slot->claim_serial : slot->arm_serial))
		return;
	slot->in_outbox = true;
	slot->outbox_next = NONE;
	slot->outbox_previous = client->outbox_last;
	if (client->outbox_last == NONE)
		client->outbox_first = at;
	else
		r->slots[client->outbox_last].outbox_next = at;
	client->outbox_last = at;
}

void outbox_drop(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	if (!slot->in_outbox)
		return;
	struct client *client = NULL;
	for (uint32_t i = 0; i < CLIENTS_MAX && client == NULL; i++) {
		/* `claimant` may have changed since: look for the list itself. */
		if (r->clients[i].fd >= 0 &&
			(r->clients[i].outbox_first == at || r->clients[i].outbox_last == at))
			client = &r->clients[i];
	}
	if (slot->outbox_previous != NONE)
		r->slots[slot->outbox_previous].outbox_next = slot->outbox_next;
	else if (client != NULL)
		client->outbox_first = slot->outbox_next;
	if (slot->outbox_next != NONE)
		r->slots[slot->outbox_next].outbox_previous = slot->outbox_previous;
	else if (client != NULL)
		client->outbox_last = slot->outbox_previous;
	slot->in_outbox = false;
	slot->outbox_next = slot->outbox_previous = NONE;
}

static void set_wants_write(struct reaper *r, uint32_t at, bool wants)
{
	struct client *client = &r->clients[at];
	if (client->wants_write == wants)
		return;
	struct epoll_event event = { .events = EPOLLIN | (wants ? (uint32_t)EPOLLOUT : 0u),
		.data.u64 = (uint64_t)WATCH_CLIENT << 32 | at };
	(void)epoll_ctl(r->epoll_fd, EPOLL_CTL_MOD, client->fd, &event);
	client->wants_write = wants;
}

/* Send what waits, many reports a packet; the rest when the client has read. */
void outbox_flush(struct reaper *r, uint32_t at)
{
	enum { PER_PACKET = 200 };
	static struct {
		struct leased_reaper_header header;
		struct leased_reaper_report reports[PER_PACKET];
	} packet;
	_Static_assert(sizeof packet <= LEASED_REAPER_PACKET_BYTES_MAX, "a packet of reports");
	struct client *client = &r->clients[at];
	while (client->fd >= 0 && client->outbox_first != NONE) {
		uint32_t count = 0;
		for (uint32_t i = client->outbox_first; i != NONE && count < PER_PACKET;
			i = r->slots[i].outbox_next)
			packet.reports[count++] = r->slots[i].report;
		packet.header = (struct leased_reaper_header){ .magic = LEASED_REAPER_MAGIC,
			.version = LEASED_REAPER_VERSION,
			.kind = LEASED_REAPER_CUT,
			.count = count,
			.boot_ns = boot_now() };
		size_t bytes = sizeof packet.header + count * sizeof packet.reports[0];
		if (!push(client, &packet, bytes, NULL, 0)) {
			/* Without memory a socket stays writable, or never says it is. */
			if (errno == ENOBUFS || errno == ENOMEM)
				r->flush_due_ns = boot_now() + AGAIN_NS;
			set_wants_write(r, at, errno == EAGAIN || errno == EWOULDBLOCK);
			return;
		}
		for (uint32_t i = 0; i < count; i++) {
			struct slot *told = &r->slots[client->outbox_first];
			outbox_drop(r, client->outbox_first);
			/* It scrubs nothing that somebody may still write to. */
			if ((told->report.flags & LEASED_REAPER_CLEAN) == 0)
				told->claimant = NONE;
		}
	}
	if (client->fd >= 0)
		set_wants_write(r, at, false);
}
