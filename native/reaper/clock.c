/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The boot that the clock counts from.
 */
#include "reaper.h"

#include <errno.h>

#include "../text.h"

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int read_boot_id(uint8_t *into)
{
	char text[64];
	const ssize_t length = read_text("/proc/sys/kernel/random/boot_id", text, sizeof text);
	if (length < 0)
		return (int)length;
	unsigned int nibbles = 0;
	for (ssize_t i = 0; i < length && nibbles < 32; i++) {
		int value = digit(text[i]);
		if (value < 0)
			continue;
		uint8_t *byte = &into[nibbles / 2];
		*byte = (uint8_t)(nibbles % 2 ? (*byte << 4 | value) : value);
		nibbles++;
	}
	return nibbles == 32 ? 0 : -EPROTO;
}
