/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs: the only C that touches memory, cgroups, device filters and processes for leased. Two
 * doors open onto them: the cffi extension leased._native and the reaper binary.
 *
 * Rule: every verb returns 0 or a value >= 0 on success and -errno on failure, takes its arguments
 * by value or in the caller's buffer, allocates nothing (the committer, which owns a thread,
 * excepted), logs nothing and keeps no pointer. Every wait has a limit in ms.
 *
 * Does not decide anything: when to cut and what to fence is the reaper's and the agent's business.
 */
#ifndef LEASED_VERBS_H
#define LEASED_VERBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LEASED_ABI 1

/* ---- memory (verbs/memory.c) ---- */

int leased_mem_create(
	const char *name, uint64_t bytes, uint64_t hugepage_bytes, int node, int *fd_out);
int leased_mem_truncate(int fd, uint64_t *blocks_left);
int leased_mem_blocks(int fd, uint64_t *blocks);

/* ---- scrubbing (verbs/scrub.c) ---- */

int leased_mem_scrub(
	int fd, uint64_t from, uint64_t bytes, uint64_t *overwritten, uint64_t *residue);
int leased_dax_scrub(
	int fd, uint64_t from, uint64_t bytes, uint64_t *overwritten, uint64_t *residue);
int leased_dax_look(int fd, uint64_t from, uint64_t bytes, uint64_t *residue);

/* ---- cgroup (verbs/cgroup.c): dirfd is the leaf's directory ---- */

int leased_cgroup_freeze(int dirfd);
int leased_cgroup_kill_begin(int dirfd);
int leased_cgroup_hasten(int dirfd);
int leased_cgroup_kill(int dirfd, uint32_t timeout_ms);
int leased_cgroup_populated(int dirfd);
int leased_cgroup_events_open(int dirfd);
int leased_cgroup_events_populated(int events_fd);

/* ---- device filter (verbs/filter.c) ---- */

#define LEASED_DEVICE_BLOCK     1u
#define LEASED_DEVICE_CHAR      2u
#define LEASED_DEVICE_MKNOD     1u
#define LEASED_DEVICE_READ      2u
#define LEASED_DEVICE_WRITE     4u
#define LEASED_DEVICE_ANY_MINOR 0xffffffffu
#define LEASED_DEVICE_RULES_MAX 400u

struct leased_device_rule {
	uint32_t type;   /* LEASED_DEVICE_BLOCK or _CHAR */
	uint32_t access; /* LEASED_DEVICE_MKNOD | _READ | _WRITE */
	uint32_t major;
	uint32_t minor; /* or LEASED_DEVICE_ANY_MINOR */
};

int leased_filter_load(const struct leased_device_rule *rules, uint32_t n);
int leased_filter_attach(int cgroup_fd, int prog_fd);
int leased_filter_deny(int cgroup_fd);

/* ---- processes (verbs/process.c) ---- */

int leased_pidfd_open(int pid);
int leased_pidfd_kill_begin(int pidfd);
int leased_pidfd_kill(int pidfd, uint32_t timeout_ms);
int leased_pidfd_take(int pidfd, int number);
int leased_tracer_of(int tid);
int leased_threads(int pid, int *tids, int most);
int leased_process_over(int pid);
int leased_die_with_parent(void);

/* ---- device nodes (verbs/nodes.c) ---- */

int leased_node_char(const char *path, uint32_t *major, uint32_t *minor);
int leased_node_block(const char *path, uint32_t *major, uint32_t *minor);
int leased_node_named(
	const char *root, const char *path, uint32_t type, uint32_t *major, uint32_t *minor);

struct leased_node {
	uint32_t major;
	uint32_t minor;
};

int leased_node_search(const char *path, uint32_t type, const struct leased_node *nodes,
	uint8_t *found, uint32_t n, int32_t *rings, uint32_t rings_max);
int leased_files_shared(int tid, int other);

/* ---- the reaper's board (verbs/board.c) ---- */

int leased_board_renew(void *board, size_t bytes, uint32_t slot, uint64_t known_ns,
	uint64_t deadline_ns, uint64_t generation);

/* ---- device-mapper (verbs/dm.c, verbs/crypt.c): mappings by uuid ---- */

#define LEASED_DM_NAME_BYTES 128u
#define LEASED_DM_UUID_BYTES 129u

