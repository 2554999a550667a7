/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel must be able to do here, tried once: memory that can be sealed, scrubbed and
 * truncated, and a process that can be killed by pidfd. Run by the agent at its start, so that a
 * kernel that lies is found before a lease.
 *
 * Does not touch anything that outlives the call.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int check_scrub(int fd, uint64_t bytes)
{
	uint64_t overwritten = 0, residue = 0;
	char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (start == MAP_FAILED)
		return -errno;
	memset(start, 0x5a, bytes);
	int rc = leased_mem_scrub(fd, 0, bytes, &overwritten, &residue);
	if (rc == 0 && (overwritten != bytes || residue != 0 || start[bytes - 1] != 0))
		rc = -EILSEQ;
	munmap(start, bytes);
	return rc;
}

static int check_memory(void)
{
	const uint64_t bytes = 4 * (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t left = 0;
	int fd = -1;
	int rc = leased_mem_create("leased-selftest", bytes, 0, -1, &fd);
	if (rc != 0)
		return rc;
	rc = check_scrub(fd, bytes);
	if (rc == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0)
		rc = -EILSEQ; /* a holder could now stop us from truncating */
	if (rc == 0)
		rc = leased_mem_truncate(fd, &left);
	if (rc == 0 && left != 0)
		rc = -EILSEQ;
	close(fd);
	return rc;
}

/* 0, or -errno of the first thing that does not work here (-EILSEQ: it answered, but wrongly). */
int leased_selftest(void)
{
	int rc = check_memory();
	if (rc != 0)
		return rc;
	int pidfd = leased_pidfd_open(getpid());
	if (pidfd < 0)
		return pidfd;
	close(pidfd);
	return 0;
}
