/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mock machine: what the driver and the GPUs know, in one file that every process maps.
 *
 * Rule: whoever holds a GPU is known from the kernel, never from a promise. A CUDA client is one
 * open file description of the GPU's node with a lock on it (F_OFD, one byte at the client's
 * number): the kernel ends the lock when the last copy of the description is closed, wherever it
 * is: in a child, in another process, in flight on a socket. Memory exported by descriptor is a
 * description of nvidiactl with a lock in the same way. What is found gone is let go `release_ms`
 * later, as drivers do.
 *
 * Every function below except the first four wants the machine locked (`machine_lock`), unless it
 * says otherwise. Does not survive a reboot, and does not protect its state from those who may open
 * it.
 */
#ifndef LEASED_MOCK_MACHINE_H
#define LEASED_MOCK_MACHINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MACHINE_MAGIC         UINT64_C(0x3130757067646c6d)
#define GPUS_MAX              8u
#define CLIENTS_MAX           512u
#define ALLOCATIONS_MAX       4096u
#define HOLDS_MAX             1024u
#define FAULTS_MAX            64u
#define EVENTS_MAX            256u
#define ACCOUNTS_MAX          64u
#define GPU_INSTANCES_MAX     14u
#define COMPUTE_INSTANCES_MAX 8u
#define PROFILES_MAX          12u
#define STARTS_MAX            8u
#define LINKS_MAX             18u
#define CHUNK_BYTES           (UINT64_C(2) << 20)
#define NONE                  UINT32_MAX

enum client_kind {
	CLIENT_NONE = 0,
	CLIENT_COMPUTE = 1,
	CLIENT_GRAPHICS = 2,
	CLIENT_MPS = 3,
};

/* One process' contexts on one device. A ghost is a client that nobody is behind. */
struct client {
	uint32_t kind, number, gpu, gi, ci, pid, contexts, running, ghost;
	uint64_t began_ns, gone_ns, memory_most, busy_since_ns, busy_ns;
};

/* Memory of a GPU. Its chunks carry its number. A leak is memory without a client. */
struct allocation {
	uint32_t number, gpu, gi, client, chunks, leak, exported;
	uint64_t bytes;
};

/* Somebody else's hold on an allocation: an import by IPC handle or by descriptor. */
struct hold {
	uint32_t allocation, client;
};

/* 2 MiB of memory: all of it `fill`, or, where `stored`, what the GPU's file says. */
struct chunk {
	uint32_t allocation, position, fill, stored;
};

struct mig_profile {
	uint32_t used, profile, id, slices, size, most, sms, engines, decoders, encoders, jpegs,
		ofas;
	uint32_t start_count, start[STARTS_MAX];
	uint64_t memory_mib;
	char name[32];
};

struct compute_instance {
	uint32_t used, id, slices, start, compute_mode;
	uint64_t serial;
	char uuid[48];
};

struct gpu_instance {
	uint32_t used, id, profile, start;
	uint64_t serial;
	struct compute_instance compute[COMPUTE_INSTANCES_MAX];
};

struct link {
	uint32_t up, gpu; /* NONE: a switch */
	uint64_t sent, received;
};

struct account {
	uint32_t used, pid, running;
	uint64_t began_ns, ended_ns, memory_most;
};

struct gpu {
	/* identity */
	uint32_t present, minor, pci_domain, pci_bus, pci_device, pci_device_id, pci_subsystem_id;
	char name[64], uuid[48], serial[32], vbios[32], part[32];
	/* what it has */
	uint64_t total_mib, reserved_mib, bar1_mib, context_mib;
	uint32_t cc_major, cc_minor, sms, numa_node, memory_node, power_limit_mw, clock_mhz,
		clock_memory_mhz;
	uint32_t mig_capable, gpm_capable, graphics;
	/* how it is */
	uint32_t compute_mode, persistence, mig_mode, mig_pending, accounting, ecc;
	uint32_t utilization, utilization_memory, power_mw, temperature_c, temperature_memory_c;
	uint64_t clocks_event_reasons, energy_mj, throttle_ns;
	uint64_t ecc_corrected, ecc_uncorrected, ecc_lifetime_corrected, ecc_lifetime_uncorrected;
	uint32_t remap_correctable, remap_uncorrectable, remap_pending, remap_failure,
		retired_pending;
	uint32_t repair_channel, repair_tpc, unrepairable, recovery_action;
	uint32_t fabric_state, fabric_status, fabric_clique, fabric_health, fabric_summary;
	/* how it behaves */
	uint32_t lost, draining, removed, scrub_on_free, attach_ms;
	uint32_t release_ms, release_busy_ms, latch_on_kill, latched;
	uint32_t mig_in_use, first_free;
	uint32_t cap[GPU_INSTANCES_MAX]
		    [1 + COMPUTE_INSTANCES_MAX]; /* minors; [0]: the instance's */
	struct link link[LINKS_MAX];
	struct mig_profile profile[PROFILES_MAX];
	struct gpu_instance instance[GPU_INSTANCES_MAX];
	struct account account[ACCOUNTS_MAX];
};