struct leased_dm_mapping {
	uint64_t sectors;
	uint32_t major;
	uint32_t minor;
	uint32_t open_count;
	uint32_t targets;
	uint8_t suspended;
	uint8_t inactive; /* another table waits for the next resume */
	char target[16];
	char name[LEASED_DM_NAME_BYTES];
};

int leased_dm_open(void);
int leased_dm_create(
	int control, const char *name, const char *uuid, uint32_t *major, uint32_t *minor);
int leased_dm_load(int control, const char *uuid, uint64_t sectors, const char *target,
	const char *parameters, int secret);
int leased_dm_load_crypt(int control, const char *uuid, uint64_t sectors, const char *cipher,
	uint32_t key_bytes, uint32_t major, uint32_t minor, const char *options);
int leased_dm_resume(int control, const char *uuid);
int leased_dm_suspend(int control, const char *uuid);
int leased_dm_describe(
	int control, const char *uuid, int inactive, struct leased_dm_mapping *mapping);
int leased_dm_below(int control, const char *uuid, uint64_t *devices, uint32_t room);
int leased_dm_remove(int control, const char *uuid, uint32_t timeout_ms, int later);
int leased_dm_list(int control, const char *prefix, void *room, size_t room_bytes, char *into,
	size_t into_bytes);
int leased_dm_cut(int control, const char *uuid, int *key, uint64_t *ended_ns);

/* ---- NVMe and block devices (verbs/nvme.c): -errno, 0, or above 0 the drive's status ---- */

#define LEASED_NVME_PAGE_BYTES 4096u

struct leased_block_device {
	uint64_t bytes;
	uint32_t lba_bytes;
	uint32_t read_only;
};

int leased_nvme_identify(int fd, uint32_t nsid, uint32_t cns, void *page, uint32_t timeout_ms);
int leased_nvme_log(
	int fd, uint32_t nsid, uint32_t log, void *into, uint32_t bytes, uint32_t timeout_ms);
int leased_nvme_format(int fd, uint32_t nsid, uint32_t lbaf, uint32_t ses, uint32_t timeout_ms);
int leased_nvme_sanitize(int fd, uint32_t action, uint32_t timeout_ms);
int leased_nvme_create_namespace(
	int fd, uint64_t blocks, uint32_t lbaf, int shared, uint32_t *nsid, uint32_t timeout_ms);
int leased_nvme_delete_namespace(int fd, uint32_t nsid, uint32_t timeout_ms);
int leased_nvme_attach_namespace(int fd, uint32_t nsid, int attach, const uint16_t *controllers,
	uint32_t count, uint32_t timeout_ms);
int leased_nvme_rescan(int fd);
int leased_block_measure(int fd, struct leased_block_device *device);
int leased_block_flush(int fd);
int leased_block_zero(int fd, uint64_t offset, uint64_t bytes);
int leased_loop_behind(int fd, uint64_t *device);

/* ---- committer (verbs/committer.c) ---- */

#define LEASED_STAGE_IDLE        0
#define LEASED_STAGE_APPEND      1
#define LEASED_STAGE_APPEND_SYNC 2
#define LEASED_STAGE_ANCHOR      3
#define LEASED_STAGE_ANCHOR_SYNC 4
#define LEASED_STAGE_DONE        5

struct leased_committer;

struct leased_committer *leased_committer_new(int event_fd);
int leased_committer_submit(struct leased_committer *committer, int seg_fd, const void *buf,
	size_t len, uint64_t off, int anchor_fd, const void *slot, size_t slot_len,
	uint64_t slot_off);
int leased_committer_run(struct leased_committer *committer, int seg_fd, const void *buf,
	size_t len, uint64_t off, int anchor_fd, const void *slot, size_t slot_len,
	uint64_t slot_off, int *stage);
int leased_committer_result(struct leased_committer *committer, int *stage);
void leased_committer_free(struct leased_committer *committer);

/* ---- the chain (verbs/chain.c): the caller's arrays have room for `most` or `count` ---- */

#define LEASED_HASH_BYTES   32u
#define LEASED_PREFIX_BYTES 27u
#define LEASED_KINDS        256u
#define LEASED_SCHEMAS      2u /* of a kind, that bodies and strides know */

struct leased_shape;

