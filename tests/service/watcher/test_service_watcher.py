# SPDX-License-Identifier: Apache-2.0
"""The watcher: a notice is a reason to look, a difference is a command, a failure is only said."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
import trio.testing

from leased.hardware.hotplug import Notice
from leased.service.watcher import (
    AGAIN_NS,
    PATIENCE_NS,
    RESCAN_NS,
    SETTLE_NS,
    TOUCHED_NS,
    Watcher,
    first_look,
)
from leased.terms.command import Command, Observe, ObserveClockStep, ObserveHealth
from leased.terms.errors import DeviceError
from leased.terms.event import Fenced, LeaseEvent, Reclaimed, Revoked, Unfenced
from leased.terms.identity import EventId
from leased.terms.lease import RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, Health, Inventory, ResourceKind
from tests.doubles.clock import FakeClock
from tests.doubles.devices import FakeDevices, small_inventory
from tests.doubles.leases import lease

pytestmark = pytest.mark.autojump

RESCAN_S, SETTLE_S = RESCAN_NS / NS_PER_S, SETTLE_NS / NS_PER_S


class Unreliable(FakeDevices):
    """Devices whose survey may fail, or see nothing for a few looks."""

    error: DeviceError | None = None
    blinks = 0

    async def inventory(self) -> Inventory:
        seen = await super().inventory()
        if self.blinks:
            self.blinks -= 1
            return msgspec.structs.replace(seen, resources=())
        if self.error is not None:
            raise self.error
        return seen


class Outside:
    """What the watcher listens to, and what it does of it."""

    def __init__(self) -> None:
        self.devices = Unreliable()
        self.commands: list[Command] = []
        self.said: list[str] = []
        self._notice, self._notices = trio.open_memory_channel[Notice](100)
        self._step, self._steps = trio.open_memory_channel[int](100)
        self.deaf: OSError | None = None
        self.torn_down = trio.Event()
        self.torn_down.set()

    @property
    def looks(self) -> int:
        """How often the hardware was surveyed."""
        return len(self.devices.calls)

    def notice(self, *, touched: bool = False) -> None:
        """The kernel says that something changed, or udev that somebody may have written to it."""
        self._notice.send_nowait(Notice("change", "block", "/devices/drive", touched))

    def step(self, delta_ns: int) -> None:
        """The wall clock was set."""
        self._step.send_nowait(delta_ns)

    async def hear(self) -> AsyncIterator[Notice]:
        """Notices of hotplug."""
        if self.deaf is not None:
            raise self.deaf
        async for notice in self._notices:
            yield notice

    async def steps(self) -> AsyncIterator[int]:
        """Steps of the clock."""
        async for step in self._steps:
            yield step

    @contextlib.asynccontextmanager
    async def watched(
        self, sealed: Inventory | None = None, *, seen: bool = True, contents: bool = True
    ) -> AsyncIterator[Watcher]:
        """A watcher that runs."""
        watcher = Watcher(
            devices=self.devices,
            clock=FakeClock(),
            submit=self.commands.append,
            inventory=sealed or self.devices.offered,
            seen=seen,
            notices=self.hear,
            clock_steps=self.steps,
            say=self.said.append,
            contents=contents,
            quiet=lambda: self.torn_down.wait(),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            await trio.testing.wait_all_tasks_blocked()
            yield watcher
            nursery.cancel_scope.cancel()


async def test_a_burst_of_notices_is_one_look_after_it() -> None:
    outside = Outside()
    async with outside.watched():
        for _ in range(50):
            outside.notice()
        await trio.sleep(SETTLE_S * 0.9)
        assert outside.looks == 0
        await trio.sleep(SETTLE_S)
        assert outside.looks == 1 and not outside.commands, "the same as before is no news"


async def test_a_disk_that_was_touched_is_looked_at_by_and_by() -> None:
    """Every teardown touches one: a look after each would cost more than the teardown."""
    outside, touched_s = Outside(), TOUCHED_NS / NS_PER_S
    async with outside.watched():
        for _ in range(3):
            outside.notice(touched=True)
            await trio.sleep(touched_s / 3.5)
        assert outside.looks == 0
        await trio.sleep(touched_s)
        assert outside.looks == 1, "at the latest so long after the first"
        outside.notice(touched=True)
        outside.notice()
        await trio.sleep(SETTLE_S * 1.5)
        assert outside.looks == 2, "what is news does not wait for it"


async def test_nobody_looks_at_a_touched_disk_whose_contents_do_not_matter() -> None:
    outside = Outside()
    async with outside.watched(contents=False):
        outside.notice(touched=True)
        await trio.sleep(RESCAN_S - 1)
        assert outside.looks == 0
        outside.notice()
        await trio.sleep(SETTLE_S * 1.5)
        assert outside.looks == 1


async def test_a_look_for_nothing_in_particular_lets_a_teardown_go_first() -> None:
    """For a while; what the kernel tells of is looked at all the same."""
    outside, patience_s = Outside(), PATIENCE_NS / NS_PER_S
    outside.torn_down = trio.Event()
    async with outside.watched():
        await trio.sleep(RESCAN_S + patience_s / 2)
        assert outside.looks == 0
        outside.torn_down.set()
        await trio.testing.wait_all_tasks_blocked()
        assert outside.looks == 1
        outside.torn_down = trio.Event()
        await trio.sleep(RESCAN_S + patience_s + 1)
        assert outside.looks == 2, "not for ever"
        outside.notice()
        await trio.sleep(SETTLE_S * 1.5)
        assert outside.looks == 3, "a device may be gone"
        await trio.sleep(RESCAN_S + patience_s / 2)
        outside.notice()
        await trio.testing.wait_all_tasks_blocked()
        assert outside.looks == 4, "nor is it waited with then"


async def test_only_a_difference_becomes_a_command() -> None:
    outside = Outside()
    async with outside.watched():
        outside.devices.offered = small_inventory(2048)
        outside.notice()
        await trio.sleep(SETTLE_S * 2)
        [observed] = outside.commands
        assert isinstance(observed, Observe) and observed.inventory == small_inventory(2048)
        outside.notice()
        await trio.sleep(SETTLE_S * 2)
        assert outside.looks == 2 and len(outside.commands) == 1


async def test_what_one_look_does_not_see_has_not_gone() -> None:
    """Its lease would end by that."""
    outside = Outside()
    async with outside.watched():
        outside.devices.blinks = 1
        outside.notice()
        await trio.sleep(SETTLE_S * 2)
        assert outside.looks == 2 and not outside.commands
        outside.devices.blinks = 2
        outside.notice()
        await trio.sleep(SETTLE_S * 2)
        [observed] = outside.commands
        assert isinstance(observed, Observe) and not observed.inventory.resources


async def test_a_change_of_health_is_a_record_by_name() -> None:
    """It fell sick and came back by itself; what is new has no history."""
    outside = Outside()
    async with outside.watched():
        [pool] = outside.devices.offered.resources
        well = outside.devices.offered
        sick = msgspec.structs.replace(pool, health=Health.SICK)
        fresh = msgspec.structs.replace(sick, resource_id="mem:node1:4096")
        for health, resources in ((Health.SICK, (sick, fresh)), (Health.OK, well.resources)):
            outside.commands.clear()
            outside.devices.offered = msgspec.structs.replace(well, resources=resources)
            outside.notice()
            await trio.sleep(SETTLE_S * 2)
            told, observed = outside.commands
            assert isinstance(told, ObserveHealth) and isinstance(observed, Observe)
            assert (told.resource_id, told.health) == (pool.resource_id, health)


ONE = lease()
OF_IT = (EventId(bytes(16)), ONE.lease_id, ONE.subject, 1, 0)


@pytest.mark.parametrize(
    "ended",
    [
        Reclaimed(*OF_IT, (0,), 0, 0, None, None, None, 0, 1000, bytes(32)),
        Fenced(*OF_IT, ONE.subject.allotments, 8, errno.ENODEV, (0,), 0, bytes(32)),
        Unfenced(*OF_IT, -1, bytes(32)),
    ],
    ids=["reclaimed", "fenced", "unfenced"],
)
async def test_the_end_of_a_lease_whose_hardware_was_away_is_looked_after(
    ended: LeaseEvent,
) -> None:
    """It kept out of the inventory what has been back for long."""
    outside = Outside()
    offered = outside.devices.offered
    async with outside.watched() as watcher:
        watcher.tell([ended])
        await trio.sleep(SETTLE_S * 2)
        assert outside.looks == 0, "what is there is no news"
        outside.devices.offered = msgspec.structs.replace(offered, resources=())
        outside.notice()
        await trio.sleep(SETTLE_S * 2)
        outside.devices.offered = offered
        outside.commands.clear()
        watcher.tell([ended])
        await trio.sleep(SETTLE_S * 2)
        [observed] = outside.commands
        assert isinstance(observed, Observe) and observed.inventory == offered


async def test_a_device_that_could_not_be_made_ready_is_looked_at_at_once() -> None:
    gpu = lease(Allotment("gpu:GPU-1", ResourceKind.GPU, None, 1000))
    outside = Outside()
    async with outside.watched() as watcher:
        for of, reason, looks in (
            (ONE, RevocationReason.GRANT_FAILED, 0),
            (gpu, RevocationReason.HOLDER_LOST, 0),
            (gpu, RevocationReason.GRANT_FAILED, 1),
        ):
            watcher.tell([Revoked(EventId(bytes(16)), of.lease_id, of.subject, 1, 0, reason)])
            await trio.sleep(SETTLE_S * 2)
            assert outside.looks == looks


async def test_what_no_notice_told_is_found_within_a_minute() -> None:
    outside = Outside()
    outside.deaf = OSError(errno.EPERM, "no netlink here")
    async with outside.watched():
        assert any("no netlink here" in line for line in outside.said)
        gone = msgspec.structs.replace(outside.devices.offered, resources=())
        outside.devices.offered = gone
        await trio.sleep(RESCAN_S + 1)
        assert [command.inventory for command in outside.commands] == [gone]
        await trio.sleep(RESCAN_S * 3)
        assert outside.looks == 1 + 4, "what has gone is looked for twice"


async def test_a_survey_that_fails_changes_nothing_and_is_tried_again() -> None:
    outside = Outside()
    async with outside.watched():
        outside.devices.error = DeviceError("survey", errno.ETIMEDOUT)
        outside.devices.offered = small_inventory(7)
        outside.notice()
        await trio.sleep(SETTLE_S * 2)
        assert not outside.commands and "stays in force" in outside.said[0]
        outside.devices.error = None
        await trio.sleep(AGAIN_NS / NS_PER_S + 1)
        assert len(outside.commands) == 1, "soon: what keeps a host from being seen may pass"


async def test_a_host_that_was_not_seen_at_the_start_is_what_was_sealed_and_is_seen_soon() -> (
    None
):
    outside, sealed = Outside(), small_inventory(7)
    outside.devices.error = DeviceError("survey", errno.ETIMEDOUT)
    assert await first_look(outside.devices, sealed, outside.said.append) == (sealed, False)
    assert "stays in force" in outside.said[0]
    outside.devices.error = None
    async with outside.watched(sealed, seen=False):
        await trio.sleep(AGAIN_NS / NS_PER_S + 1)
        assert [command.inventory for command in outside.commands] == [outside.devices.offered]


@pytest.mark.parametrize("delta_ns", [3600 * NS_PER_S, -5 * NS_PER_S])
async def test_a_step_of_the_wall_clock_is_reported(delta_ns: int) -> None:
    outside = Outside()
    async with outside.watched():
        outside.step(delta_ns)
        await trio.testing.wait_all_tasks_blocked()
        [stepped] = outside.commands
        assert isinstance(stepped, ObserveClockStep) and stepped.delta_ns == delta_ns
