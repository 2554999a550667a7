/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libibverbs.so.1 lays out, as far as we touch it: the structs we fill in whole, the first
 * fields of those it hands us, the calls, and the calls that its header makes through a table in
 * the device's context.
 *
 * Why not <infiniband/verbs.h>: the library is loaded at run time and may be absent, and a build
 * that needed its headers would ask every host for a package that most have no use for. The layouts
 * are the library's ABI since IBVERBS_1.1 (2006); native/test/rdma/abi.c compares each with
 * the real header wherever that is installed, and the VM's tests have it installed.
 *
 * Does not call anything (`library.c`).
 */
#ifndef LEASED_RDMA_ABI_H
#define LEASED_RDMA_ABI_H

#include <stddef.h>
#include <stdint.h>

struct abi_context;
struct abi_cq;
struct abi_device;
struct abi_mr;
struct abi_mw;
struct abi_pd;
struct abi_qp;

enum {
	ABI_QPT_RC = 2,

	ABI_QPS_INIT = 1,
	ABI_QPS_RTR = 2,
	ABI_QPS_RTS = 3,
	ABI_QPS_SQE = 5,
	ABI_QPS_ERR = 6,

	ABI_ACCESS_LOCAL_WRITE = 1,
	ABI_ACCESS_REMOTE_WRITE = 2,
	ABI_ACCESS_REMOTE_READ = 4,
	ABI_ACCESS_REMOTE_ATOMIC = 8,
	ABI_ACCESS_MW_BIND = 16,

	ABI_WR_RDMA_READ = 4,
	ABI_WR_LOCAL_INV = 7,
	ABI_WR_BIND_MW = 8,
	ABI_SEND_SIGNALED = 2,

	ABI_WC_SUCCESS = 0,

	ABI_MW_TYPE_2 = 2,
	ABI_ATOMIC_NONE = 0,

	ABI_QP_STATE = 1 << 0,
	ABI_QP_ACCESS_FLAGS = 1 << 3,
	ABI_QP_PKEY_INDEX = 1 << 4,
	ABI_QP_PORT = 1 << 5,
	ABI_QP_AV = 1 << 7,
	ABI_QP_PATH_MTU = 1 << 8,
	ABI_QP_TIMEOUT = 1 << 9,
	ABI_QP_RETRY_CNT = 1 << 10,
	ABI_QP_RNR_RETRY = 1 << 11,
	ABI_QP_RQ_PSN = 1 << 12,
	ABI_QP_MAX_QP_RD_ATOMIC = 1 << 13,
	ABI_QP_MIN_RNR_TIMER = 1 << 15,
	ABI_QP_SQ_PSN = 1 << 16,
	ABI_QP_MAX_DEST_RD_ATOMIC = 1 << 17,
	ABI_QP_DEST_QPN = 1 << 20,

	ABI_EVENT_DEVICE_FATAL = 8,
};

#define ABI_DEVICE_MEM_WINDOW_TYPE_2B (1u << 24)

/* ---- structs of ours ---- */

struct abi_sge {
	uint64_t addr;
	uint32_t length;
	uint32_t lkey;
};

struct abi_mw_bind_info {
	struct abi_mr *mr;
	uint64_t addr;
	uint64_t length;
	unsigned int mw_access_flags;
};

struct abi_send_wr {
	uint64_t wr_id;
	struct abi_send_wr *next;
	struct abi_sge *sg_list;
	int num_sge;
	int opcode;
	unsigned int send_flags;
	uint32_t invalidate_rkey;
	union {
		struct {
			uint64_t remote_addr;
			uint32_t rkey;
		} rdma;
		struct {
			uint64_t remote_addr;
			uint64_t compare_add;
			uint64_t swap;
			uint32_t rkey;
		} atomic;
	} wr;
	union {
		struct {
			uint32_t remote_srqn;
		} xrc;
	} qp_type;
	union {
		struct {
			struct abi_mw *mw;
			uint32_t rkey;
			struct abi_mw_bind_info bind_info;
		} bind_mw;
	};
};

struct abi_wc {
	uint64_t wr_id;
	int status;
	int opcode;
	uint32_t vendor_err;
	uint32_t byte_len;
	uint32_t imm_data;
	uint32_t qp_num;
	uint32_t src_qp;
	unsigned int wc_flags;
	uint16_t pkey_index;
	uint16_t slid;
	uint8_t sl;
	uint8_t dlid_path_bits;
};

struct abi_qp_cap {
	uint32_t max_send_wr;
	uint32_t max_recv_wr;
	uint32_t max_send_sge;
	uint32_t max_recv_sge;
	uint32_t max_inline_data;
};

struct abi_qp_init_attr {
	void *qp_context;
	struct abi_cq *send_cq;
	struct abi_cq *recv_cq;
	void *srq;
	struct abi_qp_cap cap;
	int qp_type;
	int sq_sig_all;
};

union abi_gid {
	uint8_t raw[16];
	uint64_t words[2];
};

