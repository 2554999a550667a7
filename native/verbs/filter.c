/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device filter verbs: BPF_CGROUP_DEVICE programs by raw bpf(2), no library.
 *
 * Rule: programs are attached with ALLOW_MULTI, so every program on the leaf and on all its
 * ancestors must allow an open. That makes "deny everything" an addition that nothing already there
 * can weaken, and atomic. A filter is asked at open and mknod only: it never takes an open
 * descriptor back, which is why killing follows.
 *
 * Does not choose what a lease may open.
 */
#define _GNU_SOURCE
#include "../verbs.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	INSNS_HEAD = 6,
	INSNS_PER_RULE = 8,
	INSNS_TAIL = 2,
	INSNS_MAX = INSNS_HEAD + INSNS_PER_RULE * LEASED_DEVICE_RULES_MAX + INSNS_TAIL,
};

enum { R0, R1, R2, R3, R4, R5, R6 };

static struct bpf_insn load_u32(unsigned int into, int offset)
{
	return (struct bpf_insn){ .code = BPF_LDX | BPF_MEM | BPF_W,
		.dst_reg = into & 0xf,
		.src_reg = R1,
		.off = (__s16)offset };
}

static struct bpf_insn alu32(int operation, unsigned int reg, uint32_t value)
{
	return (struct bpf_insn){ .code = (__u8)(BPF_ALU | operation | BPF_K),
		.dst_reg = reg & 0xf,
		.imm = (__s32)value };
}

static struct bpf_insn copy(unsigned int into, unsigned int from)
{
	return (struct bpf_insn){
		.code = BPF_ALU | BPF_MOV | BPF_X, .dst_reg = into & 0xf, .src_reg = from & 0xf
	};
}

static struct bpf_insn skip_unless_equal(unsigned int reg, uint32_t value, int skip)
{
	/* 32-bit compare: an immediate of a 64-bit compare would be sign-extended. */
	return (struct bpf_insn){ .code = BPF_JMP32 | BPF_JNE | BPF_K,
		.dst_reg = reg & 0xf,
		.off = (__s16)skip,
		.imm = (__s32)value };
}

static struct bpf_insn leave(void)
{
	return (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
}

static uint32_t put_rule(struct bpf_insn *at, const struct leased_device_rule *rule)
{
	const int has_minor = rule->minor != LEASED_DEVICE_ANY_MINOR;
	uint32_t n = 0;
	at[n++] = skip_unless_equal(R2, rule->type, 6 + has_minor);
	at[n++] = copy(R6, R3);
	at[n++] = alu32(BPF_AND, R6, ~rule->access);
	at[n++] = skip_unless_equal(R6, 0, 3 + has_minor);
	at[n++] = skip_unless_equal(R4, rule->major, 2 + has_minor);
	if (has_minor)
		at[n++] = skip_unless_equal(R5, rule->minor, 2);
	at[n++] = alu32(BPF_MOV, R0, 1);
	at[n++] = leave();
	return n;
}

static int load(const struct bpf_insn *insns, uint32_t count)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	attr.insns = (uint64_t)(uintptr_t)insns;
	attr.insn_cnt = count;
	attr.license = (uint64_t)(uintptr_t)"Apache-2.0";
	attr.expected_attach_type = BPF_CGROUP_DEVICE;
	memcpy(attr.prog_name, "leased", sizeof "leased");
	int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
	return fd < 0 ? -errno : fd;
}

/* Load a program that allows exactly `rules` (none: denies everything). Returns its descriptor. */
int leased_filter_load(const struct leased_device_rule *rules, uint32_t n)
{
	struct bpf_insn insns[INSNS_MAX];
	if (n > LEASED_DEVICE_RULES_MAX)
		return -E2BIG;
	uint32_t count = 0;
	insns[count++] = load_u32(R2, 0);
	insns[count++] = alu32(BPF_AND, R2, 0xffff);
	insns[count++] = load_u32(R3, 0);
	insns[count++] = alu32(BPF_RSH, R3, 16);
	insns[count++] = load_u32(R4, 4);
	insns[count++] = load_u32(R5, 8);
	for (uint32_t i = 0; i < n; i++)
		count += put_rule(insns + count, &rules[i]);
	insns[count++] = alu32(BPF_MOV, R0, 0);
	insns[count++] = leave();
	return load(insns, count);
}

/* Add a program to a cgroup. The attachment outlives every descriptor of the program. */
int leased_filter_attach(int cgroup_fd, int prog_fd)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.target_fd = (uint32_t)cgroup_fd;
	attr.attach_bpf_fd = (uint32_t)prog_fd;
	attr.attach_type = BPF_CGROUP_DEVICE;
	attr.attach_flags = BPF_F_ALLOW_MULTI;
	return syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr) == 0 ? 0 : -errno;
}

/* From the return on, nothing in the cgroup opens any device. */
int leased_filter_deny(int cgroup_fd)
{
	int prog = leased_filter_load(NULL, 0);
	if (prog < 0)
		return prog;
	int rc = leased_filter_attach(cgroup_fd, prog);
	close(prog);
	return rc;
}
