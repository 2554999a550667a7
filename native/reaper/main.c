/* SPDX-License-Identifier: Apache-2.0 */
/*
 * leased-reaper: holds every armed lease and cuts access at its deadline, with the agent alive,
 * hung or dead.
 *
 * Rule: one thread, one epoll loop, no allocation after the start. The deadlines run on
 * CLOCK_BOOTTIME.
 *
 * Exit statuses are sysexits: 64 usage, 71 the system refuses something needed, 75 another reaper
 * runs here, 78 a state file of this boot in a format this version does not read.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#define REAPER_RELEASE "0.1.0"

enum { EVENTS_PER_TURN = 64, SLOTS_MIN = 16, SLOTS_MAX = 1 << 20, REALTIME_PRIORITY = 10 };
enum { READY_MS = 10000 };

static const char USAGE[] =
	"usage: leased-reaper [options]\n"
	"\n"
	"Cuts access to leased hardware at each lease's deadline. The agent tells it what to "
	"hold.\n"
	"\n"
	"  --runtime-dir DIR   where reaper.state and reaper.sock are (default /run/leased)\n"
	"  --socket PATH       listen here instead of DIR/reaper.sock\n"
	"  --slots N           leases held at most (default 16384)\n"
	"  --peer-uid UID      uid that may connect besides root (default 0)\n"
	"  --kill-ms MS        report a cut unclean when somebody is left after this (default "
	"5000)\n"
	"  --backstop-ms MS    overwrite and truncate memory when no agent takes over (default "
	"2000)\n"
	"  --rearm-ms MS       after a restart, cut a lease whose memory is not armed again by "
	"then (default 1000)\n"
	"  --horizon-s S       no deadline further ahead than this (default 2678400, 31 days)\n"
	"  --realtime          run under SCHED_FIFO when permitted\n"
	"  --detach            return when a detached reaper is ready (75: one was already "
	"running)\n"
	"  --check             say whether this one could take over in DIR (78: it could not), and "
	"end\n"
	"  --help, --version\n";

static int usage(const char *why, const char *what)
{
	fprintf(stderr, "leased-reaper: %s: %s\n%s", why, what, USAGE);
	return EX_USAGE;
}

static bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *value)
{
	char *end = NULL;
	errno = 0;
	unsigned long long parsed = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || errno != 0 || *end != '\0' || parsed < least ||
		parsed > most)
		return false;
	*value = parsed;
	return true;
}

static bool take_number(struct options *options, int which, const char *text)
{
	const bool never_zero = which == 'k' || which == 'h';
	uint64_t least = never_zero ? 1 : 0, most = UINT32_MAX, value = 0;
	if (which == 's') {
		least = SLOTS_MIN;
		most = SLOTS_MAX;
	} else if (which == 'u') {
		most = UINT32_MAX - 1; /* (uid_t)-1 is nobody */
	}
	if (!parse_number(text, least, most, &value))
		return false;
	switch (which) {
	case 's': options->slots = (uint32_t)value; break;
	case 'u': options->peer_uid = (uid_t)value; break;
	case 'k': options->kill_ns = value * NS_PER_MS; break;
	case 'b': options->backstop_ns = value * NS_PER_MS; break;
	case 'a': options->rearm_ns = value * NS_PER_MS; break;
	default: options->horizon_ns = value * NS_PER_S; break;
	}
	return true;
}

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {
		{ "runtime-dir", required_argument, NULL, 'd' },
		{ "socket", required_argument, NULL, 'p' },
		{ "slots", required_argument, NULL, 's' },
		{ "peer-uid", required_argument, NULL, 'u' },
		{ "kill-ms", required_argument, NULL, 'k' },
		{ "backstop-ms", required_argument, NULL, 'b' },
		{ "rearm-ms", required_argument, NULL, 'a' },
		{ "horizon-s", required_argument, NULL, 'h' },
		{ "realtime", no_argument, NULL, 'r' },
		{ "detach", no_argument, NULL, 'f' },
		{ "check", no_argument, NULL, 'c' },
		{ "help", no_argument, NULL, '?' },
		{ "version", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	*options = (struct options){ .runtime_dir = "/run/leased",
		.slots = 16384,
		.kill_ns = 5 * NS_PER_S,
		.backstop_ns = 2 * NS_PER_S,
		.rearm_ns = NS_PER_S,
		.horizon_ns = 31 * 86400 * NS_PER_S };
	opterr = 0;
	for (int which, at = 0; (which = getopt_long(argc, argv, "", known, &at)) != -1;) {
		switch (which) {
		case 'd': options->runtime_dir = optarg; break;
		case 'p': options->socket_path = optarg; break;
		case 'r': options->realtime = true; break;
		case 'f': options->detach = true; break;
		case 'c': options->check = true; break;
		case 'v': puts("leased-reaper " REAPER_RELEASE); return EX_OK;
		case '?':
			if (optopt != 0 || argv[optind - 1] == NULL ||
				strcmp(argv[optind - 1], "--help") != 0)
				return usage("unknown or incomplete option", argv[optind - 1]);
			fputs(USAGE, stdout);
			return EX_OK;
		default:
			if (!take_number(options, which, optarg))
				return usage("not a number in range", optarg);
			break;
		}
	}
	return optind < argc ? usage("unexpected argument", argv[optind]) : -1;
}

/* Whoever was started without one of the first three would have the state file there, and log
 * into it. */
static int fill_standard(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return -EBADF;
	}
	return 0;
}

