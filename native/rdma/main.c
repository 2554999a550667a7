/* SPDX-License-Identifier: Apache-2.0 */
/*
 * leased-rdma: the only program that touches libibverbs. The agent's device worker starts it; it is
 * of no use by hand, except `leased-rdma look DEVICE`.
 *
 * Exit statuses are sysexits: 64 usage, 69 no library or no such device, 71 the system refuses
 * something needed. An owner that has answered its first request reports there, not here.
 */
#define _GNU_SOURCE
#include "rdma.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sysexits.h>

#define RDMA_RELEASE "0.1.0"

enum { CONTROL_FD = 3, DOOR_FD = 4 };

static const char USAGE[] =
	"usage: leased-rdma look DEVICE\n"
	"       leased-rdma own CONTROL DOOR CGROUP_PROCS PINNED_BYTES\n"
	"       leased-rdma probe CONTROL\n"
	"       leased-rdma --version\n"
	"\n"
	"look says what a device can. own and probe are started by the lease agent with "
	"descriptors.\n";

static bool number_of(const char *text, uint64_t most, uint64_t *value)
{
	char *stop = NULL;
	errno = 0;
	unsigned long long parsed = strtoull(text, &stop, 10);
	if (text[0] < '0' || text[0] > '9' || errno != 0 || *stop != '\0' || parsed > most)
		return false;
	*value = parsed;
	return true;
}

static int complain(int rc)
{
	fprintf(stderr, "%d %s\n", -rc, failed_at());
	return rc == -ENOENT || rc == -ENOSYS || rc == -ENODEV ? EX_UNAVAILABLE : EX_OSERR;
}

/* What a device can, as key=value lines. */
int look(const char *device)
{
	struct abi_device_attr can;
	struct abi_context *context = library_open_device(device);
	if (context == NULL)
		return -errno;
	memset(&can, 0, sizeof can);
	int rc = verbs.query_device(context, &can);
	if (rc == 0) {
		printf("firmware=%.*s\n", (int)sizeof can.fw_ver, can.fw_ver);
		printf("region_bytes_max=%" PRIu64 "\n", can.max_mr_size);
		printf("regions_max=%d\n", can.max_mr);
		printf("queue_pairs_max=%d\n", can.max_qp);
		printf("windows_max=%d\n", can.max_mw);
		printf("windows_2b=%d\n",
			(can.device_cap_flags & ABI_DEVICE_MEM_WINDOW_TYPE_2B) != 0);
		printf("atomics=%d\n", can.atomic_cap != ABI_ATOMIC_NONE);
	}
	verbs.close_device(context);
	return rc == 0 ? 0 : failed("read what the device can", rc);
}

static int run_own(char **arguments)
{
	uint64_t control = 0, door = 0, procs = 0, pinned = 0;
	if (!number_of(arguments[0], INT32_MAX, &control) ||
		!number_of(arguments[1], INT32_MAX, &door) ||
		!number_of(arguments[2], INT32_MAX, &procs) ||
		!number_of(arguments[3], INT64_MAX, &pinned))
		return EX_USAGE;
	/* Before anything is promised: the kernel's answers are the same in the child. */
	int rc = confine((int)procs, pinned);
	if (rc == 0)
		rc = library_open();
	if (rc == 0)
		rc = detach((int)control, (int)door);
	return rc == 0 ? own(CONTROL_FD, DOOR_FD) : complain(rc);
}

static int run_probe(char **arguments)
{
	uint64_t control = 0;
	if (!number_of(arguments[0], INT32_MAX, &control))
		return EX_USAGE;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int rc = library_open();
	return rc == 0 ? probe((int)control) : complain(rc);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		puts("leased-rdma " RDMA_RELEASE);
		return EX_OK;
	}
	if (argc == 6 && strcmp(argv[1], "own") == 0)
		return run_own(argv + 2);
	if (argc == 3 && strcmp(argv[1], "probe") == 0)
		return run_probe(argv + 2);
	if (argc == 3 && strcmp(argv[1], "look") == 0) {
		int rc = library_open();
		if (rc == 0)
			rc = look(argv[2]);
		return rc == 0 ? EX_OK : complain(rc);
	}
	if (argc == 2 && strcmp(argv[1], "--help") == 0) {
		fputs(USAGE, stdout);
		return EX_OK;
	}
	fputs(USAGE, stderr);
	return EX_USAGE;
}
