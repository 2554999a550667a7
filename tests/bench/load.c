/* SPDX-License-Identifier: Apache-2.0
 *
 * A load generator for the lease socket: one thread, one epoll, N connections, one outstanding call
 * on each.
 *
 * Rule: it costs less than what it measures. Requests are built once, replies are searched and not
 * parsed, latencies go into a log-linear histogram (64 steps per octave, so a percentile is at most
 * 1.6 % off). One JSON object with the raw figures is printed at the end; any reply that is not the
 * expected one ends the run with its text.
 *
 * Modes:
 *   renew      every connection acquires one lease, then renews it for --seconds
 *   grant      --count leases are acquired as fast as possible, descriptors received; then all are
 *              released
 *   cycle      every connection acquires and releases in turn for --seconds
 *   hold       --count leases are acquired and held until standard input closes (expiry, idle);
 *              with --renew-ttl-ms they are all renewed once, so that they end together
 *   holders    --count processes each acquire a lease, map and write it, ignore SIGTERM and wait to
 *              be cut off
 *   fdatasync  append --bytes to a preallocated file in --socket (a directory) and fdatasync, for
 *              --seconds
 *
 * Does not judge: ratios are made in Python.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ID_CHARS 32
#define REPLY_BYTES_MAX (256 * 1024)
#define CALL_BYTES_MAX 1024
#define FDS_MAX 64
#define BUCKETS (64 * 64)
#define LEASE_CALL "{\"method\":\"io.leased.Lease.%s\",\"parameters\":{\"lease_id\":\"%s\"}}"
#define RENEW_CALL \
	"{\"method\":\"io.leased.Lease.Renew\",\"parameters\":" \
	"{\"lease_id\":\"%s\",\"ttl_ns\":%" PRIu64 "}}"
#define NS_PER_S 1000000000ull

enum mode { MODE_RENEW, MODE_GRANT, MODE_CYCLE, MODE_HOLD, MODE_HOLDERS, MODE_FDATASYNC };
static const char *const mode_names[] = {"renew", "grant", "cycle", "hold", "holders", "fdatasync"};

enum call { CALL_NONE, CALL_ACQUIRE, CALL_RENEW, CALL_RELEASE };

struct conn {
	int fd;
	enum call call;
	uint64_t sent_ns;
	char lease_id[ID_CHARS + 1];
	char renew[CALL_BYTES_MAX];
	size_t renew_len;
	char *in;
	size_t in_len;
	int fds[FDS_MAX];
	int fds_len;
};

struct histogram {
	uint64_t buckets[BUCKETS];
	uint64_t count;
	uint64_t min_ns;
	uint64_t max_ns;
};

static struct {
	const char *socket;
	enum mode mode;
	int clients;
	long count;
	double seconds;
	double warmup;
	uint64_t bytes;
	uint64_t ttl_ns;
	uint64_t renew_ttl_ns;
	const char *bind;
	bool keep_fds;
} option = {
	.socket = "/run/leased/io.leased",
	.mode = MODE_RENEW,
	.clients = 1,
	.count = 1000,
	.seconds = 5,
	.warmup = 0.5,
	.bytes = 4096,
	.ttl_ns = 60 * NS_PER_S,
	.bind = "process",
};

static struct conn *conns;
static struct histogram latency;
static struct histogram release_latency;
static char acquire[CALL_BYTES_MAX];
static size_t acquire_len;
static long fds_received;
static char (*held_ids)[ID_CHARS + 1];
static long held_len;

static void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fputs("load: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * NS_PER_S + (uint64_t)at.tv_nsec;
}

/* ---- histogram ------------------------------------------------------------------------------- */

static unsigned bucket_of(uint64_t ns)
{
	if (ns < 128)
		return (unsigned)ns;
	unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - 6;
	return (shift << 6) + (unsigned)(ns >> shift);
}

static uint64_t bucket_top(unsigned bucket)
{
	if (bucket < 128)
		return bucket;
	unsigned shift = (bucket >> 6) - 1;
	return ((uint64_t)(bucket - (shift << 6)) + 1) << shift;
}

static void record(struct histogram *into, uint64_t ns)
{
	unsigned bucket = bucket_of(ns);
	into->buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	if (into->count++ == 0 || ns < into->min_ns)
		into->min_ns = ns;
	if (ns > into->max_ns)
		into->max_ns = ns;
}

static uint64_t percentile(const struct histogram *of, double share)
{
	uint64_t rank = (uint64_t)((double)of->count * share), seen = 0;
	for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
		seen += of->buckets[bucket];
		if (seen > rank)
			return bucket_top(bucket) < of->max_ns ? bucket_top(bucket) : of->max_ns;
	}
	return of->max_ns;
}

