/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device-mapper by ioctl on /dev/mapper/control: make a mapping, load it, swap it for `error`, take
 * it away.
 *
 * Rule: a mapping is found by its uuid, never by its name, which root may change. A table has one
 * target. The cut is one swap: the error table is loaded into the inactive slot when the mapping is
 * made, so that cutting allocates no table. Everything that has not reached the drive by the
 * suspend gets EIO after the resume, and so does every later read and write.
 *
 * A suspend waits for the I/O that the drive has in hand, for as long as the drive takes: whoever
 * must not wait leaves it to a process that may. Does not create device nodes (devtmpfs and udev
 * do) and does not know what is below the mapping.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <linux/dm-ioctl.h>

#include "../clock.h"

enum { PACKET_BYTES = 2048, REMOVE_AGAIN_MS = 2 };

_Static_assert(sizeof(struct dm_ioctl) == 312, "dm_ioctl");
_Static_assert(offsetof(struct dm_ioctl, data_size) == 12, "data_size");
_Static_assert(offsetof(struct dm_ioctl, flags) == 28, "flags");
_Static_assert(offsetof(struct dm_ioctl, dev) == 40, "dev");
_Static_assert(offsetof(struct dm_ioctl, name) == 48, "name");
_Static_assert(offsetof(struct dm_ioctl, uuid) == 176, "uuid");
_Static_assert(sizeof(struct dm_target_spec) == 40, "dm_target_spec");
_Static_assert(offsetof(struct dm_target_spec, target_type) == 24, "target_type");
_Static_assert(LEASED_DM_NAME_BYTES == DM_NAME_LEN && LEASED_DM_UUID_BYTES == DM_UUID_LEN,
	"what the kernel takes");

/* One request and its answer, with room for one target or one message behind the header. */
union packet {
	struct dm_ioctl header;
	char bytes[PACKET_BYTES];
};

static int prepare(union packet *packet, const char *uuid, uint32_t flags)
{
	memset(packet, 0, sizeof *packet);
	packet->header.version[0] = DM_VERSION_MAJOR;
	packet->header.data_size = sizeof *packet;
	packet->header.data_start = sizeof packet->header;
	packet->header.flags = flags;
	if (strnlen(uuid, DM_UUID_LEN) == DM_UUID_LEN || uuid[0] == '\0')
		return -EINVAL;
	memcpy(packet->header.uuid, uuid, strlen(uuid));
	return 0;
}

