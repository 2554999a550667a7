/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An endpoint: a device opened, with one protection domain, one completion queue, one port; and
 * reliable connections from it.
 *
 * Rule: whatever fails half-way is taken back, so that an endpoint is open or not there at all. A
 * completion is waited for with a limit, and its status is the caller's to judge.
 *
 * Does not know leases.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum {
	LINK_LAYER_ETHERNET = 2,
	HOP_LIMIT = 64,
	RNR_TIMER = 12, /* 0.64 ms */
	RNR_RETRIES = 7,
	READS_AT_ONCE_MAX = 16,
	LOOK_AGAIN_NS = 20000,
	PSN_MASK = 0xffffff,
};

uint32_t mtu_bytes(int mtu)
{
	return mtu >= 1 && mtu <= 5 ? 128u << mtu : 0;
}

/* The largest that the port and a peer can both do (enum ibv_mtu). `bytes` 0: the peer says
 * nothing. */
int endpoint_mtu(const struct endpoint *end, uint32_t bytes)
{
	int mtu = end->mtu;
	while (bytes != 0 && mtu > 1 && mtu_bytes(mtu) > bytes)
		mtu--;
	return mtu;
}

int random_psn(uint32_t *psn)
{
	if (getrandom(psn, sizeof *psn, 0) != sizeof *psn)
		return failed("draw a packet number", errno);
	*psn &= PSN_MASK;
	return 0;
}

static int read_port(struct endpoint *end, uint32_t port, uint32_t gid_index)
{
	struct abi_port_attr attr;
	memset(&attr, 0, sizeof attr);
	int rc = verbs.query_port(end->context, (uint8_t)port, &attr);
	if (rc != 0)
		return failed("read the port", rc);
	rc = verbs.query_gid(end->context, (uint8_t)port, (int)gid_index, &end->gid);
	if (rc != 0)
		return failed("read the GID", errno);
	end->port = (uint8_t)port;
	end->gid_index = (uint8_t)gid_index;
	end->lid = attr.lid;
	end->mtu = attr.active_mtu;
	end->routed = attr.link_layer == LINK_LAYER_ETHERNET;
	return 0;
}

/* `entries`: completions that may wait at once. */
int endpoint_open(struct endpoint *end, const struct leased_rdma_open *asked, uint32_t entries)
{
	memset(end, 0, sizeof *end);
	if (asked->port == 0 || asked->port > UINT8_MAX || asked->gid_index > UINT8_MAX)
		return failed("choose a port", EINVAL);
	end->context = library_open_device(asked->device);
	if (end->context == NULL)
		return -errno;
	int rc = verbs.query_device(end->context, &end->can);
	rc = rc == 0 ? read_port(end, asked->port, asked->gid_index)
		     : failed("read what the device can", rc);
	if (rc == 0) {
		end->pd = verbs.alloc_pd(end->context);
		rc = end->pd != NULL ? 0 : failed("make a protection domain", errno);
	}
	if (rc == 0) {
		end->cq = verbs.create_cq(end->context, (int)entries, NULL, NULL, 0);
		rc = end->cq != NULL ? 0 : failed("make a completion queue", errno);
	}
	if (rc != 0)
		(void)endpoint_close(end);
	return rc;
}

/* Give up whatever is there; the first failure is returned, and nothing after it is left out. */
int endpoint_close(struct endpoint *end)
{
	int first = 0, rc = 0;
	if (end->cq != NULL && (rc = verbs.destroy_cq(end->cq)) != 0)
		first = failed("give the completion queue up", rc);
	if (end->pd != NULL && (rc = verbs.dealloc_pd(end->pd)) != 0 && first == 0)
		first = failed("give the protection domain up", rc);
	if (end->context != NULL && verbs.close_device(end->context) != 0 && first == 0)
		first = failed("close the device", errno);
	end->cq = NULL;
	end->pd = NULL;
	end->context = NULL;
	return first;
}

/* Whether the device has windows that are bound to one queue pair (type 2B). */
bool endpoint_windows(const struct endpoint *end)
{
	return (end->can.device_cap_flags & ABI_DEVICE_MEM_WINDOW_TYPE_2B) != 0 &&
	       end->can.max_mw > 0;
}