static void print_histogram(const char *name, const struct histogram *of)
{
	printf("\"%s\":{\"count\":%" PRIu64 ",\"min_ns\":%" PRIu64 ",\"p50_ns\":%" PRIu64
	       ",\"p90_ns\":%" PRIu64 ",\"p99_ns\":%" PRIu64 ",\"p999_ns\":%" PRIu64
	       ",\"max_ns\":%" PRIu64 "}",
	       name, of->count, of->min_ns, percentile(of, 0.5), percentile(of, 0.9),
	       percentile(of, 0.99), percentile(of, 0.999), of->max_ns);
}

/* ---- calls ----------------------------------------------------------------------------------- */

static void build_acquire(void)
{
	/* No command_id: the agent makes one, as it does for every client that does not retry. */
	int len = snprintf(acquire, sizeof acquire,
			   "{\"method\":\"io.leased.Lease.Acquire\",\"parameters\":{\"resources\":"
			   "[{\"kind\":\"mem\",\"capacity\":%" PRIu64 "}],\"ttl_ns\":%" PRIu64
			   ",\"bind\":\"%s\"}}",
			   option.bytes, option.ttl_ns, option.bind);
	acquire_len = (size_t)len + 1;
}

static void send_call(struct conn *conn, enum call call, const char *text, size_t len)
{
	conn->call = call;
	conn->sent_ns = now_ns();
	/* One call is far below the socket buffer, so a short write means the agent is broken. */
	if (send(conn->fd, text, len, MSG_NOSIGNAL) != (ssize_t)len)
		die("send: %s", strerror(errno));
}

static void send_acquire(struct conn *conn)
{
	send_call(conn, CALL_ACQUIRE, acquire, acquire_len);
}

static void send_release(struct conn *conn, const char *lease_id)
{
	char text[CALL_BYTES_MAX];
	int len = snprintf(text, sizeof text, LEASE_CALL, "Release", lease_id);
	send_call(conn, CALL_RELEASE, text, (size_t)len + 1);
}

static void build_renew(struct conn *conn)
{
	int len = snprintf(conn->renew, sizeof conn->renew, LEASE_CALL, "Renew", conn->lease_id);
	conn->renew_len = (size_t)len + 1;
}

static void take_fds(struct conn *conn, struct msghdr *message)
{
	struct cmsghdr *head = CMSG_FIRSTHDR(message);
	for (; head; head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		int got = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		int *fds = (int *)CMSG_DATA(head);
		for (int i = 0; i < got; i++) {
			fds_received++;
			if (option.mode == MODE_HOLDERS && conn->fds_len < FDS_MAX)
				conn->fds[conn->fds_len++] = fds[i];
			else if (!option.keep_fds)
				close(fds[i]);
		}
	}
}

/* Reads what is there; true when a whole reply (its terminating NUL) stands in conn->in. */
static bool receive(struct conn *conn)
{
	union {
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec io = {
		.iov_base = conn->in + conn->in_len,
		.iov_len = REPLY_BYTES_MAX - conn->in_len,
	};
	struct msghdr message = {
		.msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof control.bytes,
	};
	ssize_t got = recvmsg(conn->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (got < 0)
		die("receive: %s", strerror(errno));
	if (got == 0)
		die("the agent closed the connection");
	take_fds(conn, &message);
	conn->in_len += (size_t)got;
	if (conn->in[conn->in_len - 1] != '\0') {
		if (conn->in_len == REPLY_BYTES_MAX)
			die("a reply is too long");
		return false;
	}
	return true;
}

static void check_reply(struct conn *conn)
{
	const char *text = conn->in;
	if (strstr(text, "\"error\""))
		die("the agent answered %.600s", text);
	if (conn->call == CALL_ACQUIRE) {
		const char *found = strstr(text, "\"lease_id\"");
		found = found ? strchr(found + 10, '"') : NULL;
		if (!found || strlen(found) < ID_CHARS + 2)
			die("no lease_id in %.600s", text);
		memcpy(conn->lease_id, found + 1, ID_CHARS);
		conn->lease_id[ID_CHARS] = '\0';
	}
}

/* ---- connections ----------------------------------------------------------------------------- */

/* Before Linux 6.5 the agent knows us by what we say after its first answer. */
static void speak_first(struct conn *conn)
{
	static const char text[] = "{\"method\":\"org.varlink.service.GetInfo\"}";
	if (send(conn->fd, text, sizeof text, MSG_NOSIGNAL) != sizeof text)
		die("send: %s", strerror(errno));
	ssize_t got = 0;
	do {
		got = recv(conn->fd, conn->in, REPLY_BYTES_MAX, 0);
		if (got <= 0)
			die("the agent did not answer");
	} while (conn->in[got - 1] != '\0');
}

static void open_conn(struct conn *conn)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(option.socket) >= sizeof address.sun_path)
		die("socket path too long");
	strcpy(address.sun_path, option.socket);
	conn->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (conn->fd < 0)
		die("socket: %s", strerror(errno));
	if (connect(conn->fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("connect %s: %s", option.socket, strerror(errno));
	conn->in = malloc(REPLY_BYTES_MAX);
	if (!conn->in)
		die("out of memory");
	speak_first(conn);
}

static void open_conns(int epoll)
{
	conns = calloc((size_t)option.clients, sizeof *conns);
	if (!conns)
		die("out of memory");
	for (int i = 0; i < option.clients; i++) {
		open_conn(&conns[i]);
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = &conns[i]};
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, conns[i].fd, &event) < 0)
			die("epoll_ctl: %s", strerror(errno));
	}
}

