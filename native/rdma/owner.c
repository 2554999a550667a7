/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner: the one process that holds a lease's RDMA objects, from OPEN until it is told to CLOSE
 * or killed with the lease's cgroup.
 *
 * Rule: nobody else ever has the device's descriptor, so the end of this process is the end of the
 * objects, by the kernel's hand. A device that is gone for good ends it, and with it the lease.
 *
 * Does not know the deadline: the reaper does, and kills the cgroup with the agent alive or dead.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

enum { EXIT_DEVICE_LOST = 76, EVENTS_PER_TURN = 64 };

static struct owned mine;
static struct packet packet;
static union {
	struct leased_rdma_state state;
	struct leased_rdma_connected connected;
	struct leased_rdma_closed closed;
} told;

static int open_once(void)
{
	const struct leased_rdma_open *asked = (const void *)packet.body;
	if (mine.opened)
		return failed("open twice", EALREADY);
	if (packet.bytes != sizeof *asked || packet.fds != asked->regions)
		return failed("understand the request", EINVAL);
	int rc = owned_open(&mine, asked, packet.fd);
	if (rc != 0)
		return rc;
	int flags = fcntl(mine.end.context->async_fd, F_GETFL);
	(void)fcntl(mine.end.context->async_fd, F_SETFL, flags | O_NONBLOCK);
	owned_tell(&mine, &told.state);
	return 0;
}

static bool is(uint16_t kind, size_t bytes)
{
	return packet.header.kind == kind && packet.bytes == bytes;
}

/* The answer's size, or what failed. */
static int carry_out(void)
{
	int rc;
	failure_forget();
	if (packet.header.kind == LEASED_RDMA_OPEN) {
		rc = open_once();
		return rc != 0 ? rc : (int)sizeof told.state;
	}
	if (is(LEASED_RDMA_STATE, 0)) {
		owned_tell(&mine, &told.state);
		return (int)sizeof told.state;
	}
	if (is(LEASED_RDMA_CONNECT, sizeof(struct leased_rdma_connect))) {
		rc = peer_connect(&mine, (const void *)packet.body, &told.connected);
		return rc != 0 ? rc : (int)sizeof told.connected;
	}
	if (is(LEASED_RDMA_DISCONNECT, sizeof(struct leased_rdma_disconnect))) {
		const struct leased_rdma_disconnect *asked = (const void *)packet.body;
		return peer_disconnect(&mine, asked->qp_number);
	}
	if (is(LEASED_RDMA_CLOSE, 0)) {
		owned_close(&mine, &told.closed);
		return (int)sizeof told.closed;
	}
	return failed("understand the request", EINVAL);
}

/* Take what the device has to say, so that it does not pile up. True: the device is gone. */
static bool hear_events(void)
{
	struct abi_async_event event;
	bool gone = false;
	for (int i = 0; i < EVENTS_PER_TURN; i++) {
		if (verbs.get_async_event(mine.end.context, &event) != 0)
			break;
		mine.events++;
		gone = gone || event.event_type == ABI_EVENT_DEVICE_FATAL;
		verbs.ack_async_event(&event);
	}
	return gone;
}

/* Serve until told to close. The exit status. */
int own(int control, int door)
{
	(void)door; /* kept open: the other end of `control` must not close while nobody asks */
	for (;;) {
		struct pollfd wait[] = {
			{ .fd = control, .events = POLLIN },
			{ .fd = mine.opened ? mine.end.context->async_fd : -1, .events = POLLIN },
		};
		if (poll(wait, 2, -1) < 0 && errno != EINTR)
			return 1;
		if ((wait[1].revents & POLLIN) != 0 && hear_events())
			return EXIT_DEVICE_LOST;
		/* A device that is gone stays ready, after its last event too. */
		if ((wait[1].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0)
			return EXIT_DEVICE_LOST;
		if ((wait[0].revents & POLLIN) == 0)
			continue;
		int rc = packet_receive(control, &packet);
		if (rc == 0)
			return 0;
		if (rc > 0)
			rc = carry_out();
		packet_close_fds(&packet);
		(void)packet_answer(control, &packet, rc, &told, rc > 0 ? (size_t)rc : 0);
		if (rc >= 0 && packet.header.kind == LEASED_RDMA_CLOSE)
			return 0;
	}
}