struct leased_stride {
	const struct leased_shape *shapes; /* NULL: bodies are not looked at */
	const uint32_t *roots; /* [LEASED_SCHEMAS][LEASED_KINDS] shape of a body; 0: none */
	uint64_t offset; /* of the next record, of sequence `sequence` */
	uint64_t sequence;
	uint64_t batch;
	uint64_t boot_ns;
	uint64_t limit_ns; /* a record of this boot clock or later is not plain */
	uint8_t open;      /* the batch goes on */
	uint8_t head[LEASED_HASH_BYTES];
	uint8_t prefix[LEASED_PREFIX_BYTES];
	uint8_t plain[LEASED_KINDS]; /* bit n - 1: in schema n the kind needs no thought */
};

#define LEASED_SHAPE_INTEGER 1u
#define LEASED_SHAPE_ENUM    2u
#define LEASED_SHAPE_BOOL    3u
#define LEASED_SHAPE_BYTES   4u
#define LEASED_SHAPE_TEXT    5u
#define LEASED_SHAPE_FIELDS  6u
#define LEASED_SHAPE_LIST    7u
#define LEASED_SHAPE_AMOUNT  8u /* an integer from 0 to the most there can be */

struct leased_shape {
	uint64_t members; /* of an enum: a bit for each of its values; of an amount: the most */
	uint32_t first;   /* of fields: where they begin; of a list: what it is of */
	uint16_t count;   /* of fields: how many; of bytes: how many exactly, 0 any */
	uint8_t what;
	uint8_t nil; /* may be nil */
};

size_t leased_chain_stride(struct leased_stride *at, const uint8_t *data, size_t size, size_t most,
	uint64_t *offsets, uint16_t *kinds, uint8_t *hashes, uint8_t *bodies);
int leased_chain_links(const uint8_t *data, size_t size, size_t most, size_t limit, bool whole,
	uint8_t *hashes, size_t *records, size_t *bytes);
int leased_chain_last(const uint8_t *data, size_t size, size_t *at);
unsigned leased_tree_extend(uint64_t size, uint8_t *peaks, const uint8_t *leaves, size_t count);
size_t leased_chain_bodies(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *data, size_t size, const uint64_t *offsets, const uint16_t *kinds,
	size_t count);
size_t leased_chain_unframed(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *bodies, const uint32_t *body_bytes, const uint16_t *kinds,
	const uint8_t *schemas, size_t count);

/* ---- sealing (verbs/seal.c) ---- */

struct leased_sealing {
	uint64_t sequence; /* of the next record */
	uint64_t batch;
	uint64_t wall_ns;
	uint64_t boot_ns;
	uint8_t head[LEASED_HASH_BYTES];
	uint8_t prefix[LEASED_PREFIX_BYTES];
};

size_t leased_chain_seal(struct leased_sealing *at, const uint8_t *bodies,
	const uint32_t *body_bytes, const uint16_t *kinds, const uint8_t *schemas, size_t count,
	bool ends, uint8_t *frames, uint8_t *hashes);

/* ---- leases of a chain (verbs/leases.c): ids are of 16 bytes ---- */

#define LEASED_LEASE_KIND_FIRST 16u
#define LEASED_LEASE_KINDS      16u

struct leased_leases;

struct leased_leases *leased_leases_new(void);
void leased_leases_free(struct leased_leases *leases);
int leased_leases_put(
	struct leased_leases *leases, const uint8_t *ids, const uint8_t *stages, size_t count);
unsigned leased_leases_stage(const struct leased_leases *leases, const uint8_t *id);
size_t leased_leases_count(const struct leased_leases *leases);
void leased_leases_list(const struct leased_leases *leases, uint8_t *ids, uint8_t *stages);
size_t leased_leases_follow(struct leased_leases *leases, const uint8_t *moves, unsigned closed,
	const uint8_t *data, size_t size, const uint64_t *offsets, const uint16_t *kinds,
	size_t count);

/* ---- the projection (verbs/projection.c) ---- */

#define LEASED_ACT_JUDGED    255u
#define LEASED_ACT_TIMELESS  254u
#define LEASED_ACT_DEADLINE  1u
#define LEASED_ACT_TERMS     2u
#define LEASED_ACT_REF       4u
#define LEASED_TELLS         1u
#define LEASED_TELLS_CHANGES 2u

/* What rows of acts say, as sql/metering.sql has it. */
#define LEASED_GRANTED   1
#define LEASED_RENEWED   2
#define LEASED_TORN      4
#define LEASED_RECLAIMED 5
#define LEASED_FENCED    6
#define LEASED_UNFENCED  7
#define LEASED_VOIDED    8
#define LEASED_RELEASED  9

