/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reaper's own vocabulary: one process, one thread, one epoll loop, everything allocated at the
 * start.
 *
 * Rule: nothing here waits. Whatever takes time (a cgroup to empty, a process to exit, memory to be
 * overwritten) is watched by epoll or done by a child, so that one lease can never delay another's
 * deadline.
 *
 * Does not scrub or prove, except in the backstop when no agent is left to do it.
 */
#ifndef LEASED_REAPER_H
#define LEASED_REAPER_H

#include "../clock.h"
#include "../reaper_protocol.h"
#include "../verbs.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NONE      UINT32_MAX
#define NEVER     UINT64_MAX
#define NS_PER_US UINT64_C(1000)

enum {
	CLIENTS_MAX = 16,
	BACKSTOPS_MAX = 8,
	CUTTERS_FIRST = 4,
	CUTTERS_MAX = 64,
	DUE_PER_TURN = 64,
	PACKETS_PER_TURN = 8,
	FDS_SPARE = 416, /* that arming never takes: for one packet, for cutting, clients and
			    children */
	FDS_OWN = 5, /* that come after the table: filter, notification, listening; to kill with */
};

struct options {
	const char *runtime_dir;
	const char *socket_path; /* NULL: <runtime dir>/reaper.sock */
	uint32_t slots;
	uid_t peer_uid;
	uint64_t backstop_ns;
	uint64_t kill_ns;
	uint64_t horizon_ns;
	uint64_t rearm_ns;
	bool realtime;
	bool detach;
	bool check;
};

/* ---- the state file (state.c) ---- */

struct slot_identity {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	uint64_t sequence;
	uint64_t cgroup_inode;
	uint64_t holder_start; /* what tells a process from a later one of the same number: see
				  holder.c */
	int32_t holder_pid;
	uint32_t memfds;
	uint64_t memfd_inode[LEASED_REAPER_MEMFDS_MAX];
	uint32_t objects;
	uint32_t padding;
	struct leased_reaper_object object[LEASED_REAPER_OBJECTS_MAX];
	char cgroup[LEASED_REAPER_CGROUP_BYTES];
	uint32_t crc;
	uint32_t reserved;
};

struct slot_moving {
	uint64_t sequence;
	uint64_t generation;
	uint64_t deadline_ns;
	uint16_t phase;
	uint16_t flags; /* MOVING_...: how the cut was begun, so that a repeated one is the same */
	uint32_t crc;
};

#define MOVING_SPARE_HOLDER 1u
#define MOVING_ON_REQUEST   2u
#define MOVING_FORGET       4u /* disarmed before the cut was over: let go when it is */

/* Written so that a SIGKILL at any instruction leaves one good copy: the two copies take turns. */
struct slot_record {
	struct slot_identity identity[2];
	struct slot_moving moving[2];
	struct leased_reaper_report report;
	uint32_t report_crc;
	uint32_t reserved;
} __attribute__((aligned(64)));

struct state_header {
	uint32_t magic;
	uint32_t version;
	uint32_t slot_bytes;
	uint32_t slots;
	uint8_t boot_id[LEASED_REAPER_ID_BYTES];
	uint32_t crc;
} __attribute__((aligned(64)));

/* ---- the table (table.c) ---- */

struct slot {
	struct slot_identity identity;
	struct slot_moving moving;
	struct leased_reaper_report report;
	int cgroup_fd; /* the directory while armed; cgroup.events from the kill on */
	int pidfd;
	int memfd[LEASED_REAPER_MEMFDS_MAX]; /* -1: lost with an earlier reaper */
	uint64_t due_ns;                     /* what the heap sorts by */
	uint64_t began_ns;                   /* of the cut */
	uint64_t check_ns;                   /* next look at whether everybody is gone */
	uint64_t interval_ns;                /* and how long to wait after that one */
	uint64_t backstop_ns; /* when the memory is taken from everybody; NEVER if not needed */
	uint64_t missing_ns;  /* cut by then because a memfd is missing; NEVER if none is */
	uint32_t heap_at;
	uint32_t next_free;
	uint32_t claimant; /* client that sent the last REVOKE */
	uint32_t claim_serial;
	uint32_t armer; /* client that sent the last ARM */
	uint32_t arm_serial;
	uint32_t outbox_next;
	uint32_t outbox_previous;
	uint32_t child;
	uint32_t objects_left;    /* not revoked yet: one bit each */
	uint32_t objects_at_work; /* of these, what a cutter has in hand */
	uint32_t objects_wanted;  /* and what waits for one */
	uint32_t objects_next;    /* in the line of slots that want a cutter */
	uint32_t keys_wiped;
	bool in_line;
	bool in_outbox;
	bool wants_report;
	bool cgroup_gone;
	bool holder_gone;
	bool cgroup_lost; /* it may be there, and could not be opened after a restart */
	bool holder_lost;
	bool objects_gone;
	bool killed; /* cgroup and holder are both gone, and the report says when */
	bool given_up; /* the kill deadline has passed with somebody or something left */
	bool backstopped;
	bool overwriting_failed; /* the child that did it was killed: the next only truncates */
	bool events_open;
	bool hastened;
};

