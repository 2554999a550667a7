# SPDX-License-Identifier: Apache-2.0
"""The walls while a lease ends: whoever comes too late leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from leased.hardware.clock import BootClock
from leased.ports import Arming
from leased.service.custody import Custodian
from leased.service.walls import Walls
from leased.terms.errors import CallerError, DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from tests.doubles.leases import lease as any_lease


class Leaves:
    """A leaf that is there."""

    async def make_leaf(self, lease: Lease) -> str:
        return "/leaf"

    async def join(self, lease: Lease, pid: int, pidfd: int) -> str:
        raise AssertionError("nobody may enter a lease that is over")


class Reaper:
    """While it arms the leaf the lease is reclaimed, and forgotten."""

    def __init__(self, custodian: Custodian) -> None:
        self._custodian = custodian

    async def arm_many(self, armings: Sequence[Arming]) -> list[DeviceError | None]:
        for arming in armings:
            self._custodian.drop(arming.lease.lease_id)
        return [None] * len(armings)


async def test_a_lease_forgotten_while_its_leaf_is_armed_stays_forgotten() -> None:
    custodian, lease = Custodian(), any_lease()
    custodian.keep(lease.lease_id, (), "", None)

    def find(lease_id: LeaseId) -> Lease | None:
        return None

    walls = Walls(
        leaves=Leaves(),
        reaper=Reaper(custodian),  # type: ignore[arg-type]
        custodian=custodian,
        holders=None,  # type: ignore[arg-type]
        notifier=None,  # type: ignore[arg-type]
        user_socket=Path("/socket"),
        find=find,
        clock=BootClock(),
    )
    with pytest.raises(CallerError):
        await walls.open_leaf(lease)
    assert len(custodian) == 0, "it would be held for as long as the agent runs"
