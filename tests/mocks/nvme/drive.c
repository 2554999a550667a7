/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A drive that can do what QEMU's cannot: Sanitize, cryptographic erase, namespaces made and
 * deleted. It sits where the kernel would: this library is loaded before everything else
 * (LD_PRELOAD) and answers ioctl(NVME_IOCTL_ADMIN_CMD) on descriptors of its own state, a file that
 * begins with MAGIC; on those it also takes BLKZEROOUT, BLKFLSBUF and fsync. Any other goes to the
 * kernel.
 *
 * Rule: it refuses what a drive would, with the status a drive gives: opcodes it does not have,
 * reserved bits, namespaces that are not there, anything but looking while it is being sanitized.
 * What a namespace has on it is one word, `data`; only an erasure that reaches it changes it.
 *
 * Writes stay in a cache until fsync: flushing the kernel's (BLKFLSBUF) tells the drive nothing.
 *
 * Does not keep data, and knows no I/O commands.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/fs.h>
#include <linux/nvme_ioctl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAGIC "A DRIVE."

enum { NAMESPACES = 4, PAGE = 4096, BLOCK = 512 };
enum { REFUSES_TO_MANAGE = 1, REFUSES_TO_ATTACH = 2, REFUSES_TO_DELETE = 4 };
enum { LOG = 0x02, IDENTIFY = 0x06, MANAGE = 0x0d, ATTACH = 0x15, FORMAT = 0x80, SANITIZE = 0x84 };
enum {
	OK = 0,
	INVALID_OPCODE = 0x4001,
	INVALID_FIELD = 0x4002,
	INVALID_NAMESPACE = 0x400b,
	SANITIZING = 0x001d,
	NOT_READY = 0x0082,
	NO_CAPACITY = 0x4115,
	NO_NSID = 0x4116,
	ATTACHED_ALREADY = 0x4118,
	NOT_ATTACHED = 0x411a,
};

struct namespace {
	uint64_t blocks; /* 0: there is none */
	uint64_t data;
	uint32_t attached;
	uint32_t erasures;
};

/* As tests/unit/hardware/test_hardware_block_admin.py has it. */
struct drive {
	char magic[8];
	uint32_t sanicap;
	uint32_t fna;
	uint64_t blocks_left;
	uint32_t looks; /* how many looks at the log until a sanitization is over */
	uint32_t fails; /* it then has failed */
	uint32_t state; /* SSTAT: 0 never, 1 done, 2 running, 3 failed */
	uint32_t action;
	uint32_t not_ready; /* so many lists of all namespaces it is not ready for */
	uint32_t cached;    /* what was written since the last flush is lost with the power */
	uint32_t refuses;   /* of REFUSES_..., what it does not do */
	uint32_t formats;   /* LBA formats: 512 bytes, with metadata, 4096 bytes and quicker */
	struct namespace namespace[NAMESPACES];
};

static void *page_of(const struct nvme_passthru_cmd *command)
{
	return (void *)(uintptr_t)command->addr;
}

static struct namespace *find(struct drive *drive, uint32_t nsid)
{
	if (nsid == 0 || nsid > NAMESPACES || drive->namespace[nsid - 1].blocks == 0)
		return NULL;
	return &drive->namespace[nsid - 1];
}

/* What is readable afterwards: nothing, or what the old key made of it under a new one. */
static void erase(struct namespace *one, bool crypto)
{
	one->data = crypto ? one->data * 0x9e3779b97f4a7c15u + 1 : 0;
	one->erasures++;
}

