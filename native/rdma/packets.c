/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets on the control socket: one request with its descriptors in, one answer out.
 *
 * Rule: what is too long, too short or of another version is answered by an error and changes
 * nothing. Whoever asks is root with the right to take our descriptors, so a packet is checked for
 * mistakes, not for malice.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FAILURE_BYTES = 120 };

static void take_fds(struct packet *packet, struct msghdr *message)
{
	for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at; at = CMSG_NXTHDR(message, at)) {
		if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
			continue;
		size_t bytes = at->cmsg_len - CMSG_LEN(0);
		packet->fds = (uint32_t)(bytes / sizeof packet->fd[0]);
		memcpy(packet->fd, CMSG_DATA(at), bytes);
	}
}

/* 1: a request. 0: the other end is closed. A negative errno: nothing that can be answered. */
int packet_receive(int sock, struct packet *packet)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof packet->fd)];
	} control;
	struct iovec parts[] = {
		{ &packet->header, sizeof packet->header },
		{ packet->body, sizeof packet->body },
	};
	struct msghdr message = { .msg_iov = parts,
		.msg_iovlen = 2,
		.msg_control = &control,
		.msg_controllen = sizeof control };
	packet->fds = 0;
	packet->bytes = 0;
	ssize_t length;
	do
		length = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
	while (length < 0 && errno == EINTR);
	if (length <= 0)
		return length < 0 ? -errno : 0;
	take_fds(packet, &message);
	if (length < (ssize_t)sizeof packet->header || packet->header.magic != LEASED_RDMA_MAGIC ||
		(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
		return -EBADMSG;
	packet->bytes = (size_t)length - sizeof packet->header;
	memset(packet->body + packet->bytes, 0, sizeof packet->body - packet->bytes);
	return packet->header.version == LEASED_RDMA_VERSION ? 1 : -EPROTO;
}

void packet_close_fds(struct packet *packet)
{
	for (uint32_t i = 0; i < packet->fds; i++)
		close(packet->fd[i]);
	packet->fds = 0;
}

/* `rc` < 0: the answer says what failed instead. 0 or -errno of sending. */
int packet_answer(int sock, const struct packet *asked, int rc, const void *body, size_t bytes)
{
	struct leased_rdma_header header = { .magic = LEASED_RDMA_MAGIC,
		.version = LEASED_RDMA_VERSION,
		.kind = asked->header.kind | LEASED_RDMA_REPLY,
		.serial = asked->header.serial,
		.error = rc < 0 ? -rc : 0 };
	if (rc < 0) {
		body = failed_at();
		bytes = strnlen(body, FAILURE_BYTES);
	}
	struct iovec parts[] = { { &header, sizeof header }, { (void *)body, bytes } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
	ssize_t sent;
	do
		/* An answer that nobody took must not stop us: the socket's buffer is bounded. */
		sent = sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}
