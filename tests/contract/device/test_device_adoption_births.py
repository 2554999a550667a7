# SPDX-License-Identifier: Apache-2.0
"""Adoption of trees that leave themselves: whoever is born of a tree while it is brought in, and
cut loose from it by its parent's end, is inside as well; and goes back with it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.hardware.adoption.births import following
from leased.hardware.adoption.carrying import Move, bring
from leased.hardware.adoption.tree import look
from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.lease import RevocationReason
from tests.doubles.host import not_proven, real_devices
from tests.doubles.leases import lease, memory

_DAEMONS = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def idle():
    os.read(0, 1)
    os._exit(0)
told = os.dup(1)
os.close(1)
for _ in range(150):
    if os.fork() == 0:
        idle()
if os.fork():
    os.write(told, b"in\\n")
    idle()
for _ in range(300):
    begun = time.monotonic_ns()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(told, b"%d %d\\n" % (os.getpid(), begun))
            os.close(told)
            idle()
        os._exit(0)
    time.sleep(0.002)
os.write(told, b"done\\n")
idle()
"""
"""Many children, of whom the last forks and forks again and lets the parent end, as daemons do. All
are gone when their standard input closes."""
DAEMONS = 300
HANG_S = 60


@pytest.fixture
def devices() -> Iterator[Devices]:
    with real_devices() as real:
        yield real


class Tree:
    """A tree of them, known by a word on their command line that nobody else has."""

    def __init__(self) -> None:
        self._word = f"leased-test-{secrets.token_hex(8)}".encode()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _DAEMONS, self._word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "in\n"
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def daemons(self) -> dict[int, int]:
        """When the last of them has left: pid, and when its parent's birth began."""
        found: dict[int, int] = {}
        while len(found) < DAEMONS:
            line = self._line()
            assert line, "it ended"
            if line != "done\n":
                pid, begun_ns = map(int, line.split())
                found[pid] = begun_ns
        return found

    def everybody(self) -> list[int]:
        """Who lives."""
        found: list[int] = []
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with contextlib.suppress(OSError):
                    if self._word in Path(f"/proc/{entry}/cmdline").read_bytes():
                        found.append(int(entry))
        return found

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        os.close(self.pidfd)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.read()
        self._process.stdout.close()
        while self.everybody():
            os.sched_yield()


def home_of(pid: int) -> str:
    """Where it is in the v2 tree."""
    seen = look(pid)
    assert seen is not None, "it lives"
    return os.fsdecode(seen.home)


async def emptied(leaf: str) -> None:
    """The last to close a pipe is not out of its cgroup yet."""
    with trio.fail_after(HANG_S):
        while Path(leaf, "cgroup.procs").read_text():
            await trio.lowlevel.checkpoint()


async def test_who_daemonizes_while_the_tree_is_brought_in_is_inside(devices: Devices) -> None:
    """Its parent had ended between two looks at the tree, and nothing led to it from then on: 72 of
    99 were left outside."""
    root = (await devices.facts()).path
    leaf = await devices.make_leaf(one := lease(memory(), pid=0))
    with Tree() as tree, following(tree.pid) as births:
        if births is None:
            not_proven("that who daemonizes is brought in", "the kernel tells of no births here")
        since_ns = time.monotonic_ns()
        moved = bring(Move(tree.pid, leaf, root, ()), tree.pidfd, births)
        until_ns = time.monotonic_ns()
        daemons = tree.daemons()
        outside = {pid for pid in daemons if not leaf.endswith(home_of(pid))}
        during = {pid for pid, ns in daemons.items() if since_ns < ns < until_ns}
        assert len(moved.processes) > 150 and during
        assert not [pid for pid in outside if daemons[pid] > since_ns]
    await emptied(leaf)
    await devices.prove_many([(one, ())])


async def test_who_has_lost_its_parent_goes_back_with_the_others(devices: Devices) -> None:
    """Who was born in the leaf of a grant that failed, and had lost its parent, was killed."""
    one = lease(memory(), pid=0, reason=RevocationReason.GRANT_FAILED)
    with Tree() as tree:
        before = home_of(tree.pid)
        devices.adoptions.want((one.subject.uid, one.command_id), tree.pid, tree.pidfd)
        [made] = await devices.prepare_many([one])
        assert isinstance(made, Prepared), made
        daemons = tree.daemons()
        assert [pid for pid in daemons if made.cgroup.endswith(home_of(pid))]
        await devices.scrub_many([(one, made.fds)])
        assert {home_of(pid) for pid in (tree.pid, *daemons)} == {before}
        await devices.prove_many([(one, made.fds)])
        for fd in made.fds:
            os.close(fd)


async def test_a_tree_that_is_still_is_brought_in_where_no_births_are_told(
    devices: Devices,
) -> None:
    """In a namespace of its own, or without the kernel's connector."""
    root = (await devices.facts()).path
    leaf = await devices.make_leaf(one := lease(memory(), pid=0))
    with Tree() as tree:
        left = tree.daemons()
        moved = bring(Move(tree.pid, leaf, root, ()), tree.pidfd, None)
        inside = {pid for pid in tree.everybody() if leaf.endswith(home_of(pid))}
        assert {process.pid for process in moved.processes} == inside
        assert inside == set(tree.everybody()) - left.keys()
    await emptied(leaf)
    await devices.prove_many([(one, ())])


async def test_births_that_are_lost_refuse_the_adoption() -> None:
    """More than the socket holds: a smaller family would have been believed."""
    with following(os.getpid()) as births:
        if births is None:
            not_proven("that lost births are noticed", "the kernel tells of no births here")
        births._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for _ in range(40):
            pid = os.posix_spawn("/bin/true", ["true"], {})
            os.waitpid(pid, 0)
        with pytest.raises(DeviceError) as caught:
            births.take()
        assert caught.value.errno == errno.EAGAIN
