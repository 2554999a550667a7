# SPDX-License-Identifier: Apache-2.0
"""Adoption of real process trees on the real kernel: all of a tree or none of it, and whoever must
be left alone is."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.hardware.adoption.tree import descendants
from leased.hardware.cgroup import mount_of
from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease, RevocationReason
from tests.doubles.host import not_proven, real_devices
from tests.doubles.leases import lease, memory
from tests.doubles.workers import workers_of

_TREE = """
import os
there, told = os.pipe()
def branch(depth):
    for _ in range(2 if depth else 0):
        if os.fork() == 0:
            branch(depth - 1)
            os.write(told, b".")
            os.read(0, 1)
            os._exit(0)
branch(2)
for _ in range(6):
    os.read(there, 1)
print("in", flush=True)
os.read(0, 1)
"""
"""Seven processes on three levels, all gone when their standard input closes."""
TREE = 7
HANG_S = 60


@pytest.fixture
def devices() -> Iterator[Devices]:
    with real_devices() as real:
        yield real


@contextlib.contextmanager
def running(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A tree, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"in\n"
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.read()  # the end comes when the last of them has gone
        process.stdout.close()


def home_of(pid: int) -> str:
    """Where a process is in the v2 tree."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def inside(leaf: str) -> list[int]:
    return [int(line) for line in Path(leaf, "cgroup.procs").read_text().split()]


async def wait_until_empty(leaf: str) -> None:
    """The last to close a pipe is not out of its cgroup yet."""
    with trio.fail_after(HANG_S):
        while inside(leaf):
            await trio.lowlevel.checkpoint()


async def grant(devices: Devices, one: Lease) -> Prepared | DeviceError:
    [made] = await devices.prepare_many([one])
    return made


async def give_back(devices: Devices, one: Lease, made: Prepared) -> None:
    """As after a cut of a leaf that ran empty."""
    await devices.scrub_many([(one, made.fds)])
    await devices.prove_many([(one, made.fds)])
    for fd in made.fds:
        os.close(fd)


async def test_the_whole_tree_is_inside_before_the_grant_is_ready(devices: Devices) -> None:
    one = lease(memory(), pid=0)
    with running(_TREE) as process:
        pidfd = os.pidfd_open(process.pid)
        owner = await devices.adoptions.inspect(process.pid, pidfd)
        assert (owner.uid, owner.processes) == (os.getuid(), TREE)
        devices.adoptions.want((one.subject.uid, one.command_id), process.pid, pidfd)
        made = await grant(devices, one)
        assert isinstance(made, Prepared), made
        assert len(inside(made.cgroup)) == devices.adoptions.moved_for(one.lease_id) == TREE
        devices.adoptions.settle((one.subject.uid, one.command_id), one.lease_id)
        os.close(pidfd)
    await wait_until_empty(made.cgroup)
    await give_back(devices, one, made)
    assert not os.path.exists(made.cgroup)


async def test_a_grant_that_fails_after_it_puts_everybody_back(devices: Devices) -> None:
    """The grant was prepared, and then the reaper could not take it."""
    one = lease(memory(), pid=0, reason=RevocationReason.GRANT_FAILED)
    with running(_TREE) as process:
        before = home_of(process.pid)
        pidfd = os.pidfd_open(process.pid)
        devices.adoptions.want((one.subject.uid, one.command_id), process.pid, pidfd)
        made = await grant(devices, one)
        assert isinstance(made, Prepared) and len(inside(made.cgroup)) == TREE
        await devices.scrub_many([(one, made.fds)])
        assert inside(made.cgroup) == [] and home_of(process.pid) == before
        assert process.poll() is None, "nobody is killed by a grant that failed"
        await give_back(devices, one, made)
        os.close(pidfd)


async def test_a_home_that_went_when_it_was_empty_is_made_anew(devices: Devices) -> None:
    """As a scope of systemd's does: whoever could not go back was killed with the failed grant."""
    root = (await devices.facts()).path
    home = Path(mount_of(root), f"home-{os.getpid()}")
    one = lease(memory(), pid=0, reason=RevocationReason.GRANT_FAILED)
    home.mkdir()
    try:
        with running(_TREE) as process:
            for member in descendants(process.pid):
                (home / "cgroup.procs").write_text(str(member.pid))
            pidfd = os.pidfd_open(process.pid)
            devices.adoptions.want((one.subject.uid, one.command_id), process.pid, pidfd)
            made = await grant(devices, one)
            assert isinstance(made, Prepared) and len(inside(made.cgroup)) == TREE
            home.rmdir()
            await devices.scrub_many([(one, made.fds)])
            assert inside(made.cgroup) == [] and len(inside(str(home))) == TREE
            await give_back(devices, one, made)
            os.close(pidfd)
        await wait_until_empty(str(home))
    finally:
        home.rmdir()


