/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cut of a mapping on a bad day: a device-mapper of our own behind ioctl (--wrap=ioctl), which
 * has one mapping and refuses what it is told to.
 *
 * Does not show what the kernel does (tests/reaper, tests/vm do).
 */
#define _GNU_SOURCE
#include "check.h"
#include "verbs.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

#include <linux/dm-ioctl.h>

enum { CONTROL = 1 << 20 };

static struct {
	const char *active, *inactive; /* targets; NULL: no table */
	bool suspended;
	unsigned long refused;
	int resumed;
} mapping;

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, ...);

static void describe(struct dm_ioctl *asked)
{
	struct dm_target_spec *spec = (void *)((char *)asked + asked->data_start);
	const bool inactive = (asked->flags & DM_QUERY_INACTIVE_TABLE_FLAG) != 0;
	const char *target = inactive ? mapping.inactive : mapping.active;
	asked->flags = (mapping.suspended ? DM_SUSPEND_FLAG : 0) |
		       (mapping.inactive != NULL ? DM_INACTIVE_PRESENT_FLAG : 0);
	asked->target_count = target != NULL;
	if (target == NULL)
		return;
	*spec = (struct dm_target_spec){ .length = 8 };
	memcpy(spec->target_type, target, strlen(target));
}

static void suspend_or_resume(const struct dm_ioctl *asked)
{
	if ((asked->flags & DM_SUSPEND_FLAG) != 0) {
		mapping.suspended = true;
		return;
	}
	if (mapping.inactive != NULL)
		mapping.active = mapping.inactive;
	mapping.inactive = NULL;
	mapping.suspended = false;
	mapping.resumed++;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	struct dm_ioctl *asked = va_arg(arguments, struct dm_ioctl *);
	va_end(arguments);
	if (fd != CONTROL)
		return __real_ioctl(fd, request, asked);
	if (request == mapping.refused) {
		errno = ENOMEM;
		return -1;
	}
	if (request == DM_TABLE_STATUS)
		describe(asked);
	else if (request == DM_TABLE_LOAD)
		mapping.inactive = "error";
	else if (request == DM_DEV_SUSPEND)
		suspend_or_resume(asked);
	return 0;
}

static int cut(int *key)
{
	uint64_t ended_ns = 0;
	return leased_dm_cut(CONTROL, "LEASED-check-0", key, &ended_ns);
}

static bool is_closed(void)
{
	return strcmp(mapping.active, "error") == 0 && !mapping.suspended;
}

void check_dm(void)
{
	int key = 0;
	mapping.active = "crypt";
	check("a mapping is cut", cut(&key) == 0 && is_closed() && key == 1);
	check("and again", cut(&key) == 0 && is_closed() && key == 0);

	/* Somebody has suspended it: nothing is read as long as that is so. */
	mapping.active = "crypt";
	mapping.suspended = true;
	mapping.resumed = 0;
	mapping.refused = DM_TABLE_LOAD;
	check("no memory for a table", cut(&key) == -ENOMEM && key == 0);
	check("opens nothing", mapping.suspended && mapping.resumed == 0);
	mapping.inactive = "linear";
	check("nor makes another's table active",
		cut(&key) == -ENOMEM && strcmp(mapping.active, "crypt") == 0);
	mapping.refused = 0;
	check("and the next cut closes it", cut(&key) == 0 && is_closed() && key == 1);

	mapping.active = "crypt";
	mapping.refused = DM_TARGET_MSG;
	check("a key that is not wiped is told", cut(&key) == -ENOMEM && key == 0);
	check("and the table goes all the same", is_closed());
	mapping.refused = 0;
}
