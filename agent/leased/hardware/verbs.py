# SPDX-License-Identifier: Apache-2.0
"""The door to the C verbs: memory, cgroups, device filters and processes.

Rule: -errno becomes DeviceError naming the verb. A verb may block for as long as the kernel likes
(a scrub does), so they are called by workers, never by the Trio process; opening a pidfd and moving
a deadline on the reaper's board are the exceptions. Block devices have a door of their own
(`hardware.block.verbs`), and the committer belongs to `durable.committer`.

Does not decide anything and does not retry.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from leased._native import ffi, lib
from leased.terms.errors import DeviceError

ANY_MINOR: Final = lib.LEASED_DEVICE_ANY_MINOR
DEVICE_BLOCK: Final = lib.LEASED_DEVICE_BLOCK
DEVICE_CHAR: Final = lib.LEASED_DEVICE_CHAR
ACCESS_MKNOD: Final = lib.LEASED_DEVICE_MKNOD
ACCESS_READ: Final = lib.LEASED_DEVICE_READ
ACCESS_WRITE: Final = lib.LEASED_DEVICE_WRITE
RINGS_MAX: Final = 64
"""Of one process, at the first try."""


class Scrubbed(NamedTuple):
    """What a scrub did: bytes overwritten, and bytes that did not read back as zero (0 is
    clean)."""

    overwritten_bytes: int
    residue_bytes: int


class DeviceRule(NamedTuple):
    """One thing a device filter allows; `minor` may be ANY_MINOR."""

    kind: int
    access: int
    major: int
    minor: int


class Board(NamedTuple):
    """The reaper's board, mapped."""

    start: ffi.CData
    bytes: int


class NodeSearch(NamedTuple):
    """Devices of one kind, as the search wants them."""

    nodes: tuple[tuple[int, int], ...]
    kind: int
    wanted: ffi.CData


def checked(verb: str, rc: int, detail: str = "") -> int:
    """What a verb returned. Raises DeviceError for -errno."""
    if rc < 0:
        raise DeviceError(verb, -rc, detail or os.strerror(-rc))
    return rc


def create_memory(name: str, *, size_bytes: int, page_bytes: int = 0, node: int = -1) -> int:
    """A sealed memfd with every page present on `node` (-1: any). `page_bytes` 0: normal pages.
    Returns its fd."""
    fd = ffi.new("int *", -1)
    huge = 0 if page_bytes in (0, os.sysconf("SC_PAGESIZE")) else page_bytes
    rc = lib.leased_mem_create(name.encode("ascii"), size_bytes, huge, node, fd)
    checked("mem_create", rc)
    return int(fd[0])


def scrub_memory(fd: int, *, size_bytes: int, from_byte: int = 0) -> Scrubbed:
    """Overwrite with zero and read back by another way. Without the interpreter's lock: threads
    share a large memfd's parts."""
    overwritten = ffi.new("uint64_t *")
    residue = ffi.new("uint64_t *")
    rc = lib.leased_mem_scrub(fd, from_byte, size_bytes, overwritten, residue)
    checked("mem_scrub", rc)
    return Scrubbed(int(overwritten[0]), int(residue[0]))


def scrub_dax(fd: int, *, size_bytes: int, from_byte: int = 0) -> Scrubbed:
    """As `scrub_memory`, of a device-dax node."""
    overwritten = ffi.new("uint64_t *")
    residue = ffi.new("uint64_t *")
    rc = lib.leased_dax_scrub(fd, from_byte, size_bytes, overwritten, residue)
    checked("dax_scrub", rc)
    return Scrubbed(int(overwritten[0]), int(residue[0]))


def look_at_dax(fd: int, *, size_bytes: int, from_byte: int = 0) -> int:
    """How many bytes of a device-dax node are not zero. Writes nothing."""
    residue = ffi.new("uint64_t *")
    checked("dax_look", lib.leased_dax_look(fd, from_byte, size_bytes, residue))
    return int(residue[0])


def truncate_memory(fd: int) -> int:
    """Give every page up; returns the 512-byte blocks that are left (0 is clean)."""
    left = ffi.new("uint64_t *")
    checked("mem_truncate", lib.leased_mem_truncate(fd, left))
    return int(left[0])


def memory_blocks(fd: int) -> int:
    """How many 512-byte blocks the memfd has."""
    blocks = ffi.new("uint64_t *")
    checked("mem_blocks", lib.leased_mem_blocks(fd, blocks))
    return int(blocks[0])


def freeze_cgroup(dirfd: int) -> None:
    """Ask every task of the leaf to stop; does not wait."""
    checked("cgroup_freeze", lib.leased_cgroup_freeze(dirfd))


def kill_cgroup(dirfd: int, *, timeout_ms: int) -> None:
    """Kill the subtree and wait until it is empty; DeviceError(ETIMEDOUT) when somebody is left."""
    checked("cgroup_kill", lib.leased_cgroup_kill(dirfd, timeout_ms))


