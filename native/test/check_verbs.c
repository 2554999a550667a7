/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs under AddressSanitizer and UndefinedBehaviorSanitizer: every path that a caller can
 * reach without hardware.
 *
 * usage: check-verbs DIRECTORY [CGROUP]: DIRECTORY for the committer's files, CGROUP an empty leaf
 * of cgroup2. Prints one line a check and exits with the number of those that failed.
 */
#define _GNU_SOURCE
#include "check.h"
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

void check(const char *what, int good)
{
	printf("%s %s\n", good ? "ok" : "FAILED", what);
	failures += !good;
}

static void check_memory(void)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	const uint64_t bytes = 300 * page;
	uint64_t overwritten = 0, residue = 0, blocks = 0;
	int fd = -1;
	check("create", leased_mem_create("check", bytes, 0, 0, &fd) == 0 && fd >= 0);
	check("every page present", leased_mem_blocks(fd, &blocks) == 0 && blocks == bytes / 512);
	check("sealed", fcntl(fd, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SEAL));
	check("no seal can be added", fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0);
	char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check("map", start != MAP_FAILED);
	memset(start, 0x5a, bytes);
	check("scrub", leased_mem_scrub(fd, 0, bytes, &overwritten, &residue) == 0);
	check("scrub wrote everything", overwritten == bytes && residue == 0);
	int zero = 1;
	for (uint64_t i = 0; i < bytes; i++)
		zero = zero && start[i] == 0;
	check("scrub left nothing", zero);
	check("scrub of a part",
		leased_mem_scrub(fd, 0, page, &overwritten, &residue) == 0 && overwritten == page);
	memset(start, 0x5a, bytes);
	check("cut to an odd size", ftruncate(fd, (off_t)(3 * page + 101)) == 0);
	check("scrub of an odd size", leased_mem_scrub(fd, 0, bytes, &overwritten, &residue) == 0 &&
					      overwritten == 3 * page + 101 && residue == 0);
	check("truncate", leased_mem_truncate(fd, &blocks) == 0 && blocks == 0);
	check("scrub after truncate",
		leased_mem_scrub(fd, 0, bytes, &overwritten, &residue) == 0 && overwritten == 0);
	munmap(start, bytes);
	close(fd);
	check("no size", leased_mem_create("check", 0, 0, -1, &fd) == -EINVAL);
	check("half a page", leased_mem_create("check", page / 2, 0, -1, &fd) == -EINVAL);
	check("odd page size", leased_mem_create("check", 3 * page, 3 * page, -1, &fd) == -EINVAL);
	check("no such node", leased_mem_create("check", page, 0, 1023, &fd) < 0);
	check("no such node number", leased_mem_create("check", page, 0, 5000, &fd) == -EINVAL);
	check("not a file", leased_mem_scrub(-1, 0, page, &overwritten, &residue) == -EBADF);
	check("not a file to truncate", leased_mem_truncate(-1, &blocks) == -EBADF);
}

static uint64_t count_unlike(const unsigned char *start, uint64_t bytes, unsigned char value)
{
	uint64_t unlike = 0;
	for (uint64_t i = 0; i < bytes; i++)
		unlike += start[i] != value;
	return unlike;
}