/* Waits for replies and hands each to `each`, until that has ended every connection. */
typedef bool (*reply_step)(struct conn *conn, uint64_t at_ns);

static void turn(int epoll, reply_step each, long outstanding)
{
	struct epoll_event events[256];
	while (outstanding > 0) {
		int ready = epoll_wait(epoll, events, 256, 30000);
		if (ready == 0)
			die("no reply for 30 s (%ld outstanding)", outstanding);
		if (ready < 0 && errno != EINTR)
			die("epoll_wait: %s", strerror(errno));
		for (int i = 0; i < ready; i++) {
			struct conn *conn = events[i].data.ptr;
			if (!receive(conn))
				continue;
			uint64_t at_ns = now_ns();
			check_reply(conn);
			conn->in_len = 0;
			if (!each(conn, at_ns))
				outstanding--;
		}
	}
}

/* ---- modes ----------------------------------------------------------------------------------- */

static uint64_t count_from_ns, stop_ns, last_ns;
static long to_issue, to_release;

static bool acquired_once(struct conn *conn, uint64_t at_ns)
{
	(void)at_ns;
	build_renew(conn);
	conn->call = CALL_NONE;
	return false;
}

static bool renewed(struct conn *conn, uint64_t at_ns)
{
	if (conn->sent_ns >= count_from_ns && at_ns <= stop_ns) {
		record(&latency, at_ns - conn->sent_ns);
		last_ns = at_ns;
	}
	if (at_ns >= stop_ns)
		return false;
	send_call(conn, CALL_RENEW, conn->renew, conn->renew_len);
	return true;
}

static bool cycled(struct conn *conn, uint64_t at_ns)
{
	if (conn->sent_ns >= count_from_ns && at_ns <= stop_ns) {
		bool acquire_ended = conn->call == CALL_ACQUIRE;
		record(acquire_ended ? &latency : &release_latency, at_ns - conn->sent_ns);
		last_ns = at_ns;
	}
	if (conn->call == CALL_ACQUIRE) {
		send_release(conn, conn->lease_id);
		return true;
	}
	if (at_ns >= stop_ns)
		return false;
	send_acquire(conn);
	return true;
}

static bool granted(struct conn *conn, uint64_t at_ns)
{
	record(&latency, at_ns - conn->sent_ns);
	last_ns = at_ns;
	memcpy(held_ids[held_len++], conn->lease_id, ID_CHARS + 1);
	if (to_issue == 0)
		return false;
	to_issue--;
	send_acquire(conn);
	return true;
}

static void send_short_renew(struct conn *conn, const char *lease_id)
{
	char text[CALL_BYTES_MAX];
	int len = snprintf(text, sizeof text, RENEW_CALL, lease_id, option.renew_ttl_ns);
	send_call(conn, CALL_RENEW, text, (size_t)len + 1);
}

static bool renewed_once(struct conn *conn, uint64_t at_ns)
{
	(void)at_ns;
	if (to_release == 0)
		return false;
	send_short_renew(conn, held_ids[--to_release]);
	return true;
}

static bool released(struct conn *conn, uint64_t at_ns)
{
	record(&release_latency, at_ns - conn->sent_ns);
	last_ns = at_ns;
	if (to_release == 0)
		return false;
	send_release(conn, held_ids[--to_release]);
	return true;
}