def load_filter(rules: Sequence[DeviceRule]) -> int:
    """Load a device filter that allows exactly `rules`; returns the program's fd."""
    table = ffi.new("struct leased_device_rule[]", [tuple(rule) for rule in rules])
    return checked("filter_load", lib.leased_filter_load(table, len(rules)))


def attach_filter(cgroup_fd: int, program_fd: int) -> None:
    """Put a filter on a cgroup, in addition to what is there; it stays when the fds are closed."""
    checked("filter_attach", lib.leased_filter_attach(cgroup_fd, program_fd))


def deny_devices(cgroup_fd: int) -> None:
    """From the return on nothing in the cgroup opens any device."""
    checked("filter_deny", lib.leased_filter_deny(cgroup_fd))


def open_pidfd(pid: int) -> int:
    """A descriptor of the process; DeviceError(ESRCH) when it is gone."""
    return checked("pidfd_open", lib.leased_pidfd_open(pid))


def kill_process(pidfd: int, *, timeout_ms: int) -> None:
    """SIGKILL and wait for the exit of the whole thread group."""
    checked("pidfd_kill", lib.leased_pidfd_kill(pidfd, timeout_ms))


def char_device(path: str) -> tuple[int, int] | None:
    """(major, minor) of the character device that `path` leads to, None for anything else. Waits
    for no file system. Raises DeviceError."""
    major, minor = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    if not checked("node_char", lib.leased_node_char(os.fsencode(path), major, minor), path):
        return None
    return int(major[0]), int(minor[0])


def block_device(path: str) -> tuple[int, int] | None:
    """As `char_device`, of a block device."""
    major, minor = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    if not checked("node_block", lib.leased_node_block(os.fsencode(path), major, minor), path):
        return None
    return int(major[0]), int(minor[0])


def device_named(search: NodeSearch, root: str, path: bytes) -> tuple[int, int] | None:
    """The device, of the kind that is sought, that `path` leads to in the directory `root`.
    DeviceError(EAGAIN) where a file system would have to be waited for."""
    major, minor = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    rc = lib.leased_node_named(os.fsencode(root), path, search.kind, major, minor)
    if not checked("node_named", rc, root):
        return None
    return int(major[0]), int(minor[0])


def make_search(nodes: Sequence[tuple[int, int]], *, block: bool) -> NodeSearch:
    """What `search_nodes` looks for."""
    kind = DEVICE_BLOCK if block else DEVICE_CHAR
    return NodeSearch(tuple(nodes), kind, ffi.new("struct leased_node[]", list(nodes)))


def search_nodes(search: NodeSearch, path: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Which of the devices the descriptors in `path` (/proc/P/fd) lead to; and the descriptors of
    io_urings, which may hold more. A process that is gone has none. Waits for no file system.
    Raises DeviceError."""
    count, room = len(search.nodes), RINGS_MAX
    found = ffi.new("uint8_t[]", count)
    while True:
        rings = ffi.new("int32_t[]", room)
        rc = lib.leased_node_search(
            os.fsencode(path), search.kind, search.wanted, found, count, rings, room
        )
        seen = checked("node_search", rc, path)
        if seen <= room:
            had = [node for node, is_found in zip(search.nodes, found, strict=True) if is_found]
            return had, list(rings[0:seen])
        room = 2 * seen


def shares_files(tid: int, other: int) -> bool:
    """Whether two threads have the same table of descriptors; not where it cannot be told."""
    return int(lib.leased_files_shared(tid, other)) == 1


def take_descriptor(pidfd: int, number: int) -> int:
    """A duplicate of another process's descriptor; needs the right to trace it."""
    return checked("pidfd_take", lib.leased_pidfd_take(pidfd, number))


def tracer_of(tid: int) -> int:
    """The process that holds a thread as its tracer; 0 if none does, or the thread is gone."""
    return max(int(lib.leased_tracer_of(tid)), 0)


def is_over(pid: int) -> bool:
    """Whether a process that was killed, and is pinned by a pidfd, is dead in all its threads,
    though somebody has it stay."""
    return int(lib.leased_process_over(pid)) == 1


def die_with_parent() -> None:
    """SIGKILL this process when the thread that forked it ends."""
    checked("die_with_parent", lib.leased_die_with_parent())


def map_board(board: mmap.mmap) -> Board:
    """The reaper's board as `renew_on_board` wants it; it keeps the mapping alive."""
    return Board(ffi.from_buffer(board, require_writable=True), len(board))


def renew_on_board(
    board: Board, slot: int, *, known_ns: int, deadline_ns: int, generation: int
) -> int:
    """Move a deadline that the reaper holds: 0, or -errno (native/verbs/board.c). Does not
    block."""
    return int(
        lib.leased_board_renew(board.start, board.bytes, slot, known_ns, deadline_ns, generation)
    )


def check_kernel() -> None:
    """Try once that memory seals, scrubs and truncates here and that pidfds work. Raises
    DeviceError."""
    rc = lib.leased_selftest()
    if rc < 0:
        why = "no memory could be proven clean, or no process be held, on this kernel"
        raise DeviceError("selftest", -rc, f"{os.strerror(-rc)}: {why}")
