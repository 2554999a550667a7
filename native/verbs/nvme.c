/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVMe admin commands and the block layer's own verbs for a namespace.
 *
 * Rule: a driver's ioctl has three answers: below 0 an errno, 0 done, above 0 the drive's status,
 * which is a refusal like any other. A verb that asks a drive hands all three on: 0, -errno, or the
 * status as the drive gave it (status field, DNR included). Every command has its own time limit;
 * the kernel's own would let an admin command take a minute and then reset the controller.
 *
 * Does not judge which command may be sent: formats and sanitizations reach beyond a namespace, and
 * the agent knows who else is there.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/nvme_ioctl.h>

enum {
	DELETE_OR_CREATE_NAMESPACE = 0x0d,
	GET_LOG_PAGE = 0x02,
	IDENTIFY = 0x06,
	ATTACH_NAMESPACE = 0x15,
	FORMAT = 0x80,
	SANITIZE = 0x84,
	CONTROLLERS_MAX = 2047,
};

_Static_assert(sizeof(struct nvme_passthru_cmd) == 72, "nvme_passthru_cmd");
_Static_assert(offsetof(struct nvme_passthru_cmd, nsid) == 4, "nsid");
_Static_assert(offsetof(struct nvme_passthru_cmd, addr) == 24, "addr");
_Static_assert(offsetof(struct nvme_passthru_cmd, data_len) == 36, "data_len");
_Static_assert(offsetof(struct nvme_passthru_cmd, cdw10) == 40, "cdw10");
_Static_assert(offsetof(struct nvme_passthru_cmd, cdw15) == 60, "cdw15");
_Static_assert(offsetof(struct nvme_passthru_cmd, timeout_ms) == 64, "timeout_ms");
_Static_assert(offsetof(struct nvme_passthru_cmd, result) == 68, "result");
_Static_assert(NVME_IOCTL_ADMIN_CMD == 0xc0484e41, "NVME_IOCTL_ADMIN_CMD");
_Static_assert(NVME_IOCTL_ID == 0x4e40 && NVME_IOCTL_RESCAN == 0x4e46, "NVMe requests");
_Static_assert(BLKFLSBUF == 0x1261 && BLKZEROOUT == 0x127f, "block requests");
_Static_assert(BLKGETSIZE64 == 0x80081272 && BLKSSZGET == 0x1268, "block questions");

