/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libibverbs.so.1 without hardware, for tests of leased-rdma on hosts whose kernel has no RDMA: one
 * device, mock0, whose objects are counted and whose rules are kept.
 *
 * Rule: it refuses what a device refuses: a queue pair out of its order of states (EINVAL), a
 * domain or completion queue with something left on it (EBUSY), a region with a window bound to it
 * (EINVAL, as rxe does); a request on a queue pair in error is flushed. What only a mistake of ours
 * can do (giving something up twice, using it afterwards) aborts.
 *
 * MOCK_VERBS_FAULT names one call that fails, and how: "reg_mr=12", "dereg_mr=16",
 * "bind_mw=status", "modify_qp=110", "async_fd=19", ...
 * MOCK_VERBS_WINDOWS=0: the device has no windows.
 *
 * Does not move data: nobody is remote here.
 */
#define _GNU_SOURCE
#include "../../../native/rdma/abi.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COMPLETIONS_MAX = 128, LIVE = 0x11fe, GONE = 0xdead, FLUSHED = 5, BIND_ERROR = 6 };

struct counted {
	int live;
	int users;
};

struct mock_device {
	int nothing;
};

struct context {
	struct abi_context as;
	struct counted count;
	int event_fd; /* the other end of async_fd: nothing comes through it */
};

struct pd {
	struct abi_pd as;
	struct counted count;
};

struct cq {
	struct abi_cq as;
	struct counted count;
	struct abi_wc wc[COMPLETIONS_MAX];
	int waiting;
};

struct mr {
	struct abi_mr as;
	struct counted count;
};

struct mw {
	struct abi_mw as;
	struct counted count;
	struct mr *bound;
};

struct qp {
	struct abi_qp as;
	struct counted count;
	int state;
	char padding[256]; /* the library's own struct is larger than what we declare of it */
};

static struct mock_device mock0;
static uint32_t numbers = 16;

static void must(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "mock libibverbs: %s\n", what);
		abort();
	}
}

static int end(struct counted *count, const char *what)
{
	must(count->live == LIVE, what);
	if (count->users != 0)
		return EBUSY;
	count->live = GONE;
	return 0;
}

enum { STATUS = -1, LATE = -2 };

/* 0: no fault. A number: the errno. "status": STATUS. "late": LATE. */
static int fault(const char *call)
{
	const char *told = getenv("MOCK_VERBS_FAULT");
	size_t length = strlen(call);
	if (told == NULL || strncmp(told, call, length) != 0 || told[length] != '=')
		return 0;
	const char *how = told + length + 1;
	return strcmp(how, "status") == 0 ? STATUS : strcmp(how, "late") == 0 ? LATE : atoi(how);
}

static void *refuse(int error)
{
	errno = error;
	return NULL;
}

/* ---- devices ---- */

struct abi_device **ibv_get_device_list(int *count)
{
	static struct abi_device *list[2];
	if (fault("get_device_list"))
		return refuse(fault("get_device_list"));
	list[0] = (struct abi_device *)&mock0;
	*count = 1;
	return list;
}

void ibv_free_device_list(struct abi_device **list)
{
	(void)list;
}

const char *ibv_get_device_name(struct abi_device *device)
{
	must(device == (struct abi_device *)&mock0, "a device of somebody else");
	return "mock0";
}

static struct abi_mw *alloc_mw(struct abi_pd *pd, int type);
static int dealloc_mw(struct abi_mw *mw);
static int poll_cq(struct abi_cq *cq, int entries, struct abi_wc *wc);
static int post_send(struct abi_qp *qp, struct abi_send_wr *wr, struct abi_send_wr **bad);

struct abi_context *ibv_open_device(struct abi_device *device)
{
	if (fault("open_device"))
		return refuse(fault("open_device"));
	struct context *made = calloc(1, sizeof *made);
	int both[2];
	made->as.device = device;
	made->as.ops.alloc_mw = alloc_mw;
	made->as.ops.dealloc_mw = dealloc_mw;
	made->as.ops.poll_cq = poll_cq;
	made->as.ops.post_send = post_send;
	made->as.cmd_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	must(pipe2(both, O_CLOEXEC) == 0, "no pipe");
	made->as.async_fd = both[0];
	made->event_fd = both[1];
	if (fault("async_fd")) { /* a device that has gone without a word */
		close(both[1]);
		made->event_fd = -1;
	}
	made->count.live = LIVE;
	return &made->as;
}

int ibv_close_device(struct abi_context *context)
{
	struct context *it = (struct context *)context;
	int rc = end(&it->count, "a device closed twice");
	if (rc == 0) {
		close(context->cmd_fd);
		close(context->async_fd);
		close(it->event_fd);
	}
	errno = rc;
	return rc == 0 ? 0 : -1;
}