static int open_signals(struct reaper *r)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	r->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return r->signal_fd < 0 ? -errno : watch_add(r, r->signal_fd, EPOLLIN, WATCH_SIGNAL, 0);
}

static int open_loop(struct reaper *r)
{
	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epoll_fd < 0)
		return -errno;
	r->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (r->timer_fd < 0)
		return -errno;
	r->timer_set_ns = NEVER;
	int rc = watch_add(r, r->timer_fd, EPOLLIN, WATCH_TIMER, 0);
	return rc == 0 ? open_signals(r) : rc;
}

/* What makes us hard to hold up; each is taken when permitted and told in PING and the log when
 * not. */
static void harden(struct reaper *r)
{
	const struct sched_param priority = { .sched_priority = REALTIME_PRIORITY };
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "-1000", 5) < 0)
			say(LOG_NOTICE, "event=no_oom_protection errno=%d", errno);
		close(fd);
	}
	if (r->options.realtime &&
		sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority) != 0)
		say(LOG_NOTICE, "event=no_realtime errno=%d", errno);
	r->memory_locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
	if (!r->memory_locked)
		say(LOG_NOTICE, "event=no_locked_memory errno=%d", errno);
	r->deny_fd = leased_filter_load(NULL, 0);
	if (r->deny_fd < 0)
		say(LOG_WARNING, "event=no_device_filter errno=%d", -r->deny_fd);
}