static int ask(int fd, struct nvme_passthru_cmd *command)
{
	int rc;
	do {
		rc = ioctl(fd, NVME_IOCTL_ADMIN_CMD, command);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : rc;
}

/* 4096 bytes of Identify. `fd` is a controller; of a namespace (`nsid` its own) it may be, too. */
int leased_nvme_identify(int fd, uint32_t nsid, uint32_t cns, void *page, uint32_t timeout_ms)
{
	struct nvme_passthru_cmd command = { .opcode = IDENTIFY,
		.nsid = nsid,
		.addr = (uint64_t)(uintptr_t)page,
		.data_len = LEASED_NVME_PAGE_BYTES,
		.cdw10 = cns,
		.timeout_ms = timeout_ms };
	return ask(fd, &command);
}

/* The first `bytes` (a multiple of 4) of a log page. */
int leased_nvme_log(
	int fd, uint32_t nsid, uint32_t log, void *into, uint32_t bytes, uint32_t timeout_ms)
{
	if (bytes < 4 || bytes % 4 != 0)
		return -EINVAL;
	const uint32_t dwords = bytes / 4 - 1;
	struct nvme_passthru_cmd command = { .opcode = GET_LOG_PAGE,
		.nsid = nsid,
		.addr = (uint64_t)(uintptr_t)into,
		.data_len = bytes,
		.cdw10 = (dwords & 0xffff) << 16 | (log & 0xff),
		.cdw11 = dwords >> 16,
		.timeout_ms = timeout_ms };
	return ask(fd, &command);
}

/* Format one namespace (or, where the drive has it so, all of them) with LBA format `lbaf`; `ses`
 * is 0, 1 (user data) or 2 (cryptographic). */
int leased_nvme_format(int fd, uint32_t nsid, uint32_t lbaf, uint32_t ses, uint32_t timeout_ms)
{
	struct nvme_passthru_cmd command = { .opcode = FORMAT,
		.nsid = nsid,
		.cdw10 = (lbaf & 0xf) | (ses & 7) << 9 | (lbaf >> 4 & 3) << 12,
		.timeout_ms = timeout_ms };
	return ask(fd, &command);
}

/* Begin to sanitize the whole subsystem: `action` is 2 (block), 3 (overwrite) or 4 (crypto). It
 * goes on after the return; log 0x81 tells how far it is. */
int leased_nvme_sanitize(int fd, uint32_t action, uint32_t timeout_ms)
{
	/* One overwriting pass; no deallocation afterwards, so that what is there can be read. */
	const uint32_t passes = action == 3 ? 1u << 4 : 0;
	struct nvme_passthru_cmd command = { .opcode = SANITIZE,
		.cdw10 = (action & 7) | passes | 1u << 9,
		.timeout_ms = timeout_ms };
	return ask(fd, &command);
}

/* Make a namespace of so many blocks; *nsid is its number. It is attached to nobody. */
int leased_nvme_create_namespace(
	int fd, uint64_t blocks, uint32_t lbaf, int shared, uint32_t *nsid, uint32_t timeout_ms)
{
	uint8_t page[LEASED_NVME_PAGE_BYTES] __attribute__((aligned(LEASED_NVME_PAGE_BYTES)));
	struct nvme_passthru_cmd command = { .opcode = DELETE_OR_CREATE_NAMESPACE,
		.addr = (uint64_t)(uintptr_t)page,
		.data_len = sizeof page,
		.timeout_ms = timeout_ms };
	memset(page, 0, sizeof page);
	memcpy(page, &blocks, sizeof blocks);     /* NSZE */
	memcpy(page + 8, &blocks, sizeof blocks); /* NCAP */
	page[26] = (uint8_t)((lbaf & 0xf) | (lbaf >> 4 & 3) << 5);
	page[30] = shared ? 1 : 0;
	int rc = ask(fd, &command);
	*nsid = rc == 0 ? command.result : 0;
	return rc;
}

int leased_nvme_delete_namespace(int fd, uint32_t nsid, uint32_t timeout_ms)
{
	struct nvme_passthru_cmd command = { .opcode = DELETE_OR_CREATE_NAMESPACE,
		.nsid = nsid,
		.cdw10 = 1,
		.timeout_ms = timeout_ms };
	return ask(fd, &command);
}

/* Attach (or detach) a namespace to these controllers. */
int leased_nvme_attach_namespace(int fd, uint32_t nsid, int attach, const uint16_t *controllers,
	uint32_t count, uint32_t timeout_ms)
{
	uint16_t list[LEASED_NVME_PAGE_BYTES / 2] __attribute__((aligned(LEASED_NVME_PAGE_BYTES)));
	struct nvme_passthru_cmd command = { .opcode = ATTACH_NAMESPACE,
		.nsid = nsid,
		.addr = (uint64_t)(uintptr_t)list,
		.data_len = sizeof list,
		.cdw10 = attach ? 0 : 1,
		.timeout_ms = timeout_ms };
	if (count == 0 || count > CONTROLLERS_MAX)
		return -EINVAL;
	memset(list, 0, sizeof list);
	list[0] = (uint16_t)count;
	memcpy(list + 1, controllers, count * sizeof *controllers);
	return ask(fd, &command);
}

/* Let the kernel look at the controller's namespaces again. */
int leased_nvme_rescan(int fd)
{
	return ioctl(fd, NVME_IOCTL_RESCAN) < 0 ? -errno : 0;
}

/* ---- the block layer ---- */

int leased_block_measure(int fd, struct leased_block_device *device)
{
	int lba_bytes = 0, read_only = 0;
	memset(device, 0, sizeof *device);
	if (ioctl(fd, BLKGETSIZE64, &device->bytes) < 0 || ioctl(fd, BLKSSZGET, &lba_bytes) < 0 ||
		ioctl(fd, BLKROGET, &read_only) < 0)
		return -errno;
	device->lba_bytes = (uint32_t)lba_bytes;
	device->read_only = read_only != 0;
	return 0;
}

/* Throw cached blocks away, so that whoever reads next reads the drive. */
int leased_block_flush(int fd)
{
	return ioctl(fd, BLKFLSBUF, 0) < 0 ? -errno : 0;
}

/* Let the drive (or, where it cannot, the kernel) write zeroes. */
int leased_block_zero(int fd, uint64_t offset, uint64_t bytes)
{
	const uint64_t range[2] = { offset, bytes };
	int rc;
	do {
		rc = ioctl(fd, BLKZEROOUT, range);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

/* What is behind a loop device, as major << 32 | minor if that is a device (else 0). -ENXIO: it is
 * not in use. */
int leased_loop_behind(int fd, uint64_t *device)
{
	struct loop_info64 info;
	if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0)
		return -errno;
	*device = (uint64_t)major(info.lo_rdevice) << 32 | minor(info.lo_rdevice);
	return 0;
}
