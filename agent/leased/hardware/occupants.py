# SPDX-License-Identifier: Apache-2.0
"""Occupants: which processes still hold or map a memfd, wherever on the host they are.

Rule: identity is (device, inode), never a name that a tenant could choose; the one exception is an
io_uring registration, of which the kernel tells only the name, and ours carries the lease's id.
One pass over /proc answers for many inodes at once. Nobody is killed by number: the pidfd is
opened first, then the process is examined again through it. A tracer that holds a killed process
at its exit reads its memory, so it goes as well. Any user may have a process whose mappings take a
gigabyte to tell (a few MB of the kernel's memory): those are looked at one by one, without their
paths. Who took the longest when there was no time left is named.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import msgspec

from leased.hardware import verbs
from leased.terms.errors import DeviceError

_MEMFD = b"memfd:"
RING = "anon_inode:[io_uring]"
TRACER_NS = 500_000_000
"""A tracer that lets a killed process go at all does it in no time."""

TABLES_MAX = 4
"""A thread is compared with so many of those before it, and looked at if it is like none."""

MAPS_BYTES_MAX = 16 << 20
"""A search engine that maps as many files as a process may takes that; a program that maps a
thousand libraries takes a hundredth."""

_CHUNK_BYTES = 64 << 10

GONE = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENOTDIR)

_CAP_SYS_PTRACE = 1 << 19

Inode = tuple[int, int]


class Sought(msgspec.Struct, frozen=True):
    """A memfd that is looked for: (st_dev, st_ino) and the name it was made with."""

    inode: Inode
    name: str


class Occupant(msgspec.Struct, frozen=True):
    """A process as one pass saw it. `started` (field 22 of its stat) makes the pid an identity."""

    pid: int
    started: int


def start_time(pid: int) -> int | None:
    """When the process started, in the kernel's ticks since boot; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def processes(verb: str, exempt: Mapping[int, int], deadline_ns: int) -> Iterator[int]:
    """Every process of the host but the `exempt`, to be looked at now.

    Raises DeviceError(EPERM) where the kernel does not let us see what one has, or (without
    CAP_SYS_PTRACE, where /proc hides others) who there is: to find nobody there proves nothing.
    ETIMEDOUT when the host was not seen to its end by `deadline_ns`.
    """
    status = read_or_empty("/proc/self/status")
    capable = int(status.partition(b"CapEff:")[2].split()[0], 16)
    if not capable & _CAP_SYS_PTRACE:
        raise DeviceError(verb, errno.EPERM, "without CAP_SYS_PTRACE who has it is not seen")
    looked_at, longest = (0, 0), (0, 0)
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        longest = max(longest, (now_ns - looked_at[0], looked_at[1])) if looked_at[1] else longest
        if now_ns > deadline_ns:
            raise DeviceError(verb, errno.ETIMEDOUT, _name_the_longest(*longest))
        pid = int(entry)
        looked_at = (now_ns, pid)
        if pid in exempt and exempt[pid] == start_time(pid):
            continue
        demand_sight(verb, pid)
        yield pid


def _name_the_longest(spent_ns: int, pid: int) -> str:
    detail = "too many descriptors to look at"
    with contextlib.suppress(OSError):
        uid = os.stat(f"/proc/{pid}").st_uid
        detail += f": process {pid} of uid {uid} alone took {spent_ns // 1_000_000} ms"
    return detail


def demand_sight(verb: str, pid: int) -> None:
    """Raises DeviceError(EPERM) where a process is there and may not be looked at. Of one that is
    gone the kernel says EACCES as well; the first is the host itself, and some sandboxes hide it.
    """
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError as error:
        if pid != 1 and os.path.exists(f"/proc/{pid}"):
            detail = f"what process {pid} has may not be looked at"
            raise DeviceError(verb, errno.EPERM, detail) from error
    except OSError:
        pass  # gone, or a thread of the kernel's