int ibv_query_device(struct abi_context *context, struct abi_device_attr *attr)
{
	const char *windows = getenv("MOCK_VERBS_WINDOWS");
	(void)context;
	memset(attr, 0, sizeof *attr);
	snprintf(attr->fw_ver, sizeof attr->fw_ver, "mock");
	attr->max_mr_size = UINT64_C(1) << 30;
	attr->max_qp = attr->max_mr = attr->max_mw = 1000;
	attr->max_qp_rd_atom = 16;
	attr->atomic_cap = 1;
	if (windows == NULL || strcmp(windows, "0") != 0)
		attr->device_cap_flags = ABI_DEVICE_MEM_WINDOW_TYPE_2B;
	return fault("query_device");
}

int ibv_query_port(struct abi_context *context, uint8_t port, struct abi_port_attr *attr)
{
	(void)context;
	if (port != 1)
		return EINVAL;
	attr->state = 4;
	attr->active_mtu = attr->max_mtu = 3;
	attr->link_layer = 2;
	return fault("query_port");
}

int ibv_query_gid(struct abi_context *context, uint8_t port, int index, union abi_gid *gid)
{
	(void)context;
	(void)port;
	memset(gid, 0, sizeof *gid);
	gid->raw[15] = (uint8_t)(index + 1);
	return 0;
}

int ibv_get_async_event(struct abi_context *context, struct abi_async_event *event)
{
	(void)context;
	(void)event;
	errno = EAGAIN;
	return -1;
}

void ibv_ack_async_event(struct abi_async_event *event)
{
	(void)event;
}

/* ---- objects ---- */

struct abi_pd *ibv_alloc_pd(struct abi_context *context)
{
	if (fault("alloc_pd"))
		return refuse(fault("alloc_pd"));
	struct pd *made = calloc(1, sizeof *made);
	made->as.context = context;
	made->count.live = LIVE;
	((struct context *)context)->count.users++;
	return &made->as;
}

int ibv_dealloc_pd(struct abi_pd *pd)
{
	struct pd *it = (struct pd *)pd;
	int rc = fault("dealloc_pd");
	rc = rc ? rc : end(&it->count, "a domain given up twice");
	if (rc == 0)
		((struct context *)pd->context)->count.users--;
	return rc;
}

struct abi_cq *ibv_create_cq(
	struct abi_context *context, int entries, void *own, void *channel, int vector)
{
	(void)own;
	(void)channel;
	(void)vector;
	must(entries > 0 && entries <= COMPLETIONS_MAX, "a completion queue of no sensible size");
	if (fault("create_cq"))
		return refuse(fault("create_cq"));
	struct cq *made = calloc(1, sizeof *made);
	made->as.context = context;
	made->count.live = LIVE;
	((struct context *)context)->count.users++;
	return &made->as;
}

int ibv_destroy_cq(struct abi_cq *cq)
{
	struct cq *it = (struct cq *)cq;
	int rc = end(&it->count, "a completion queue given up twice");
	if (rc == 0)
		((struct context *)cq->context)->count.users--;
	return rc;
}

struct abi_mr *ibv_reg_mr_iova(struct abi_pd *pd, void *at, size_t bytes, uint64_t iova, int access)
{
	(void)iova;
	must(((access & 14) == 0) || (access & ABI_ACCESS_LOCAL_WRITE), "remote without local");
	if (fault("reg_mr"))
		return refuse(fault("reg_mr"));
	struct mr *made = calloc(1, sizeof *made);
	made->as.context = pd->context;
	made->as.pd = pd;
	made->as.addr = at;
	made->as.length = bytes;
	made->as.lkey = made->as.rkey = ++numbers << 8;
	made->count.live = LIVE;
	((struct pd *)pd)->count.users++;
	return &made->as;
}

int ibv_dereg_mr(struct abi_mr *mr)
{
	struct mr *it = (struct mr *)mr;
	int rc = fault("dereg_mr");
	rc = rc ? rc : end(&it->count, "a region deregistered twice");
	if (rc == 0)
		((struct pd *)mr->pd)->count.users--;
	return rc == EBUSY && !fault("dereg_mr") ? EINVAL : rc;
}

static struct abi_mw *alloc_mw(struct abi_pd *pd, int type)
{
	must(type == ABI_MW_TYPE_2, "a window of the wrong type");
	if (fault("alloc_mw"))
		return refuse(fault("alloc_mw"));
	struct mw *made = calloc(1, sizeof *made);
	made->as.context = pd->context;
	made->as.pd = pd;
	made->as.type = type;
	made->as.rkey = ++numbers << 8;
	made->count.live = LIVE;
	((struct pd *)pd)->count.users++;
	return &made->as;
}

static int dealloc_mw(struct abi_mw *mw)
{
	struct mw *it = (struct mw *)mw;
	int rc = fault("dealloc_mw");
	rc = rc ? rc : end(&it->count, "a window given up twice");
	if (rc == 0) {
		((struct pd *)mw->pd)->count.users--;
		if (it->bound != NULL)
			it->bound->count.users--;
	}
	return rc;
}

