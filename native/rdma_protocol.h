/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent's device worker and leased-rdma say to each other on a SOCK_SEQPACKET socketpair.
 *
 * Rule: one request is one packet, a header and one struct; one answer to each, with the request's
 * serial and its kind | LEASED_RDMA_REPLY. All integers are little-endian, all times CLOCK_BOOTTIME
 * ns, GIDs and GUIDs in network order as the kernel prints them. An answer whose `error` is not 0
 * is the header and the text of what failed. The version is checked in every packet.
 * agent/leased/hardware/rdma/protocol.py says the same in Python, and a test compares them.
 *
 * To an owner (it keeps both ends of its socketpair, and its answers wait in it for whoever takes
 * the door with pidfd_getfd):
 *   OPEN        open + memfds   -> state       register the memory; once
 *   CONNECT     connect         -> connected   a queue pair for one remote peer
 *   DISCONNECT  disconnect      -> nothing
 *   STATE       nothing         -> state
 *   CLOSE       nothing         -> closed      end everything in order, and exit
 * To a prober (it ends when the other end closes):
 *   REACH       open            -> reach       a queue pair of its own
 *   MEET        connect         -> nothing     connect it to the owner's
 *   READ        read            -> done        one RDMA read
 */
#ifndef LEASED_RDMA_PROTOCOL_H
#define LEASED_RDMA_PROTOCOL_H

#include <stdint.h>

#define LEASED_RDMA_MAGIC   UINT32_C(0x3144524c) /* "LRD1" */
#define LEASED_RDMA_VERSION 1

#define LEASED_RDMA_DEVICE_BYTES     64
#define LEASED_RDMA_GID_BYTES        16
#define LEASED_RDMA_REGIONS_MAX      16
#define LEASED_RDMA_PEERS_MAX        64
#define LEASED_RDMA_STEPS_MAX        8
#define LEASED_RDMA_PACKET_BYTES_MAX 8192
#define LEASED_RDMA_READ_BYTES_MAX   4096

enum leased_rdma_kind {
	LEASED_RDMA_OPEN = 1,
	LEASED_RDMA_CONNECT = 2,
	LEASED_RDMA_DISCONNECT = 3,
	LEASED_RDMA_STATE = 4,
	LEASED_RDMA_CLOSE = 5,
	LEASED_RDMA_REACH = 16,
	LEASED_RDMA_MEET = 17,
	LEASED_RDMA_READ = 18,
	LEASED_RDMA_REPLY = 0x80,
};

/* What a peer may do. */
#define LEASED_RDMA_MAY_READ   1u
#define LEASED_RDMA_MAY_WRITE  2u
#define LEASED_RDMA_MAY_ATOMIC 4u

enum leased_rdma_step {
	LEASED_RDMA_STEP_WINDOWS = 1, /* invalidated; measured: those whose completion said so */
	LEASED_RDMA_STEP_QUEUES = 2,  /* in the error state; measured: queue pairs */
	LEASED_RDMA_STEP_REGIONS = 3, /* deregistered; measured: bytes */
	LEASED_RDMA_STEP_DEVICE = 4,  /* protection domain and device given up */
};

struct leased_rdma_header {
	uint32_t magic;
	uint16_t version;
	uint16_t kind;
	uint32_t serial;
	int32_t error; /* answers: 0 or an errno */
};

struct leased_rdma_open {
	char device[LEASED_RDMA_DEVICE_BYTES];
	uint32_t port;
	uint32_t gid_index;
	uint32_t peers_max;
	uint32_t windows; /* 1: one memory window per peer where the device can */
	uint32_t regions; /* as many memfds come along */
	uint32_t reserved;
	uint64_t bytes[LEASED_RDMA_REGIONS_MAX];
};

struct leased_rdma_region {
	uint64_t address; /* what a peer calls its first byte */
	uint64_t bytes;
};

struct leased_rdma_peer {
	uint8_t gid[LEASED_RDMA_GID_BYTES];
	uint32_t qp_number; /* ours */
	uint32_t peer_qp_number;
	uint32_t state; /* of our queue pair, enum ibv_qp_state */
	uint32_t access;
};

struct leased_rdma_state {
	int32_t pid;
	uint32_t windows; /* 1: peers reach the memory through windows only */
	uint8_t gid[LEASED_RDMA_GID_BYTES];
	uint32_t lid;
	uint32_t mtu_bytes;
	uint32_t regions;
	uint32_t peers;
	uint32_t events; /* asynchronous events of the device so far */
	uint32_t reserved;
	struct leased_rdma_region region[LEASED_RDMA_REGIONS_MAX];
	struct leased_rdma_peer peer[LEASED_RDMA_PEERS_MAX];
};

struct leased_rdma_connect {
	uint8_t gid[LEASED_RDMA_GID_BYTES];
	uint32_t lid;
	uint32_t qp_number;
	uint32_t psn;
	uint32_t mtu_bytes; /* the largest that the peer takes; 0: ours */
	uint32_t access;
	uint32_t reserved;
};

struct leased_rdma_connected {
	uint32_t qp_number;
	uint32_t psn;
	uint32_t mtu_bytes;
	uint32_t access;
	uint32_t rkey[LEASED_RDMA_REGIONS_MAX];
};

struct leased_rdma_disconnect {
	uint32_t qp_number;
	uint32_t reserved;
};

struct leased_rdma_step_report {
	uint32_t step;
	int32_t error;
	uint64_t began_ns;
	uint64_t ended_ns;
	uint64_t measured;
};

struct leased_rdma_closed {
	uint32_t steps;
	uint32_t reserved;
	struct leased_rdma_step_report step[LEASED_RDMA_STEPS_MAX];
};

struct leased_rdma_reach {
	uint8_t gid[LEASED_RDMA_GID_BYTES];
	uint32_t lid;
	uint32_t qp_number;
	uint32_t psn;
	uint32_t mtu_bytes;
};

struct leased_rdma_read {
	uint64_t address;
	uint32_t rkey;
	uint32_t bytes;
	uint32_t timeout_ms;
	uint32_t reserved;
};

struct leased_rdma_done {
	uint32_t status; /* enum ibv_wc_status; 0: the read went through */
	uint32_t reserved;
	uint64_t took_ns;
};

_Static_assert(sizeof(struct leased_rdma_header) == 16, "header");
_Static_assert(sizeof(struct leased_rdma_open) == 216, "open");
_Static_assert(sizeof(struct leased_rdma_state) == 48 + 16 * 16 + 64 * 32, "state");
_Static_assert(sizeof(struct leased_rdma_connect) == 40, "connect");
_Static_assert(sizeof(struct leased_rdma_connected) == 80, "connected");
_Static_assert(sizeof(struct leased_rdma_closed) == 264, "closed");
_Static_assert(sizeof(struct leased_rdma_reach) == 32, "reach");
_Static_assert(sizeof(struct leased_rdma_read) == 24, "read");
_Static_assert(sizeof(struct leased_rdma_done) == 16, "done");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs are the wire format");

#endif