def scan(
    sought: Iterable[Sought], *, exempt: Mapping[int, int], deadline_ns: int
) -> dict[Inode, list[Occupant]]:
    """Who has which of the memfds. `exempt` maps our own pids to their start times.

    Raises DeviceError when /proc could not be read to its end by `deadline_ns` (CLOCK_BOOTTIME),
    or not all of it: an answer for half the host is none.
    """
    names = {one.name.encode("ascii"): one.inode for one in sought}
    inodes = frozenset(names.values())
    seen: dict[Inode, list[Occupant]] = {}
    for pid in processes("occupant_scan", exempt, deadline_ns):
        found = _examine(pid, inodes, names)
        started = start_time(pid) if found else None
        if started is not None:
            for inode in found:
                seen.setdefault(inode, []).append(Occupant(pid, started))
    return seen


def evict(
    occupants: Iterable[Occupant], sought: Iterable[Sought], *, budget_ns: int
) -> tuple[int, int]:
    """Kill each occupant that still is one; (processes killed, processes that would not die)."""
    names = {one.name.encode("ascii"): one.inode for one in sought}
    inodes = frozenset(names.values())
    return kill_those(
        occupants, lambda pid: bool(_examine(pid, inodes, names)), budget_ns=budget_ns
    )


def kill_those(
    occupants: Iterable[Occupant], still: Callable[[int], bool], *, budget_ns: int
) -> tuple[int, int]:
    """Kill each process of which `still` is true when it is pinned; (killed, would not die)."""
    dying: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for occupant in sorted(frozenset(occupants), key=lambda one: one.pid):
            try:
                pidfd = os.pidfd_open(occupant.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, pidfd)
            # The pidfd pins the number: what is examined now is what will be killed.
            if start_time(occupant.pid) != occupant.started:
                continue
            if not still(occupant.pid):
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            dying[pidfd] = occupant.pid
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


def _examine(pid: int, inodes: frozenset[Inode], names: Mapping[bytes, Inode]) -> frozenset[Inode]:
    """Which of the inodes the process has, by descriptor, mapping or registration."""
    found: set[Inode] = set()
    for task in tables(pid):
        found.update(_by_descriptor(task, inodes, names))
    found.update(_by_mapping(*memory_of(pid), inodes))
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
                yield from _registered(f"{task}/fdinfo/{number}", names)
        except OSError as error:
            # No memfd and no io_uring has a name of more than a page.
            if error.errno not in (*GONE, errno.ENAMETOOLONG):
                raise DeviceError("occupant_scan", error.errno or errno.EIO, path) from error


def _registered(path: str, names: Mapping[bytes, Inode]) -> Iterator[Inode]:
    for line in lines_or_none(path):
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


def cgroup_of(pid: int) -> str:
    """Where a process is in the v2 tree; "" where it is gone. A name there, and of v1's trees on
    lines before it, may have anything but a newline in it."""
    lines = read_or_empty(f"/proc/{pid}/cgroup").split(b"\n")
    home = next((line[3:] for line in lines if line.startswith(b"0::")), b"")
    return home.decode("utf-8", "replace")


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


def listed(path: str) -> list[str]:
    """What a directory of /proc lists; nothing where the process is gone. Raises DeviceError."""
    try:
        return os.listdir(path)
    except OSError as error:
        if error.errno in GONE:
            return []
        raise DeviceError("occupant_scan", error.errno or errno.EIO, path) from error


def lines_or_none(path: str) -> Iterator[bytes]:
    """The lines of a file of /proc one by one, for they may be a million; none where the process is
    gone. Raises DeviceError."""
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        if error.errno not in GONE:
            raise DeviceError("occupant_scan", error.errno or errno.EIO, path) from error


def read_or_empty(path: str) -> bytes:
    """A file of /proc; nothing where the process is gone. Raises DeviceError."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        if error.errno in GONE:
            return b""
        raise DeviceError("occupant_scan", error.errno or errno.EIO, path) from error
