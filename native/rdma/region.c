/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an owner owns: the lease's memory, registered, and one queue pair per remote peer.
 *
 * Rule: until a peer is connected nobody remote reaches anything. With windows the memory itself
 * has no remote rights at all: each peer gets windows of its own, bound to its queue pair, so that
 * its keys are worth nothing to anybody else. Addresses count from 0: nothing of our own address
 * space is told.
 *
 * The end goes from what is reached to what is held: windows invalidated (while the queue pair
 * lives, because a request on a dead one is flushed without having run) and given up, memory
 * deregistered, queue pairs stopped, domain, device. From the return of the second nobody remote
 * reaches anything. The queue pairs stay a moment longer, because they are what says no: a peer
 * whose request finds none hears nothing, and goes on asking for as long as its own timer tells it
 * to. A step that fails is told and hinders none of the others.
 *
 * Does not ask the peers, and waits for none that does not ask.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const uint64_t WINDOW_LIMIT_NS = 100 * NS_PER_MS;
static const uint64_t REFUSING_NS = 20 * NS_PER_MS; /* for whoever asks that often */
static const long LOOK_AGAIN_NS = NS_PER_MS / 2;
static const struct patience PATIENCE = { .timeout = 14, .retries = 7 }; /* 67 ms, 7 times */

enum {
	REQUESTS = 2 * LEASED_RDMA_REGIONS_MAX,
	VARIANT = 0xff, /* the low byte of a key is the user's to choose */
	REMOTE = ABI_ACCESS_REMOTE_READ | ABI_ACCESS_REMOTE_WRITE | ABI_ACCESS_REMOTE_ATOMIC,
};

/* One number for each request: what was waited for in vain may still come, and all queue pairs have
 * their completions in one queue. */
static uint64_t requests;

static int access_flags(const struct owned *own, uint32_t access)
{
	int flags = 0;
	if (access & LEASED_RDMA_MAY_READ)
		flags |= ABI_ACCESS_REMOTE_READ;
	if (access & LEASED_RDMA_MAY_WRITE)
		flags |= ABI_ACCESS_REMOTE_WRITE;
	if ((access & LEASED_RDMA_MAY_ATOMIC) && own->end.can.atomic_cap != ABI_ATOMIC_NONE)
		flags |= ABI_ACCESS_REMOTE_ATOMIC;
	return flags;
}

/* ---- memory ---- */

static int register_region(struct owned *own, struct region *region, uint64_t bytes, int fd)
{
	int access = ABI_ACCESS_LOCAL_WRITE;
	if (bytes > own->end.can.max_mr_size)
		return failed("register so much memory in one piece", EFBIG);
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return failed("map the memory", errno);
	if (own->windows)
		access |= ABI_ACCESS_MW_BIND;
	else
		access |= access_flags(
			own, LEASED_RDMA_MAY_READ | LEASED_RDMA_MAY_WRITE | LEASED_RDMA_MAY_ATOMIC);
	struct abi_mr *mr = verbs.reg_mr_iova(own->end.pd, at, bytes, 0, access);
	if (mr == NULL) {
		int rc = failed("register the memory", errno);
		munmap(at, bytes);
		return rc;
	}
	*region = (struct region){ .at = at, .bytes = bytes, .mr = mr };
	return 0;
}

static int deregister(struct region *region)
{
	int rc = region->mr != NULL ? verbs.dereg_mr(region->mr) : 0;
	if (rc != 0)
		return failed("deregister the memory", rc);
	region->mr = NULL;
	if (region->at != NULL)
		munmap(region->at, region->bytes);
	region->at = NULL;
	return 0;
}

/* Open the device and register every memfd. All or nothing; the descriptors stay the caller's. */
int owned_open(struct owned *own, const struct leased_rdma_open *asked, const int *fds)
{
	if (asked->regions == 0 || asked->regions > LEASED_RDMA_REGIONS_MAX ||
		asked->peers_max == 0 || asked->peers_max > LEASED_RDMA_PEERS_MAX)
		return failed("understand the request", EINVAL);
	/* Each peer may have one window per region under way, and one completion flushed for each.
	 */
	int rc = endpoint_open(&own->end, asked, 2 * REQUESTS);
	if (rc != 0)
		return rc;
	own->peers_max = asked->peers_max;
	own->windows = asked->windows && endpoint_windows(&own->end);
	for (uint32_t i = 0; i < asked->regions && rc == 0; i++) {
		rc = register_region(own, &own->region[i], asked->bytes[i], fds[i]);
		own->regions += rc == 0;
	}
	if (rc != 0) {
		for (uint32_t i = 0; i < own->regions; i++)
			(void)deregister(&own->region[i]);
		own->regions = 0;
		(void)endpoint_close(&own->end);
	}
	own->opened = rc == 0;
	return rc;
}

/* ---- windows ---- */

