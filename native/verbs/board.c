/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The board: where the reaper's deadlines lie, in memory that the agent shares.
 *
 * Rule: a dial's first word decides, and only by compare-and-swap: whoever moves it to a later
 * deadline before the reaper marks it CUT has renewed, and whoever comes after the mark is late.
 * The generation is written behind the deadline, so that it is never ahead of it.
 *
 * Does not shorten a deadline: the reaper looks at a dial when the deadline that it knows has come,
 * and would not see that an earlier one passed.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include "../clock.h"
#include "../reaper_protocol.h"

#include <errno.h>
#include <stdbool.h>

/*
 * Move a lease from the deadline that the caller knows to a later one. -EINVAL: no such dial, or
 * an earlier deadline. -ESTALE: the dial is another's, or says something else: ask the reaper.
 * -ERANGE: beyond the reaper's horizon. -ETIME: late.
 */
int leased_board_renew(void *board, size_t bytes, uint32_t slot, uint64_t known_ns,
	uint64_t deadline_ns, uint64_t generation)
{
	struct leased_reaper_board *const header = board;
	if (bytes < sizeof *header || header->magic != LEASED_REAPER_BOARD_MAGIC ||
		slot >= (bytes - sizeof *header) / sizeof header->dial[0] || deadline_ns < known_ns)
		return -EINVAL;
	struct leased_reaper_dial *const dial = &header->dial[slot];
	const uint64_t now_ns = boot_now();
	if (known_ns <= now_ns)
		return -ETIME;
	if (deadline_ns > now_ns + header->horizon_ns)
		return -ERANGE;
	uint64_t seen = known_ns;
	if (!__atomic_compare_exchange_n(&dial->deadline_ns, &seen, deadline_ns, false,
		    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return seen == (known_ns | LEASED_REAPER_CUT_BEGUN) ? -ETIME : -ESTALE;
	__atomic_store_n(&dial->generation, generation, __ATOMIC_RELEASE);
	return 0;
}