struct abi_global_route {
	union abi_gid dgid;
	uint32_t flow_label;
	uint8_t sgid_index;
	uint8_t hop_limit;
	uint8_t traffic_class;
};

struct abi_ah_attr {
	struct abi_global_route grh;
	uint16_t dlid;
	uint8_t sl;
	uint8_t src_path_bits;
	uint8_t static_rate;
	uint8_t is_global;
	uint8_t port_num;
};

struct abi_qp_attr {
	int qp_state;
	int cur_qp_state;
	int path_mtu;
	int path_mig_state;
	uint32_t qkey;
	uint32_t rq_psn;
	uint32_t sq_psn;
	uint32_t dest_qp_num;
	unsigned int qp_access_flags;
	struct abi_qp_cap cap;
	struct abi_ah_attr ah_attr;
	struct abi_ah_attr alt_ah_attr;
	uint16_t pkey_index;
	uint16_t alt_pkey_index;
	uint8_t en_sqd_async_notify;
	uint8_t sq_draining;
	uint8_t max_rd_atomic;
	uint8_t max_dest_rd_atomic;
	uint8_t min_rnr_timer;
	uint8_t port_num;
	uint8_t timeout;
	uint8_t retry_cnt;
	uint8_t rnr_retry;
	uint8_t alt_port_num;
	uint8_t alt_timeout;
	uint32_t rate_limit;
};

struct abi_device_attr {
	char fw_ver[64];
	uint64_t node_guid;
	uint64_t sys_image_guid;
	uint64_t max_mr_size;
	uint64_t page_size_cap;
	uint32_t vendor_id;
	uint32_t vendor_part_id;
	uint32_t hw_ver;
	int max_qp;
	int max_qp_wr;
	unsigned int device_cap_flags;
	int max_sge;
	int max_sge_rd;
	int max_cq;
	int max_cqe;
	int max_mr;
	int max_pd;
	int max_qp_rd_atom;
	int max_ee_rd_atom;
	int max_res_rd_atom;
	int max_qp_init_rd_atom;
	int max_ee_init_rd_atom;
	int atomic_cap;
	int max_ee;
	int max_rdd;
	int max_mw;
	int max_raw_ipv6_qp;
	int max_raw_ethy_qp;
	int max_mcast_grp;
	int max_mcast_qp_attach;
	int max_total_mcast_qp_attach;
	int max_ah;
	int max_fmr;
	int max_map_per_fmr;
	int max_srq;
	int max_srq_wr;
	int max_srq_sge;
	uint16_t max_pkeys;
	uint8_t local_ca_ack_delay;
	uint8_t phys_port_cnt;
};

/* ibv_query_port fills this in up to `flags`; newer libraries have one more field after it. */
struct abi_port_attr {
	int state;
	int max_mtu;
	int active_mtu;
	int gid_tbl_len;
	uint32_t port_cap_flags;
	uint32_t max_msg_sz;
	uint32_t bad_pkey_cntr;
	uint32_t qkey_viol_cntr;
	uint16_t pkey_tbl_len;
	uint16_t lid;
	uint16_t sm_lid;
	uint8_t lmc;
	uint8_t max_vl_num;
	uint8_t sm_sl;
	uint8_t subnet_timeout;
	uint8_t init_type_reply;
	uint8_t active_width;
	uint8_t active_speed;
	uint8_t phys_state;
	uint8_t link_layer;
	uint8_t flags;
	uint16_t port_cap_flags2;
};

struct abi_async_event {
	union {
		void *element;
		int port_num;
	} element;
	int event_type;
};

/* ---- the first fields of what the library makes ---- */

struct abi_context_ops {
	void *before_alloc_mw[7];
	struct abi_mw *(*alloc_mw)(struct abi_pd *pd, int type);
	void *bind_mw;
	int (*dealloc_mw)(struct abi_mw *mw);
	void *create_cq;
	int (*poll_cq)(struct abi_cq *cq, int entries, struct abi_wc *wc);
	void *before_post_send[13];
	int (*post_send)(struct abi_qp *qp, struct abi_send_wr *wr, struct abi_send_wr **bad);
	void *after_post_send[6];
};

struct abi_context {
	struct abi_device *device;
	struct abi_context_ops ops;
	int cmd_fd;
	int async_fd;
};

struct abi_pd {
	struct abi_context *context;
	uint32_t handle;
};

struct abi_cq {
	struct abi_context *context;
};

struct abi_mr {
	struct abi_context *context;
	struct abi_pd *pd;
	void *addr;
	size_t length;
	uint32_t handle;
	uint32_t lkey;
	uint32_t rkey;
};

struct abi_mw {
	struct abi_context *context;
	struct abi_pd *pd;
	uint32_t rkey;
	uint32_t handle;
	int type;
};

struct abi_qp {
	struct abi_context *context;
	void *qp_context;
	struct abi_pd *pd;
	struct abi_cq *send_cq;
	struct abi_cq *recv_cq;
	void *srq;
	uint32_t handle;
	uint32_t qp_num;
};

#endif
