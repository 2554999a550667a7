/* SPDX-License-Identifier: Apache-2.0 */
/* What cffi reads of verbs.h (constants as ...). A test compares the two. */
#define LEASED_ABI ...

int leased_mem_create(
	const char *name, uint64_t bytes, uint64_t hugepage_bytes, int node, int *fd_out);
int leased_mem_truncate(int fd, uint64_t *blocks_left);
int leased_mem_blocks(int fd, uint64_t *blocks);

int leased_mem_scrub(
	int fd, uint64_t from, uint64_t bytes, uint64_t *overwritten, uint64_t *residue);
int leased_dax_scrub(
	int fd, uint64_t from, uint64_t bytes, uint64_t *overwritten, uint64_t *residue);
int leased_dax_look(int fd, uint64_t from, uint64_t bytes, uint64_t *residue);

int leased_cgroup_freeze(int dirfd);
int leased_cgroup_kill_begin(int dirfd);
int leased_cgroup_hasten(int dirfd);
int leased_cgroup_kill(int dirfd, uint32_t timeout_ms);
int leased_cgroup_populated(int dirfd);
int leased_cgroup_events_open(int dirfd);
int leased_cgroup_events_populated(int events_fd);

#define LEASED_DEVICE_BLOCK     ...
#define LEASED_DEVICE_CHAR      ...
#define LEASED_DEVICE_MKNOD     ...
#define LEASED_DEVICE_READ      ...
#define LEASED_DEVICE_WRITE     ...
#define LEASED_DEVICE_ANY_MINOR ...
#define LEASED_DEVICE_RULES_MAX ...

struct leased_device_rule {
	uint32_t type;
	uint32_t access;
	uint32_t major;
	uint32_t minor;
};

int leased_filter_load(const struct leased_device_rule *rules, uint32_t n);
int leased_filter_attach(int cgroup_fd, int prog_fd);
int leased_filter_deny(int cgroup_fd);

int leased_pidfd_open(int pid);
int leased_pidfd_kill_begin(int pidfd);
int leased_pidfd_kill(int pidfd, uint32_t timeout_ms);
int leased_pidfd_take(int pidfd, int number);
int leased_tracer_of(int tid);
int leased_die_with_parent(void);

int leased_node_char(const char *path, uint32_t *major, uint32_t *minor);
int leased_node_block(const char *path, uint32_t *major, uint32_t *minor);

struct leased_node {
	uint32_t major;
	uint32_t minor;
};

int leased_node_search(const char *path, uint32_t type, const struct leased_node *nodes,
	uint8_t *found, uint32_t n, int32_t *rings, uint32_t rings_max);
int leased_files_shared(int tid, int other);

int leased_board_renew(void *board, size_t bytes, uint32_t slot, uint64_t known_ns,
	uint64_t deadline_ns, uint64_t generation);

#define LEASED_DM_NAME_BYTES ...
#define LEASED_DM_UUID_BYTES ...

struct leased_dm_mapping {
	uint64_t sectors;
	uint32_t major;
	uint32_t minor;
	uint32_t open_count;
	uint32_t targets;
	uint8_t suspended;
	uint8_t inactive;
	char target[16];
	char name[...];
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

#define LEASED_NVME_PAGE_BYTES ...

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

#define LEASED_STAGE_IDLE        ...
#define LEASED_STAGE_APPEND      ...
#define LEASED_STAGE_APPEND_SYNC ...
#define LEASED_STAGE_ANCHOR      ...
#define LEASED_STAGE_ANCHOR_SYNC ...
#define LEASED_STAGE_DONE        ...

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

#define LEASED_HASH_BYTES   ...
#define LEASED_PREFIX_BYTES ...
#define LEASED_KINDS        ...
#define LEASED_SCHEMAS      ...

struct leased_shape;

struct leased_stride {
	const struct leased_shape *shapes;
	const uint32_t *roots;
	uint64_t offset;
	uint64_t sequence;
	uint64_t batch;
	uint64_t boot_ns;
	uint64_t limit_ns;
	uint8_t open;
	uint8_t head[...];
	uint8_t prefix[...];
	uint8_t plain[...];
};

#define LEASED_SHAPE_INTEGER ...
#define LEASED_SHAPE_ENUM    ...
#define LEASED_SHAPE_BOOL    ...
#define LEASED_SHAPE_BYTES   ...
#define LEASED_SHAPE_TEXT    ...
#define LEASED_SHAPE_FIELDS  ...
#define LEASED_SHAPE_LIST    ...
#define LEASED_SHAPE_AMOUNT  ...

struct leased_shape {
	uint64_t members;
	uint32_t first;
	uint16_t count;
	uint8_t what;
	uint8_t nil;
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

struct leased_sealing {
	uint64_t sequence;
	uint64_t batch;
	uint64_t wall_ns;
	uint64_t boot_ns;
	uint8_t head[...];
	uint8_t prefix[...];
};

size_t leased_chain_seal(struct leased_sealing *at, const uint8_t *bodies,
	const uint32_t *body_bytes, const uint16_t *kinds, const uint8_t *schemas, size_t count,
	bool ends, uint8_t *frames, uint8_t *hashes);

#define LEASED_LEASE_KIND_FIRST ...
#define LEASED_LEASE_KINDS      ...

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

#define LEASED_ACT_JUDGED    ...
#define LEASED_ACT_TIMELESS  ...
#define LEASED_ACT_DEADLINE  ...
#define LEASED_ACT_TERMS     ...
#define LEASED_ACT_REF       ...
#define LEASED_TELLS         ...
#define LEASED_TELLS_CHANGES ...
#define LEASED_GRANTED       ...
#define LEASED_RENEWED       ...
#define LEASED_TORN          ...
#define LEASED_RECLAIMED     ...
#define LEASED_FENCED        ...
#define LEASED_UNFENCED      ...
#define LEASED_VOIDED        ...
#define LEASED_RELEASED      ...

struct leased_plan {
	const struct leased_shape *shapes;
	const uint32_t *roots;
	uint64_t boot_ns_max;
	uint8_t act[...];
	uint8_t deadline[...];
	uint8_t tells[...];
	uint8_t effective;
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
	uint8_t missing;
};

struct leased_holds {
	size_t count;
	int64_t *sequence;
	int64_t *party_hi;
	int64_t *party_lo;
	int64_t *capacity;
	int16_t *slot;
};

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
	uint8_t *released;
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

int leased_selftest(void);
