/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only clock of the C side: CLOCK_BOOTTIME, which no step of the wall's moves and no suspend
 * stops.
 */
#ifndef LEASED_CLOCK_H
#define LEASED_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)

static inline uint64_t boot_now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* How long to wait for an event until then, as poll takes it: 0 is now, and never before. */
static inline int left_ms(uint64_t until_ns)
{
	const uint64_t now_ns = boot_now();
	const uint64_t left = now_ns < until_ns ? (until_ns - now_ns - 1) / NS_PER_MS + 1 : 0;
	return left > INT32_MAX ? INT32_MAX : (int)left;
}

#endif
