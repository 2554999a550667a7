/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's file, its lock, its nodes.
 *
 * Rule: a process finds its machine from where its library lies (<root>/lib), or else by
 * LEASED_MOCK_ROOT. The lock is robust: whoever is killed inside leaves it to the next.
 *
 * Does not create a machine: `command.c` does.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct machine *mapped;
static char root[3072];
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

/* Where the library lies, or, when it was loaded from where it was built, what the caller says. */
static void find_root(void)
{
	Dl_info self;
	char *const found = dladdr((void *)&machine_open, &self) && self.dli_fname
				    ? realpath(self.dli_fname, NULL)
				    : NULL;
	for (int up = 0; found && up < 2; up++) {
		char *const slash = strrchr(found, '/');
		if (slash)
			*slash = '\0';
	}
	char state[4096];
	snprintf(state, sizeof state, "%s/state", found ? found : "");
	const char *const named = getenv("LEASED_MOCK_ROOT");
	if (found && access(state, F_OK) == 0)
		snprintf(root, sizeof root, "%s", found);
	else if (named)
		snprintf(root, sizeof root, "%s", named);
	free(found);
}

const char *machine_root(void)
{
	return root;
}

static struct machine *map(void)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/state", root);
	const int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	struct machine *const found =
		mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct stat status;
	const bool whole = fstat(fd, &status) == 0 && status.st_size == (off_t)sizeof *found;
	close(fd);
	if (found == MAP_FAILED)
		return NULL;
	if (!whole || found->magic != MACHINE_MAGIC || found->bytes != sizeof *found) {
		munmap(found, sizeof *found);
		errno = EPROTO;
		return NULL;
	}
	return found;
}

struct machine *machine_open(void)
{
	pthread_mutex_lock(&opening);
	if (!mapped) {
		find_root();
		mapped = map();
	}
	pthread_mutex_unlock(&opening);
	return mapped;
}

void machine_lock(void)
{
	if (pthread_mutex_lock(&mapped->lock) == EOWNERDEAD)
		pthread_mutex_consistent(&mapped->lock);
}

void machine_unlock(void)
{
	pthread_mutex_unlock(&mapped->lock);
}

uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

int node_open(const char *name, int flags)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/dev/%s", root, name);
	const int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int gpu_open(uint32_t gpu)
{
	char name[32];
	snprintf(name, sizeof name, "nvidia%u", mapped->gpu[gpu].minor);
	return node_open(name, O_RDWR);
}

int root_write(const char *name, const char *text)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", root, name);
	if (!text)
		return unlink(path) ? -errno : 0;
	for (char *slash = strchr(path + strlen(root) + 1, '/'); slash;
		slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(path, 0755);
		*slash = '/';
	}
	const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return -errno;
	const ssize_t wrote = write(fd, text, strlen(text));
	close(fd);
	return wrote == (ssize_t)strlen(text) ? 0 : -EIO;
}

uint32_t gpu_of_minor(uint32_t minor)
{
	for (uint32_t gpu = 0; gpu < GPUS_MAX; gpu++)
		if (mapped->gpu[gpu].present && mapped->gpu[gpu].minor == minor)
			return gpu;
	return NONE;
}

bool may_administer(void)
{
	FILE *const status = fopen("/proc/thread-self/status", "re");
	if (!status)
		return false;
	char line[256];
	unsigned long long effective = 0;
	while (fgets(line, sizeof line, status))
		if (sscanf(line, "CapEff: %llx", &effective) == 1)
			break;
	fclose(status);
	return effective >> 21 & 1; /* CAP_SYS_ADMIN */
}
