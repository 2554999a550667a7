/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving: from many sockets by one call, bytes alone.
 *
 * Rule: no socket is waited for, and what came of each is told by itself. Descriptors are looked
 * for first, and where some are seen nothing is read, nor what came before them: they stay their
 * sender's, and are never ours to close.
 *
 * Does not cut what came into messages.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

static int64_t receive_bytes(int socket, uint8_t *into, size_t bytes)
{
	struct iovec part = {into, bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	const ssize_t seen = recvmsg(socket, &message, MSG_DONTWAIT | MSG_PEEK);
	if (seen < 0)
		return -errno;
	if (message.msg_flags & MSG_CTRUNC)
		return LEASED_RECEIVED_FDS;
	if (seen == 0)
		return 0;
	/* No more than was seen: what has come since may bring some. */
	const ssize_t got = recv(socket, into, (size_t)seen, MSG_DONTWAIT);
	return got < 0 ? -errno : got;
}

/*
 * Read the first of `count` sockets once each, `each` bytes at most, as long as `into` has room for
 * that much; how many they are. What they had lies there one behind the other, and every `got`
 * becomes the bytes that one had, 0 at its end, -errno, or LEASED_RECEIVED_FDS.
 */
size_t leased_receive_many(
	const int *sockets, size_t count, uint8_t *into, size_t room, size_t each, int64_t *got)
{
	size_t at = 0;
	for (; at < count && room >= each; at++) {
		got[at] = receive_bytes(sockets[at], into, each);
		if (got[at] > 0) {
			into += got[at];
			room -= (size_t)got[at];
		}
	}
	return at;
}