static int bind_window(struct owned *own, struct peer *peer, uint32_t at)
{
	struct abi_mw *window = own->end.context->ops.alloc_mw(own->end.pd, ABI_MW_TYPE_2);
	if (window == NULL)
		return failed("make a memory window", errno);
	peer->window[at] = window;
	const uint32_t rkey = (window->rkey & ~(uint32_t)VARIANT) | ((window->rkey + 1) & VARIANT);
	struct abi_send_wr wr = {
		.wr_id = ++requests,
		.opcode = ABI_WR_BIND_MW,
		.send_flags = ABI_SEND_SIGNALED,
		.bind_mw = { .mw = window,
			.rkey = rkey,
			.bind_info = { .mr = own->region[at].mr,
				.addr = 0,
				.length = own->region[at].bytes,
				.mw_access_flags =
					(unsigned int)access_flags(own, peer->access) } },
	};
	int status = 0;
	int rc = endpoint_post(peer->qp, &wr);
	if (rc == 0)
		rc = endpoint_wait(&own->end, wr.wr_id, WINDOW_LIMIT_NS, &status);
	if (rc == 0 && status != ABI_WC_SUCCESS)
		rc = failed("bind a memory window", EIO);
	if (rc == 0)
		peer->rkey[at] = rkey;
	return rc;
}

/* Invalidate the peer's windows; how many completions said that they are. */
uint32_t peer_invalidate(struct owned *own, struct peer *peer, int *error)
{
	uint32_t done = 0;
	for (uint32_t i = 0; i < own->regions; i++) {
		if (peer->window[i] == NULL || peer->rkey[i] == 0)
			continue;
		struct abi_send_wr wr = { .wr_id = ++requests,
			.opcode = ABI_WR_LOCAL_INV,
			.send_flags = ABI_SEND_SIGNALED,
			.invalidate_rkey = peer->rkey[i] };
		int status = -1;
		int rc = endpoint_post(peer->qp, &wr);
		if (rc == 0)
			rc = endpoint_wait(&own->end, wr.wr_id, WINDOW_LIMIT_NS, &status);
		/* Flushed: the connection had broken before. The window goes with its queue pair,
		 * and is given up below either way. */
		done += rc == 0 && status == ABI_WC_SUCCESS;
		if (rc != 0 && *error == 0)
			*error = -rc;
	}
	return done;
}

/* The first failure is returned. */
static int give_windows_up(struct peer *peer)
{
	int first = 0;
	for (uint32_t i = 0; i < LEASED_RDMA_REGIONS_MAX; i++) {
		if (peer->window[i] == NULL)
			continue;
		int rc = peer->qp->context->ops.dealloc_mw(peer->window[i]);
		if (rc != 0 && first == 0)
			first = failed("give a memory window up", rc);
		peer->window[i] = NULL;
	}
	return first;
}

/* Give up what a peer has; its queue pair has been stopped. The first failure is returned. */
int peer_end(struct peer *peer)
{
	int first = give_windows_up(peer);
	int rc = verbs.destroy_qp(peer->qp);
	if (rc != 0 && first == 0)
		first = failed("give a queue pair up", rc);
	memset(peer, 0, sizeof *peer);
	return first;
}

/* ---- peers ---- */

static int state_of(struct abi_qp *qp)
{
	struct abi_qp_attr attr = { 0 };
	struct abi_qp_init_attr init = { 0 };
	return verbs.query_qp(qp, &attr, ABI_QP_STATE, &init) == 0 ? attr.qp_state : ABI_QPS_ERR;
}

/* A free place; where there is none, that of a peer whose connection has broken. */
static struct peer *find_place(struct owned *own)
{
	for (uint32_t i = 0; i < own->peers_max; i++) {
		if (own->peer[i].qp == NULL)
			return &own->peer[i];
	}
	for (uint32_t i = 0; i < own->peers_max; i++) {
		int state = state_of(own->peer[i].qp);
		if (state == ABI_QPS_ERR || state == ABI_QPS_SQE) {
			(void)endpoint_end_qp(own->peer[i].qp);
			(void)peer_end(&own->peer[i]);
			return &own->peer[i];
		}
	}
	return NULL;
}

int peer_connect(struct owned *own, const struct leased_rdma_connect *asked,
	struct leased_rdma_connected *told)
{
	if (!own->opened)
		return failed("connect before the memory is registered", ENOTCONN);
	if ((asked->access & LEASED_RDMA_MAY_READ) == 0 || asked->qp_number == 0)
		return failed("understand the request", EINVAL);
	struct peer *peer = find_place(own);
	if (peer == NULL)
		return failed("connect so many peers", EUSERS);
	uint32_t psn = 0;
	int rc = random_psn(&psn);
	if (rc != 0)
		return rc;
	rc = endpoint_make_qp(&own->end, REQUESTS, access_flags(own, asked->access), &peer->qp);
	if (rc != 0)
		return rc;
	peer->is = *asked;
	peer->access = asked->access;
	rc = endpoint_connect_qp(&own->end, peer->qp, asked, psn, PATIENCE);
	for (uint32_t i = 0; i < own->regions && rc == 0; i++) {
		if (own->windows)
			rc = bind_window(own, peer, i);
		else
			peer->rkey[i] = own->region[i].mr->rkey;
	}
	if (rc != 0) {
		(void)endpoint_end_qp(peer->qp);
		(void)peer_end(peer);
		return rc;
	}
	*told = (struct leased_rdma_connected){ .qp_number = peer->qp->qp_num,
		.psn = psn,
		.mtu_bytes = mtu_bytes(endpoint_mtu(&own->end, asked->mtu_bytes)),
		.access = asked->access };
	memcpy(told->rkey, peer->rkey, sizeof told->rkey);
	return 0;
}