struct client {
	int fd; /* -1: free */
	uint32_t serial;
	uint32_t outbox_first;
	uint32_t outbox_last;
	uint64_t heard_ns;
	bool wants_write;
	bool doomed;
};

struct backstop_result {
	uint64_t overwritten;
	uint64_t residue;
	uint64_t blocks_left;
	uint64_t at_ns[4]; /* begin, overwritten and read back, truncated */
	int32_t scrub_error;
	int32_t truncate_error;
};

struct backstop {
	int pidfd; /* -1: free */
	uint32_t slot;
};

/* A cutter revokes one object at a time. */
struct cutter {
	int fd;    /* -1: gone */
	pid_t pid; /* 0: never was, or has been waited for */
	uint32_t slot;
	uint32_t object;
};

struct cutter_job {
	uint8_t id[LEASED_REAPER_ID_BYTES];
	struct leased_reaper_object object;
};

struct cutter_result {
	int32_t error; /* 0 or an errno */
	uint32_t keys; /* wiped */
	uint64_t ended_ns; /* from when on it gave access to nobody */
};

struct reaper {
	struct options options;
	int epoll_fd;
	int timer_fd;
	int signal_fd;
	int listen_fd;
	uint64_t listen_due_ns; /* nobody is let in before: there is no room; NEVER: there is */
	uint64_t flush_due_ns;  /* reports are sent again: there was no memory; NEVER: there was */
	int deny_fd; /* the deny-all program, or -errno */
	uint64_t timer_set_ns;
	uint64_t started_ns;
	uint8_t boot_id[LEASED_REAPER_ID_BYTES];
	bool memory_locked;
	bool stopping;
	/* state file */
	int state_fd;
	struct state_header *state;
	struct slot_record *records;
	uint32_t slots_corrupt;
	/* board */
	int board_fd;
	struct leased_reaper_board *board;
	/* table */
	struct slot *slots;
	uint32_t slot_count;
	uint32_t slots_used;
	uint32_t first_free;
	uint32_t *index;
	uint32_t index_mask;
	uint32_t *heap;
	uint32_t heap_length;
	uint32_t fds_used;
	uint32_t fds_max;
	uint32_t fds_cutting; /* that slots may hold during a cut, FDS_SPARE in part included */
	/* clients */
	struct client clients[CLIENTS_MAX];
	uint32_t client_serial;
	/* backstop */
	struct backstop backstops[BACKSTOPS_MAX];
	struct backstop_result *results; /* shared with the children */
	/* objects */
	int dm_fd; /* -1: nobody asked for it yet */
	struct cutter cutters[CUTTERS_MAX];
	uint32_t line_first;
	uint32_t line_last;
	/* systemd */
	int notify_fd;
	uint64_t watchdog_ns;
	uint64_t watchdog_due_ns;
};

/* What an epoll event is about: kind in the upper half, index in the lower. */
enum watch {
	WATCH_TIMER,
	WATCH_SIGNAL,
	WATCH_LISTEN,
	WATCH_CLIENT,
	WATCH_CGROUP,
	WATCH_HOLDER,
	WATCH_BACKSTOP,
	WATCH_CUTTER
};

/* clock.c */
int read_boot_id(uint8_t *into);

