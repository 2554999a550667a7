/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state file: what a reaper that was killed leaves to the next one. Mapped from the runtime
 * directory (tmpfs).
 *
 * Rule: a slot is two copies of who it is, two copies of what moves, each with a sequence and a
 * CRC; the older copy is overwritten, so a death in the middle of a write leaves the one before. A
 * file of another boot is empty by definition: no lease spans boots. A file of another format is
 * refused, never guessed at.
 *
 * Holds no descriptors: those come back from systemd, or by path and inode, or from the agent.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { STATE_MAGIC = 0x5352504c /* "LPRS" */, STATE_VERSION = 2 };

static const uint64_t LOCK_WAIT_NS = 500 * NS_PER_MS;
static const long LOCK_AGAIN_NS = 2 * NS_PER_MS;

/* Eight bytes a step: who a lease is fills 600, and is written twice while its holder waits. */
enum { STEP_BYTES = 8 };
static uint32_t crc_of[STEP_BYTES][256]; /* of a byte with so many zeros behind it */

static void fill_tables(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t value = i;
		for (int bit = 0; bit < 8; bit++)
			value = value & 1 ? value >> 1 ^ UINT32_C(0xedb88320) : value >> 1;
		crc_of[0][i] = value;
	}
	for (uint32_t i = 0; i < 256; i++) {
		for (int zeros = 1; zeros < STEP_BYTES; zeros++) {
			const uint32_t before = crc_of[zeros - 1][i];
			crc_of[zeros][i] = before >> 8 ^ crc_of[0][before & 0xff];
		}
	}
}

static uint32_t crc32_of(const void *data, size_t bytes)
{
	if (crc_of[0][1] == 0)
		fill_tables();
	const uint8_t *at = data;
	uint32_t crc = UINT32_MAX;
	for (; bytes >= STEP_BYTES; bytes -= STEP_BYTES, at += STEP_BYTES) {
		uint64_t step;
		memcpy(&step, at, sizeof step);
		step = le64toh(step) ^ crc;
		crc = 0;
#pragma GCC unroll 8
		for (int i = 0; i < STEP_BYTES; i++)
			crc ^= crc_of[STEP_BYTES - 1 - i][step >> 8 * i & 0xff];
	}
	for (; bytes > 0; bytes--, at++)
		crc = crc >> 8 ^ crc_of[0][(crc ^ *at) & 0xff];
	return ~crc;
}

static uint32_t header_crc(const struct state_header *header)
{
	return crc32_of(header, offsetof(struct state_header, crc));
}

static int map(struct reaper *r, uint32_t slots)
{
	size_t bytes = sizeof(struct state_header) + (size_t)slots * sizeof(struct slot_record);
	struct stat st;
	if (fstat(r->state_fd, &st) != 0)
		return -errno;
	if ((uint64_t)st.st_size < bytes && ftruncate(r->state_fd, (off_t)bytes) != 0)
		return -errno;
	/* Every page now: a full tmpfs must be an error here, not a SIGBUS at a deadline. */
	int rc = posix_fallocate(r->state_fd, 0, (off_t)bytes);
	if (rc != 0)
		return -rc;
	void *start = mmap(
		NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->state_fd, 0);
	if (start == MAP_FAILED)
		return -errno;
	r->state = start;
	r->records = (struct slot_record *)(void *)((char *)start + sizeof(struct state_header));
	r->slot_count = slots;
	return 0;
}

static void begin_anew(struct reaper *r)
{
	memset(r->records, 0, (size_t)r->slot_count * sizeof *r->records);
	struct state_header header = { .magic = STATE_MAGIC,
		.version = STATE_VERSION,
		.slot_bytes = sizeof(struct slot_record),
		.slots = r->slot_count };
	memcpy(header.boot_id, r->boot_id, sizeof header.boot_id);
	header.crc = header_crc(&header);
	*r->state = header;
}