struct abi_qp *ibv_create_qp(struct abi_pd *pd, struct abi_qp_init_attr *attr)
{
	must(attr->qp_type == ABI_QPT_RC && attr->send_cq != NULL, "a queue pair of no use");
	if (fault("create_qp"))
		return refuse(fault("create_qp"));
	struct qp *made = calloc(1, sizeof *made);
	made->as.context = pd->context;
	made->as.pd = pd;
	made->as.send_cq = attr->send_cq;
	made->as.qp_num = ++numbers;
	made->count.live = LIVE;
	((struct pd *)pd)->count.users++;
	((struct cq *)attr->send_cq)->count.users++;
	return &made->as;
}

int ibv_modify_qp(struct abi_qp *qp, struct abi_qp_attr *attr, int mask)
{
	struct qp *it = (struct qp *)qp;
	must(it->count.live == LIVE && (mask & ABI_QP_STATE), "a queue pair modified for nothing");
	if (attr->qp_state != ABI_QPS_ERR && attr->qp_state != it->state + 1)
		return EINVAL;
	if (attr->qp_state == ABI_QPS_RTR && fault("modify_qp"))
		return fault("modify_qp");
	it->state = attr->qp_state;
	return 0;
}

int ibv_query_qp(
	struct abi_qp *qp, struct abi_qp_attr *attr, int mask, struct abi_qp_init_attr *init)
{
	(void)mask;
	(void)init;
	attr->qp_state = ((struct qp *)qp)->state;
	/* A peer that is known to have gone: its connection broke. */
	const char *broken = getenv("MOCK_VERBS_BROKEN");
	if (broken != NULL && access(broken, F_OK) == 0)
		attr->qp_state = ABI_QPS_ERR;
	return 0;
}

int ibv_destroy_qp(struct abi_qp *qp)
{
	struct qp *it = (struct qp *)qp;
	int rc = end(&it->count, "a queue pair given up twice");
	if (rc == 0) {
		((struct pd *)qp->pd)->count.users--;
		((struct cq *)qp->send_cq)->count.users--;
	}
	return rc;
}

/* ---- requests ---- */

static int complete(struct qp *qp, uint64_t wr_id, int status)
{
	struct cq *cq = (struct cq *)qp->as.send_cq;
	must(cq->waiting < COMPLETIONS_MAX, "more completions than there is room for");
	cq->wc[cq->waiting++] =
		(struct abi_wc){ .wr_id = wr_id, .status = status, .qp_num = qp->as.qp_num };
	return 0;
}

/* The first bind ends, flushed, when something else is asked for: its queue pair may be gone. */
static struct {
	struct cq *cq;
	struct abi_wc wc;
	bool was;
} late;

static int post_send(struct abi_qp *qp, struct abi_send_wr *wr, struct abi_send_wr **bad)
{
	struct qp *it = (struct qp *)qp;
	if (late.cq != NULL)
		late.cq->wc[late.cq->waiting++] = late.wc;
	late.cq = NULL;
	must(it->count.live == LIVE && wr->next == NULL, "a request on nothing");
	if (it->state == ABI_QPS_ERR)
		return complete(it, wr->wr_id, FLUSHED);
	if (it->state != ABI_QPS_RTS) {
		*bad = wr;
		return EINVAL;
	}
	if (wr->opcode == ABI_WR_BIND_MW) {
		struct mw *mw = (struct mw *)wr->bind_mw.mw;
		must((wr->bind_mw.rkey & ~0xffu) == (mw->as.rkey & ~0xffu),
			"a key of another window");
		if (fault("bind_mw") > 0)
			return fault("bind_mw");
		if (fault("bind_mw") == LATE && !late.was) {
			late.was = true;
			late.cq = (struct cq *)qp->send_cq;
			late.wc = (struct abi_wc){ .wr_id = wr->wr_id, .status = FLUSHED };
			return 0;
		}
		if (fault("bind_mw") == STATUS)
			return complete(it, wr->wr_id, BIND_ERROR);
		mw->bound = (struct mr *)wr->bind_mw.bind_info.mr;
		mw->bound->count.users++;
		mw->as.rkey = wr->bind_mw.rkey;
	}
	if (wr->opcode == ABI_WR_LOCAL_INV && fault("local_inv") == STATUS)
		return complete(it, wr->wr_id, FLUSHED);
	if (wr->opcode == ABI_WR_LOCAL_INV && fault("local_inv") == ETIMEDOUT)
		return 0;
	return complete(it, wr->wr_id, ABI_WC_SUCCESS);
}

static int poll_cq(struct abi_cq *cq, int entries, struct abi_wc *wc)
{
	struct cq *it = (struct cq *)cq;
	must(entries == 1, "more asked for than the mock gives");
	if (it->waiting == 0)
		return 0;
	*wc = it->wc[0];
	memmove(it->wc, it->wc + 1, (size_t)--it->waiting * sizeof it->wc[0]);
	return 1;
}
