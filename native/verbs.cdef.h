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
int leased_process_mrelease(int pidfd);
int leased_pidfd_take(int pidfd, int number);
int leased_die_with_parent(void);

int leased_node_char(const char *path, uint32_t *major, uint32_t *minor);

int leased_board_renew(void *board, size_t bytes, uint32_t slot, uint64_t known_ns,
	uint64_t deadline_ns, uint64_t generation);

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

int leased_selftest(void);
