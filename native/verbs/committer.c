/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The committer: one thread that makes a batch durable and anchored, away from the Python
 * interpreter.
 *
 * Rule: one batch at a time; the caller keeps `buf` and `slot` alive until the result is fetched.
 * The order is append, fdatasync, anchor slot, fdatasync, and each step happens once: after any
 * failure the committer refuses every further batch (EIO), because what an fsync that failed has
 * left behind cannot be known by asking again.
 *
 * Does not open, create or grow files.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

struct batch {
	int seg_fd;
	int anchor_fd;
	const char *buf;
	const char *slot;
	size_t len;
	size_t slot_len;
	uint64_t off;
	uint64_t slot_off;
};

struct leased_committer {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct batch batch;
	int event_fd;
	int stage;
	int result;
	bool busy;
	bool failed;
	bool stop;
};

static int write_at(int fd, const char *buf, size_t len, uint64_t off)
{
	while (len > 0) {
		ssize_t done = pwrite(fd, buf, len, (off_t)off);
		if (done < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (done == 0)
			return -EIO;
		buf += done;
		off += (uint64_t)done;
		len -= (size_t)done;
	}
	return 0;
}

static int sync_data(int fd)
{
	return fdatasync(fd) == 0 ? 0 : -errno;
}

static int carry_out(const struct batch *batch, int *stage)
{
	int rc = 0;
	if (batch->seg_fd >= 0) {
		*stage = LEASED_STAGE_APPEND;
		rc = write_at(batch->seg_fd, batch->buf, batch->len, batch->off);
		if (rc == 0) {
			*stage = LEASED_STAGE_APPEND_SYNC;
			rc = sync_data(batch->seg_fd);
		}
	}
	if (rc == 0 && batch->anchor_fd >= 0) {
		*stage = LEASED_STAGE_ANCHOR;
		rc = write_at(batch->anchor_fd, batch->slot, batch->slot_len, batch->slot_off);
		if (rc == 0) {
			*stage = LEASED_STAGE_ANCHOR_SYNC;
			rc = sync_data(batch->anchor_fd);
		}
	}
	if (rc == 0)
		*stage = LEASED_STAGE_DONE;
	return rc;
}

static void tell(int event_fd)
{
	const uint64_t one = 1;
	/* An eventfd write of 1 fails only when nobody has read 2^64-2 results; the caller polls
	 * the result anyway. */
	while (write(event_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

static void *serve(void *argument)
{
	struct leased_committer *c = argument;
	pthread_mutex_lock(&c->lock);
	for (;;) {
		while (!c->stop && !c->busy)
			pthread_cond_wait(&c->wake, &c->lock);
		if (!c->busy)
			break;
		struct batch batch = c->batch;
		pthread_mutex_unlock(&c->lock);
		int stage = LEASED_STAGE_IDLE;
		int rc = carry_out(&batch, &stage);
		pthread_mutex_lock(&c->lock);
		c->stage = stage;
		c->result = rc;
		c->failed = c->failed || rc != 0;
		c->busy = false;
		tell(c->event_fd);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* Returns NULL when memory or a thread is not to be had. `event_fd` stays the caller's. */
struct leased_committer *leased_committer_new(int event_fd)
{
	struct leased_committer *c = calloc(1, sizeof *c);
	if (c == NULL)
		return NULL;
	c->event_fd = event_fd;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->wake, NULL);
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int rc = pthread_create(&c->thread, NULL, serve, c);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc != 0) {
		pthread_cond_destroy(&c->wake);
		pthread_mutex_destroy(&c->lock);
		free(c);
		return NULL;
	}
	return c;
}

/*
 * Hand one batch over. A negative fd leaves its half out. 0, -EBUSY while a batch is under way,
 * -EIO after a failure, -EINVAL when both halves are left out.
 */
int leased_committer_submit(struct leased_committer *c, int seg_fd, const void *buf, size_t len,
	uint64_t off, int anchor_fd, const void *slot, size_t slot_len, uint64_t slot_off)
{
	if (seg_fd < 0 && anchor_fd < 0)
		return -EINVAL;
	int rc = 0;
	pthread_mutex_lock(&c->lock);
	if (c->failed || c->stop) {
		rc = -EIO;
	} else if (c->busy) {
		rc = -EBUSY;
	} else {
		c->batch = (struct batch){ .seg_fd = seg_fd,
			.anchor_fd = anchor_fd,
			.buf = buf,
			.slot = slot,
			.len = len,
			.slot_len = slot_len,
			.off = off,
			.slot_off = slot_off };
		c->busy = true;
		c->stage = LEASED_STAGE_IDLE;
		pthread_cond_signal(&c->wake);
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/*
 * The same on the caller's own thread, which saves two wake-ups (more than a fast disk takes). For
 * who can afford to wait as long as the disk does. 0, -errno of the step named in *stage, or what
 * submit would refuse with.
 */
int leased_committer_run(struct leased_committer *c, int seg_fd, const void *buf, size_t len,
	uint64_t off, int anchor_fd, const void *slot, size_t slot_len, uint64_t slot_off,
	int *stage)
{
	*stage = LEASED_STAGE_IDLE;
	if (seg_fd < 0 && anchor_fd < 0)
		return -EINVAL;
	pthread_mutex_lock(&c->lock);
	int rc = c->failed || c->stop ? -EIO : c->busy ? -EBUSY : 0;
	pthread_mutex_unlock(&c->lock);
	if (rc != 0)
		return rc;
	const struct batch batch = { .seg_fd = seg_fd,
		.anchor_fd = anchor_fd,
		.buf = buf,
		.slot = slot,
		.len = len,
		.slot_len = slot_len,
		.off = off,
		.slot_off = slot_off };
	rc = carry_out(&batch, stage);
	if (rc != 0) {
		pthread_mutex_lock(&c->lock);
		c->failed = true;
		pthread_mutex_unlock(&c->lock);
	}
	return rc;
}

/* The last batch's result: 0, -errno of the step named in *stage, or -EINPROGRESS. */
int leased_committer_result(struct leased_committer *c, int *stage)
{
	pthread_mutex_lock(&c->lock);
	int rc = c->busy ? -EINPROGRESS : c->result;
	*stage = c->stage;
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/* Finish the batch under way, then end the thread. Waits as long as the disk does. */
void leased_committer_free(struct leased_committer *c)
{
	if (c == NULL)
		return;
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
	pthread_join(c->thread, NULL);
	pthread_cond_destroy(&c->wake);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