static void start_window(void)
{
	uint64_t at_ns = now_ns();
	count_from_ns = at_ns + (uint64_t)(option.warmup * 1e9);
	stop_ns = count_from_ns + (uint64_t)(option.seconds * 1e9);
}

static double run_renew(int epoll)
{
	for (int i = 0; i < option.clients; i++)
		send_acquire(&conns[i]);
	turn(epoll, acquired_once, option.clients);
	start_window();
	for (int i = 0; i < option.clients; i++)
		send_call(&conns[i], CALL_RENEW, conns[i].renew, conns[i].renew_len);
	turn(epoll, renewed, option.clients);
	return option.seconds;
}

static double run_cycle(int epoll)
{
	start_window();
	for (int i = 0; i < option.clients; i++)
		send_acquire(&conns[i]);
	turn(epoll, cycled, option.clients);
	return option.seconds;
}

static double run_grants(int epoll)
{
	held_ids = calloc((size_t)option.count, sizeof *held_ids);
	if (!held_ids)
		die("out of memory");
	long first = option.clients < option.count ? option.clients : option.count;
	to_issue = option.count - first;
	uint64_t began_ns = now_ns();
	for (long i = 0; i < first; i++)
		send_acquire(&conns[i]);
	turn(epoll, granted, first);
	return (double)(last_ns - began_ns) / 1e9;
}

static double run_releases(int epoll)
{
	to_release = held_len;
	long first = option.clients < held_len ? option.clients : held_len;
	uint64_t began_ns = now_ns();
	for (long i = 0; i < first; i++)
		send_release(&conns[i], held_ids[--to_release]);
	turn(epoll, released, first);
	return (double)(last_ns - began_ns) / 1e9;
}

/* All leases get the same time to live within a moment of each other. */
static void run_short_renewals(int epoll)
{
	to_release = held_len;
	long first = option.clients < held_len ? option.clients : held_len;
	for (long i = 0; i < first; i++)
		send_short_renew(&conns[i], held_ids[--to_release]);
	turn(epoll, renewed_once, first);
}

static void hold_until_told(void)
{
	char byte;
	printf("{\"mode\":\"%s\",\"held\":%ld}\n", mode_names[option.mode], held_len);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		continue;
}

/* A holder as P8 means it: ignores SIGTERM, maps what it got and writes it until it is killed. */
static void hold_alone(int number, int ready)
{
	struct conn conn = {0};
	signal(SIGTERM, SIG_IGN);
	open_conn(&conn);
	send_acquire(&conn);
	while (!receive(&conn)) {
		struct epoll_event event;
		int epoll = epoll_create1(EPOLL_CLOEXEC);
		struct epoll_event wanted = {.events = EPOLLIN};
		epoll_ctl(epoll, EPOLL_CTL_ADD, conn.fd, &wanted);
		epoll_wait(epoll, &event, 1, 30000);
		close(epoll);
	}
	check_reply(&conn);
	volatile char *map = MAP_FAILED;
	for (int i = 0; i < conn.fds_len && map == MAP_FAILED; i++)
		map = mmap(NULL, option.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, conn.fds[i], 0);
	if (map == MAP_FAILED)
		die("holder %d got no memory to map", number);
	char text[64];
	int len = snprintf(text, sizeof text, "%s\n", conn.lease_id);
	if (write(ready, text, (size_t)len) != len)
		die("holder %d: %s", number, strerror(errno));
	for (uint64_t at = 0;; at = (at + 4096) % option.bytes) {
		map[at]++;
		if (at == 0)
			usleep(10000);
	}
}

static void run_holders(void)
{
	int ready[2];
	if (pipe2(ready, O_CLOEXEC) < 0)
		die("pipe: %s", strerror(errno));
	for (long i = 0; i < option.count; i++) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork: %s", strerror(errno));
		if (pid == 0)
			hold_alone((int)i, ready[1]);
	}
	close(ready[1]);
	FILE *lines = fdopen(ready[0], "r");
	char line[64];
	long held = 0;
	while (held < option.count && fgets(line, sizeof line, lines))
		held++;
	printf("{\"mode\":\"holders\",\"held\":%ld}\n", held);
	fflush(stdout);
	long killed = 0;
	int status;
	while (wait(&status) > 0)
		killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	printf("{\"mode\":\"holders\",\"killed\":%ld}\n", killed);
}

