# SPDX-License-Identifier: Apache-2.0
"""Adopt through the operators' door: whose the lease is, what is on record when it is answered, and
that what did not come about left the work where it was."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from leased.hardware.adopting import Owner
from leased.service.api.peers import PIDFD_THREAD
from leased.terms.errors import DeviceError
from leased.terms.event import Adopted
from leased.terms.identity import LeaseId
from leased.terms.lease import LeaseState, RevocationReason
from leased.terms.resource import Inventory, Resource, ResourceKind
from tests.doubles.calling import House, Visitor, open_house
from tests.doubles.devices import Fault
from tests.doubles.host import not_proven
from tests.doubles.serving import Host, descriptors

pytestmark = pytest.mark.autojump

ONE = [{"kind": "gpu", "capacity": 1000}]
ME = os.getpid()
ID = "ad" * 16


class _Everyone(dict):
    """This error for every lease."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: object) -> int:
        return errno.EIO


@contextlib.asynccontextmanager
async def gpu_house(directory: Path) -> AsyncIterator[House]:
    """A host with one GPU, whose leaves are watched by nobody: nobody is really in them."""
    async with open_house(directory, host=gpu_host()) as house:
        house.agent.holders.watch_leaf = lambda lease_id, leaf: None  # type: ignore[method-assign]
        yield house


def gpu_host() -> Host:
    """One GPU, and memory."""
    host = Host()
    gpu = Resource("gpu:GPU-0", ResourceKind.GPU, None, 1000, 1000)
    host.devices.offered = Inventory((gpu, *host.devices.offered.resources))
    return host


async def adopted(boss: Visitor, **how: Any) -> dict[str, Any]:
    return (await boss.call("Admin.Adopt", **{"pid": ME, "resources": ONE, **how}))["lease"]


def lease_id(lease: dict[str, Any]) -> LeaseId:
    return LeaseId(bytes.fromhex(lease["lease_id"]))


def records(house: House) -> list[Adopted]:
    return [event for _, event, _ in house.host.chain() if isinstance(event, Adopted)]


async def test_the_lease_is_its_owners_and_the_record_says_who_did_it(tmp_path: Path) -> None:
    async with gpu_house(tmp_path) as house:
        boss = house.visit(operator=True)
        lease = await adopted(boss)
        runtime = lease["runtime"]
        assert (runtime["uid"], runtime["tenant"], runtime["pid"]) == (1000, "acme", 0)
        [record] = records(house)
        assert (record.operator_uid, record.pid, record.processes) == (os.getuid(), ME, 3)
        assert record.lease_id == lease_id(lease)
        assert house.host.devices.adoptions.moved == [(runtime["cgroup"], ME)]
        owner = house.visit(uid=1000)
        await owner.call("Lease.Renew", lease_id=lease["lease_id"])
        await owner.call("Lease.Release", lease_id=lease["lease_id"])
        assert not house.host.devices.adoptions.wanted


async def test_it_can_be_brought_under_a_lease_that_is_there(tmp_path: Path) -> None:
    async with gpu_house(tmp_path) as house:
        boss = house.visit(operator=True)
        made = await boss.call("Lease.Acquire", resources=ONE, bind="cgroup")
        into = made["lease"]["lease_id"]
        lease = await adopted(boss, resources=None, lease_id=into)
        assert lease["lease_id"] == into and len(records(house)) == 1


async def test_asked_again_it_is_the_same_lease_and_one_record(tmp_path: Path) -> None:
    async with gpu_house(tmp_path) as house:
        boss = house.visit(operator=True)
        first = await adopted(boss, command_id=ID)
        assert (await adopted(boss, command_id=ID))["lease_id"] == first["lease_id"]
        assert len(records(house)) == len(house.host.devices.adoptions.moved) == 1


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"pid": 2**31 - 1}, "CallerError"),
        ({"resources": [{"kind": "mem", "capacity": 4096}]}, "InvalidParameter"),
        ({"resources": [{"kind": "block", "capacity": 4096}]}, "InvalidParameter"),
        ({"resources": None}, "InvalidParameter"),
        ({"lease_id": ID}, "InvalidParameter"),
        ({"resources": [{"kind": "gpu", "capacity": 2000}]}, "Refused"),
    ],
)
async def test_what_cannot_be_meant_or_had_moves_nobody(
    tmp_path: Path, how: dict[str, Any], name: str
) -> None:
    async with gpu_house(tmp_path) as house:
        boss = house.visit(operator=True)
        await boss.call("Lease.List")
        before = descriptors()
        said, _ = await boss.refused("Admin.Adopt", **{"pid": ME, "resources": ONE, **how})
        assert said == name
        assert not house.host.devices.adoptions.moved and not house.agent.lessor.table.leases
        assert descriptors() == before


