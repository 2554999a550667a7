/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent and the reaper say to each other on <runtime dir>/reaper.sock, a SOCK_SEQPACKET
 * unix socket.
 *
 * Rule: one request is one packet: a header, then `count` entries of one fixed size. All integers
 * are little-endian, all times CLOCK_BOOTTIME ns. A reply carries the request's serial and kind |
 * LEASED_REAPER_REPLY. The version is checked in every packet.
 * agent/leased/service/reaper/protocol.py says the same in Python, and a test compares them.
 *
 * Requests, each with its reply (clang-format leaves this table alone):
 *
 *   PING    no entry           one pong
 *   ARM     arm entries + fds  count x int32, the slot on the board or -errno. Descriptors per
 *                              entry: the pidfd if any, then memfds
 *   RENEW   renew entries      count x int32 (0 or -errno)
 *   REVOKE  revoke entries     count x int32, then each report in a CUT packet as its cut ends
 *   DISARM  16-byte ids        count x int32 (0 also when there was no such lease)
 *   LIST    one list request   list entries with their descriptors; header.status is the next
 *                              cursor, 0 at the end
 *   BOARD   no entry           no entry, and a descriptor of the board (below)
 *
 * CUT packets (serial 0) come by themselves, to the connection that sent the REVOKE last; of a cut
 * at the deadline that nobody asked for, to the one that sent the ARM last. A REVOKE also claims
 * the lease: while its connection is heard of, the backstop leaves the memory to the agent, until
 * that has been told of a cut that is not clean. What cannot be understood is answered by ERROR, or
 * the connection is closed.
 *
 * Statuses: -ETIME the cut has begun, or the deadline has passed; -ESTALE an older or equal
 * generation; -ERANGE beyond the horizon; -ENOENT no such lease; -ENOSPC the table is full; -EMFILE
 * descriptors are short; -EINVAL, -EBADF, -EPERM a descriptor or field is not what it must be;
 * -EEXIST the lease has another cgroup; -ENODEV an object that could not be revoked here.
 */
#ifndef LEASED_REAPER_PROTOCOL_H
#define LEASED_REAPER_PROTOCOL_H

#include <stdint.h>

#define LEASED_REAPER_MAGIC   UINT32_C(0x3152504c) /* "LPR1" */
#define LEASED_REAPER_VERSION 3

#define LEASED_REAPER_ID_BYTES         16
#define LEASED_REAPER_CGROUP_BYTES     280
#define LEASED_REAPER_MEMFDS_MAX       16
#define LEASED_REAPER_OBJECTS_MAX      16
#define LEASED_REAPER_STEPS_MAX        8
#define LEASED_REAPER_PACKET_BYTES_MAX 65536
#define LEASED_REAPER_FDS_MAX          250

enum leased_reaper_kind {
	LEASED_REAPER_PING = 1,
	LEASED_REAPER_ARM = 2,
	LEASED_REAPER_RENEW = 3,
	LEASED_REAPER_REVOKE = 4,
	LEASED_REAPER_DISARM = 5,
	LEASED_REAPER_LIST = 6,
	LEASED_REAPER_BOARD = 7,
	LEASED_REAPER_CUT = 0x40,
	LEASED_REAPER_ERROR = 0x7f,
	LEASED_REAPER_REPLY = 0x80,
};

enum leased_reaper_phase {
	LEASED_REAPER_FREE = 0,
	LEASED_REAPER_ARMED = 1,
	LEASED_REAPER_CUTTING = 2,
	LEASED_REAPER_ENDED = 3,
};

/*
 * An object gives access by itself, to whoever holds it and wherever that is, and is taken back
 * besides killing: at the cut the reaper revokes it, and a cut whose object could not be revoked is
 * not clean. DM: the device-mapper device whose uuid is "LEASED-<lease id in hex>-<number>" gets
 * the error target, and its key is wiped. An ARM that names a kind we do not know is refused.
 */
enum leased_reaper_object_kind {
	LEASED_REAPER_OBJECT_DM = 1,
};

struct leased_reaper_object {
	uint16_t kind;
	uint16_t number;
	uint32_t reserved;
};

/* Revoke flags. SPARE_HOLDER: the holder gave the lease back by itself, so its process is left
 * alone (its memory is truncated all the same, and its leaf cgroup killed). */
#define LEASED_REAPER_SPARE_HOLDER 1u

/* Report flags. */
#define LEASED_REAPER_CLEAN     1u /* everybody is gone, every object revoked */
#define LEASED_REAPER_BY_REAPER 2u /* begun by the reaper at the deadline, not on request */
#define LEASED_REAPER_BACKSTOP  4u /* the backstop overwrote and truncated the memory */

/* Pong flags. */
#define LEASED_REAPER_HAS_FILTER        1u
#define LEASED_REAPER_HAS_LOCKED_MEMORY 2u
#define LEASED_REAPER_HAS_FD_STORE      4u

