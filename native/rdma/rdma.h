/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of leased-rdma and what they say to each other.
 *
 * Rule: every function that can fail returns 0 or -errno, and whoever was first to fail has said at
 * what (`failed`). Every wait has a limit.
 */
#ifndef LEASED_RDMA_H
#define LEASED_RDMA_H

#include "../clock.h"
#include "../rdma_protocol.h"
#include "abi.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- failure.c ---- */

int failed(const char *at, int error);
const char *failed_at(void);
void failure_forget(void);

/* ---- library.c: libibverbs, loaded at run time ---- */

struct library {
	struct abi_device **(*get_device_list)(int *count);
	void (*free_device_list)(struct abi_device **list);
	const char *(*get_device_name)(struct abi_device *device);
	struct abi_context *(*open_device)(struct abi_device *device);
	int (*close_device)(struct abi_context *context);
	int (*query_device)(struct abi_context *context, struct abi_device_attr *attr);
	int (*query_port)(struct abi_context *context, uint8_t port, struct abi_port_attr *attr);
	int (*query_gid)(struct abi_context *context, uint8_t port, int index, union abi_gid *gid);
	struct abi_pd *(*alloc_pd)(struct abi_context *context);
	int (*dealloc_pd)(struct abi_pd *pd);
	struct abi_mr *(*reg_mr_iova)(
		struct abi_pd *pd, void *at, size_t bytes, uint64_t iova, int access);
	int (*dereg_mr)(struct abi_mr *mr);
	struct abi_cq *(*create_cq)(
		struct abi_context *context, int entries, void *own, void *channel, int vector);
	int (*destroy_cq)(struct abi_cq *cq);
	struct abi_qp *(*create_qp)(struct abi_pd *pd, struct abi_qp_init_attr *attr);
	int (*modify_qp)(struct abi_qp *qp, struct abi_qp_attr *attr, int mask);
	int (*query_qp)(struct abi_qp *qp, struct abi_qp_attr *attr, int mask,
		struct abi_qp_init_attr *init);
	int (*destroy_qp)(struct abi_qp *qp);
	int (*get_async_event)(struct abi_context *context, struct abi_async_event *event);
	void (*ack_async_event)(struct abi_async_event *event);
};

extern struct library verbs;

int library_open(void);
struct abi_context *library_open_device(const char *name);

/* ---- endpoint.c: a device opened, with a domain, a completion queue and one port ---- */

struct endpoint {
	struct abi_context *context;
	struct abi_pd *pd;
	struct abi_cq *cq;
	struct abi_device_attr can;
	union abi_gid gid;
	uint8_t port;
	uint8_t gid_index;
	uint16_t lid;
	int mtu;     /* enum ibv_mtu of the port */
	bool routed; /* RoCE: peers are found by GID alone */
};

/* How long a queue pair waits for an answer, and how often it asks: 4.096 us << timeout. */
struct patience {
	uint8_t timeout;
	uint8_t retries;
};

int endpoint_open(struct endpoint *end, const struct leased_rdma_open *asked, uint32_t entries);
int endpoint_close(struct endpoint *end);
bool endpoint_windows(const struct endpoint *end);
int endpoint_make_qp(struct endpoint *end, uint32_t requests, int access, struct abi_qp **made);
int endpoint_connect_qp(struct endpoint *end, struct abi_qp *qp,
	const struct leased_rdma_connect *peer, uint32_t psn, struct patience patience);
int endpoint_end_qp(struct abi_qp *qp);
int endpoint_post(struct abi_qp *qp, struct abi_send_wr *wr);
int endpoint_wait(struct endpoint *end, uint64_t wr_id, uint64_t limit_ns, int *status);
int endpoint_mtu(const struct endpoint *end, uint32_t bytes);
uint32_t mtu_bytes(int mtu);
int random_psn(uint32_t *psn);

/* ---- region.c: what an owner owns ---- */

struct region {
	void *at;
	uint64_t bytes;
	struct abi_mr *mr;
};

struct peer {
	struct abi_qp *qp; /* NULL: a free place */
	struct abi_mw *window[LEASED_RDMA_REGIONS_MAX];
	uint32_t rkey[LEASED_RDMA_REGIONS_MAX];
	struct leased_rdma_connect is;
	uint32_t access;
};

struct owned {
	struct endpoint end;
	struct region region[LEASED_RDMA_REGIONS_MAX];
	struct peer peer[LEASED_RDMA_PEERS_MAX];
	uint32_t regions;
	uint32_t peers_max;
	uint32_t events;
	bool opened;
	bool windows;
};

int owned_open(struct owned *own, const struct leased_rdma_open *asked, const int *fds);
void owned_close(struct owned *own, struct leased_rdma_closed *told);
void owned_tell(struct owned *own, struct leased_rdma_state *told);
int peer_connect(struct owned *own, const struct leased_rdma_connect *asked,
	struct leased_rdma_connected *told);
int peer_disconnect(struct owned *own, uint32_t qp_number);
uint32_t peer_invalidate(struct owned *own, struct peer *peer, int *error);
int peer_end(struct peer *peer);

/* ---- packets.c ---- */

struct packet {
	struct leased_rdma_header header;
	char body[LEASED_RDMA_PACKET_BYTES_MAX - sizeof(struct leased_rdma_header)];
	size_t bytes; /* of the body */
	int fd[LEASED_RDMA_REGIONS_MAX];
	uint32_t fds;
};

int packet_receive(int sock, struct packet *packet);
void packet_close_fds(struct packet *packet);
int packet_answer(int sock, const struct packet *asked, int rc, const void *body, size_t bytes);

/* ---- confinement.c ---- */

int confine(int procs_fd, uint64_t pinned_bytes);
int detach(int control, int door);

/* ---- the programs ---- */

int own(int control, int door);
int probe(int control);
int look(const char *device);

#endif