/* Enough for huge folios where the kernel makes them, and for several windows. */
static void check_large_memory(void)
{
	const uint64_t bytes = (UINT64_C(130) << 20) + 4096;
	const uint64_t part = UINT64_C(2) << 20;
	uint64_t overwritten = 0, residue = 0, blocks = 0;
	int fd = -1;
	check("create large", leased_mem_create("check", bytes, 0, 0, &fd) == 0);
	check("all of it", leased_mem_blocks(fd, &blocks) == 0 && blocks == bytes / 512);
	unsigned char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check("map large", start != MAP_FAILED);
	memset(start, 0xa5, bytes);
	check("scrub from the middle",
		leased_mem_scrub(fd, part, bytes, &overwritten, &residue) == 0 &&
			overwritten == bytes - part && residue == 0);
	check("before it nothing changed", count_unlike(start, part, 0xa5) == 0);
	check("behind it all is zero", count_unlike(start + part, bytes - part, 0) == 0);
	check("scrub beyond the end",
		leased_mem_scrub(fd, 2 * bytes, part, &overwritten, &residue) == 0 &&
			overwritten == 0);
	check("cut to a large odd size", ftruncate(fd, (off_t)(bytes - 4000)) == 0);
	check("scrub of a large odd size",
		leased_mem_scrub(fd, 0, bytes, &overwritten, &residue) == 0 &&
			overwritten == bytes - 4000 && residue == 0);
	/* A memfd in the place of a device: the same mappings, the same stores. */
	const uint64_t whole = UINT64_C(130) << 20;
	memset(start, 0xa5, whole);
	check("look sees all", leased_dax_look(fd, 0, whole, &residue) == 0 && residue == whole);
	check("scrub as a device",
		leased_dax_scrub(fd, 0, whole, &overwritten, &residue) == 0 &&
			overwritten == whole && residue == 0);
	check("all zero", count_unlike(start, whole, 0) == 0);
	start[whole - 1] = 1;
	check("look sees the last byte",
		leased_dax_look(fd, 0, whole, &residue) == 0 && residue == 8);
	check("no device", leased_dax_look(-1, 0, whole, &residue) == -EBADF);
	munmap(start, bytes);
	close(fd);
}

static pid_t sleeper(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		for (;;)
			pause();
	}
	return pid;
}

static volatile sig_atomic_t alarms;

/* The last of them, for one who waits anew after each. */
static void heard(int signal_number)
{
	(void)signal_number;
	if (++alarms == 100)
		setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 0, 0 } }, NULL);
}

/* Of one that its tracer holds at its exit: signals in between do not make it longer. */
static void check_patience(void)
{
	const struct sigaction hear = { .sa_handler = heard };
	const struct timeval often = { .tv_usec = 10000 };
	pid_t pid = sleeper();
	int pidfd = leased_pidfd_open(pid);
	check("hold", ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACEEXIT) == 0);
	check("listen", sigaction(SIGALRM, &hear, NULL) == 0);
	check("ring", setitimer(ITIMER_REAL, &(struct itimerval){ often, often }, NULL) == 0);
	check("wait for one that is held", leased_pidfd_kill(pidfd, 100) == -ETIMEDOUT);
	check("as long as was said", alarms > 0 && alarms < 100);
	setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 0, 0 } }, NULL);
	check("is held", waitpid(pid, NULL, 0) == pid);
	check("let go", ptrace(PTRACE_CONT, pid, NULL, NULL) == 0);
	check("kill it", leased_pidfd_kill(pidfd, 5000) == 0 && waitpid(pid, NULL, 0) == pid);
	close(pidfd);
}

static void check_process(void)
{
	pid_t pid = sleeper();
	int pidfd = leased_pidfd_open(pid);
	check("pidfd", pidfd >= 0);
	check("kill", leased_pidfd_kill(pidfd, 5000) == 0);
	check("reap", waitpid(pid, NULL, 0) == pid);
	check("kill the dead", leased_pidfd_kill(pidfd, 5000) == 0);
	close(pidfd);
	check("no such process", leased_pidfd_open(pid) == -ESRCH);
	check("not a pidfd", leased_pidfd_kill(STDIN_FILENO, 10) < 0);
}

static uint8_t found[2];
static int32_t rings[1];

static int search(const char *path, uint32_t type, uint32_t rings_max)
{
	const struct leased_node nodes[] = { { 1, 7 }, { 1, 3 } };
	memset(found, 0, sizeof found);
	return leased_node_search(path, type, nodes, found, 2, rings, rings_max);
}

static int named(const char *root, const char *path, uint32_t type)
{
	uint32_t major, minor;
	return leased_node_named(root, path, type, &major, &minor);
}

