/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending: many messages by one call, each to a socket of its own.
 *
 * Rule: no socket is waited for, and none keeps the others from theirs: what became of each message
 * is told by itself. Descriptors go with the first byte (unix(7)), so they are closed here as soon
 * as one byte went, and are still the caller's if none did.
 *
 * Does not send the rest of a message that a socket took in part.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

union rights {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(LEASED_SEND_FDS_MAX * sizeof(int))];
};

static void attach(struct msghdr *message, union rights *rights, const int *fds, uint32_t count)
{
	message->msg_control = rights;
	message->msg_controllen = CMSG_SPACE(count * sizeof *fds);
	struct cmsghdr *const header = CMSG_FIRSTHDR(message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof *fds);
	memcpy(CMSG_DATA(header), fds, count * sizeof *fds);
}

/*
 * Send `count` letters, whose bytes lie one behind the other in `bytes`, and whose descriptors in
 * `fds`. Every `sent` becomes the bytes that were taken or -errno; -EMSGSIZE: more descriptors than
 * LEASED_SEND_FDS_MAX.
 */
int leased_send_many(
	struct leased_letter *letters, size_t count, const uint8_t *bytes, const int *fds)
{
	union rights rights;
	for (size_t i = 0; i < count; i++) {
		struct leased_letter *const letter = &letters[i];
		struct iovec part = {(void *)(uintptr_t)bytes, letter->bytes};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		if (letter->fds > LEASED_SEND_FDS_MAX) {
			letter->sent = -EMSGSIZE;
		} else {
			if (letter->fds)
				attach(&message, &rights, fds, letter->fds);
			const ssize_t sent =
				sendmsg(letter->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
			letter->sent = sent < 0 ? -errno : sent;
			for (uint32_t at = 0; sent > 0 && at < letter->fds; at++)
				close(fds[at]);
		}
		bytes += letter->bytes;
		fds += letter->fds;
	}
	return 0;
}
