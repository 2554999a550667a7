# SPDX-License-Identifier: Apache-2.0
"""The walls while a lease goes on or ends: whoever comes in time gets in, and whoever comes too
late leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from leased.hardware.clock import BootClock
from leased.ports import Arming
from leased.service.custody import Custodian
from leased.service.walls import Walls
from leased.terms.command import Command, Renew
from leased.terms.errors import CallerError, DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Changed, Missing, Reply
from tests.doubles.desk import ACME
from tests.doubles.leases import lease as any_lease
from tests.doubles.reaper import FakeReaper
from tests.doubles.serving import Host


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

    async def ask(command: Command) -> Reply:
        return Missing(lease.lease_id)

    walls = Walls(
        leaves=Leaves(),
        reaper=Reaper(custodian),  # type: ignore[arg-type]
        custodian=custodian,
        holders=None,  # type: ignore[arg-type]
        notifier=None,  # type: ignore[arg-type]
        user_socket=Path("/socket"),
        find=find,
        ask=ask,
        clock=BootClock(),
    )
    with pytest.raises(CallerError):
        await walls.open_leaf(lease)
    assert len(custodian) == 0, "it would be held for as long as the agent runs"


class Renewing(FakeReaper):
    """Whenever it is asked to arm what it holds, the lease has just been moved on its board."""

    def __init__(self, lease: Lease, *ends_ns: int) -> None:
        super().__init__(BootClock())
        self.lease, self._ends_ns = lease, list(ends_ns)

    async def arm_many(self, leases: Sequence[Arming]) -> list[DeviceError | None]:
        if self.slots and self._ends_ns:
            self.lease = _moved(self.lease, self._ends_ns.pop(0))
            [(lease_id, slot)] = self.slots.items()
            assert lease_id == self.lease.lease_id
            slot.generation, slot.deadline_ns = self.lease.generation, self.lease.deadline_ns
        return await super().arm_many(leases)


def _moved(lease: Lease, deadline_ns: int) -> Lease:
    generation = lease.generation + 1
    return msgspec.structs.replace(lease, generation=generation, deadline_ns=deadline_ns)


async def _opened(reaper: Renewing, lease: Lease) -> str:
    custodian = Custodian()
    custodian.keep(lease.lease_id, (), "", None)

    async def ask(command: Command) -> Reply:
        return Changed(reaper.lease)

    walls = Walls(
        leaves=Leaves(),
        reaper=reaper,
        custodian=custodian,
        holders=None,  # type: ignore[arg-type]
        notifier=None,  # type: ignore[arg-type]
        user_socket=Path("/socket"),
        find=lambda _: reaper.lease,
        ask=ask,
        clock=BootClock(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        await walls.open_leaf(lease)
        nursery.cancel_scope.cancel()
    return reaper.slots[lease.lease_id].cgroup


async def test_who_joins_while_the_lease_is_renewed_gets_in() -> None:
    lease = any_lease()
    reaper = Renewing(lease, *(lease.deadline_ns + at * NS_PER_S for at in (1, 2, 3)))
    assert await reaper.arm_many([Arming(lease)]) == [None]
    assert await _opened(reaper, lease) == "/leaf"
    assert reaper.slots[lease.lease_id].deadline_ns == lease.deadline_ns + 3 * NS_PER_S


async def test_who_joins_a_lease_that_was_told_to_leave_gets_in_until_then() -> None:
    lease = any_lease()
    ends_ns = lease.deadline_ns - NS_PER_S
    told = msgspec.structs.replace(_moved(lease, lease.deadline_ns), drain_deadline_ns=ends_ns)
    reaper = Renewing(told)
    held = msgspec.structs.replace(told, deadline_ns=ends_ns)
    assert await reaper.arm_many([Arming(held)]) == [None]
    assert await _opened(reaper, told) == "/leaf"
    assert reaper.slots[lease.lease_id].deadline_ns == ends_ns


async def test_the_reaper_is_told_of_no_end_that_is_only_being_sealed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A renewal that the log never gets has never been: access would end by it all the same."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(ttl_s=60)
        walls = Walls(
            leaves=host.devices,
            reaper=host.reaper,
            custodian=agent.custodian,
            holders=agent.holders,
            notifier=None,  # type: ignore[arg-type]
            user_socket=Path("/socket"),
            find=agent.lessor.table.find,
            ask=agent.sequencer.ask_own,
            clock=host.clock,
        )
        disk, slot = agent.journal.gate, host.reaper.slots[lease.lease_id]
        disk.shut()
        sooner = agent.submit(Renew(host.command_id(), ACME, lease.lease_id, 20 * NS_PER_S))
        await disk.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(walls.open_leaf, lease)
            await trio.sleep(1)
            told = (slot.generation, slot.deadline_ns)
            assert not sooner.replies
            disk.open()
        assert told == (0, lease.deadline_ns)
        assert (slot.generation, slot.cgroup) == (1, host.devices.leaves[lease.lease_id])