static int identify(struct drive *drive, struct nvme_passthru_cmd *command)
{
	uint8_t page[PAGE] = { 0 };
	const struct namespace *one = find(drive, command->nsid);
	const bool every = command->nsid == 0xffffffff && command->cdw10 == 0x00;
	const uint64_t left_bytes = drive->blocks_left * BLOCK;
	uint32_t count = 0, *list = (void *)page;
	if (command->data_len != PAGE)
		return INVALID_FIELD;
	switch (command->cdw10) {
	case 0x00: /* attached, or what all have in common */
	case 0x11: /* attached or not */
		if (one == NULL && !every)
			return INVALID_NAMESPACE;
		if (one != NULL && (command->cdw10 == 0x11 || one->attached != 0))
			memcpy(page, &one->blocks, sizeof one->blocks);
		page[25] = (uint8_t)(drive->formats > 1 ? drive->formats - 1 : 0);
		page[30] = 1;
		memcpy(page + 128, (uint8_t[]){ 0, 0, 9, 2, 8, 0, 9, 0, 0, 0, 12, 1 }, 12);
		break;
	case 0x01:
		page[256] = 0x0a; /* format, namespace management */
		memcpy(page + 296, &left_bytes, sizeof left_bytes);
		memcpy(page + 328, &drive->sanicap, sizeof drive->sanicap);
		page[524] = (uint8_t)drive->fna;
		break;
	case 0x02: /* attached */
	case 0x10: /* all */
		if (command->cdw10 == 0x10 && drive->not_ready > 0) {
			drive->not_ready--;
			return NOT_READY;
		}
		for (uint32_t i = 0; i < NAMESPACES; i++) {
			const struct namespace *each = &drive->namespace[i];
			if (each->blocks != 0 && (command->cdw10 == 0x10 || each->attached != 0))
				list[count++] = i + 1;
		}
		break;
	case 0x12: /* who reaches it */
		if (one == NULL)
			return INVALID_NAMESPACE;
		for (uint16_t i = 0; i < 2; i++) {
			if ((one->attached & 1u << i) != 0)
				((uint16_t *)(void *)page)[++count] = i;
		}
		*(uint16_t *)(void *)page = (uint16_t)count;
		break;
	default:
		return INVALID_FIELD;
	}
	memcpy(page_of(command), page, PAGE);
	return OK;
}

static int log_page(struct drive *drive, struct nvme_passthru_cmd *command)
{
	static const uint8_t has[] = { LOG, IDENTIFY, MANAGE, ATTACH, FORMAT, SANITIZE };
	uint8_t page[PAGE] = { 0 };
	const uint32_t bytes = ((command->cdw10 >> 16 | command->cdw11 << 16) + 1) * 4;
	if (bytes != command->data_len || bytes > PAGE)
		return INVALID_FIELD;
	switch (command->cdw10 & 0xff) {
	case 0x05:
		for (size_t i = 0; i < sizeof has; i++)
			page[4 * has[i]] = 1;
		if (drive->refuses & REFUSES_TO_MANAGE)
			page[4 * MANAGE] = 0;
		break;
	case 0x81:
		if (drive->state == 2 && drive->looks-- == 0)
			drive->state = drive->fails != 0 ? 3 : 1;
		const bool over = drive->state == 1 && drive->action != 0;
		for (int i = 0; over && i < NAMESPACES; i++) {
			struct namespace *each = &drive->namespace[i];
			if (each->blocks != 0)
				erase(each, drive->action == 4);
		}
		if (drive->state != 2)
			drive->action = 0;
		page[0] = page[1] = drive->state == 2 ? 0x7f : 0xff;
		page[2] = (uint8_t)drive->state;
		break;
	default:
		return 0x4109;
	}
	memcpy(page_of(command), page, bytes);
	return OK;
}

static int format(struct drive *drive, const struct nvme_passthru_cmd *command)
{
	const uint32_t ses = command->cdw10 >> 9 & 7;
	const bool all = (drive->fna & (ses != 0 ? 2 : 1)) != 0;
	if ((command->cdw10 & ~0xe0fu) != 0 || ses > 2 || (ses == 2 && (drive->fna & 4) == 0))
		return INVALID_FIELD;
	if ((command->cdw10 & 0xf) != 0)
		return 0x410a; /* there is one format only */
	if (find(drive, command->nsid) == NULL)
		return INVALID_NAMESPACE;
	for (uint32_t i = 0; i < NAMESPACES; i++) {
		if (drive->namespace[i].blocks != 0 && (all || i + 1 == command->nsid))
			erase(&drive->namespace[i], ses == 2);
	}
	return OK;
}

static int sanitize(struct drive *drive, const struct nvme_passthru_cmd *command)
{
	const uint32_t action = command->cdw10 & 7;
	static const uint32_t bit[] = { [2] = 2, [3] = 4, [4] = 1 };
	if (action < 2 || action > 4 || (drive->sanicap & bit[action]) == 0 || command->nsid != 0)
		return INVALID_FIELD;
	if ((action == 3) != ((command->cdw10 >> 4 & 0xf) != 0))
		return INVALID_FIELD; /* passes go with overwriting, and only with it */
	if ((command->cdw10 & 1u << 9) == 0)
		return INVALID_FIELD; /* deallocated, nobody could look at what is there */
	drive->state = 2;
	drive->action = action;
	return OK;
}