/* Step numbers are terms.teardown.TeardownStep. */
enum leased_reaper_step {
	LEASED_REAPER_STEP_DENY = 2,
	LEASED_REAPER_STEP_FREEZE = 3,
	LEASED_REAPER_STEP_OBJECT_REVOKE = 4,
	LEASED_REAPER_STEP_KILL = 5,
	LEASED_REAPER_STEP_SCRUB = 8,
	LEASED_REAPER_STEP_READ_BACK = 9,
	LEASED_REAPER_STEP_TRUNCATE = 10,
	LEASED_REAPER_STEP_KEY = 16,
};

struct leased_reaper_header {
	uint32_t magic;
	uint16_t version;
	uint16_t kind;
	uint32_t serial;
	uint32_t count;
	int32_t status;
	uint32_t reserved;
	uint64_t boot_ns; /* replies: when the packet was handled */
};

struct leased_reaper_arm {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint64_t generation;
	uint64_t deadline_ns;
	uint8_t has_pidfd;
	uint8_t memfds;
	uint8_t objects;
	uint8_t reserved[5];
	char cgroup[LEASED_REAPER_CGROUP_BYTES]; /* absolute path, NUL-terminated; "" for none */
	struct leased_reaper_object object[LEASED_REAPER_OBJECTS_MAX];
};

struct leased_reaper_renew {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint64_t generation;
	uint64_t deadline_ns;
};

struct leased_reaper_revoke {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint32_t flags;
	uint32_t reserved;
};

struct leased_reaper_list {
	uint32_t cursor;
	uint32_t with_fds;
};

struct leased_reaper_step_report {
	uint32_t step;
	int32_t error; /* 0 or an errno */
	uint64_t began_ns;
	uint64_t ended_ns;
	uint64_t measured;
};

struct leased_reaper_report {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint64_t cut_ns; /* from when on nobody had access; when we gave up, if that is not so */
	uint32_t flags;
	uint32_t steps;
	struct leased_reaper_step_report step[LEASED_REAPER_STEPS_MAX];
};

struct leased_reaper_listed {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint64_t generation;
	uint64_t deadline_ns;
	uint32_t slot;
	uint32_t objects;
	int32_t pid;
	uint8_t phase;
	uint8_t has_pidfd; /* descriptors that came with this entry */
	uint8_t memfds;
	uint8_t memfds_missing; /* lost when an earlier reaper died and not armed again since */
	char cgroup[LEASED_REAPER_CGROUP_BYTES];
	struct leased_reaper_object object[LEASED_REAPER_OBJECTS_MAX];
	struct leased_reaper_report report; /* meaningful in phase ENDED */
};

/*
 * The board: the deadline of every armed lease, in memory that the reaper and the agent share, so
 * that a renewal is one compare-and-swap and no trip. A dial is 0 while its slot is free; its top
 * bit is set when the cut begins, and never taken back while the lease is there. An agent that
 * finds anything but the deadline it knows asks by RENEW; an earlier deadline always goes by RENEW.
 */
#define LEASED_REAPER_BOARD_MAGIC UINT32_C(0x4252504c) /* "LPRB" */
#define LEASED_REAPER_CUT_BEGUN   (UINT64_C(1) << 63)

struct leased_reaper_dial {
	uint64_t deadline_ns;
	uint64_t generation;
};

struct leased_reaper_board {
	uint32_t magic;
	uint32_t slots;
	uint8_t boot_id[LEASED_REAPER_ID_BYTES];
	uint64_t horizon_ns;
	uint64_t reserved[4];
	struct leased_reaper_dial dial[];
};

struct leased_reaper_pong {
	uint8_t boot_id[LEASED_REAPER_ID_BYTES];
	uint64_t started_ns;
	uint64_t horizon_ns;
	uint32_t pid;
	uint32_t slots;
	uint32_t slots_used;
	uint32_t slots_corrupt;
	uint32_t flags;
	uint32_t reserved;
};

_Static_assert(sizeof(struct leased_reaper_header) == 32, "header");
_Static_assert(sizeof(struct leased_reaper_object) == 8, "object");
_Static_assert(sizeof(struct leased_reaper_arm) == 448, "arm");
_Static_assert(sizeof(struct leased_reaper_renew) == 32, "renew");
_Static_assert(sizeof(struct leased_reaper_revoke) == 24, "revoke");
_Static_assert(sizeof(struct leased_reaper_list) == 8, "list");
_Static_assert(sizeof(struct leased_reaper_step_report) == 32, "step");
_Static_assert(sizeof(struct leased_reaper_report) == 288, "report");
_Static_assert(sizeof(struct leased_reaper_listed) == 744, "listed");
_Static_assert(sizeof(struct leased_reaper_board) == 64, "board");
_Static_assert(sizeof(struct leased_reaper_pong) == 56, "pong");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs are the wire format");

#endif