static void check_nodes(void)
{
	uint32_t major = 9, minor = 9;
	check("a node has its numbers", leased_node_char("/dev/null", &major, &minor) == 1);
	check("those of null", major == 1 && minor == 3);
	check("a directory is none", leased_node_char("/", &major, &minor) == 0);
	check("another kind of node", leased_node_block("/dev/null", &major, &minor) == 0);
	check("nothing there", leased_node_char("/nowhere", &major, &minor) == -ENOENT);
	check("by a name", named("/", "/dev/null", LEASED_DEVICE_CHAR) == 1);
	check("of another kind by name", named("/", "/dev/null", LEASED_DEVICE_BLOCK) == 0);
	check("in another root", named("/dev", "/null", LEASED_DEVICE_CHAR) == 1);
	check("no further than the root", named("/dev", "/../dev/null", LEASED_DEVICE_CHAR) < 0);

	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	check("a descriptor of it", search("/proc/self/fd", LEASED_DEVICE_CHAR, 1) == 0);
	check("is found", fd >= 0 && found[0] == 0 && found[1] == 1);
	check("of another kind", search("/proc/self/fd", LEASED_DEVICE_BLOCK, 1) == 0);
	check("it is not", found[0] == 0 && found[1] == 0);
	check("nobody has it", search("/proc/0/fd", LEASED_DEVICE_CHAR, 1) == 0);
	int ring = (int)syscall(SYS_io_uring_setup, 4, (uint64_t[15]){ 0 });
	if (ring >= 0) {
		check("a ring", search("/proc/self/fd", LEASED_DEVICE_CHAR, 1) == 1);
		check("which it is", rings[0] == ring);
		check("no room for it", search("/proc/self/fd", LEASED_DEVICE_CHAR, 0) == 1);
		close(ring);
	}
	check("our own table", leased_files_shared(getpid(), getpid()) == 1);
	check("that of nobody", leased_files_shared(getpid(), -1) < 0);
	close(fd);
}

static void join(int dirfd)
{
	int fd = openat(dirfd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1)
		_exit(99);
	close(fd);
}