static int manage(struct drive *drive, struct nvme_passthru_cmd *command)
{
	struct namespace *one = find(drive, command->nsid);
	uint64_t size, capacity;
	if (drive->refuses & REFUSES_TO_MANAGE)
		return INVALID_OPCODE;
	if (command->cdw10 == 1) {
		if (one == NULL)
			return INVALID_NAMESPACE;
		if (drive->refuses & REFUSES_TO_DELETE)
			return NOT_READY;
		drive->blocks_left += one->blocks;
		memset(one, 0, sizeof *one);
		return OK;
	}
	if (command->cdw10 != 0 || command->data_len != PAGE || command->nsid != 0)
		return INVALID_FIELD;
	memcpy(&size, page_of(command), sizeof size);
	memcpy(&capacity, (char *)page_of(command) + 8, sizeof capacity);
	if (size == 0 || capacity != size)
		return INVALID_FIELD;
	size *= drive->formats > 2 && ((uint8_t *)page_of(command))[26] == 2 ? 4096 / BLOCK : 1;
	if (size > drive->blocks_left)
		return NO_CAPACITY;
	for (uint32_t i = 0; i < NAMESPACES; i++) {
		if (drive->namespace[i].blocks == 0) {
			drive->namespace[i] = (struct namespace){ .blocks = size };
			drive->blocks_left -= size;
			command->result = i + 1;
			return OK;
		}
	}
	return NO_NSID;
}

static int attach(struct drive *drive, const struct nvme_passthru_cmd *command)
{
	struct namespace *one = find(drive, command->nsid);
	const uint16_t *list = page_of(command);
	uint32_t who = 0;
	if (one == NULL)
		return INVALID_NAMESPACE;
	if (drive->refuses & REFUSES_TO_ATTACH)
		return NOT_READY;
	if (command->data_len != PAGE || command->cdw10 > 1 || list[0] == 0 || list[0] > 2)
		return INVALID_FIELD;
	for (uint16_t i = 1; i <= list[0]; i++) {
		if (list[i] > 1)
			return 0x411c; /* it has two controllers */
		who |= 1u << list[i];
	}
	if (command->cdw10 == 0 && (one->attached & who) != 0)
		return ATTACHED_ALREADY;
	if (command->cdw10 == 1 && (one->attached & who) != who)
		return NOT_ATTACHED;
	one->attached ^= who;
	return OK;
}

static int carry_out(struct drive *drive, struct nvme_passthru_cmd *command)
{
	if (drive->state == 2 && command->opcode != LOG && command->opcode != IDENTIFY)
		return SANITIZING;
	switch (command->opcode) {
	case LOG: return log_page(drive, command);
	case IDENTIFY: return identify(drive, command);
	case MANAGE: return manage(drive, command);
	case ATTACH: return attach(drive, command);
	case FORMAT: return format(drive, command);
	case SANITIZE: return sanitize(drive, command);
	default: return INVALID_OPCODE;
	}
}

static bool is_drive(int fd, struct drive *drive)
{
	return pread(fd, drive, sizeof *drive, 0) == sizeof *drive &&
	       memcmp(drive->magic, MAGIC, sizeof drive->magic) == 0;
}

int fsync(int fd)
{
	static int (*kernel)(int);
	struct drive drive;
	if (kernel == NULL)
		*(void **)&kernel = dlsym(RTLD_NEXT, "fsync");
	if (!is_drive(fd, &drive))
		return kernel(fd);
	drive.cached = 0;
	return pwrite(fd, &drive, sizeof drive, 0) == sizeof drive ? 0 : -1;
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*kernel)(int, unsigned long, ...);
	struct drive drive;
	va_list rest;
	va_start(rest, request);
	void *argument = va_arg(rest, void *);
	va_end(rest);
	if (kernel == NULL)
		*(void **)&kernel = dlsym(RTLD_NEXT, "ioctl");
	const bool block = request == BLKZEROOUT || request == BLKFLSBUF;
	if ((request != NVME_IOCTL_ADMIN_CMD && !block) || !is_drive(fd, &drive))
		return kernel(fd, request, argument);
	if (block) {
		drive.cached = drive.cached || request == BLKZEROOUT;
		return pwrite(fd, &drive, sizeof drive, 0) == sizeof drive ? 0 : -1;
	}
	struct nvme_passthru_cmd *command = argument;
	if (command->flags != 0 || command->rsvd1 != 0 || command->timeout_ms == 0) {
		errno = EINVAL;
		return -1;
	}
	int status = carry_out(&drive, command);
	return pwrite(fd, &drive, sizeof drive, 0) == sizeof drive ? status : -1;
}
