/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether native/rdma/abi.h says what the real <infiniband/verbs.h> says: compiled, never run. It
 * does not compile where one offset, size or constant differs.
 */
#include "../../rdma/abi.h"

#include <infiniband/verbs.h>

#define SAME_PLACE(name, field)                                                                    \
	_Static_assert(offsetof(struct abi_##name, field) == offsetof(struct ibv_##name, field),   \
		#name "." #field)
#define SAME_SIZE(name)                                                                            \
	_Static_assert(sizeof(struct abi_##name) == sizeof(struct ibv_##name), #name)
#define SAME_VALUE(name) _Static_assert((int)ABI_##name == (int)IBV_##name, #name)

SAME_SIZE(sge);
SAME_PLACE(sge, addr);
SAME_PLACE(sge, length);
SAME_PLACE(sge, lkey);

SAME_SIZE(mw_bind_info);
SAME_PLACE(mw_bind_info, mr);
SAME_PLACE(mw_bind_info, addr);
SAME_PLACE(mw_bind_info, length);
SAME_PLACE(mw_bind_info, mw_access_flags);

SAME_SIZE(send_wr);
SAME_PLACE(send_wr, wr_id);
SAME_PLACE(send_wr, next);
SAME_PLACE(send_wr, sg_list);
SAME_PLACE(send_wr, num_sge);
SAME_PLACE(send_wr, opcode);
SAME_PLACE(send_wr, send_flags);
SAME_PLACE(send_wr, invalidate_rkey);
SAME_PLACE(send_wr, wr.rdma.remote_addr);
SAME_PLACE(send_wr, wr.rdma.rkey);
SAME_PLACE(send_wr, wr.atomic.rkey);
SAME_PLACE(send_wr, bind_mw.mw);
SAME_PLACE(send_wr, bind_mw.rkey);
SAME_PLACE(send_wr, bind_mw.bind_info);

SAME_SIZE(wc);
SAME_PLACE(wc, wr_id);
SAME_PLACE(wc, status);
SAME_PLACE(wc, opcode);
SAME_PLACE(wc, vendor_err);
SAME_PLACE(wc, byte_len);
SAME_PLACE(wc, imm_data);
SAME_PLACE(wc, qp_num);
SAME_PLACE(wc, src_qp);
SAME_PLACE(wc, wc_flags);
SAME_PLACE(wc, pkey_index);
SAME_PLACE(wc, slid);
SAME_PLACE(wc, sl);
SAME_PLACE(wc, dlid_path_bits);

SAME_SIZE(qp_cap);
SAME_PLACE(qp_cap, max_send_wr);
SAME_PLACE(qp_cap, max_recv_wr);
SAME_PLACE(qp_cap, max_send_sge);
SAME_PLACE(qp_cap, max_recv_sge);
SAME_PLACE(qp_cap, max_inline_data);

SAME_SIZE(qp_init_attr);
SAME_PLACE(qp_init_attr, qp_context);
SAME_PLACE(qp_init_attr, send_cq);
SAME_PLACE(qp_init_attr, recv_cq);
SAME_PLACE(qp_init_attr, srq);
SAME_PLACE(qp_init_attr, cap);
SAME_PLACE(qp_init_attr, qp_type);
SAME_PLACE(qp_init_attr, sq_sig_all);

SAME_SIZE(global_route);
SAME_PLACE(global_route, dgid);
SAME_PLACE(global_route, flow_label);
SAME_PLACE(global_route, sgid_index);
SAME_PLACE(global_route, hop_limit);
SAME_PLACE(global_route, traffic_class);

SAME_SIZE(ah_attr);
SAME_PLACE(ah_attr, grh);
SAME_PLACE(ah_attr, dlid);
SAME_PLACE(ah_attr, sl);
SAME_PLACE(ah_attr, src_path_bits);
SAME_PLACE(ah_attr, static_rate);
SAME_PLACE(ah_attr, is_global);
SAME_PLACE(ah_attr, port_num);

SAME_SIZE(qp_attr);
SAME_PLACE(qp_attr, qp_state);
SAME_PLACE(qp_attr, cur_qp_state);
SAME_PLACE(qp_attr, path_mtu);
SAME_PLACE(qp_attr, path_mig_state);
SAME_PLACE(qp_attr, qkey);
SAME_PLACE(qp_attr, rq_psn);
SAME_PLACE(qp_attr, sq_psn);
SAME_PLACE(qp_attr, dest_qp_num);
SAME_PLACE(qp_attr, qp_access_flags);
SAME_PLACE(qp_attr, cap);
SAME_PLACE(qp_attr, ah_attr);
SAME_PLACE(qp_attr, alt_ah_attr);
SAME_PLACE(qp_attr, pkey_index);
SAME_PLACE(qp_attr, alt_pkey_index);
SAME_PLACE(qp_attr, en_sqd_async_notify);
SAME_PLACE(qp_attr, sq_draining);
SAME_PLACE(qp_attr, max_rd_atomic);
SAME_PLACE(qp_attr, max_dest_rd_atomic);
SAME_PLACE(qp_attr, min_rnr_timer);
SAME_PLACE(qp_attr, port_num);
SAME_PLACE(qp_attr, timeout);
SAME_PLACE(qp_attr, retry_cnt);
SAME_PLACE(qp_attr, rnr_retry);
SAME_PLACE(qp_attr, alt_port_num);
SAME_PLACE(qp_attr, alt_timeout);
SAME_PLACE(qp_attr, rate_limit);

SAME_SIZE(device_attr);
SAME_PLACE(device_attr, fw_ver);
SAME_PLACE(device_attr, node_guid);
SAME_PLACE(device_attr, max_mr_size);
SAME_PLACE(device_attr, max_qp);
SAME_PLACE(device_attr, device_cap_flags);
SAME_PLACE(device_attr, max_mr);
SAME_PLACE(device_attr, max_pd);
SAME_PLACE(device_attr, max_qp_rd_atom);
SAME_PLACE(device_attr, atomic_cap);
SAME_PLACE(device_attr, max_mw);
SAME_PLACE(device_attr, max_srq_sge);
SAME_PLACE(device_attr, max_pkeys);
SAME_PLACE(device_attr, phys_port_cnt);

SAME_SIZE(async_event);
SAME_PLACE(async_event, element);
SAME_PLACE(async_event, event_type);

SAME_SIZE(context_ops);
SAME_PLACE(port_attr, state);
SAME_PLACE(port_attr, max_mtu);
SAME_PLACE(port_attr, active_mtu);
SAME_PLACE(port_attr, gid_tbl_len);
SAME_PLACE(port_attr, port_cap_flags);
SAME_PLACE(port_attr, max_msg_sz);
SAME_PLACE(port_attr, pkey_tbl_len);
SAME_PLACE(port_attr, lid);
SAME_PLACE(port_attr, sm_lid);
SAME_PLACE(port_attr, link_layer);
SAME_PLACE(port_attr, flags);

SAME_PLACE(context_ops, alloc_mw);
SAME_PLACE(context_ops, bind_mw);
SAME_PLACE(context_ops, dealloc_mw);
SAME_PLACE(context_ops, poll_cq);
SAME_PLACE(context_ops, post_send);

SAME_PLACE(context, device);
SAME_PLACE(context, ops);
SAME_PLACE(context, cmd_fd);
SAME_PLACE(context, async_fd);

SAME_PLACE(pd, context);
SAME_PLACE(pd, handle);

SAME_PLACE(cq, context);

SAME_PLACE(mr, context);
SAME_PLACE(mr, pd);
SAME_PLACE(mr, addr);
SAME_PLACE(mr, length);
SAME_PLACE(mr, handle);
SAME_PLACE(mr, lkey);
SAME_PLACE(mr, rkey);

SAME_PLACE(mw, context);
SAME_PLACE(mw, pd);
SAME_PLACE(mw, rkey);
SAME_PLACE(mw, handle);
SAME_PLACE(mw, type);

SAME_PLACE(qp, context);
SAME_PLACE(qp, qp_context);
SAME_PLACE(qp, pd);
SAME_PLACE(qp, send_cq);
SAME_PLACE(qp, recv_cq);
SAME_PLACE(qp, srq);
SAME_PLACE(qp, handle);
SAME_PLACE(qp, qp_num);

_Static_assert(sizeof(union abi_gid) == sizeof(union ibv_gid), "gid");
/* The library writes no further than its own struct. */
_Static_assert(sizeof(struct abi_port_attr) >= sizeof(struct ibv_port_attr), "port_attr");

SAME_VALUE(QPT_RC);
SAME_VALUE(QPS_INIT);
SAME_VALUE(QPS_RTR);
SAME_VALUE(QPS_RTS);
SAME_VALUE(QPS_SQE);
SAME_VALUE(QPS_ERR);
SAME_VALUE(ACCESS_LOCAL_WRITE);
SAME_VALUE(ACCESS_REMOTE_WRITE);
SAME_VALUE(ACCESS_REMOTE_READ);
SAME_VALUE(ACCESS_REMOTE_ATOMIC);
SAME_VALUE(ACCESS_MW_BIND);
SAME_VALUE(WR_RDMA_READ);
SAME_VALUE(WR_LOCAL_INV);
SAME_VALUE(WR_BIND_MW);
SAME_VALUE(SEND_SIGNALED);
SAME_VALUE(WC_SUCCESS);
SAME_VALUE(MW_TYPE_2);
SAME_VALUE(ATOMIC_NONE);
SAME_VALUE(QP_STATE);
SAME_VALUE(QP_ACCESS_FLAGS);
SAME_VALUE(QP_PKEY_INDEX);
SAME_VALUE(QP_PORT);
SAME_VALUE(QP_AV);
SAME_VALUE(QP_PATH_MTU);
SAME_VALUE(QP_TIMEOUT);
SAME_VALUE(QP_RETRY_CNT);
SAME_VALUE(QP_RNR_RETRY);
SAME_VALUE(QP_RQ_PSN);
SAME_VALUE(QP_MAX_QP_RD_ATOMIC);
SAME_VALUE(QP_MIN_RNR_TIMER);
SAME_VALUE(QP_SQ_PSN);
SAME_VALUE(QP_MAX_DEST_RD_ATOMIC);
SAME_VALUE(QP_DEST_QPN);
SAME_VALUE(EVENT_DEVICE_FATAL);
SAME_VALUE(DEVICE_MEM_WINDOW_TYPE_2B);