static int opens_in(int dirfd, const char *path)
{
	int status = 0;
	pid_t pid = fork();
	if (pid == 0) {
		join(dirfd);
		_exit(open(path, O_RDONLY) >= 0 ? 0 : errno);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_filter(int dirfd)
{
	const struct leased_device_rule rules[] = {
		{ LEASED_DEVICE_BLOCK, 7, 0x80000001u, LEASED_DEVICE_ANY_MINOR },
		{ LEASED_DEVICE_CHAR, LEASED_DEVICE_READ, 1, 3 },
		{ LEASED_DEVICE_CHAR, LEASED_DEVICE_READ | LEASED_DEVICE_WRITE, 1, 9 },
	};
	struct leased_device_rule many[LEASED_DEVICE_RULES_MAX + 1];
	for (uint32_t i = 0; i <= LEASED_DEVICE_RULES_MAX; i++)
		many[i] = rules[1];
	int prog = leased_filter_load(rules, 3);
	check("load", prog >= 0);
	check("attach", leased_filter_attach(dirfd, prog) == 0);
	check("attach twice", leased_filter_attach(dirfd, prog) == -EINVAL);
	close(prog);
	check("allowed: null", opens_in(dirfd, "/dev/null") == 0);
	check("allowed: urandom", opens_in(dirfd, "/dev/urandom") == 0);
	check("not allowed: zero", opens_in(dirfd, "/dev/zero") == EPERM);
	prog = leased_filter_load(many, LEASED_DEVICE_RULES_MAX);
	check("as many rules as fit", prog >= 0);
	close(prog);
	check("more rules than fit",
		leased_filter_load(many, LEASED_DEVICE_RULES_MAX + 1) == -E2BIG);
	check("deny", leased_filter_deny(dirfd) == 0);
	check("denied: null", opens_in(dirfd, "/dev/null") == EPERM);
}

static void check_cgroup(const char *path)
{
	int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	check("leaf", dirfd >= 0);
	check("empty", leased_cgroup_populated(dirfd) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		join(dirfd);
		sleeper();
		for (;;)
			pause();
	}
	while (leased_cgroup_populated(dirfd) == 0)
		;
	check("freeze", leased_cgroup_freeze(dirfd) == 0);
	check("hasten", leased_cgroup_hasten(dirfd) == 0);
	check("kill the frozen", leased_cgroup_kill(dirfd, 5000) == 0);
	check("nobody left", leased_cgroup_populated(dirfd) == 0);
	waitpid(pid, NULL, 0);
	int fd = openat(dirfd, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
	check("thaw", fd >= 0 && write(fd, "0", 1) == 1);
	close(fd);
	check_filter(dirfd);
	check("remove", rmdir(path) == 0);
	check("a leaf that is gone is empty", leased_cgroup_populated(dirfd) == 0);
	check("a leaf that is gone is killed", leased_cgroup_kill(dirfd, 10) == 0);
	check("a leaf that is gone is frozen", leased_cgroup_freeze(dirfd) == 0);
	close(dirfd);
}

static int commit(struct leased_committer *c, int event_fd, int seg, const char *text, uint64_t off,
	int anchor, int *stage)
{
	uint64_t count = 0;
	int rc = leased_committer_submit(c, seg, text, strlen(text), off, anchor, text, 4, 0);
	if (rc != 0)
		return rc;
	if (read(event_fd, &count, sizeof count) != (ssize_t)sizeof count)
		return -errno;
	return leased_committer_result(c, stage);
}

static void check_committer(const char *directory)
{
	char path[512], text[16] = "";
	int stage = -1, event_fd = eventfd(0, EFD_CLOEXEC);
	snprintf(path, sizeof path, "%s/segment", directory);
	int seg = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	snprintf(path, sizeof path, "%s/anchor", directory);
	int anchor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int read_only = open(path, O_RDONLY | O_CLOEXEC);
	struct leased_committer *c = leased_committer_new(event_fd);
	check("committer", c != NULL && seg >= 0 && anchor >= 0);
	check("nothing to do", leased_committer_submit(c, -1, "", 0, 0, -1, "", 0, 0) == -EINVAL);
	check("commit", commit(c, event_fd, seg, "first", 0, anchor, &stage) == 0 &&
				stage == LEASED_STAGE_DONE);
	check("commit more", commit(c, event_fd, seg, "second", 5, anchor, &stage) == 0);
	check("appended",
		pread(seg, text, sizeof text, 0) == 11 && memcmp(text, "firstsecond", 11) == 0);
	check("anchored", pread(anchor, text, sizeof text, 0) == 4 && memcmp(text, "seco", 4) == 0);
	check("no anchor", commit(c, event_fd, seg, "third", 11, -1, &stage) == 0 &&
				   stage == LEASED_STAGE_DONE);
	check("a failure is named",
		commit(c, event_fd, seg, "x", 16, read_only, &stage) == -EBADF &&
			stage == LEASED_STAGE_ANCHOR);
	check("nothing after a failure", commit(c, event_fd, seg, "x", 16, anchor, &stage) == -EIO);
	leased_committer_free(c);
	leased_committer_free(NULL);
	close(seg);
	close(anchor);
	close(read_only);
	close(event_fd);
}

static void check_sending(void)
{
	int pair[2], mine = open("/dev/null", O_RDONLY | O_CLOEXEC);
	check("sockets", socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && mine >= 0);
	struct leased_letter letters[] = {
		{ .socket = -1, .bytes = 1 },
		{ .socket = pair[0], .bytes = 2, .fds = 1 },
		{ .socket = pair[0], .bytes = 3 },
	};
	const uint8_t bytes[] = "abbccc";
	check("three letters", leased_send_many(letters, 3, bytes, &mine) == 0);
	check("a socket that is none", letters[0].sent == -EBADF);
	check("the others' go", letters[1].sent == 2 && letters[2].sent == 3);
	check("with the descriptor", fcntl(mine, F_GETFD) < 0 && errno == EBADF);
	char got[8];
	const int many[254] = { 0 };
	check("they arrive", recv(pair[1], got, sizeof got, 0) == 2 && memcmp(got, "bb", 2) == 0);
	letters[0] = (struct leased_letter){ .socket = pair[0], .bytes = 1, .fds = 254 };
	check("more than a message takes", leased_send_many(letters, 1, bytes, many) == 0);
	check("are not sent", letters[0].sent == -EMSGSIZE);
	close(pair[0]);
	close(pair[1]);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 64;
	check("self test", leased_selftest() == 0);
	check_memory();
	check_large_memory();
	check_process();
	check_patience();
	check_nodes();
	check_sending();
	check_chain();
	check_dm();
	check_projection();
	check_committer(argv[1]);
	if (argc > 2)
		check_cgroup(argv[2]);
	return failures;
}
