# SPDX-License-Identifier: Apache-2.0
"""A kind's driver let go while it is replaced: when nothing of it is held, and until Resume."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from leased.lessor.table import LeaseTable
from leased.ports import Holder
from leased.service.detachment import Detachment
from leased.terms.errors import DeviceError
from leased.terms.resource import ResourceKind
from tests.doubles.calling import open_house
from tests.service.adoption.test_service_adoption import ONE, gpu_host

GPU, ME = ResourceKind.GPU, os.getpid()


@pytest.mark.autojump
async def test_a_driver_is_let_go_when_nothing_of_it_is_held_and_taken_up_by_resume(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, host=gpu_host()) as house:
        devices, boss = house.host.devices, house.visit(operator=True)
        made = await boss.call("Lease.Acquire", resources=ONE, bind="deadline")
        lease = made["lease"]["lease_id"]
        name, why = await boss.refused("Admin.LetGo", kind="gpu")
        assert (name, why["reason"], why["usage"]) == ("Refused", "still_held", 1)
        drained = await boss.call(
            "Admin.Drain", resource_id="gpu:", grace_ns=10**9, reason="maintenance"
        )
        assert drained["affected"] == [lease]
        assert (await boss.call("Lease.Describe", lease_id=lease))["lease"]["runtime"][
            "reason"
        ] == "maintenance"
        name, why = await boss.refused("Admin.LetGo", kind="gpu")
        assert why["reason"] == "still_held", "told to leave is not gone"
        await trio.sleep(30)
        devices.driver_users = (Holder(ME, 0, "dcgm", "fd", None, "gpu:"),)
        told = await boss.call("Admin.LetGo", kind="gpu")
        assert [one["name"] for one in told["holders"]] == ["dcgm"]
        devices.driver_users = ()
        assert (await boss.call("Admin.LetGo", kind="gpu"))["holders"] == []
        assert GPU in devices.detached
        name, why = await boss.refused("Lease.Acquire", resources=ONE, bind="deadline")
        assert why["reason"] == "cordoned"
        await boss.call("Admin.Resume", resource_id="gpu:")
        assert GPU not in devices.detached and devices.looks == 1
        await boss.call("Lease.Acquire", resources=ONE, bind="deadline")


@pytest.mark.autojump
async def test_what_is_not_drained_is_not_let_go(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=gpu_host()) as house:
        boss = house.visit(operator=True)
        await boss.call("Admin.Drain", resource_id="gpu:GPU-0")
        name, why = await boss.refused("Admin.LetGo", kind="gpu")
        assert (name, why["reason"]) == ("Refused", "still_held"), "one device is not the driver"
        assert not house.host.devices.detached


@pytest.mark.autojump
async def test_a_start_in_the_middle_of_an_upgrade_leaves_the_driver_alone(
    tmp_path: Path,
) -> None:
    host = gpu_host()
    async with open_house(tmp_path, host=host) as house:
        boss = house.visit(operator=True)
        await boss.call("Admin.Drain", resource_id="gpu:", grace_ns=0)
        await boss.call("Admin.LetGo", kind="gpu")
        devices = house.host.devices
        devices.detached.clear()
        again = Detachment(drivers=devices, table=house.agent.lessor.table, look=lambda: None)
        await again.restore(print)
        assert list(devices.detached) == [GPU], "and no other kind"


@pytest.mark.autojump
async def test_a_start_with_leases_that_go_on_opens_the_driver(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=gpu_host()) as house:
        boss = house.visit(operator=True)
        await boss.call("Lease.Acquire", resources=ONE, bind="deadline")
        await boss.call("Admin.Drain", resource_id="gpu:")
        devices = house.host.devices
        again = Detachment(drivers=devices, table=house.agent.lessor.table, look=lambda: None)
        await again.restore(print)
        assert not devices.detached, "its end must be proven"


class Stubborn:
    """Drivers that are not let go, for the reason of an errno."""

    def __init__(self, error_number: int) -> None:
        self._error = DeviceError("let_go", error_number)

    async def let_go(self, kind: ResourceKind) -> tuple[Holder, ...]:
        raise self._error

    async def take_up(self, kind: ResourceKind) -> None:
        raise AssertionError("nothing was let go")


@pytest.mark.parametrize(("error_number", "told"), [(errno.ENOTSUP, 0), (errno.EIO, 1)])
async def test_what_cannot_be_let_go_or_seen_keeps_no_agent_from_starting(
    error_number: int, told: int
) -> None:
    """The search for who else has the driver failed: no lease of any kind was served from then on,
    for as long as the upgrade took."""
    table = LeaseTable(closed_max=1)
    table.pools.cordon("gpu:", cordoned=True)
    detachment = Detachment(drivers=Stubborn(error_number), table=table, look=lambda: None)
    said: list[str] = []
    await detachment.restore(said.append)
    assert len(said) == told and all("of gpu is let go" in one for one in said), said