async def test_who_has_ended_meanwhile_is_said_to_have(tmp_path: Path) -> None:
    async with gpu_house(tmp_path) as house:
        boss = house.visit(operator=True)
        child = os.posix_spawn("/bin/true", ["true"], {})
        pidfd = os.pidfd_open(child)
        os.waitpid(child, 0)
        name, told = await boss.refused("Admin.Adopt", fds=[pidfd], resources=ONE)
        os.close(pidfd)
        assert (name, told["why"]) == ("CallerError", "the process of descriptor 0 has ended")


async def test_a_pidfd_of_one_thread_adopts_nothing(tmp_path: Path) -> None:
    """When that thread has exited, a signal by it reaches none of the others."""
    try:
        pidfd = os.pidfd_open(ME, PIDFD_THREAD)
    except OSError:
        not_proven("a pidfd of one thread adopts nothing", "older than Linux 6.9")
    async with gpu_house(tmp_path) as house:
        boss = house.visit(operator=True)
        name, told = await boss.refused("Admin.Adopt", fds=[pidfd], resources=ONE)
        os.close(pidfd)
        assert (name, told["why"]) == ("CallerError", "descriptor 0 is a pidfd of one thread")
        assert not house.host.devices.adoptions.moved and not house.agent.lessor.table.leases


async def test_a_tree_that_must_be_left_alone_is_named_and_nothing_is_granted(
    tmp_path: Path,
) -> None:
    async with gpu_house(tmp_path) as house:
        detail = "process 7 (kworker) cannot be adopted: it is a thread of the kernel"
        house.host.devices.adoptions.refusal = DeviceError("adopt", errno.EPERM, detail)
        boss = house.visit(operator=True)
        name, why = await boss.refused("Admin.Adopt", pid=ME, resources=ONE)
        assert (name, why["why"]) == ("CallerError", detail)
        assert not house.agent.lessor.table.leases and not records(house)


async def test_work_of_nobody_we_serve_is_refused(tmp_path: Path) -> None:
    async with gpu_house(tmp_path) as house:
        house.host.devices.adoptions.owner = Owner(4242, 4242, (), 1)
        boss = house.visit(operator=True)
        name, _ = await boss.refused("Admin.Adopt", pid=ME, resources=ONE)
        assert name == "PermissionDenied"


@pytest.mark.parametrize("stage", ["prepare", "arm"])
async def test_a_grant_that_fails_leaves_the_work_where_it_was(
    tmp_path: Path, stage: str
) -> None:
    async with gpu_house(tmp_path) as house:
        broken = DeviceError("gpu_open", errno.EIO)
        if stage == "prepare":
            fault = Fault(broken)
            house.host.devices.fault = lambda verb, lease: fault if verb == "prepare" else None
        else:
            house.host.reaper.arm_errors = _Everyone()
        boss = house.visit(operator=True)
        name, why = await boss.refused("Admin.Adopt", pid=ME, resources=ONE)
        assert (name, why["reason"]) == ("Refused", "device_failed")
        await trio.sleep(5)
        adoptions = house.host.devices.adoptions
        assert len(adoptions.put_back_for) == len(adoptions.moved), "put back, not killed"
        assert not records(house)
        closed = list(house.agent.lessor.table.closed.values())
        assert [one.reason for one in closed] == [RevocationReason.GRANT_FAILED]
        assert closed[0].state is LeaseState.RECLAIMED