/* A child that our predecessor had just forked may hold its lock for a moment after it. */
static int lock(int fd)
{
	const struct timespec pause = { .tv_nsec = LOCK_AGAIN_NS };
	const uint64_t until = boot_now() + LOCK_WAIT_NS;
	while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (boot_now() > until)
			return -EBUSY;
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int open_file(struct reaper *r, int flags)
{
	char path[512];
	int length = snprintf(path, sizeof path, "%s/reaper.state", r->options.runtime_dir);
	if (length < 0 || (size_t)length >= sizeof path)
		return -ENAMETOOLONG;
	r->state_fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	return r->state_fd < 0 ? -errno : 0;
}

/* 0: there is nothing of this boot; 1: there is, and we read it; -EPROTO: we do not. */
static int read_header(const struct reaper *r, struct state_header *header)
{
	ssize_t got = pread(r->state_fd, header, sizeof *header, 0);
	if (got != (ssize_t)sizeof *header || header->magic != STATE_MAGIC ||
		header->crc != header_crc(header) ||
		memcmp(header->boot_id, r->boot_id, sizeof header->boot_id) != 0)
		return 0;
	if (header->version != STATE_VERSION || header->slot_bytes != sizeof(struct slot_record))
		return -EPROTO;
	return 1;
}

/* Whether state_open would take what is there, asked while another reaper has it. */
int state_check(struct reaper *r)
{
	struct state_header header;
	int rc = open_file(r, O_RDONLY);
	if (rc == 0)
		rc = read_header(r, &header);
	return rc == 1 || rc == -ENOENT ? 0 : rc;
}

/*
 * Open (or make) the state file, alone. -EBUSY: another reaper has it. -EPROTO: same boot, but a
 * format we do not read.
 */
int state_open(struct reaper *r)
{
	struct state_header header;
	int rc = open_file(r, O_RDWR | O_CREAT);
	if (rc == 0)
		rc = lock(r->state_fd);
	if (rc == 0)
		rc = read_header(r, &header);
	if (rc < 0)
		return rc;
	if (rc == 0) {
		rc = map(r, r->options.slots);
		if (rc == 0)
			begin_anew(r);
		return rc;
	}
	/* The table never shrinks under leases that live in it. */
	uint32_t slots = header.slots > r->options.slots ? header.slots : r->options.slots;
	rc = map(r, slots);
	if (rc == 0 && slots != header.slots) {
		header.slots = slots;
		header.crc = header_crc(&header);
		*r->state = header;
	}
	return rc;
}

static bool identity_good(const struct slot_identity *copy)
{
	return copy->sequence != 0 &&
	       copy->crc == crc32_of(copy, offsetof(struct slot_identity, crc)) &&
	       copy->memfds <= LEASED_REAPER_MEMFDS_MAX &&
	       copy->objects <= LEASED_REAPER_OBJECTS_MAX &&
	       copy->cgroup[LEASED_REAPER_CGROUP_BYTES - 1] == '\0';
}

static bool moving_good(const struct slot_moving *copy)
{
	return copy->sequence != 0 &&
	       copy->crc == crc32_of(copy, offsetof(struct slot_moving, crc)) &&
	       copy->phase <= LEASED_REAPER_ENDED;
}

static bool untouched(const void *data, size_t bytes)
{
	const uint8_t *at = data;
	for (size_t i = 0; i < bytes; i++) {
		if (at[i] != 0)
			return false;
	}
	return true;
}

/*
 * The newest good copies of slot `at`. False when the slot is free. *corrupt: something was there,
 * but no copy of it can be believed; if its identity can, the caller gets it with phase CUTTING,
 * because what cannot be read is cut.
 */
bool state_read(struct reaper *r, uint32_t at, struct slot_identity *identity,
	struct slot_moving *moving, bool *corrupt)
{
	const struct slot_record *record = &r->records[at];
	const struct slot_identity *who = NULL;
	const struct slot_moving *what = NULL;
	for (size_t i = 0; i < 2; i++) {
		const struct slot_identity *w = &record->identity[i];
		const struct slot_moving *m = &record->moving[i];
		if (identity_good(w) && (who == NULL || w->sequence > who->sequence))
			who = w;
		if (moving_good(m) && (what == NULL || m->sequence > what->sequence))
			what = m;
	}
	*corrupt = false;
	if (who != NULL)
		*identity = *who;
	if (what != NULL) {
		*moving = *what;
		if (what->phase == LEASED_REAPER_FREE)
			return false;
		*corrupt = who == NULL;
		return who != NULL;
	}
	if (untouched(record->moving, sizeof record->moving))
		return false; /* arming was never finished, nor answered */
	*corrupt = true;
	if (who == NULL)
		return false;
	*moving = (struct slot_moving){ .sequence = 1, .phase = LEASED_REAPER_CUTTING };
	return true;
}

bool state_read_report(const struct reaper *r, uint32_t at, struct leased_reaper_report *report)
{
	const struct slot_record *record = &r->records[at];
	*report = record->report;
	return record->report_crc == crc32_of(&record->report, sizeof record->report) &&
	       report->steps <= LEASED_REAPER_STEPS_MAX &&
	       memcmp(report->id, r->slots[at].identity.id, sizeof report->id) == 0;
}

/* The compiler must not let a later store overtake an earlier one; other processes see ours in
 * program order. */
static void in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

void state_write_identity(struct reaper *r, uint32_t at)
{
	struct slot_identity *own = &r->slots[at].identity;
	own->sequence++;
	own->reserved = 0;
	own->crc = crc32_of(own, offsetof(struct slot_identity, crc));
	r->records[at].identity[own->sequence & 1] = *own;
	in_order();
}

void state_write_moving(struct reaper *r, uint32_t at)
{
	struct slot_moving *own = &r->slots[at].moving;
	own->sequence++;
	own->crc = crc32_of(own, offsetof(struct slot_moving, crc));
	r->records[at].moving[own->sequence & 1] = *own;
	in_order();
}

void state_write_report(struct reaper *r, uint32_t at)
{
	r->records[at].report = r->slots[at].report;
	r->records[at].report_crc = crc32_of(&r->slots[at].report, sizeof r->slots[at].report);
	in_order();
}