static int make_children(struct reaper *r)
{
	void *shared = mmap(NULL, sizeof(struct backstop_result) * BACKSTOPS_MAX,
		PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (shared == MAP_FAILED)
		return -errno;
	r->results = shared;
	for (uint32_t i = 0; i < BACKSTOPS_MAX; i++)
		r->backstops[i] = (struct backstop){ .pidfd = -1, .slot = NONE };
	return 0;
}

static int start(struct reaper *r)
{
	int rc = read_boot_id(r->boot_id);
	if (rc == 0 && mkdir(r->options.runtime_dir, 0755) != 0 && errno != EEXIST)
		rc = -errno;
	if (rc == 0)
		rc = state_open(r);
	if (rc == 0)
		rc = board_open(r);
	if (rc == 0)
		rc = open_loop(r);
	if (rc == 0)
		rc = table_make(r);
	if (rc == 0)
		rc = make_children(r);
	if (rc != 0)
		return rc;
	harden(r);
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		r->clients[i].fd = -1;
	objects_make(r);
	notify_open(r);
	rc = clients_listen(r, resume(r));
	r->started_ns = boot_now();
	return rc;
}

static void set_timer(struct reaper *r)
{
	uint64_t first = heap_first_ns(r);
	if (r->watchdog_due_ns < first)
		first = r->watchdog_due_ns;
	if (r->listen_due_ns < first)
		first = r->listen_due_ns;
	if (r->flush_due_ns < first)
		first = r->flush_due_ns;
	if (first == 0)
		first = 1; /* 0 would switch the timer off */
	/* A timer that is set too early fires once for nothing, which is cheaper than moving it at
	 * each renewal. */
	if (first >= r->timer_set_ns)
		return;
	struct itimerspec when = { .it_value = { .tv_sec = (time_t)(first / NS_PER_S),
					   .tv_nsec = (long)(first % NS_PER_S) } };
	if (timerfd_settime(r->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0)
		r->timer_set_ns = first;
}

static void feed_watchdog(struct reaper *r)
{
	uint64_t now = boot_now();
	if (r->watchdog_due_ns <= now) {
		notify_say(r, "WATCHDOG=1");
		r->watchdog_due_ns = now + r->watchdog_ns;
	}
}

static void handle(struct reaper *r, const struct epoll_event *event)
{
	const uint32_t index = (uint32_t)event->data.u64;
	uint64_t count;
	switch ((enum watch)(event->data.u64 >> 32)) {
	case WATCH_TIMER:
		if (read(r->timer_fd, &count, sizeof count) == (ssize_t)sizeof count)
			r->timer_set_ns = NEVER;
		break;
	case WATCH_SIGNAL: r->stopping = true; break;
	case WATCH_LISTEN: clients_accept(r); break;
	case WATCH_CLIENT: clients_read(r, index); break;
	case WATCH_CGROUP:
	case WATCH_HOLDER: cut_check(r, index); break;
	case WATCH_BACKSTOP: backstop_ended(r, index); break;
	case WATCH_CUTTER: objects_ended(r, index); break;
	default: break;
	}
}

static void loop(struct reaper *r)
{
	struct epoll_event events[EVENTS_PER_TURN];
	while (!r->stopping) {
		set_timer(r);
		int wait = heap_first_ns(r) <= boot_now() ? 0 : -1;
		int n = epoll_wait(r->epoll_fd, events, EVENTS_PER_TURN, wait);
		for (int i = 0; i < n; i++) {
			handle(r, &events[i]);
			if (heap_first_ns(r) != NEVER)
				cut_run_due(r);
		}
		cut_run_due(r);
		if (r->flush_due_ns <= boot_now())
			r->flush_due_ns = NEVER;
		for (uint32_t i = 0; i < CLIENTS_MAX; i++)
			outbox_flush(r, i);
		clients_listen_again(r);
		feed_watchdog(r);
	}
}

static int explain(const struct reaper *r, int rc)
{
	if (rc == -EBUSY) {
		say(LOG_ERR, "event=refused why=\"another reaper runs here\" runtime_dir=%s",
			r->options.runtime_dir);
		return EX_TEMPFAIL;
	}
	if (rc == -EPROTO) {
		say(LOG_CRIT, "event=refused why=\"state file of another version; start the reaper "
			      "that wrote it\"");
		return EX_CONFIG;
	}
	say(LOG_CRIT, "event=start_failed errno=%d why=\"%s\" runtime_dir=%s", -rc, strerror(-rc),
		r->options.runtime_dir);
	return EX_OSERR;
}

/*
 * Go on in a child of our own session. The parent returns from the process with 0 when the child
 * says that it is ready (it writes to *ready), and with the child's own status when that ends
 * first. One that does neither for READY_MS is left to itself: perhaps it holds leases.
 */
static int detach(int *ready)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) != 0)
		return -errno;
	pid_t pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		close(ends[0]);
		*ready = ends[1];
		return setsid() < 0 ? -errno : 0;
	}
	close(ends[1]);
	char byte;
	int status = 0;
	if (poll(&(struct pollfd){ .fd = ends[0], .events = POLLIN }, 1, READY_MS) == 0)
		return -ETIMEDOUT;
	if (read(ends[0], &byte, 1) == 1)
		_exit(EX_OK);
	_exit(waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status)
								   : EX_SOFTWARE);
}

int main(int argc, char **argv)
{
	static struct reaper reaper;
	int ready = -1;
	int status = parse_options(argc, argv, &reaper.options);
	if (status >= 0)
		return status;
	int rc = fill_standard();
	if (rc == 0 && reaper.options.check) {
		rc = read_boot_id(reaper.boot_id);
		if (rc == 0)
			rc = state_check(&reaper);
		return rc == 0 ? EX_OK : explain(&reaper, rc);
	}
	if (rc == 0 && reaper.options.detach)
		rc = detach(&ready);
	if (rc == 0)
		rc = start(&reaper);
	if (rc != 0)
		return explain(&reaper, rc);
	if (ready >= 0) {
		(void)!write(ready, "", 1);
		close(ready);
	}
	say(LOG_INFO, "event=ready slots=%u descriptors=%u filter=%d locked=%d", reaper.slot_count,
		reaper.fds_max, reaper.deny_fd >= 0, reaper.memory_locked);
	notify_say(&reaper, "READY=1");
	loop(&reaper);
	notify_say(&reaper, "STOPPING=1");
	say(LOG_NOTICE, "event=stopping leases=%u", reaper.slots_used);
	return EX_OK;
}
