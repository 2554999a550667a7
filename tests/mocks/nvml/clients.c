/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients: who has a context on which GPU, and for how long after the end it still looks so.
 *
 * Rule: a client is alive while its byte on the GPU's node is locked by another open file
 * description than the asker's. The asker must therefore never ask through a client's own
 * descriptor: it would see no lock.
 *
 * Does not look at processes: a pid is only what the client said it was.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define NS_PER_MS UINT64_C(1000000)

int lock_byte(int fd, uint64_t at, bool take)
{
	struct flock lock = {
		.l_type = take ? F_RDLCK : F_UNLCK,
		.l_whence = SEEK_SET,
		.l_start = (off_t)at,
		.l_len = 1,
	};
	return fcntl(fd, F_OFD_SETLK, &lock) ? -errno : 0;
}

bool byte_locked(int fd, uint64_t at)
{
	struct flock lock = {
		.l_type = F_WRLCK,
		.l_whence = SEEK_SET,
		.l_start = (off_t)at,
		.l_len = 1,
	};
	return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

struct client *client_find(uint32_t number)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (machine->client[i].kind != CLIENT_NONE && machine->client[i].number == number)
			return &machine->client[i];
	return NULL;
}

static struct account *account_of(struct gpu *gpu, uint32_t pid, bool make)
{
	struct account *oldest = &gpu->account[0];
	for (uint32_t i = 0; i < ACCOUNTS_MAX; i++) {
		struct account *const account = &gpu->account[i];
		if (account->used && account->pid == pid)
			return account;
		if (!account->used || (oldest->used && account->began_ns < oldest->began_ns))
			oldest = account;
	}
	if (!make)
		return NULL;
	*oldest = (struct account){ .used = 1, .pid = pid };
	return oldest;
}

static void account_begin(const struct client *client)
{
	struct gpu *const gpu = &machine_open()->gpu[client->gpu];
	if (!gpu->accounting || gpu->mig_mode)
		return;
	struct account *const account = account_of(gpu, client->pid, true);
	account->running = 1;
	account->began_ns = client->began_ns;
}

static void account_end(struct client *client, uint64_t now)
{
	struct account *const account =
		account_of(&machine_open()->gpu[client->gpu], client->pid, false);
	if (!account || !account->running)
		return;
	account->running = 0;
	account->ended_ns = now;
	account->memory_most = client->memory_most;
}

struct client *client_begin(struct target target, int gpu_fd)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		struct client *const client = &machine->client[i];
		if (client->kind != CLIENT_NONE)
			continue;
		const uint32_t number = ++machine->next_client;
		if (lock_byte(gpu_fd, number, true))
			return NULL;
		*client = (struct client){
			.kind = CLIENT_COMPUTE,
			.number = number,
			.gpu = target.gpu,
			.gi = target.gi,
			.ci = target.ci,
			.pid = (uint32_t)getpid(),
			.began_ns = now_ns(),
		};
		account_begin(client);
		return client;
	}
	return NULL;
}

uint64_t client_bytes(const struct client *client)
{
	struct machine *const machine = machine_open();
	uint64_t bytes = client->ghost ? client->memory_most : 0;
	for (uint32_t i = 0; i < ALLOCATIONS_MAX; i++)
		if (machine->allocation[i].number &&
			machine->allocation[i].client == client->number)
			bytes += machine->allocation[i].chunks * CHUNK_BYTES;
	return bytes;
}

/* Its own memory is nobody's now; what others hold stays until they let go. */
static void forget(struct client *client)
{
	struct machine *const machine = machine_open();
	account_end(client, now_ns());
	for (uint32_t i = 0; i < HOLDS_MAX; i++)
		if (machine->hold[i].client == client->number)
			machine->hold[i] = (struct hold){ 0 };
	for (uint32_t i = 0; i < ALLOCATIONS_MAX; i++)
		if (machine->allocation[i].number &&
			machine->allocation[i].client == client->number)
			machine->allocation[i].client = 0;
	client->kind = CLIENT_NONE;
}

/* The last context went in good order. */
void client_end(struct client *client, int gpu_fd)
{
	machine_open()->gpu[client->gpu].latched = 0;
	lock_byte(gpu_fd, client->number, false);
	forget(client);
}

void client_running(struct client *client, bool running)
{
	const uint64_t now = now_ns();
	if (client->running && !running)
		client->busy_ns += now - client->busy_since_ns;
	if (!client->running && running)
		client->busy_since_ns = now;
	client->running = running;
}

static bool same_place(const struct client *client, struct target target)
{
	return client->gpu == target.gpu && client->gi == target.gi && client->ci == target.ci;
}

bool client_conflicts(struct target target, uint32_t pid)
{
	struct machine *const machine = machine_open();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		const struct client *const client = &machine->client[i];
		if (client->kind != CLIENT_NONE && same_place(client, target) &&
			(client->pid != pid || client->ghost))
			return true;
	}
	return false;
}

uint32_t instance_clients(uint32_t gpu, uint32_t gi)
{
	struct machine *const machine = machine_open();
	uint32_t count = 0;
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (machine->client[i].kind != CLIENT_NONE && machine->client[i].gpu == gpu &&
			machine->client[i].gi == gi)
			count++;
	return count;
}

static void look_at(struct client *client, int gpu_fd, uint64_t now)
{
	struct gpu *const gpu = &machine_open()->gpu[client->gpu];
	const uint64_t bytes = client_bytes(client);
	if (bytes > client->memory_most)
		client->memory_most = bytes;
	if (client->ghost || byte_locked(gpu_fd, client->number))
		return;
	if (!client->gone_ns) {
		client->gone_ns = now;
		if (client->running && gpu->latch_on_kill)
			gpu->latched = 1;
	}
	const uint64_t late_ms = client->running ? gpu->release_busy_ms : gpu->release_ms;
	if (now - client->gone_ns >= late_ms * NS_PER_MS)
		forget(client);
}

/* Let go of whatever on this GPU has nobody behind it for long enough. */
void machine_sweep(uint32_t gpu, int gpu_fd, int ctl_fd)
{
	struct machine *const machine = machine_open();
	const uint64_t now = now_ns();
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (machine->client[i].kind != CLIENT_NONE && machine->client[i].gpu == gpu)
			look_at(&machine->client[i], gpu_fd, now);
	for (uint32_t i = 0; i < ALLOCATIONS_MAX; i++) {
		struct allocation *const allocation = &machine->allocation[i];
		if (allocation->number && allocation->gpu == gpu && !allocation->client)
			memory_release_unheld(allocation, ctl_fd);
	}
}
