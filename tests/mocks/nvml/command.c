/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands: how a test makes a machine, breaks it, and asks it for the truth.
 *
 * Rule: one line in, text out; 0, or -1 and the reason as text. This door is beside NVML and CUDA,
 * not through them, so that a test can judge what went through them.
 *
 * Does not read profiles: `control.py` does, and says here what they say.
 */
#define _GNU_SOURCE
#include "fields.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORDS_MAX    96
#define XID_CRITICAL UINT64_C(8)
#define GPU_RECOVERY UINT64_C(0x8000)

struct order {
	int count;
	char *word[WORDS_MAX];
	char *reply;
	size_t size, used;
};

static int say(struct order *order, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	const int wrote =
		vsnprintf(order->reply + order->used, order->size - order->used, format, list);
	va_end(list);
	order->used += (size_t)wrote;
	if (order->used >= order->size)
		order->used = order->size - 1;
	return -1;
}

static uint64_t number(const struct order *order, int at)
{
	return at < order->count ? (uint64_t)strtoll(order->word[at], NULL, 0) : 0;
}

/* `key=value`: cut in two, %20 and the like undone. */
static char *cut(char *word)
{
	char *const equals = strchr(word, '=');
	if (!equals)
		return NULL;
	*equals = '\0';
	char *to = equals + 1;
	for (const char *from = equals + 1; *from; from++) {
		unsigned code;
		if (*from == '%' && sscanf(from + 1, "%2x", &code) == 1) {
			*to++ = (char)code;
			from += 2;
		} else {
			*to++ = *from;
		}
	}
	*to = '\0';
	return equals + 1;
}

static int do_system(struct order *order)
{
	struct machine *const machine = machine_open();
	for (int i = 1; i < order->count; i++) {
		const char *const value = cut(order->word[i]);
		if (!value)
			return say(order, "not key=value: %s", order->word[i]);
		if (strcmp(order->word[i], "driver") == 0)
			snprintf(machine->driver, sizeof machine->driver, "%s", value);
		else if (strcmp(order->word[i], "nvml") == 0)
			snprintf(machine->nvml, sizeof machine->nvml, "%s", value);
		else if (strcmp(order->word[i], "cuda") == 0)
			machine->cuda = (uint32_t)atoi(value);
		else
			return say(order, "no such key: %s", order->word[i]);
	}
	return 0;
}

static int do_gpu(struct order *order)
{
	struct gpu *const gpu = &machine_open()->gpu[number(order, 1)];
	for (int i = 2; i < order->count; i++) {
		const char *const value = cut(order->word[i]);
		if (!value || !field_set(gpu, order->word[i], value))
			return say(
				order, "%s: no such field, or not a value for it", order->word[i]);
	}
	gpu->present = 1;
	return 0;
}

static uint32_t *profile_field(struct mig_profile *profile, const char *name)
{
	const struct {
		const char *name;
		uint32_t *at;
	} fields[] = {
		{ "profile", &profile->profile },
		{ "id", &profile->id },
		{ "slices", &profile->slices },
		{ "size", &profile->size },
		{ "most", &profile->most },
		{ "sms", &profile->sms },
		{ "engines", &profile->engines },
		{ "decoders", &profile->decoders },
		{ "encoders", &profile->encoders },
		{ "jpegs", &profile->jpegs },
		{ "ofas", &profile->ofas },
	};
	for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
		if (strcmp(fields[i].name, name) == 0)
			return fields[i].at;
	return NULL;
}

static int do_profile(struct order *order)
{
	struct gpu *const gpu = &machine_open()->gpu[number(order, 1)];
	struct mig_profile *profile = gpu->profile;
	while (profile < gpu->profile + PROFILES_MAX && profile->used)
		profile++;
	if (profile == gpu->profile + PROFILES_MAX)
		return say(order, "no room for another profile");
	for (int i = 2; i < order->count; i++) {
		char *value = cut(order->word[i]);
		uint32_t *const field = profile_field(profile, order->word[i]);
		if (!value)
			return say(order, "not key=value: %s", order->word[i]);
		if (field)
			*field = (uint32_t)strtoul(value, NULL, 0);
		else if (strcmp(order->word[i], "name") == 0)
			snprintf(profile->name, sizeof profile->name, "%s", value);
		else if (strcmp(order->word[i], "memory_mib") == 0)
			profile->memory_mib = strtoull(value, NULL, 0);
		else if (strcmp(order->word[i], "start") == 0)
			for (char *at = strtok(value, ","); at; at = strtok(NULL, ","))
				profile->start[profile->start_count++ % STARTS_MAX] =
					(uint32_t)atoi(at);
		else
			return say(order, "no such key: %s", order->word[i]);
	}
	profile->used = 1;
	return 0;
}

