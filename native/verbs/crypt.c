/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A dm-crypt table with a key that nobody ever sees.
 *
 * Rule: the key is drawn by getrandom into locked memory, handed to the kernel as a `logon` key of
 * this process, which no process can read back, and overwritten; the table names the key only by
 * its description. When the table is loaded dm-crypt has its own copy, and the keyring's is
 * revoked: what is left of the key is in one place, which `key wipe` and the end of the table
 * overwrite. It is never in an argument, a file, a log or a core.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/keyctl.h>

enum { KEY_BYTES_MAX = 64, PARAMETER_BYTES = 512, DESCRIPTION_BYTES = 192 };

static int draw(uint8_t *key, size_t bytes)
{
	size_t drawn = 0;
	while (drawn < bytes) {
		ssize_t got = getrandom(key + drawn, bytes - drawn, 0);
		if (got < 0 && errno != EINTR)
			return -errno;
		drawn += got > 0 ? (size_t)got : 0;
	}
	return 0;
}

/* A new key in this process's keyring; its serial number. */
static int new_key(const char *description, size_t bytes)
{
	/* On a page of its own, as far as it goes: unlocking it must not unlock a neighbour's. */
	uint8_t key[KEY_BYTES_MAX] __attribute__((aligned(KEY_BYTES_MAX)));
	if (mlock(key, sizeof key) != 0)
		return -errno;
	int rc = draw(key, bytes);
	if (rc == 0) {
		long serial = syscall(
			SYS_add_key, "logon", description, key, bytes, KEY_SPEC_PROCESS_KEYRING);
		rc = serial < 0 ? -errno : (int)serial;
	}
	explicit_bzero(key, sizeof key);
	munlock(key, sizeof key);
	return rc;
}

/*
 * Load a dm-crypt table over the whole of a device, with a key of `key_bytes` of its own.
 * `options` are dm-crypt's, with their count before them ("1 allow_discards"), or empty.
 */
int leased_dm_load_crypt(int control, const char *uuid, uint64_t sectors, const char *cipher,
	uint32_t key_bytes, uint32_t major, uint32_t minor, const char *options)
{
	char description[DESCRIPTION_BYTES], parameters[PARAMETER_BYTES];
	if (key_bytes == 0 || key_bytes > KEY_BYTES_MAX)
		return -EINVAL;
	int length = snprintf(description, sizeof description, "leased:%s", uuid);
	if (length < 0 || (size_t)length >= sizeof description)
		return -EINVAL;
	length = snprintf(parameters, sizeof parameters, "%s :%u:logon:%s 0 %u:%u 0 %s", cipher,
		key_bytes, description, major, minor, options);
	if (length < 0 || (size_t)length >= sizeof parameters)
		return -E2BIG;
	int serial = new_key(description, key_bytes);
	if (serial < 0)
		return serial;
	int rc = leased_dm_load(control, uuid, sectors, "crypt", parameters, 1);
	long revoked = syscall(SYS_keyctl, KEYCTL_REVOKE, serial);
	int left = revoked < 0 ? -errno : 0;
	(void)syscall(SYS_keyctl, KEYCTL_UNLINK, serial, KEY_SPEC_PROCESS_KEYRING);
	return rc < 0 ? rc : left;
}
