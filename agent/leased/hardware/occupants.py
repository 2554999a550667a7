# SPDX-License-Identifier: Apache-2.0
"""Occupants: which processes still hold or map a memfd, wherever on the host they are.

Rule: identity is (device, inode), never a name that a tenant could choose; the one exception is an
io_uring registration, of which the kernel tells only the name, and ours carries the lease's id.
One pass over /proc answers for many inodes at once. Nobody is killed by number: the pidfd is
opened first, then the process is examined again through it. A tracer that holds a killed process
at its exit reads its memory, so it goes as well. Any user may have a process whose mappings take a
gigabyte to tell (a few MB of the kernel's memory): those are looked at one by one, without their
paths. Nobody is waited for who hangs in an exec (`passes`).

Sees descriptors, mappings and registered files, of threads with descriptors of
their own too. Does not see descriptors in flight nor pinned pages: `exclusion` and the pools'
counters do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

import msgspec

from leased.hardware import verbs
from leased.hardware.execs import is_memfd, kept_by, registered_in
from leased.hardware.instant import now_ns
from leased.hardware.passes import Way, ask_each, everybody
from leased.hardware.procfs import GONE, birth_of, lines_or_none, listed
from leased.terms.errors import DeviceError

_MEMFD = b"memfd:"
RING = "anon_inode:[io_uring]"
TRACER_NS = 500_000_000
"""A tracer that lets a killed process go at all does it in no time."""

KILL_LOOK_NS = 5_000_000_000
"""For looking once more at those who are to be killed."""

TABLES_MAX = 4
"""A thread is compared with so many of those before it, and looked at if it is like none."""

MAPS_BYTES_MAX = 16 << 20
"""A search engine that maps as many files as a process may takes that; a program that maps a
thousand libraries takes a hundredth."""

_CHUNK_BYTES = 64 << 10

Inode = tuple[int, int]


class Sought(msgspec.Struct, frozen=True):
    """A memfd that is looked for: (st_dev, st_ino) and the name it was made with."""

    inode: Inode
    name: str


class Occupant(msgspec.Struct, frozen=True):
    """A process as one pass saw it. `birth` makes the pid an identity (`procfs.birth_of`)."""

    pid: int
    birth: int


def scan(
    sought: Iterable[Sought], *, exempt: Mapping[int, int], deadline_ns: int
) -> dict[Inode, list[Occupant]]:
    """Who has which of the memfds. `exempt` maps our own pids to their start times.

    Raises DeviceError when /proc could not be read to its end by `deadline_ns` (CLOCK_BOOTTIME),
    or not all of it: an answer for half the host is none.
    """
    way = _Search(sought)
    told = ask_each(
        "occupant_scan", way, everybody("occupant_scan"), exempt=exempt, deadline_ns=deadline_ns
    )
    seen: dict[Inode, list[Occupant]] = {}
    for pid, found in told.items():
        birth = birth_of(pid) if found else None
        if birth is not None:
            for inode in found:
                seen.setdefault(inode, []).append(Occupant(pid, birth))
    return seen


def evict(
    occupants: Iterable[Occupant], sought: Iterable[Sought], *, budget_ns: int
) -> tuple[int, int]:
    """Kill each occupant that still is one; (processes killed, processes that would not die)."""
    return kill_those(occupants, _Search(sought), budget_ns=budget_ns)


def kill_those(
    occupants: Iterable[Occupant], way: Way[Collection[object]], *, budget_ns: int
) -> tuple[int, int]:
    """Kill each process that has something still when it is pinned; (killed, would not die)."""
    pinned: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for occupant in sorted(frozenset(occupants), key=lambda one: one.pid):
            try:
                pidfd = os.pidfd_open(occupant.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, pidfd)
            # The pidfd pins the number: what is examined now is what will be killed.
            if birth_of(occupant.pid) == occupant.birth:
                pinned[occupant.pid] = pidfd
        still = ask_each(
            "occupant_kill", way, pinned, exempt={}, deadline_ns=now_ns() + KILL_LOOK_NS
        )
        dying = {pinned[pid]: pid for pid, found in still.items() if found}
        for pidfd in dying:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        left = _left(dying, min(budget_ns, TRACER_NS))
        if left and budget_ns > TRACER_NS:
            for pid in left.values():
                _end_tracers(pid)
            left = _left(left, budget_ns - TRACER_NS)
    return len(dying), len(left)


def _end_tracers(pid: int) -> None:
    """Kill whoever holds a thread of a process that was killed."""
    for tid in map(int, listed(f"/proc/{pid}/task")):
        tracer = verbs.tracer_of(tid)
        if tracer <= 1 or tracer == os.getpid():
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(tracer)
            try:
                if verbs.tracer_of(tid) == tracer:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def _left(dying: Mapping[int, int], budget_ns: int) -> dict[int, int]:
    """Wait for those who were killed; the pidfds and pids of those who are not dead after that."""
    poll = select.poll()
    for pidfd in dying:
        poll.register(pidfd, select.POLLIN)
    left = dict(dying)
    end_ns = time.monotonic_ns() + budget_ns
    while left:
        rest_ms = (end_ns - time.monotonic_ns()) // 1_000_000
        ready = poll.poll(max(rest_ms, 0))
        if not ready:
            break
        for pidfd, _ in ready:
            poll.unregister(pidfd)
            del left[pidfd]
    return {pidfd: pid for pidfd, pid in left.items() if not verbs.is_over(pid)}


class _Search:
    """Which of the inodes a process has, by descriptor, mapping or registration."""

    def __init__(self, sought: Iterable[Sought]) -> None:
        self._names = {one.name.encode("ascii"): one.inode for one in sought}
        self._inodes = frozenset(self._names.values())

    def look(self, pid: int) -> frozenset[Inode]:
        found: set[Inode] = set()
        for task in tables(pid):
            found.update(_by_descriptor(task, self._inodes, self._names))
        found.update(_by_mapping(*memory_of(pid), self._inodes))
        return frozenset(found)

    def glimpse(self, pid: int) -> frozenset[Inode]:
        found: set[Inode] = set()
        for one in kept_by(pid):
            found.update(inode for inode in self._inodes if is_memfd(one, *inode))
            if one.ring:
                found.update(_named_in(registered_in(pid, one), self._names))
        return frozenset(found)


def tables(pid: int) -> Iterator[str]:
    """The directory of a thread for each table of descriptors that a process has: a thread may have
    one of its own, though hardly any has."""
    known: list[int] = []
    for tid in map(int, listed(f"/proc/{pid}/task")):
        if not any(verbs.shares_files(tid, other) for other in known[-TABLES_MAX:]):
            known.append(tid)
            yield f"/proc/{pid}/task/{tid}"


def _by_descriptor(
    task: str, inodes: frozenset[Inode], names: Mapping[bytes, Inode]
) -> Iterator[Inode]:
    for number in listed(f"{task}/fd"):
        path = f"{task}/fd/{number}"
        try:
            target = os.readlink(path)
            if target.startswith("/memfd:"):
                # stat only where the name says memfd: on a dead network mount it would hang.
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in inodes:
                    yield status.st_dev, status.st_ino
            elif target == RING:
                yield from _named_in(lines_or_none(f"{task}/fdinfo/{number}"), names)
        except OSError as error:
            # No memfd and no io_uring has a name of more than a page.
            if error.errno not in (*GONE, errno.ENAMETOOLONG):
                raise DeviceError("occupant_scan", error.errno or errno.EIO, path) from error


def _named_in(told: Iterable[bytes], names: Mapping[bytes, Inode]) -> Iterator[Inode]:
    for line in told:
        _, found, rest = line.partition(_MEMFD)
        if found:
            # "/memfd:NAME\\040(deleted)", the space escaped; up to 6.1 only "memfd:NAME".
            name = rest.rstrip(b"\n").replace(b"\\040", b" ").removesuffix(b" (deleted)")
            inode = names.get(name)
            if inode is not None:
                yield inode


def _by_mapping(
    process: str, told: Iterable[bytes | None], inodes: frozenset[Inode]
) -> Iterator[Inode]:
    for text in told:
        if text is None:
            yield from _one_by_one(process, inodes)
            return
        if _MEMFD not in text:
            continue
        for line in text.split(b"\n"):  # of a name with a carriage return, too
            if _MEMFD in line:
                fields = line.split(None, 5)
                major, _, minor = fields[3].partition(b":")
                inode = (os.makedev(int(major, 16), int(minor, 16)), int(fields[4]))
                if inode in inodes:
                    yield inode


def _one_by_one(process: str, inodes: frozenset[Inode]) -> Iterator[Inode]:
    for path in mapped_files(process):
        try:
            if not os.readlink(path).startswith("/memfd:"):
                continue
            status = os.stat(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.ENAMETOOLONG):
                continue  # unmapped meanwhile, of a FUSE that refuses root, or no memfd's name
            raise DeviceError("occupant_scan", error.errno or errno.EIO, path) from error
        if (status.st_dev, status.st_ino) in inodes:
            yield status.st_dev, status.st_ino


def read_by(pid: int) -> str:
    """The file of another process's that this one has open, and whose that is; "" where there is
    none. Any user may have a process of which reading does not end: one that holds its own memory's
    lock while it waits for a server of its own."""
    for number in listed(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/{pid}/fd/{number}")
            other = path.removeprefix("/proc/").partition("/")[0]
            if path.startswith("/proc/") and other.isdecimal() and other != str(pid):
                return f"{path} of uid {os.stat(f'/proc/{other}').st_uid}"
    return ""


def memory_of(pid: int) -> tuple[str, Iterator[bytes | None]]:
    """Where a process's mappings are told, and what is told (`mappings`): at its leader, or where
    that has exited at another thread, which /proc knows by number, though it does not list it. All
    threads have the same, and there may be thousands."""
    place, told = f"/proc/{pid}", mappings(f"/proc/{pid}")
    first = next(told, b"")
    for thread in listed(f"/proc/{pid}/task") if first == b"" else ():
        place, told = f"/proc/{thread}", mappings(f"/proc/{thread}")
        first = next(told, b"")
        if first != b"":
            break
    return place, chain((first,), told)


def mappings(process: str) -> Iterator[bytes | None]:
    """What /proc tells of a process's mappings, whole lines, some at a time; nothing where it is
    gone. None, and no more, where that is more than MAPS_BYTES_MAX. Raises DeviceError."""
    told_bytes, rest = 0, b""
    try:
        with open(f"{process}/maps", "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                told_bytes += len(chunk)
                if told_bytes > MAPS_BYTES_MAX:
                    yield None
                    return
                lines, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    yield lines
    except OSError as error:
        if error.errno not in GONE:
            raise DeviceError("occupant_scan", error.errno or errno.EIO, process) from error


def mapped_files(process: str) -> Iterator[str]:
    """A path to each file that a process has mapped, once for each mapping. Raises DeviceError."""
    return (f"{process}/map_files/{name}" for name in listed(f"{process}/map_files"))
