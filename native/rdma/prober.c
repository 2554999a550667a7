/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The prober: a remote peer of our own, which reads the lease's memory while it may and shows that
 * it cannot any more when the lease has ended.
 *
 * Rule: it asks over the fabric, as any peer would, and reports what its completion said. It ends
 * with whoever started it.
 *
 * Does not belong to the lease: it lives outside its cgroup.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* 4 ms, 3 times: a peer that does not answer is given up within about 70 ms. */
static const struct patience PATIENCE = { .timeout = 10, .retries = 3 };

enum { COMPLETIONS = 16, REQUESTS = 4 };

static struct endpoint end;
static struct abi_qp *qp;
static struct abi_mr *mr;
static char *into;
static uint32_t psn;
static uint64_t reads;
static struct packet packet;
static union {
	struct leased_rdma_reach reach;
	struct leased_rdma_done done;
} told;

static int reach(const struct leased_rdma_open *asked)
{
	if (end.context != NULL)
		return failed("reach twice", EALREADY);
	int rc = endpoint_open(&end, asked, COMPLETIONS);
	if (rc == 0)
		rc = random_psn(&psn);
	if (rc != 0)
		return rc;
	into = mmap(NULL, LEASED_RDMA_READ_BYTES_MAX, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (into == MAP_FAILED)
		return failed("make room", errno);
	mr = verbs.reg_mr_iova(end.pd, into, LEASED_RDMA_READ_BYTES_MAX, (uint64_t)(uintptr_t)into,
		ABI_ACCESS_LOCAL_WRITE);
	if (mr == NULL)
		return failed("register our own memory", errno);
	rc = endpoint_make_qp(&end, REQUESTS, 0, &qp);
	if (rc != 0)
		return rc;
	told.reach = (struct leased_rdma_reach){
		.lid = end.lid, .qp_number = qp->qp_num, .psn = psn, .mtu_bytes = mtu_bytes(end.mtu)
	};
	memcpy(told.reach.gid, end.gid.raw, sizeof told.reach.gid);
	return (int)sizeof told.reach;
}

static int read_once(const struct leased_rdma_read *asked)
{
	if (qp == NULL || asked->bytes == 0 || asked->bytes > LEASED_RDMA_READ_BYTES_MAX)
		return failed("understand the request", EINVAL);
	struct abi_sge sge = {
		.addr = (uint64_t)(uintptr_t)into, .length = asked->bytes, .lkey = mr->lkey
	};
	struct abi_send_wr wr = { .wr_id = ++reads,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = ABI_WR_RDMA_READ,
		.send_flags = ABI_SEND_SIGNALED,
		.wr = { .rdma = { .remote_addr = asked->address, .rkey = asked->rkey } } };
	const uint64_t began = boot_now();
	int status = 0;
	int rc = endpoint_post(qp, &wr);
	if (rc == 0)
		rc = endpoint_wait(&end, wr.wr_id, asked->timeout_ms * NS_PER_MS, &status);
	if (rc != 0)
		return rc;
	told.done = (struct leased_rdma_done){ .status = (uint32_t)status,
		.took_ns = boot_now() - began };
	return (int)sizeof told.done;
}

static int carry_out(void)
{
	failure_forget();
	switch (packet.header.kind) {
	case LEASED_RDMA_REACH:
		if (packet.bytes == sizeof(struct leased_rdma_open))
			return reach((const void *)packet.body);
		break;
	case LEASED_RDMA_MEET:
		if (packet.bytes == sizeof(struct leased_rdma_connect) && qp != NULL)
			return endpoint_connect_qp(
				&end, qp, (const void *)packet.body, psn, PATIENCE);
		break;
	case LEASED_RDMA_READ:
		if (packet.bytes == sizeof(struct leased_rdma_read))
			return read_once((const void *)packet.body);
		break;
	default: break;
	}
	return failed("understand the request", EINVAL);
}

/* Serve until the other end closes. The exit status. */
int probe(int control)
{
	for (;;) {
		int rc = packet_receive(control, &packet);
		if (rc == 0)
			return 0;
		if (rc > 0)
			rc = carry_out();
		packet_close_fds(&packet);
		(void)packet_answer(control, &packet, rc, &told, rc > 0 ? (size_t)rc : 0);
	}
}