_HEADLESS = """
import ctypes, os, threading
threading.Thread(target=os.read, args=(0, 1)).start()
os.write(1, b"in\\n")
ctypes.CDLL(None).syscall(60, 0)
"""
"""A process whose first thread ends alone (exit(2), by its number on x86-64)."""


async def test_who_goes_on_without_his_first_thread_is_moved_and_put_back(devices: Devices) -> None:
    """It was taken for dead: "process N and all below it" were under the lease, and nobody was."""
    if platform.machine() != "x86_64":
        not_proven("a process without its first thread", "the number of exit(2) is x86-64's")
    one = lease(memory(), pid=0, reason=RevocationReason.GRANT_FAILED)
    with running(_HEADLESS) as process:
        with trio.fail_after(HANG_S):
            while " Z " not in Path(f"/proc/{process.pid}/stat").read_text():
                await trio.lowlevel.checkpoint()
        [thread] = [n for n in os.listdir(f"/proc/{process.pid}/task") if int(n) != process.pid]
        before = home_of(int(thread))
        pidfd = os.pidfd_open(process.pid)
        devices.adoptions.want((one.subject.uid, one.command_id), process.pid, pidfd)
        made = await grant(devices, one)
        assert isinstance(made, Prepared) and devices.adoptions.moved_for(one.lease_id) == 1
        assert made.cgroup.endswith(home_of(int(thread)))
        await devices.scrub_many([(one, made.fds)])
        assert home_of(int(thread)) == before and process.poll() is None
        await give_back(devices, one, made)
        os.close(pidfd)


async def test_a_home_of_any_name_is_gone_back_to(devices: Devices) -> None:
    """Whoever a cgroup is delegated to names those below it. The worker ended with the tree half
    moved; or it went to one of another name."""
    one = lease(memory(), pid=0, reason=RevocationReason.GRANT_FAILED)
    root = (await devices.facts()).path
    home = os.fsencode(mount_of(root)) + b"/leased-test-\xff\r0::\x85"
    os.mkdir(home)
    try:
        with running(_TREE) as process:
            for each in descendants(process.pid):
                with open(home + b"/cgroup.procs", "w") as procs:
                    procs.write(str(each.pid))
            pidfd = os.pidfd_open(process.pid)
            devices.adoptions.want((one.subject.uid, one.command_id), process.pid, pidfd)
            made = await grant(devices, one)
            assert isinstance(made, Prepared) and len(inside(made.cgroup)) == TREE, made
            await devices.scrub_many([(one, made.fds)])
            assert inside(made.cgroup) == []
            assert len(inside(os.fsdecode(home))) == TREE
            await give_back(devices, one, made)
            os.close(pidfd)
        await wait_until_empty(os.fsdecode(home))
    finally:
        os.rmdir(home)


async def test_one_that_must_be_left_alone_refuses_the_whole_tree(devices: Devices) -> None:
    """A grandchild is in a lease already."""
    first, second = lease(memory(), pid=0), lease(memory(), pid=0)
    made = await grant(devices, first)
    other = await grant(devices, second)
    assert isinstance(made, Prepared) and isinstance(other, Prepared)
    with running(_TREE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pidfd = os.pidfd_open(int(children[0]))
        moved = await devices.adoptions.move(made.cgroup, int(children[0]), pidfd)
        os.close(pidfd)
        assert 1 < len(moved) == len(inside(made.cgroup)) < TREE
        pidfd = os.pidfd_open(process.pid)
        with pytest.raises(DeviceError, match=f"in lease {first.lease_id.hex()[:8]} already"):
            await devices.adoptions.move(other.cgroup, process.pid, pidfd)
        assert inside(other.cgroup) == [], "all or nothing"
        os.close(pidfd)
    await give_back(devices, first, made)
    await give_back(devices, second, other)


@pytest.mark.parametrize("who", ["init", "agent", "worker", "kernel"])
async def test_who_is_left_alone(devices: Devices, who: str) -> None:
    await devices.warm()
    pids = {"init": 1, "agent": os.getpid(), "kernel": 2}
    pid = pids.get(who) or workers_of(os.getpid())[0]
    if who == "kernel" and "kthreadd" not in Path("/proc/2/comm").read_text():
        pytest.skip("not proven: kernel threads (they are not seen from here)")
    pidfd = os.pidfd_open(pid)
    with pytest.raises(DeviceError, match="cannot be adopted") as caught:
        await devices.adoptions.inspect(pid, pidfd)
    assert caught.value.errno == errno.EPERM
    os.close(pidfd)


async def test_whoever_has_exited_is_nobody(devices: Devices) -> None:
    with running(_TREE) as process:
        pidfd = os.pidfd_open(process.pid)
    select.select([pidfd], [], [])
    with pytest.raises(DeviceError) as caught:
        await devices.adoptions.inspect(process.pid, pidfd)
    assert caught.value.errno == errno.ESRCH
    os.close(pidfd)