static int ask(int control, unsigned long request, union packet *packet)
{
	int rc;
	do {
		rc = ioctl(control, request, packet);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

/* The control device. -ENODEV: this kernel has no device-mapper; -EACCES, -EPERM: not for us. */
int leased_dm_open(void)
{
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return errno == ENOENT || errno == ENXIO ? -ENODEV : -errno;
	union packet packet;
	memset(&packet, 0, sizeof packet);
	packet.header.version[0] = DM_VERSION_MAJOR;
	packet.header.data_size = sizeof packet;
	int rc = ask(control, DM_VERSION, &packet);
	if (rc < 0) {
		close(control);
		return rc;
	}
	return control;
}

/* Make a mapping without a table. -EBUSY: name or uuid are taken. */
int leased_dm_create(
	int control, const char *name, const char *uuid, uint32_t *major, uint32_t *minor)
{
	union packet packet;
	int rc = prepare(&packet, uuid, 0);
	if (rc < 0)
		return rc;
	if (strnlen(name, DM_NAME_LEN) == DM_NAME_LEN)
		return -EINVAL;
	memcpy(packet.header.name, name, strlen(name));
	rc = ask(control, DM_DEV_CREATE, &packet);
	if (rc < 0)
		return rc;
	*major = major(packet.header.dev);
	*minor = minor(packet.header.dev);
	return 0;
}

/* Load a table of one target into the inactive slot; `secret`: the kernel wipes its copies of what
 * we say. */
int leased_dm_load(int control, const char *uuid, uint64_t sectors, const char *target,
	const char *parameters, int secret)
{
	union packet packet;
	struct dm_target_spec *spec = (void *)(packet.bytes + sizeof packet.header);
	const size_t room = sizeof packet - sizeof packet.header - sizeof *spec - 8;
	const size_t length = strlen(parameters);
	int rc = prepare(&packet, uuid, secret ? DM_SECURE_DATA_FLAG : 0);
	if (rc < 0)
		return rc;
	if (length >= room || strnlen(target, DM_MAX_TYPE_NAME) == DM_MAX_TYPE_NAME)
		return -E2BIG;
	packet.header.target_count = 1;
	spec->length = sectors;
	memcpy(spec->target_type, target, strlen(target));
	memcpy((char *)(spec + 1), parameters, length);
	/* Where the next target would begin, aligned. */
	spec->next = (uint32_t)((sizeof *spec + length + 1 + 7) & ~(size_t)7);
	rc = ask(control, DM_TABLE_LOAD, &packet);
	if (secret)
		explicit_bzero(&packet, sizeof packet);
	return rc;
}

/* Make the inactive table, if there is one, the active one, and let I/O go. */
int leased_dm_resume(int control, const char *uuid)
{
	union packet packet;
	int rc = prepare(&packet, uuid, DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG);
	return rc < 0 ? rc : ask(control, DM_DEV_SUSPEND, &packet);
}

/* Hold new I/O back and wait for what the drive has in hand; no file system is asked. */
int leased_dm_suspend(int control, const char *uuid)
{
	union packet packet;
	int rc = prepare(&packet, uuid, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG);
	return rc < 0 ? rc : ask(control, DM_DEV_SUSPEND, &packet);
}

/* Say something to the first target of the active table. */
static int say(int control, const char *uuid, const char *text)
{
	union packet packet;
	struct dm_target_msg *message = (void *)(packet.bytes + sizeof packet.header);
	int rc = prepare(&packet, uuid, 0);
	if (rc < 0)
		return rc;
	if (strlen(text) >= sizeof packet - sizeof packet.header - sizeof *message)
		return -E2BIG;
	memcpy(message->message, text, strlen(text));
	return ask(control, DM_TARGET_MSG, &packet);
}

/* What the mapping is: its active table, or with `inactive` the one that the next resume makes
 * active. -ENXIO: there is no such mapping. */
int leased_dm_describe(
	int control, const char *uuid, int inactive, struct leased_dm_mapping *mapping)
{
	union packet packet;
	const struct dm_target_spec *spec = (const void *)(packet.bytes + sizeof packet.header);
	int rc = prepare(&packet, uuid,
		DM_NOFLUSH_FLAG | (inactive ? (uint32_t)DM_QUERY_INACTIVE_TABLE_FLAG : 0));
	if (rc == 0)
		rc = ask(control, DM_TABLE_STATUS, &packet);
	if (rc < 0)
		return rc;
	memset(mapping, 0, sizeof *mapping);
	mapping->major = major(packet.header.dev);
	mapping->minor = minor(packet.header.dev);
	mapping->open_count = (uint32_t)packet.header.open_count;
	mapping->suspended = (packet.header.flags & DM_SUSPEND_FLAG) != 0;
	mapping->inactive = (packet.header.flags & DM_INACTIVE_PRESENT_FLAG) != 0;
	mapping->targets = packet.header.target_count;
	memcpy(mapping->name, packet.header.name, sizeof mapping->name - 1);
	if (packet.header.target_count > 0) {
		mapping->sectors = spec->sector_start + spec->length;
		memcpy(mapping->target, spec->target_type, sizeof mapping->target - 1);
	}
	return 0;
}

/* The devices that the active table is on, as major << 32 | minor; how many there are. */
int leased_dm_below(int control, const char *uuid, uint64_t *devices, uint32_t room)
{
	union packet packet;
	const struct dm_target_deps *below = (const void *)(packet.bytes + sizeof packet.header);
	int rc = prepare(&packet, uuid, 0);
	if (rc == 0)
		rc = ask(control, DM_TABLE_DEPS, &packet);
	if (rc < 0)
		return rc;
	if ((packet.header.flags & DM_BUFFER_FULL_FLAG) != 0)
		return -E2BIG;
	for (uint32_t i = 0; i < below->count && i < room; i++)
		devices[i] = (uint64_t)major(below->dev[i]) << 32 | minor(below->dev[i]);
	return (int)below->count;
}

/*
 * Take the mapping away; one that is open is asked again until `timeout_ms` have passed, because
 * udev looks into every device once. With `later` one that is still open then goes with its last
 * user; the answer is -EBUSY all the same. 0 also when there is none.
 */
int leased_dm_remove(int control, const char *uuid, uint32_t timeout_ms, int later)
{
	const struct timespec pause = { .tv_nsec = REMOVE_AGAIN_MS * 1000000L };
	const uint64_t until_ns = boot_now() + timeout_ms * NS_PER_MS;
	for (;;) {
		union packet packet;
		const bool last = boot_now() >= until_ns;
		int rc = prepare(&packet, uuid, last && later ? DM_DEFERRED_REMOVE : 0);
		if (rc == 0)
			rc = ask(control, DM_DEV_REMOVE, &packet);
		if (rc == 0 && (packet.header.flags & DM_DEFERRED_REMOVE) != 0)
			return -EBUSY;
		if (rc == -ENXIO)
			return 0;
		if (rc != -EBUSY || last)
			return rc;
		nanosleep(&pause, NULL);
	}
}

/* Put the uuid of a listed mapping behind `into`, if it begins as we want; how long it is. */
static int take_uuid(int control, const char *name, const char *prefix, char *into, size_t room)
{
	union packet packet;
	memset(&packet, 0, sizeof packet);
	packet.header.version[0] = DM_VERSION_MAJOR;
	packet.header.data_size = sizeof packet;
	packet.header.data_start = sizeof packet.header;
	if (strnlen(name, DM_NAME_LEN) == DM_NAME_LEN)
		return -EINVAL;
	memcpy(packet.header.name, name, strlen(name));
	int rc = ask(control, DM_DEV_STATUS, &packet);
	if (rc < 0)
		return rc == -ENXIO ? 0 : rc;
	const size_t length = strnlen(packet.header.uuid, DM_UUID_LEN);
	if (length == 0 || strncmp(packet.header.uuid, prefix, strlen(prefix)) != 0)
		return 0;
	if (length + 1 > room)
		return -E2BIG;
	memcpy(into, packet.header.uuid, length + 1);
	return (int)length + 1;
}

/*
 * The uuids that begin with `prefix`, one behind the other, each with its NUL, into `into`; how
 * many there are. The kernel lists every mapping of the host into `room` first. -E2BIG: not enough
 * of either.
 */
int leased_dm_list(int control, const char *prefix, void *room, size_t room_bytes, char *into,
	size_t into_bytes)
{
	struct dm_ioctl *header = room;
	if (room_bytes < PACKET_BYTES || room_bytes > UINT32_MAX)
		return -EINVAL;
	memset(room, 0, sizeof *header);
	header->version[0] = DM_VERSION_MAJOR;
	header->data_size = (uint32_t)room_bytes;
	header->data_start = sizeof *header;
	int rc = ask(control, DM_LIST_DEVICES, room);
	if (rc < 0)
		return rc;
	if ((header->flags & DM_BUFFER_FULL_FLAG) != 0)
		return -E2BIG;
	int count = 0;
	const char *at = (const char *)room + header->data_start;
	for (const struct dm_name_list *one = (const void *)at; one->dev != 0;
		one = (const void *)((const char *)one + one->next)) {
		rc = take_uuid(control, one->name, prefix, into, into_bytes);
		if (rc < 0)
			return rc;
		into += rc;
		into_bytes -= (size_t)rc;
		count += rc > 0;
		if (one->next == 0)
			break;
	}
	return count;
}

/*
 * From the return on nobody reads or writes through the mapping any more: EIO, whoever holds it and
 * whatever waits for it. A key that it had is forgotten. May be asked again after whatever befell
 * an earlier cut. 0 also when there is no such mapping. *key: whether a key was wiped; *ended_ns:
 * from when on (boottime) nothing was read or written: what is held back gets EIO at the end.
 */
int leased_dm_cut(int control, const char *uuid, int *key, uint64_t *ended_ns)
{
	struct leased_dm_mapping now, next;
	*key = 0;
	*ended_ns = boot_now();
	int rc = leased_dm_describe(control, uuid, 0, &now);
	if (rc == -ENXIO)
		return 0;
	if (rc < 0)
		return rc;
	const bool ended = now.targets == 1 && strcmp(now.target, "error") == 0;
	if (ended && !now.suspended && !now.inactive)
		return 0;
	rc = leased_dm_describe(control, uuid, 1, &next);
	const bool loaded = rc == 0 && next.targets == 1 && strcmp(next.target, "error") == 0 &&
			    next.sectors >= now.sectors;
	if (!loaded)
		rc = leased_dm_load(control, uuid, now.sectors ? now.sectors : 1, "error", "", 0);
	/* Without it a resume would let through what is held back. */
	if (rc < 0)
		return rc;
	if (!now.suspended)
		rc = leased_dm_suspend(control, uuid);
	/* dm-crypt takes this only while it is suspended; what has no key does not know the word.
	 */
	if (rc == 0 && strcmp(now.target, "crypt") == 0) {
		rc = say(control, uuid, "key wipe");
		*key = rc == 0;
	}
	*ended_ns = boot_now();
	/* Whether or not the key could be wiped: it goes with the table as well. The kernel clears
	 * the old table up before it returns, which takes it the longest of all. */
	int resumed = leased_dm_resume(control, uuid);
	return rc < 0 ? rc : resumed;
}
