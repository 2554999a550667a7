# SPDX-License-Identifier: Apache-2.0
"""Strangers who hang in an exec, on this host's own /proc: nobody waits for them, what they have is
found, and what they may have is in the way, named.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import occupants, openers
from leased.hardware.execs import Kept, is_bare, registered_in
from leased.hardware.passes import ask_each
from leased.hardware.procfs import start_time
from leased.terms.errors import DeviceError
from tests.doubles.execs import in_exec
from tests.doubles.intruder import ring_file

# Quiet, for what searches /proc may wait for them, too.
pytestmark = [
    pytest.mark.quiet,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of FUSE"),
]

MAP_GROWSDOWN = 0x100
FAR_NS = 1 << 62
LOOK_S = 10
INODE = 2
"""Of each file of `stuck_files`."""

NAME = "leased-exec"
ZERO = openers.Sought(((1, 5),), ("zero",))
LOOP = openers.Sought(((7, 0),), ("loop0",), block=True)
LOOKS = """
import os, signal, sys
from leased.hardware import occupants, openers
from leased.hardware.adoption.servers import Killed, Loosen, loosen
from leased.hardware.block.users import find_uses
from leased.hardware.adoption import tree
from leased.hardware.adoption.keepers import waits_for_pipe
device, inode, *pids = map(int, sys.argv[1:])
sought = occupants.Sought((device, inode), "leased-exec")
seen = occupants.scan([sought], exempt={}, deadline_ns=1 << 62)
print(*[one.pid for one in seen.get((device, inode), []) if one.pid in pids])
zero = openers.Sought(((1, 5),), ("zero",))
seen = openers.scan(zero, exempt={}, deadline_ns=1 << 62)
print(*[f"{one.pid}:{one.via}" for one in seen if one.pid in pids])
assert [one.pid for one in tree.descendants(os.getpid())] == [os.getpid()]
assert not any(map(waits_for_pipe, pids))
os.kill(pids[0], signal.SIGKILL)
while "D (" not in open(f"/proc/{pids[0]}/status").read():
    pass