/* cap GPU GI CI MINOR; CI -1: the GPU instance's own. */
static int do_cap(struct order *order)
{
	const uint64_t gi = number(order, 2), ci = number(order, 3) + 1;
	if (gi >= GPU_INSTANCES_MAX || ci > COMPUTE_INSTANCES_MAX)
		return say(order, "no such instance can be");
	machine_open()->gpu[number(order, 1)].cap[gi][ci] = (uint32_t)number(order, 4);
	return 0;
}

static int do_link(struct order *order)
{
	if (number(order, 2) >= LINKS_MAX)
		return say(order, "no such link");
	machine_open()->gpu[number(order, 1)].link[number(order, 2)] = (struct link){
		.up = (uint32_t)number(order, 3),
		.gpu = (uint32_t)number(order, 4),
	};
	return 0;
}

static int do_layout(struct order *order)
{
	memory_layout((uint32_t)number(order, 1));
	return 0;
}

static void ring(void)
{
	struct machine *const machine = machine_open();
	__atomic_add_fetch(&machine->fault_bell, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &machine->fault_bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* fault CALL KIND ARGUMENT GPU AFTER COUNT */
static int do_fault(struct order *order)
{
	static const char *const kinds[] = { "", "hang", "delay", "return" };
	struct machine *const machine = machine_open();
	struct fault *fault = machine->fault;
	while (fault < machine->fault + FAULTS_MAX && fault->kind != FAULT_NONE)
		fault++;
	if (order->count < 7 || fault == machine->fault + FAULTS_MAX)
		return say(order, "fault CALL hang|delay|return ARGUMENT GPU|-1 AFTER COUNT|-1");
	struct fault wanted = {
		.argument = (uint32_t)number(order, 3),
		.gpu = (uint32_t)number(order, 4),
		.after = (uint32_t)number(order, 5),
		.count = (uint32_t)number(order, 6),
		.number = ++machine->next_fault,
	};
	snprintf(wanted.call, sizeof wanted.call, "%s", order->word[1]);
	for (uint32_t kind = 1; kind < 4; kind++)
		if (strcmp(order->word[2], kinds[kind]) == 0)
			wanted.kind = kind;
	if (wanted.kind == FAULT_NONE)
		return say(order, "no such fault: %s", order->word[2]);
	*fault = wanted;
	return 0;
}

static int do_clear(struct order *order)
{
	(void)order;
	memset(machine_open()->fault, 0, sizeof machine_open()->fault);
	ring();
	return 0;
}

/* ghost GPU PID BYTES [KIND] */
static int do_ghost(struct order *order)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		if (machine->client[i].kind != CLIENT_NONE)
			continue;
		machine->client[i] = (struct client){
			.kind = order->count > 4 ? (uint32_t)number(order, 4) : CLIENT_COMPUTE,
			.number = ++machine->next_client,
			.gpu = (uint32_t)number(order, 1),
			.gi = NONE,
			.ci = NONE,
			.pid = (uint32_t)number(order, 2),
			.ghost = 1,
			.memory_most = number(order, 3),
			.began_ns = now_ns(),
		};
		return 0;
	}
	return say(order, "no room for another client");
}

static int do_unghost(struct order *order)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (machine->client[i].ghost && machine->client[i].gpu == number(order, 1))
			machine->client[i].kind = CLIENT_NONE;
	return 0;
}

