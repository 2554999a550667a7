/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reaper's side of the board (reaper_protocol.h): a file beside the state file, shared with the
 * agent.
 *
 * Rule: a dial is believed only as far as a RENEW packet would be: a deadline beyond the horizon is
 * nobody's, and the one known before stays. What has been read is written to the state file; what
 * has not is found by the next reaper, for the board outlives us as the state file does.
 *
 * Holds nothing that cannot be made anew from the state file, except renewals that nobody has
 * looked at yet.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Make (or find) the board, as large as the table. A board of another boot is blank. */
int board_open(struct reaper *r)
{
	char path[512];
	int length = snprintf(path, sizeof path, "%s/reaper.board", r->options.runtime_dir);
	if (length < 0 || (size_t)length >= sizeof path)
		return -ENAMETOOLONG;
	r->board_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (r->board_fd < 0)
		return -errno;
	size_t bytes = sizeof *r->board + (size_t)r->slot_count * sizeof r->board->dial[0];
	struct stat st;
	if (fstat(r->board_fd, &st) != 0 ||
		((uint64_t)st.st_size < bytes && ftruncate(r->board_fd, (off_t)bytes) != 0))
		return -errno;
	int rc = posix_fallocate(r->board_fd, 0, (off_t)bytes);
	if (rc != 0)
		return -rc;
	void *start = mmap(
		NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->board_fd, 0);
	if (start == MAP_FAILED)
		return -errno;
	r->board = start;
	if (r->board->magic != LEASED_REAPER_BOARD_MAGIC ||
		memcmp(r->board->boot_id, r->boot_id, sizeof r->boot_id) != 0)
		memset(start, 0, bytes);
	memcpy(r->board->boot_id, r->boot_id, sizeof r->boot_id);
	r->board->slots = r->slot_count;
	r->board->horizon_ns = r->options.horizon_ns;
	r->board->magic = LEASED_REAPER_BOARD_MAGIC;
	return 0;
}

/* Show what the slot's lease is armed with. */
void board_hang(struct reaper *r, uint32_t at)
{
	struct leased_reaper_dial *dial = &r->board->dial[at];
	__atomic_store_n(
		&dial->generation, r->slots[at].moving.generation, __ATOMIC_RELAXED);
	__atomic_store_n(
		&dial->deadline_ns, r->slots[at].moving.deadline_ns, __ATOMIC_SEQ_CST);
}

void board_clear(struct reaper *r, uint32_t at)
{
	__atomic_store_n(&r->board->dial[at].deadline_ns, 0, __ATOMIC_SEQ_CST);
}

/* Take a renewal in, if there was one since the last look. Only for an armed lease. */
void board_read(struct reaper *r, uint32_t at)
{
	struct slot *slot = &r->slots[at];
	struct leased_reaper_dial *dial = &r->board->dial[at];
	uint64_t seen = __atomic_load_n(&dial->deadline_ns, __ATOMIC_SEQ_CST);
	if ((seen & LEASED_REAPER_CUT_BEGUN) != 0)
		return;
	/* By a clock that is read after the dial: the agent's was, before it moved that. */
	if (seen < slot->moving.deadline_ns || seen > boot_now() + r->options.horizon_ns) {
		say(LOG_CRIT, "event=board_corrupt slot=%u lease=%s says=%llu", at,
			hex_of(slot->identity.id), (unsigned long long)seen);
		board_hang(r, at);
		return;
	}
	/* Written behind the deadline: it may come with a later look than that did. */
	uint64_t generation = __atomic_load_n(&dial->generation, __ATOMIC_ACQUIRE);
	if (seen == slot->moving.deadline_ns && generation <= slot->moving.generation)
		return;
	if (generation > slot->moving.generation)
		slot->moving.generation = generation;
	slot->moving.deadline_ns = seen;
	state_write_moving(r, at);
}

/*
 * Show the change of a lease that was armed as `before`. False: a renewal has come in since that
 * was looked at. It was in time and its caller knows that, so it stands and the change does not.
 */
bool board_move(struct reaper *r, uint32_t at, const struct slot_moving *before)
{
	struct slot *slot = &r->slots[at];
	struct leased_reaper_dial *dial = &r->board->dial[at];
	uint64_t known = before->deadline_ns;
	if (__atomic_compare_exchange_n(&dial->deadline_ns, &known, slot->moving.deadline_ns, false,
		    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		__atomic_store_n(&dial->generation, slot->moving.generation, __ATOMIC_RELEASE);
		return true;
	}
	slot->moving.generation = before->generation;
	slot->moving.deadline_ns = before->deadline_ns;
	board_read(r, at);
	return false;
}

/* From a true answer on, renewals of the lease are late. False: it was renewed just now. */
bool board_close(struct reaper *r, uint32_t at)
{
	uint64_t known = r->slots[at].moving.deadline_ns;
	uint64_t *dial = &r->board->dial[at].deadline_ns;
	return __atomic_compare_exchange_n(dial, &known, known | LEASED_REAPER_CUT_BEGUN, false,
		       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ||
	       (known & LEASED_REAPER_CUT_BEGUN) != 0;
}

/* The cut has begun, whatever the deadline is. */
void board_mark(struct reaper *r, uint32_t at)
{
	(void)__atomic_fetch_or(
		&r->board->dial[at].deadline_ns, LEASED_REAPER_CUT_BEGUN, __ATOMIC_SEQ_CST);
}

/* For a lease found armed in the state file. False: the reaper before us had begun to cut it. */
bool board_resume(struct reaper *r, uint32_t at)
{
	uint64_t seen = __atomic_load_n(&r->board->dial[at].deadline_ns, __ATOMIC_SEQ_CST);
	if ((seen & LEASED_REAPER_CUT_BEGUN) != 0)
		return false;
	if (seen == 0)
		board_hang(r, at); /* armed, and we died before it hung there */
	else
		board_read(r, at);
	return true;
}
