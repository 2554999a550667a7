# SPDX-License-Identifier: Apache-2.0
"""Whoever has a device node is found, however it is kept, on this host's own /proc; and a process
is looked at once, however many threads it has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import occupants, verbs
from leased.hardware.occupants import Occupant, kill_those, tables
from leased.hardware.openers import Sought, evict, scan
from leased.hardware.passes import ask_each
from leased.hardware.procfs import birth_of, start_time
from leased.terms.errors import DeviceError
from tests.doubles.lingering import parent_of
from tests.doubles.private_files import mapping_of_private_file
from tests.doubles.tenant import tenant

ZERO = Sought(((1, 5),), ("zero",))
FAR_NS = 1 << 62


@pytest.fixture
def zero() -> Iterator[int]:
    fd = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def ways(pid: int, sought: Sought) -> list[str]:
    return [one.via for one in scan(sought, exempt={}, deadline_ns=FAR_NS) if one.pid == pid]


@pytest.mark.parametrize(
    ("trick", "via"),
    [
        ("hold", "fd"),
        ("path_only", "fd"),
        ("thread", "fd"),
        ("cow", "map"),
        ("ring_file", "ring"),
    ],
)
def test_it_is_found_and_ended_however_it_is_kept(zero: int, trick: str, via: str) -> None:
    with tenant(trick, [os.dup(zero)]) as holder:
        assert ways(holder.pid, ZERO) == [via]
        assert ways(holder.pid, Sought(((1, 9999),), ("nothing",))) == []
        assert ways(holder.pid, Sought(((1, 5),), ("nothing",), block=True)) == []
        seen = scan(ZERO, exempt={}, deadline_ns=FAR_NS)
        mine = [one for one in seen if one.pid == holder.pid]
        assert evict(mine, ZERO, budget_ns=5_000_000_000) == (1, 0)
        assert holder.other_gone


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a pid namespace")
@pytest.mark.parametrize("how", ["thread", "init"])
def test_a_dead_one_that_nobody_waits_for_is_gone_and_its_parent_lives(how: str) -> None:
    with parent_of(how) as (parent, child):
        there = [Occupant(child, birth_of(child) or 0)]
        assert kill_those(there, Everything(), budget_ns=2_000_000_000) == (1, 0)
        assert parent.poll() is None


def test_only_what_is_sought_is_found_and_nothing_where_nobody_is(zero: int) -> None:
    search = verbs.make_search([(1, 5), (1, 7)], block=False)
    had, rings = verbs.search_nodes(search, "/proc/self/fd")
    assert had == [(1, 5)] and rings == []
    assert verbs.search_nodes(search, "/proc/0/fd") == ([], [])
    assert verbs.search_nodes(search, "/proc/self/fd/0") == ([], [])


def test_a_process_with_many_threads_is_looked_at_once() -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(20)]
    for each in threads:
        each.start()
    try:
        assert list(tables(os.getpid())) == [f"/proc/{os.getpid()}/task/{os.getpid()}"]
    finally:
        done.set()
        for each in threads:
            each.join()


def test_half_an_answer_is_none() -> None:
    late_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 1
    with pytest.raises(DeviceError, match="not everybody"):
        scan(ZERO, exempt={}, deadline_ns=late_ns)


# ---- who is too much to look at ------------------------------------------------------------------

WIDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
os.chdir(sys.argv[1])
for _ in range(14):
    os.mkdir("\\n" * 250)
    os.chdir("\\n" * 250)
fd = os.open("\\n" * 200, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
memory, zero = os.memfd_create("leased-wide"), os.open("/dev/zero", os.O_RDWR)
os.ftruncate(memory, 4096)
for at in range(2000):
    libc.mmap(None, 4096, 1 + at % 2 * 2, 1, fd, 0)
libc.mmap(None, 4096, 1, 1, memory, 0)
libc.mmap(None, 4096, 1, 2, zero, 0)
device, inode = os.fstat(memory).st_dev, os.fstat(memory).st_ino
for one in (memory, zero, fd):
    os.close(one)
print(device, inode, flush=True)
sys.stdin.read()
"""
PEAK_BYTES_MAX = 8 << 20