/* A queue pair whose peer may do `access`, initialised. `requests`: of ours, under way at once. */
int endpoint_make_qp(struct endpoint *end, uint32_t requests, int access, struct abi_qp **made)
{
	struct abi_qp_init_attr init = {
		.send_cq = end->cq,
		.recv_cq = end->cq,
		.cap = { .max_send_wr = requests,
			.max_recv_wr = 1,
			.max_send_sge = 1,
			.max_recv_sge = 1 },
		.qp_type = ABI_QPT_RC,
	};
	struct abi_qp *qp = verbs.create_qp(end->pd, &init);
	if (qp == NULL)
		return failed("make a queue pair", errno);
	struct abi_qp_attr attr = { .qp_state = ABI_QPS_INIT,
		.port_num = end->port,
		.qp_access_flags = (unsigned int)access };
	int rc = verbs.modify_qp(
		qp, &attr, ABI_QP_STATE | ABI_QP_PKEY_INDEX | ABI_QP_PORT | ABI_QP_ACCESS_FLAGS);
	if (rc != 0) {
		rc = failed("initialise the queue pair", rc);
		verbs.destroy_qp(qp);
		return rc;
	}
	*made = qp;
	return 0;
}

static int smaller(int a, int b)
{
	return a < b ? a : b;
}

/* Bring an initialised queue pair to where it answers and asks. */
int endpoint_connect_qp(struct endpoint *end, struct abi_qp *qp,
	const struct leased_rdma_connect *peer, uint32_t psn, struct patience patience)
{
	static const uint8_t none[LEASED_RDMA_GID_BYTES];
	const bool by_gid = end->routed || memcmp(peer->gid, none, sizeof none) != 0;
	struct abi_qp_attr attr = {
		.qp_state = ABI_QPS_RTR,
		.path_mtu = endpoint_mtu(end, peer->mtu_bytes),
		.dest_qp_num = peer->qp_number,
		.rq_psn = peer->psn & PSN_MASK,
		.max_dest_rd_atomic = (uint8_t)smaller(end->can.max_qp_rd_atom, READS_AT_ONCE_MAX),
		.min_rnr_timer = RNR_TIMER,
		.ah_attr = { .dlid = (uint16_t)peer->lid,
			.is_global = by_gid,
			.port_num = end->port },
	};
	if (by_gid) {
		memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, sizeof peer->gid);
		attr.ah_attr.grh.sgid_index = end->gid_index;
		attr.ah_attr.grh.hop_limit = HOP_LIMIT;
	}
	int rc = verbs.modify_qp(qp, &attr,
		ABI_QP_STATE | ABI_QP_AV | ABI_QP_PATH_MTU | ABI_QP_DEST_QPN | ABI_QP_RQ_PSN |
			ABI_QP_MAX_DEST_RD_ATOMIC | ABI_QP_MIN_RNR_TIMER);
	if (rc != 0)
		return failed("find the peer", rc);
	attr = (struct abi_qp_attr){
		.qp_state = ABI_QPS_RTS,
		.sq_psn = psn,
		.timeout = patience.timeout,
		.retry_cnt = patience.retries,
		.rnr_retry = RNR_RETRIES,
		.max_rd_atomic = 1,
	};
	rc = verbs.modify_qp(qp, &attr,
		ABI_QP_STATE | ABI_QP_TIMEOUT | ABI_QP_RETRY_CNT | ABI_QP_RNR_RETRY |
			ABI_QP_SQ_PSN | ABI_QP_MAX_QP_RD_ATOMIC);
	return rc == 0 ? 0 : failed("connect the queue pair", rc);
}

/* From the return on the queue pair answers nobody. */
int endpoint_end_qp(struct abi_qp *qp)
{
	struct abi_qp_attr attr = { .qp_state = ABI_QPS_ERR };
	int rc = verbs.modify_qp(qp, &attr, ABI_QP_STATE);
	return rc == 0 ? 0 : failed("stop a queue pair", rc);
}

int endpoint_post(struct abi_qp *qp, struct abi_send_wr *wr)
{
	struct abi_send_wr *bad = NULL;
	int rc = qp->context->ops.post_send(qp, wr, &bad);
	return rc == 0 ? 0 : failed("post a request", rc);
}

/* Wait for the completion of one request; others that come meanwhile are dropped. -ETIMEDOUT. */
int endpoint_wait(struct endpoint *end, uint64_t wr_id, uint64_t limit_ns, int *status)
{
	const uint64_t until = boot_now() + limit_ns;
	const struct timespec pause = { .tv_nsec = LOOK_AGAIN_NS };
	for (;;) {
		struct abi_wc wc;
		int count = end->context->ops.poll_cq(end->cq, 1, &wc);
		if (count < 0)
			return failed("read the completions", EIO);
		if (count == 1 && wc.wr_id == wr_id) {
			*status = wc.status;
			return 0;
		}
		if (count == 0) {
			if (boot_now() >= until)
				return failed("wait for a completion", ETIMEDOUT);
			nanosleep(&pause, NULL);
		}
	}
}