static void run_fdatasync(void)
{
	char path[PATH_MAX];
	snprintf(path, sizeof path, "%s/leased-bench-fdatasync", option.socket);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	/* Zero-filled first, as the journal's segments are: overwriting, not allocating. */
	static char zeros[1 << 20];
	uint64_t size = 64ull << 20;
	for (uint64_t at = 0; at < size; at += sizeof zeros)
		if (pwrite(fd, zeros, sizeof zeros, (off_t)at) != (ssize_t)sizeof zeros)
			die("write: %s", strerror(errno));
	if (fsync(fd) < 0)
		die("fsync: %s", strerror(errno));
	if (option.bytes > sizeof zeros)
		die("--bytes is at most 1 MiB here");
	memset(zeros, 7, option.bytes);
	start_window();
	for (uint64_t at = 0;; at = (at + option.bytes) % (size - option.bytes)) {
		uint64_t began_ns = now_ns();
		if (pwrite(fd, zeros, option.bytes, (off_t)at) != (ssize_t)option.bytes ||
		    fdatasync(fd) < 0)
			die("fdatasync: %s", strerror(errno));
		uint64_t at_ns = now_ns();
		if (began_ns >= count_from_ns)
			record(&latency, at_ns - began_ns);
		if (at_ns >= stop_ns)
			break;
	}
	close(fd);
	unlink(path);
}

/* ---- options --------------------------------------------------------------------------------- */

static const struct option long_options[] = {
	{"mode", required_argument, NULL, 'm'},    {"socket", required_argument, NULL, 's'},
	{"clients", required_argument, NULL, 'c'}, {"count", required_argument, NULL, 'n'},
	{"seconds", required_argument, NULL, 't'}, {"warmup", required_argument, NULL, 'w'},
	{"bytes", required_argument, NULL, 'b'},   {"ttl-ms", required_argument, NULL, 'l'},
	{"bind", required_argument, NULL, 'i'},    {"keep-fds", no_argument, NULL, 'k'},
	{"renew-ttl-ms", required_argument, NULL, 'r'},
	{NULL, 0, NULL, 0},
};

static void parse_options(int argc, char **argv)
{
	for (int letter; (letter = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
		switch (letter) {
		case 'm':
			option.mode = 0;
			while (strcmp(optarg, mode_names[option.mode]) != 0)
				if (option.mode++ == MODE_FDATASYNC)
					die("no mode %s", optarg);
			break;
		case 's': option.socket = optarg; break;
		case 'c': option.clients = atoi(optarg); break;
		case 'n': option.count = atol(optarg); break;
		case 't': option.seconds = atof(optarg); break;
		case 'w': option.warmup = atof(optarg); break;
		case 'b': option.bytes = strtoull(optarg, NULL, 10); break;
		case 'l': option.ttl_ns = strtoull(optarg, NULL, 10) * 1000000ull; break;
		case 'r': option.renew_ttl_ns = strtoull(optarg, NULL, 10) * 1000000ull; break;
		case 'i': option.bind = optarg; break;
		case 'k': option.keep_fds = true; break;
		default: exit(64);
		}
	}
	if (option.clients < 1 || option.count < 1 || option.bytes < 1)
		die("--clients, --count and --bytes are at least 1");
}

static void print_result(double seconds, double release_seconds)
{
	printf("{\"mode\":\"%s\",\"clients\":%d,\"seconds\":%.6f,\"operations_per_s\":%.1f,"
	       "\"fds_received\":%ld,",
	       mode_names[option.mode], option.clients, seconds,
	       seconds > 0 ? (double)latency.count / seconds : 0.0, fds_received);
	if (release_latency.count > 0) {
		printf("\"releases_per_s\":%.1f,", (double)release_latency.count / release_seconds);
		print_histogram("release", &release_latency);
		printf(",");
	}
	print_histogram("latency", &latency);
	printf("}\n");
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	build_acquire();
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (option.mode == MODE_FDATASYNC) {
		run_fdatasync();
		print_result(option.seconds, 0);
		return 0;
	}
	if (option.mode == MODE_HOLDERS) {
		run_holders();
		return 0;
	}
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	open_conns(epoll);
	double seconds = 0, release_seconds = 0;
	if (option.mode == MODE_RENEW) {
		seconds = run_renew(epoll);
	} else if (option.mode == MODE_CYCLE) {
		seconds = release_seconds = run_cycle(epoll);
	} else {
		seconds = run_grants(epoll);
		if (option.mode == MODE_HOLD) {
			if (option.renew_ttl_ns > 0)
				run_short_renewals(epoll);
			hold_until_told();
		} else {
			release_seconds = run_releases(epoll);
		}
	}
	print_result(seconds, release_seconds);
	return 0;
}
