# SPDX-License-Identifier: Apache-2.0
"""Budgets of memory on the real kernel, where cgroup v2 has `memory` and `cpuset`: the limit holds,
and what stays charged after the cut is fenced by the page."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.hardware.devices import Devices
from leased.hardware.memory import BUDGET_NEEDS
from leased.hardware.verbs import kill_cgroup
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind, Shape, TierKind, shape_of
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import not_proven, real_devices, v2_controllers
from tests.doubles.leases import lease
from tests.doubles.tenant import Tenant, tenant

pytestmark = pytest.mark.vm
MIB = 1 << 20
FILE_SYSTEM_S_MAX = 120
"""The kernel writes back what has been dirty for half a minute, and a journal lets go of it at one
of the commits after that. The agent asks for five minutes (`service/reclaimer`)."""

EXT4_IOC_CHECKPOINT = 0x4004662B


@pytest.fixture
def devices() -> Iterator[Devices]:
    lacking = [name for name in BUDGET_NEEDS if name not in v2_controllers()]
    if lacking:
        not_proven("that a budget of memory holds", f"cgroup v2 has no {' and '.join(lacking)}")
    with real_devices() as real:
        yield real


def budget(mib: int, node: int = 0) -> Lease:
    name = f"mem:budget:node{node}:4096"
    return lease(Allotment(name, ResourceKind.MEM, TierKind.DRAM, mib * MIB))


@contextlib.contextmanager
def inside(devices: Devices, made: Prepared, trick: str, mib: int) -> Iterator[Tenant]:
    """A tenant that plays with `mib` MiB; its caller moves it in."""
    fd = os.memfd_create("how much")
    os.ftruncate(fd, mib * MIB)
    with tenant(trick, [fd]) as holder:
        yield holder


async def reclaim(devices: Devices, one: Lease) -> ProofReport:
    [scrub] = await devices.scrub_many([(one, ())])
    [proof] = await devices.prove_many([(one, ())])
    assert isinstance(scrub, ScrubReport) and isinstance(proof, ProofReport), (scrub, proof)
    assert scrub.clean
    return proof


def cut(made: Prepared) -> None:
    dirfd = os.open(made.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        kill_cgroup(dirfd, timeout_ms=5000)
    finally:
        os.close(dirfd)


async def prepared(devices: Devices, one: Lease) -> Prepared:
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared), made
    assert made.fds == () and made.cgroup
    return made


async def test_every_node_offers_its_normal_pages_as_a_budget_too(devices: Devices) -> None:
    inventory = await devices.inventory()
    by_shape: dict[Shape | None, dict[int, int]] = {}
    for one in inventory.resources:
        if one.kind is ResourceKind.MEM and one.granule == 4096:
            by_shape.setdefault(shape_of(one.resource_id), {})[one.node] = one.capacity
    assert by_shape[Shape.BUDGET] == by_shape[Shape.MEMFD]


@pytest.mark.parametrize("node", [0, 1])
async def test_what_is_touched_lies_on_the_node_and_comes_back(devices: Devices, node: int) -> None:
    if not os.path.isdir(f"/sys/devices/system/node/node{node}"):
        not_proven(f"a budget on node {node}", "there is no such node")
    one = budget(32, node)
    made = await prepared(devices, one)
    leaf = Path(made.cgroup)
    assert (leaf / "memory.max").read_text() == f"{32 * MIB}\n"
    assert (leaf / "memory.swap.max").read_text() == "0\n"
    assert (leaf / "cpuset.mems").read_text() == f"{node}\n"
    with inside(devices, made, "spend", 16) as holder:
        await devices.join(one, holder.pid, holder.pidfd)
        assert holder.ask() == f"N{node}"
        cut(made)
        proof = await reclaim(devices, one)
    assert proof.unproven == () and not leaf.exists()


async def test_who_takes_more_than_the_budget_is_killed_by_the_kernel(devices: Devices) -> None:
    one = budget(16)
    made = await prepared(devices, one)
    with inside(devices, made, "spend", 32) as holder:
        await devices.join(one, holder.pid, holder.pidfd)
        assert holder.ask() == "" and holder.wait_other_gone()
        events = (Path(made.cgroup) / "memory.events").read_text()
        assert "oom_kill 1" in events, events
        proof = await reclaim(devices, one)
    assert proof.unproven == ()


async def test_page_cache_of_a_tenant_is_taken_back(devices: Devices) -> None:
    one = budget(32)
    made = await prepared(devices, one)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        os.chmod(directory, 0o777)
        with inside(devices, made, "leave_file", 8) as holder:
            await devices.join(one, holder.pid, holder.pidfd)
            assert holder.ask(f"{directory}/file") == "written"
            cut(made)
            proof = await reclaim(devices, one)
            # The directory and the inode belong to the file system, whose journal keeps them for as
            # long as it likes; what the tenant wrote is gone at once.
            assert sum(share.capacity for share in proof.unproven) < MIB, proof
            with trio.fail_after(FILE_SYSTEM_S_MAX):
                while proof.unproven:
                    written_back(directory)
                    proof = await reclaim(devices, one)
    assert proof.unproven == () and not os.path.exists(made.cgroup)


def written_back(directory: str) -> None:
    """Have the file system let go of what it has in memory, where it can be told to (ext4)."""
    os.sync()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, EXT4_IOC_CHECKPOINT, bytes(4))
    finally:
        os.close(fd)


async def test_a_file_left_in_memory_is_fenced_by_the_page_until_it_is_gone(
    devices: Devices,
) -> None:
    one = budget(32)
    made = await prepared(devices, one)
    left = f"/dev/shm/leased-left-{os.getpid()}"
    try:
        with inside(devices, made, "leave_file", 8) as holder:
            await devices.join(one, holder.pid, holder.pidfd)
            assert holder.ask(left) == "written"
            cut(made)
            proof = await reclaim(devices, one)
        [share] = proof.unproven
        assert share.capacity == 8 * MIB
        [removal] = [s for s in proof.steps if s.step is TeardownStep.REMOVE_CGROUP]
        assert (removal.errno, removal.measured) == (errno.ENOTEMPTY, 8 * MIB)
        assert os.path.isdir(made.cgroup)
    finally:
        os.unlink(left)
    proof = await reclaim(devices, one)
    assert proof.unproven == () and not os.path.exists(made.cgroup)


async def test_somebody_left_inside_proves_nothing_and_keeps_its_memory(devices: Devices) -> None:
    one = budget(16)
    made = await prepared(devices, one)
    with inside(devices, made, "spend", 4) as holder:
        await devices.join(one, holder.pid, holder.pidfd)
        assert holder.ask() == "N0"
        proof = await reclaim(devices, one)
        assert proof.unproven == one.subject.allotments
        assert holder.ask() == "N0"
        cut(made)
    proof = await reclaim(devices, one)
    assert proof.unproven == ()