def test_mappings_that_take_megabytes_to_tell_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """Of a process with as many as there may be, and paths of 4 KiB, the kernel tells a GB: one of
    any user's took longer than a search may, and its memory from the worker."""
    words = [sys.executable, "-c", WIDE, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as wide:
        assert wide.stdin is not None and wide.stdout is not None
        device, inode = map(int, wide.stdout.readline().split())
        others = {int(one) for one in os.listdir("/proc") if one.isdecimal()} - {wide.pid}
        exempt = {pid: start_time(pid) or 0 for pid in others}
        memory = occupants.Sought((device, inode), "leased-wide")
        tracemalloc.start()
        try:
            found = scan(ZERO, exempt=exempt, deadline_ns=FAR_NS)
            held = occupants.scan([memory], exempt=exempt, deadline_ns=FAR_NS)
            assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES_MAX
        finally:
            tracemalloc.stop()
            wide.stdin.close()
    assert [(one.pid, one.via) for one in found if one.pid == wide.pid] == [(wide.pid, "map")]
    assert wide.pid in [one.pid for one in held[device, inode]]


class Slow:
    """A look that takes all the time that there is over this process."""

    def __init__(self, late_ns: int) -> None:
        self._late_ns = late_ns

    def look(self, pid: int) -> tuple[()]:
        while pid == os.getpid() and time.clock_gettime_ns(time.CLOCK_BOOTTIME) < self._late_ns:
            pass
        return ()

    glimpse = look


class Everything:
    """A look at a process that has what is sought."""

    def look(self, pid: int) -> tuple[int]:
        return (pid,)

    glimpse = look


def test_who_took_the_time_is_named() -> None:
    late_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 50_000_000
    with pytest.raises(DeviceError) as raised:
        ask_each("look", Slow(late_ns), [1, os.getpid(), 1], exempt={}, deadline_ns=late_ns)
    said = f"process {os.getpid()} of uid {os.getuid()} alone took"
    assert said in raised.value.detail


def test_of_whom_a_hanging_worker_was_reading_is_told() -> None:
    maps = f"/proc/{os.getpid()}/maps"
    script = f"file = open({maps!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None and reader.stdin is not None
        assert reader.stdout.readline() == b"open\n"
        assert occupants.read_by(reader.pid) == f"{maps} of uid {os.getuid()}"
        reader.stdin.write(b"\n")
        reader.stdin.close()
    assert occupants.read_by(os.getpid()) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of a user's")
@pytest.mark.parametrize("mappings", [1, 5_000])
def test_a_users_own_files_refuse_root_and_hide_nobody(tmp_path: Path, mappings: int) -> None:
    """An AppImage, sshfs, a container's overlay: whoever mapped a file of a FUSE mount kept every
    GPU and namespace of the host from being proven clean."""
    memory = occupants.Sought((1, 1), "leased-nothing")
    with mapping_of_private_file(tmp_path, mappings) as pid:
        others = {int(one) for one in os.listdir("/proc") if one.isdecimal()} - {pid}
        exempt = {one: start_time(one) or 0 for one in others}
        for sought in (ZERO, Sought(((7, 0),), ("loop0",), block=True)):
            assert scan(sought, exempt=exempt, deadline_ns=FAR_NS) == ()
        assert occupants.scan([memory], exempt=exempt, deadline_ns=FAR_NS) == {}


# ---- who may not look ----------------------------------------------------------------------------

BLIND = """
import errno, sys
from leased.hardware import occupants, openers, passes
from leased.terms.errors import DeviceError
def asked(question):
    try:
        return question()
    except DeviceError as error:
        return errno.errorcode[error.errno]
far = 1 << 62
node = openers.Sought(((1, 5),), ("zero",))
memory = [occupants.Sought((0, 1), "leased-nothing")]
print(
    asked(lambda: openers.scan(node, exempt={}, deadline_ns=far)),
    asked(lambda: occupants.scan(memory, exempt={}, deadline_ns=far)),
    asked(lambda: passes.demand_sight("look", int(sys.argv[1]))),
    asked(lambda: passes.demand_sight("look", 1 << 22)),
)
"""


def test_who_may_not_look_has_not_seen_nobody(zero: int) -> None:
    """Without the right to trace, others' descriptors are refused or (`hidepid`) others are not
    even listed: an empty answer proved GPUs, memory and ranges clean that somebody still had."""
    blind = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-sys_ptrace"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tenant("hold", [os.dup(zero)]) as holder:
        told = subprocess.run(
            [*blind, sys.executable, "-c", BLIND, str(holder.pid)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert told.stdout.split() == ["EPERM", "EPERM", "EPERM", "None"]