static int do_leak(struct order *order)
{
	const struct target target = { (uint32_t)number(order, 1), NONE, NONE };
	struct allocation *const allocation = memory_take(target, 0, number(order, 2));
	if (!allocation)
		return say(order, "not so much is free");
	allocation->leak = 1;
	return 0;
}

static int do_unleak(struct order *order)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < ALLOCATIONS_MAX; i++)
		if (machine->allocation[i].leak && machine->allocation[i].gpu == number(order, 1))
			memory_drop(&machine->allocation[i]);
	return 0;
}

/* residue GPU OFFSET BYTES VALUE: in memory that is free; how much was written. */
static int do_residue(struct order *order)
{
	const uint32_t gpu = (uint32_t)number(order, 1);
	const uint64_t from = number(order, 2), to = from + number(order, 3);
	uint64_t wrote = 0;
	for (uint64_t at = from; at < to;) {
		const uint64_t chunk = at / CHUNK_BYTES, within = at % CHUNK_BYTES;
		uint64_t part = CHUNK_BYTES - within;
		if (part > to - at)
			part = to - at;
		if (chunk >= chunk_count(gpu))
			break;
		if (chunks_of(gpu)[chunk].allocation == 0) {
			memory_fill(gpu, (uint32_t)chunk, within, part, (uint32_t)number(order, 4));
			wrote += part;
		}
		at += part;
	}
	say(order, "%llu", (unsigned long long)wrote);
	return 0;
}

static int do_lose(struct order *order)
{
	const uint32_t gpu = (uint32_t)number(order, 1);
	machine_open()->gpu[gpu].lost = (uint32_t)number(order, 2);
	event_post(gpu, NONE, NONE, XID_CRITICAL, 79, false);
	return 0;
}

static int do_recovery(struct order *order)
{
	const uint32_t gpu = (uint32_t)number(order, 1);
	machine_open()->gpu[gpu].recovery_action = (uint32_t)number(order, 2);
	event_post(gpu, NONE, NONE, XID_CRITICAL, 154, false);
	event_post(gpu, NONE, NONE, GPU_RECOVERY, number(order, 2), false);
	return 0;
}

/* event GPU TYPE DATA TIMES [GI CI] */
static int do_event(struct order *order)
{
	for (uint64_t i = 0; i < number(order, 4); i++)
		event_post((uint32_t)number(order, 1),
			order->count > 5 ? (uint32_t)number(order, 5) : NONE,
			order->count > 6 ? (uint32_t)number(order, 6) : NONE, number(order, 2),
			number(order, 3), false);
	return 0;
}

/* driver unload|load: a reload forgets what was only in the driver. */
static int do_driver(struct order *order)
{
	struct machine *const machine = machine_open();
	const bool load = order->count > 1 && strcmp(order->word[1], "load") == 0;
	machine->loaded = load;
	if (load) {
		machine->generation++;
		machine->loaded_ns = now_ns();
	}
	for (uint32_t i = 0; i < GPUS_MAX; i++) {
		struct gpu *const gpu = &machine->gpu[i];
		if (!gpu->present)
			continue;
		gpu->compute_mode = gpu->accounting = gpu->latched = 0;
		gpu->energy_mj = 0;
		event_post(i, NONE, NONE, load ? 2 : 1, 0, true);
	}
	return 0;
}

static int do_show(struct order *order)
{
	order->used += field_show(&machine_open()->gpu[number(order, 1)],
		order->reply + order->used, order->size - order->used);
	return 0;
}

static void sweep(uint32_t gpu)
{
	const int device = gpu_open(gpu), ctl = node_open("nvidiactl", O_RDWR);
	if (device >= 0 && ctl >= 0)
		machine_sweep(gpu, device, ctl);
	if (device >= 0)
		close(device);
	if (ctl >= 0)
		close(ctl);
}

static int do_processes(struct order *order)
{
	struct machine *const machine = machine_open();
	sweep((uint32_t)number(order, 1));
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		const struct client *const client = &machine->client[i];
		if (client->kind != CLIENT_NONE && client->gpu == number(order, 1))
			say(order, "%u %llu %u %d %d\n", client->pid,
				(unsigned long long)client_bytes(client), client->kind,
				(int)client->gi, (int)client->ci);
	}
	return 0;
}