assert loosen(Loosen("", ((Killed(0, "", pids[0]),),)), []).connections == ()
assert find_uses([(7, 4095)]) == ()
"""


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create(NAME)
    os.ftruncate(fd, 4096)
    yield fd
    os.close(fd)


def all_but(pids: list[int]) -> dict[int, int]:
    others = {int(one) for one in os.listdir("/proc") if one.isdecimal()} - frozenset(pids)
    return {one: start_time(one) or 0 for one in others}


def sought_of(memory: int) -> occupants.Sought:
    status = os.fstat(memory)
    return occupants.Sought((status.st_dev, status.st_ino), NAME)


def test_no_search_waits_for_them_and_what_they_have_is_found(tmp_path: Path, memory: int) -> None:
    """All that was torn down while one hung was fenced, for as long as he liked."""
    # Nor does who looks at what keeps the killed, at a tree that is adopted, and at mounts.
    mapped = f"libc = ctypes.CDLL(None); assert libc.mmap(None, 4096, 1, 1, {memory}, 0) != -1"
    has = [
        f"os.close({memory})",
        f"{mapped}; os.close({memory})",
        "pass",
        f"ring_file({memory})",
        f"os.close({memory}); os.open('/dev/zero', 0)",
        f"os.close({memory}); ring_file(os.open('/dev/zero', 0))",
        f"os.close({memory}); os.eventfd(0), os.pidfd_open(1), os.open('/dev/ptmx', 2)",
    ]
    inode = sought_of(memory).inode
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with in_exec(tmp_path, *has, fds=(memory,)) as pids:
        assert all(map(is_bare, pids)) and not is_bare(os.getpid())
        words = [sys.executable, "-c", LOOKS, *map(str, (*inode, *pids))]
        # Another process looks, for it would wait in a way that only SIGKILL ends.
        told = subprocess.run(
            words, timeout=LOOK_S, stdout=subprocess.PIPE, env=environment, text=True, check=True
        ).stdout.splitlines()
    assert told[0].split() == [str(pids[2]), str(pids[3])]
    assert told[1].split() == [f"{pids[4]}:fd", f"{pids[5]}:ring"]


def test_hugepages_too(tmp_path: Path) -> None:
    memory = os.memfd_create(NAME, os.MFD_HUGETLB)
    with in_exec(tmp_path, "pass", f"os.close({memory})", fds=(memory,)) as pids:
        sought = sought_of(memory)
        os.close(memory)
        seen = occupants.scan([sought], exempt=all_but(pids), deadline_ns=FAR_NS)
    assert [one.pid for one in seen[sought.inode]] == [pids[0]]


def test_what_may_be_a_device_is_in_the_way_and_named_and_only_of_devices(
    tmp_path: Path, memory: int
) -> None:
    has = f"os.close({memory}); os.open(at + '/f', os.O_RDWR | os.O_CREAT)"
    with in_exec(tmp_path, has, fds=(memory,)) as pids:
        exempt = all_but(pids)
        for sought in (ZERO, LOOP):
            with pytest.raises(DeviceError) as raised:
                openers.scan(sought, exempt=exempt, deadline_ns=FAR_NS)
            assert raised.value.errno == errno.EBUSY
            assert f"process {pids[0]} hangs in an exec" in raised.value.detail
            assert f"of 'python', uid {os.getuid()}" in raised.value.detail
        assert occupants.scan([sought_of(memory)], exempt=exempt, deadline_ns=FAR_NS) == {}


def test_a_file_that_says_it_is_the_memory_is_not(tmp_path: Path, memory: int) -> None:
    """Whoever serves a file says which inode it is."""
    with in_exec(tmp_path, "more = os.open(sys.argv[1] + '/more', 0)") as pids:
        sought = occupants.Sought((os.fstat(memory).st_dev, INODE), NAME)
        assert occupants.scan([sought], exempt=all_but(pids), deadline_ns=FAR_NS) == {}


def own_ring() -> int:
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}") == occupants.RING:
                return int(number)
    raise AssertionError


@pytest.mark.parametrize("what", ["none", "no names", "names"])
def test_a_ring_that_does_not_tell_its_files_is_in_doubt(what: str, memory: int) -> None:
    """As while another process is at work in it; up to 6.1 it tells their count then."""
    if what == "none":
        number = os.eventfd(0)
    else:
        with contextlib.suppress(OSError):  # there is no descriptor -1 to be closed
            ring_file(os.dup(memory) if what == "names" else -1)
        number = own_ring()
    try:
        told = registered_in(os.getpid(), Kept(str(number), 0, 0, ring=True))
        if what == "names":
            assert any(NAME.encode() in line for line in told)
            return
        if b": <none>\n" in Path(f"/proc/self/fdinfo/{number}").read_bytes():
            assert list(told), "up to 6.1 of a place without a file, too"
            return
        with pytest.raises(DeviceError, match=f"descriptor {number} is cannot be told"):
            list(told)
    finally:
        os.close(number)


@pytest.mark.parametrize("kind", [1, 2], ids=["shared", "private"])
def test_no_file_is_mapped_as_a_stack(memory: int, kind: int) -> None:
    """That of which all is stack has no file mapped depends on it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/dev/zero", "r+b", buffering=0) as zero:
        for fd in (memory, zero.fileno()):
            assert libc.mmap(None, 4096, 3, kind | MAP_GROWSDOWN, fd, 0) == -1
            assert ctypes.get_errno() == errno.EINVAL


class Late:
    """A look at who was not in an exec when it was seen first, and goes into it just then."""

    def __init__(self) -> None:
        self.glimpses = 0

    def look(self, pid: int) -> int | None:
        with open(f"/proc/{pid}/maps", "rb"):  # what waits on every kernel
            return start_time(pid)

    def glimpse(self, pid: int) -> int:
        self.glimpses += 1
        if self.glimpses == 1:
            raise DeviceError("late", errno.EBUSY)
        return pid


def test_who_goes_into_it_while_he_is_looked_at_holds_up_nobody(tmp_path: Path) -> None:
    with in_exec(tmp_path, "pass") as (pid,):
        own, late = os.getpid(), Late()
        told = ask_each("look", late, [own, pid, own], exempt={}, deadline_ns=FAR_NS)
        assert told == {own: start_time(own), pid: pid} and late.glimpses == 2


def test_who_has_it_and_hangs_is_killed_and_not_waited_for(tmp_path: Path, memory: int) -> None:
    sought = sought_of(memory)
    with in_exec(tmp_path, "pass", fds=(memory,)) as pids:
        [seen] = occupants.scan([sought], exempt=all_but(pids), deadline_ns=FAR_NS).values()
        assert occupants.evict(seen, [sought], budget_ns=50_000_000) == (1, 1)