enum fault_kind {
	FAULT_NONE = 0,
	FAULT_HANG = 1,
	FAULT_DELAY = 2,
	FAULT_RETURN = 3,
};

struct fault {
	uint32_t kind, gpu, argument, after, count, number;
	char call[64];
};

struct event {
	uint64_t sequence, type, data;
	uint32_t gpu, gi, ci, system;
};

struct machine {
	uint64_t magic, bytes;
	pthread_mutex_t lock;
	uint32_t loaded, generation, next_client, next_allocation, next_fault, attached;
	uint64_t next_serial, next_event, loaded_ns;
	uint32_t event_bell, fault_bell; /* futexes */
	char driver[32], nvml[32];
	uint32_t cuda;
	struct gpu gpu[GPUS_MAX];
	struct client client[CLIENTS_MAX];
	struct allocation allocation[ALLOCATIONS_MAX];
	struct hold hold[HOLDS_MAX];
	struct fault fault[FAULTS_MAX];
	struct event event[EVENTS_MAX];
};

/* A GPU, or an instance of it, as a call names it. */
struct target {
	uint32_t gpu, gi, ci;
};

/* machine.c: without the lock. */
struct machine *machine_open(void); /* the machine of this process, or NULL; errno */
const char *machine_root(void);
void machine_lock(void);
void machine_unlock(void);
uint64_t now_ns(void);
int node_open(const char *name, int flags); /* `<root>/dev/<name>`: a descriptor or -errno */
int gpu_open(uint32_t gpu);
int root_write(const char *name, const char *text); /* a file below the root; NULL removes it */
uint32_t gpu_of_minor(uint32_t minor);
bool may_administer(void); /* CAP_SYS_ADMIN in this process */

/* clients.c */
void machine_sweep(uint32_t gpu, int gpu_fd, int ctl_fd);
struct client *client_begin(struct target target, int gpu_fd);
void client_end(struct client *client, int gpu_fd);
struct client *client_find(uint32_t number);
void client_running(struct client *client, bool running);
bool client_conflicts(struct target target, uint32_t pid);
uint64_t client_bytes(const struct client *client);
uint32_t instance_clients(uint32_t gpu, uint32_t gi);
int lock_byte(int fd, uint64_t at, bool take);
bool byte_locked(int fd, uint64_t at);

/* memory.c */
struct chunk *chunks_of(uint32_t gpu);
uint64_t chunk_count(uint32_t gpu);
struct allocation *allocation_find(uint32_t number);
struct allocation *memory_take(struct target target, uint32_t client, uint64_t bytes);
void memory_drop(struct allocation *allocation);
void memory_release_unheld(struct allocation *allocation, int ctl_fd);
uint64_t memory_free_bytes(struct target target);
uint64_t memory_total_bytes(struct target target);
uint64_t memory_used_bytes(struct target target);
uint32_t memory_chunks(const struct allocation *allocation, uint32_t *list); /* in order */
int memory_fill(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, uint32_t value);
int memory_read(uint32_t gpu, uint32_t chunk, uint64_t from, void *to, uint64_t bytes);
int memory_write(uint32_t gpu, uint32_t chunk, uint64_t from, const void *of, uint64_t bytes);
void memory_layout(uint32_t gpu);
bool hold_add(uint32_t allocation, uint32_t client);
void hold_drop(uint32_t allocation, uint32_t client);

/* instances.c */
struct gpu_instance *instance_find(uint32_t gpu, uint32_t gi);
struct compute_instance *compute_find(uint32_t gpu, uint32_t gi, uint32_t ci);
struct mig_profile *profile_find(uint32_t gpu, uint32_t id);
uint32_t placements_free(uint32_t gpu, const struct mig_profile *profile);
struct gpu_instance *instance_create(
	uint32_t gpu, const struct mig_profile *profile, uint32_t start);
struct compute_instance *compute_create(
	uint32_t gpu, struct gpu_instance *instance, uint32_t slices);
void instance_destroy(uint32_t gpu, struct gpu_instance *instance);
void compute_destroy(uint32_t gpu, struct gpu_instance *instance, struct compute_instance *compute);
uint32_t compute_slices_left(uint32_t gpu, const struct gpu_instance *instance, uint32_t slices);
int cap_open(uint32_t gpu, uint32_t gi, uint32_t ci); /* ci NONE: the GPU instance's */

/* faults.c: without the lock. The result that the call must give, or -1: go on. */
int fault_meet(const char *call, uint32_t gpu);
void event_post(uint32_t gpu, uint32_t gi, uint32_t ci, uint64_t type, uint64_t data, bool system);

#define EXPORTED       __attribute__((visibility("default")))
#define EXPORT_LOCK_AT (UINT64_C(1) << 32) /* on nvidiactl: clear of anything else */

#endif