static int do_used(struct order *order)
{
	sweep((uint32_t)number(order, 1));
	const struct target target = { (uint32_t)number(order, 1), NONE, NONE };
	say(order, "%llu", (unsigned long long)memory_used_bytes(target));
	return 0;
}

static uint64_t nonzero(const unsigned char *bytes, uint64_t count)
{
	uint64_t found = 0;
	for (uint64_t i = 0; i < count; i++)
		found += bytes[i] != 0;
	return found;
}

/* dirty GPU: bytes of free memory that are not zero. */
static int do_dirty(struct order *order)
{
	const uint32_t gpu = (uint32_t)number(order, 1);
	static unsigned char chunk[CHUNK_BYTES];
	uint64_t dirty = 0;
	sweep(gpu);
	for (uint64_t i = 0; i < chunk_count(gpu); i++) {
		const struct chunk *const it = &chunks_of(gpu)[i];
		if (it->allocation)
			continue;
		if (!it->stored)
			dirty += nonzero((const unsigned char *)&it->fill, 4) * (CHUNK_BYTES / 4);
		else if (memory_read(gpu, (uint32_t)i, 0, chunk, CHUNK_BYTES))
			return say(order, "cannot read chunk %llu", (unsigned long long)i);
		else
			dirty += nonzero(chunk, CHUNK_BYTES);
	}
	say(order, "%llu", (unsigned long long)dirty);
	return 0;
}

static const struct {
	const char *name;
	int (*act)(struct order *);
	bool on_gpu;
} orders[] = {
	{ "system", do_system, false },
	{ "gpu", do_gpu, true },
	{ "profile", do_profile, true },
	{ "cap", do_cap, true },
	{ "link", do_link, true },
	{ "layout", do_layout, true },
	{ "fault", do_fault, false },
	{ "clear", do_clear, false },
	{ "ghost", do_ghost, true },
	{ "unghost", do_unghost, true },
	{ "leak", do_leak, true },
	{ "unleak", do_unleak, true },
	{ "residue", do_residue, true },
	{ "lose", do_lose, true },
	{ "recovery", do_recovery, true },
	{ "event", do_event, true },
	{ "driver", do_driver, false },
	{ "show", do_show, true },
	{ "processes", do_processes, true },
	{ "used", do_used, true },
	{ "dirty", do_dirty, true },
};

/* An empty machine, for whoever has none yet. */
EXPORTED int leased_mock_create(const char *root)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/state", root);
	const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0)
		return -errno;
	struct machine *machine = MAP_FAILED;
	if (fchmod(fd, 0666) == 0 && ftruncate(fd, (off_t)sizeof *machine) == 0)
		machine = mmap(NULL, sizeof *machine, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (machine == MAP_FAILED)
		return -errno;
	pthread_mutexattr_t shared;
	pthread_mutexattr_init(&shared);
	pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&machine->lock, &shared);
	machine->loaded = machine->generation = 1;
	machine->loaded_ns = now_ns();
	machine->bytes = sizeof *machine;
	machine->magic = MACHINE_MAGIC;
	munmap(machine, sizeof *machine);
	return 0;
}

EXPORTED int leased_mock_command(const char *line, char *reply, size_t size)
{
	struct order order = { .reply = reply, .size = size };
	reply[0] = '\0';
	if (!machine_open())
		return say(&order, "no machine at %s: %s", machine_root(), strerror(errno));
	char copy[4096];
	snprintf(copy, sizeof copy, "%s", line);
	char *rest = NULL;
	for (char *at = strtok_r(copy, " ", &rest); at && order.count < WORDS_MAX;
		at = strtok_r(NULL, " ", &rest))
		order.word[order.count++] = at;
	for (size_t i = 0; order.count && i < sizeof orders / sizeof orders[0]; i++) {
		if (strcmp(orders[i].name, order.word[0]) != 0)
			continue;
		if (orders[i].on_gpu && number(&order, 1) >= GPUS_MAX)
			return say(&order, "no such GPU");
		machine_lock();
		const int result = orders[i].act(&order);
		machine_unlock();
		return result;
	}
	return say(&order, "no such command: %s", line);
}