/* log.c: structured lines on stderr with a journald priority; dropped, never waited for */
enum level { LOG_CRIT = 2, LOG_ERR = 3, LOG_WARNING = 4, LOG_NOTICE = 5, LOG_INFO = 6 };
void say(enum level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *hex_of(const uint8_t *id); /* static buffer */

/* state.c */
int state_check(struct reaper *r);
int state_open(struct reaper *r);
bool state_read(
	struct reaper *r, uint32_t at, struct slot_identity *, struct slot_moving *, bool *corrupt);
bool state_read_report(const struct reaper *r, uint32_t at, struct leased_reaper_report *report);
void state_write_identity(struct reaper *r, uint32_t at);
void state_write_moving(struct reaper *r, uint32_t at);
void state_write_report(struct reaper *r, uint32_t at);

/* board.c: deadlines that the agent may move without asking */
int board_open(struct reaper *r);
void board_hang(struct reaper *r, uint32_t at);
void board_clear(struct reaper *r, uint32_t at);
void board_read(struct reaper *r, uint32_t at);
bool board_move(struct reaper *r, uint32_t at, const struct slot_moving *before);
bool board_close(struct reaper *r, uint32_t at);
void board_mark(struct reaper *r, uint32_t at);
bool board_resume(struct reaper *r, uint32_t at);

/* table.c */
int table_make(struct reaper *r);
uint32_t table_find(const struct reaper *r, const uint8_t *id);
uint32_t table_take(struct reaper *r, const uint8_t *id);
void table_put_at(struct reaper *r, uint32_t at);
void table_release(struct reaper *r, uint32_t at);
uint32_t table_fds(const struct slot *slot);

/* heap.c */
void heap_set(struct reaper *r, uint32_t at, uint64_t due_ns);
void heap_drop(struct reaper *r, uint32_t at);
uint64_t heap_first_ns(const struct reaper *r);

/* holder.c: processes and cgroups by an identity that survives us */
struct holder {
	uint64_t start;
	int32_t pid;
	dev_t device; /* of its file in pidfs; inode 0: it has none */
	ino_t inode;
};
int holder_describe(int pidfd, struct holder *last, struct holder *described);
int holder_reopen(int32_t pid, uint64_t *start);
bool holder_exited(int pidfd);
int cgroup_open(const char *path, uint64_t *inode);
int cgroup_reopen(const char *path, uint64_t inode);
int memfd_check(int fd, uint64_t *inode);

/* cut.c */
void cut_schedule(struct reaper *r, uint32_t at);
void cut_begin(struct reaper *r, uint32_t at);
void cut_check(struct reaper *r, uint32_t at);
struct leased_reaper_step_report *cut_step(struct leased_reaper_report *report, uint32_t step);
void cut_run_due(struct reaper *r);

int watch_add(struct reaper *r, int fd, uint32_t events, enum watch kind, uint32_t index);

/* tracers.c: whoever holds a killed process at its exit */
void tracers_end(const struct slot *slot);

/* objects.c: what is revoked besides killing */
void objects_make(struct reaper *r);
int objects_check(struct reaper *r, const struct leased_reaper_object *objects, uint32_t count);
void objects_revoke(struct reaper *r, uint32_t at);
void objects_ended(struct reaper *r, uint32_t cutter);
void objects_forget(struct reaper *r, uint32_t at);

/* cutter.c: the process that waits where we may not */
_Noreturn void cutter_run(int jobs, int dm_fd);

/* backstop.c */
bool holds_memory(const struct slot *slot);
bool misses_memory(const struct slot *slot);
void backstop_run(struct reaper *r, uint32_t at);
void backstop_ended(struct reaper *r, uint32_t child);
void backstop_forget(struct reaper *r, uint32_t at);

/* requests.c */
void request_handle(struct reaper *r, uint32_t client, const char *packet, size_t bytes, int *fds,
	uint32_t fd_count);
uint32_t lease_forget(struct reaper *r, uint32_t at);

/* clients.c */
int clients_listen(struct reaper *r, int inherited_fd);
void clients_accept(struct reaper *r);
void clients_listen_again(struct reaper *r);
void clients_read(struct reaper *r, uint32_t at);
void clients_close(struct reaper *r, uint32_t at);
bool clients_send(struct reaper *r, uint32_t at, const void *packet, size_t bytes, const int *fds,
	uint32_t fd_count);
bool clients_claims(const struct reaper *r, const struct slot *slot);
void outbox_put(struct reaper *r, uint32_t slot);
void outbox_drop(struct reaper *r, uint32_t slot);
void outbox_flush(struct reaper *r, uint32_t client);

/* notify.c: systemd, when it is there */
void notify_open(struct reaper *r);
void notify_say(struct reaper *r, const char *text);
void notify_store(struct reaper *r, const uint8_t *id, uint32_t number, int fd);
void notify_unstore(struct reaper *r, const uint8_t *id, uint32_t number);

/* resume.c */
int resume(struct reaper *r);
void reopen(struct reaper *r, uint32_t at);

#endif