int peer_disconnect(struct owned *own, uint32_t qp_number)
{
	for (uint32_t i = 0; i < own->peers_max; i++) {
		struct peer *peer = &own->peer[i];
		if (peer->qp == NULL || peer->qp->qp_num != qp_number)
			continue;
		int error = 0;
		(void)peer_invalidate(own, peer, &error);
		int rc = endpoint_end_qp(peer->qp);
		int ended = peer_end(peer);
		return rc != 0 ? rc : ended;
	}
	return failed("find the connection", ENOENT);
}

void owned_tell(struct owned *own, struct leased_rdma_state *told)
{
	memset(told, 0, sizeof *told);
	told->pid = (int32_t)getpid();
	told->windows = own->windows;
	memcpy(told->gid, own->end.gid.raw, sizeof told->gid);
	told->lid = own->end.lid;
	told->mtu_bytes = mtu_bytes(own->end.mtu);
	told->regions = own->regions;
	told->events = own->events;
	for (uint32_t i = 0; i < own->regions; i++)
		told->region[i] = (struct leased_rdma_region){ .bytes = own->region[i].bytes };
	for (uint32_t i = 0; i < own->peers_max; i++) {
		const struct peer *peer = &own->peer[i];
		if (peer->qp == NULL)
			continue;
		struct leased_rdma_peer *into = &told->peer[told->peers++];
		memcpy(into->gid, peer->is.gid, sizeof into->gid);
		into->qp_number = peer->qp->qp_num;
		into->peer_qp_number = peer->is.qp_number;
		into->state = (uint32_t)state_of(peer->qp);
		into->access = peer->access;
	}
}

/* ---- the end ---- */

static struct leased_rdma_step_report *begin(struct leased_rdma_closed *told, uint32_t step)
{
	struct leased_rdma_step_report *at = &told->step[told->steps++];
	*at = (struct leased_rdma_step_report){ .step = step, .began_ns = boot_now() };
	return at;
}

static void note(struct leased_rdma_step_report *step, int rc)
{
	if (rc != 0 && step->error == 0)
		step->error = -rc;
	step->ended_ns = boot_now();
}

static void end_windows(struct owned *own, struct leased_rdma_closed *told)
{
	struct leased_rdma_step_report *step = begin(told, LEASED_RDMA_STEP_WINDOWS);
	for (uint32_t i = 0; i < own->peers_max; i++) {
		int error = 0;
		if (own->peer[i].qp != NULL)
			step->measured += peer_invalidate(own, &own->peer[i], &error);
		note(step, -error);
	}
	for (uint32_t i = 0; i < own->peers_max; i++) {
		if (own->peer[i].qp != NULL)
			note(step, give_windows_up(&own->peer[i]));
	}
}

static void end_regions(struct owned *own, struct leased_rdma_closed *told)
{
	struct leased_rdma_step_report *step = begin(told, LEASED_RDMA_STEP_REGIONS);
	for (uint32_t i = 0; i < own->regions; i++) {
		int rc = deregister(&own->region[i]);
		step->measured += rc == 0 ? own->region[i].bytes : 0;
		note(step, rc);
	}
}

/* Until each peer has asked once more and been refused, which breaks its connection, or a moment
 * has passed. */
static void refuse_for_a_moment(const struct owned *own)
{
	const uint64_t until = boot_now() + REFUSING_NS;
	const struct timespec pause = { .tv_nsec = LOOK_AGAIN_NS };
	for (uint32_t i = 0; i < own->peers_max; i++) {
		while (own->peer[i].qp != NULL && state_of(own->peer[i].qp) == ABI_QPS_RTS &&
			boot_now() < until)
			nanosleep(&pause, NULL);
	}
}

static void end_queues(struct owned *own, struct leased_rdma_closed *told)
{
	struct leased_rdma_step_report *step = begin(told, LEASED_RDMA_STEP_QUEUES);
	for (uint32_t i = 0; i < own->peers_max; i++) {
		if (own->peer[i].qp != NULL) {
			note(step, endpoint_end_qp(own->peer[i].qp));
			step->measured++;
		}
	}
	for (uint32_t i = 0; i < own->peers_max; i++) {
		if (own->peer[i].qp != NULL)
			note(step, peer_end(&own->peer[i]));
	}
	note(step, 0);
}

/* End everything in order. What is left when a step failed dies with the process. */
void owned_close(struct owned *own, struct leased_rdma_closed *told)
{
	memset(told, 0, sizeof *told);
	if (!own->opened)
		return;
	if (own->windows)
		end_windows(own, told);
	end_regions(own, told);
	refuse_for_a_moment(own);
	end_queues(own, told);
	struct leased_rdma_step_report *step = begin(told, LEASED_RDMA_STEP_DEVICE);
	note(step, endpoint_close(&own->end));
	own->opened = false;
}