struct leased_plan {
	const struct leased_shape *shapes;
	const uint32_t *roots;
	uint64_t boot_ns_max;           /* a record of a later boot clock is judged */
	uint8_t act[LEASED_KINDS];      /* 0: only its time counts; TIMELESS: nothing does */
	uint8_t deadline[LEASED_KINDS]; /* which field; 0: none */
	uint8_t tells[LEASED_KINDS];    /* what is held: always, where it changed, never */
	uint8_t effective;              /* fields of the event; of the subject; of an allotment */
	uint8_t subject;
	uint8_t tenant;
	uint8_t tag;
	uint8_t priority;
	uint8_t allotments;
	uint8_t kind;
	uint8_t tier;
	uint8_t capacity;
};

struct leased_projecting {
	uint64_t offset;
	uint64_t sequence;
	int64_t watermark_ns;
	int64_t sealed_ns;
	int32_t boot;
};

struct leased_act {
	int64_t sequence;
	int64_t lease_hi;
	int64_t lease_lo;
	int64_t at_ns;
	int64_t sealed_ns;
	int64_t deadline_ns;
	int64_t terms;
	int64_t ref;
	int32_t boot;
	int8_t act;
	uint8_t has;
};

struct leased_hold {
	int64_t sequence;
	int64_t capacity;
	int16_t slot;
	int8_t kind;
	int8_t tier;
	int8_t priority;
};

struct leased_acts {
	size_t count;
	int64_t *sequence;
	int64_t *lease_hi;
	int64_t *lease_lo;
	int64_t *at_ns;
	int64_t *sealed_ns;
	int64_t *deadline_ns;
	int64_t *terms;
	int64_t *ref;
	int32_t *boot;
	int8_t *act;
	uint8_t *has;
	uint8_t missing; /* the bits that any row has not */
};

struct leased_holds {
	size_t count;
	int64_t *sequence;
	int64_t *party_hi;
	int64_t *party_lo;
	int64_t *capacity;
	int16_t *slot;
};

/* Of leases that begin and end within the block, for each allotment. */
struct leased_lives {
	size_t count;
	int64_t *sequence;
	int64_t *granted_ns;
	int64_t *torn_ns;
	int64_t *ended_ns;
	int64_t *released_ns;
	int64_t *party_hi;
	int64_t *party_lo;
	int64_t *capacity;
	int32_t *boot;
	int16_t *slot;
	uint8_t *released; /* whether there is a released_ns; `missing`: not in every row */
	bool missing;
};

struct leased_projector;

struct leased_projector *leased_projector_new(void);
void leased_projector_free(struct leased_projector *projector);
int64_t leased_projector_take(struct leased_projector *projector, const struct leased_plan *plan,
	struct leased_projecting *at, const uint8_t *data, size_t size, uint64_t end);
int leased_projector_act(struct leased_projector *projector, const struct leased_act *row);
int leased_projector_hold(struct leased_projector *projector, const struct leased_hold *row,
	const uint8_t *tenant, size_t tenant_bytes, const uint8_t *tag, size_t tag_bytes);
int64_t leased_projector_terms(
	const struct leased_projector *projector, const uint8_t *lease_id);
int leased_projector_turn(
	struct leased_projector *projector, const uint8_t *lease_id, int64_t terms);
const struct leased_acts *leased_projector_acts(const struct leased_projector *projector);
const struct leased_holds *leased_projector_holds(const struct leased_projector *projector);
const struct leased_lives *leased_projector_lives(const struct leased_projector *projector);
int leased_projector_settle(struct leased_projector *projector);
size_t leased_projector_parties(const struct leased_projector *projector, const uint8_t **bytes,
	const uint32_t **ends);

/* ---- sending (verbs/sending.c) ---- */

#define LEASED_SEND_FDS_MAX 253u /* of one message, by the kernel (SCM_MAX_FD) */

struct leased_letter {
	int32_t socket;
	uint32_t fds; /* how many descriptors go with it */
	uint64_t bytes;
	int64_t sent; /* bytes that the socket took, or -errno */
};

int leased_send_many(
	struct leased_letter *letters, size_t count, const uint8_t *bytes, const int *fds);

/* ---- receiving (verbs/receiving.c) ---- */

#define LEASED_RECEIVED_FDS (-65536) /* no -errno: descriptors were seen, and nothing is read */

size_t leased_receive_many(
	const int *sockets, size_t count, uint8_t *into, size_t room, size_t each, int64_t *got);

/* ---- self test (verbs/selftest.c) ---- */

int leased_selftest(void);

#endif
