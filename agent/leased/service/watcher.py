# SPDX-License-Identifier: Apache-2.0
"""The watcher: what changes outside the agent, turned into commands: hardware that comes and goes,
clocks that jump.

Rule: a notice of the kernel is a reason to look again, never the truth itself. Looking is the
device workers' job; what they see is compared with what was sealed last, and only a difference
becomes a command. A full look every `RESCAN_NS` catches what no notice told.

Does not watch holders (`holders`) and does not decide what a change means for a lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import trio

from leased.ports import Clock, Device, Submit
from leased.service.evidence import NO_COMMAND
from leased.terms.command import Observe, ObserveClockStep, ObserveHealth
from leased.terms.errors import DeviceError
from leased.terms.event import Event, Fenced, LeaseEvent, Reclaimed, Revoked, Unfenced
from leased.terms.lease import RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Health, Inventory, ResourceKind

_ENDS = (Reclaimed, Fenced, Unfenced)
_DRIVEN = (ResourceKind.GPU, ResourceKind.BLOCK)
RESCAN_NS = 60 * NS_PER_S
"""Nomad fingerprints once a minute; the notices make it faster where they work."""

AGAIN_NS = 5 * NS_PER_S
"""A look that failed is taken again: a host that is too busy to be seen is not so for ever."""

SETTLE_NS = NS_PER_S
"""A hotplugged device sends a burst of notices; one look after the burst is enough."""

TOUCHED_NS = 10 * NS_PER_S
"""So much later, where somebody may have written to a disk: each teardown of a namespace does, and
a look is several workers' start."""

PATIENCE_NS = 10 * NS_PER_S
"""So long a look that nothing has changed for lets teardowns have the processors."""


class Notice(Protocol):
    """What is heard of: something changed, or was `touched` only."""

    @property
    def touched(self) -> bool: ...


async def first_look(
    devices: Device, sealed: Inventory, say: Callable[[str], None]
) -> tuple[Inventory, bool]:
    """What there is when the agent starts, and whether that was seen. A host too busy to be seen is
    not an empty one: what was `sealed` last holds until a watcher has seen better."""
    try:
        return await devices.inventory(), True
    except DeviceError as error:
        say(f"the inventory could not be read yet ({error}); the last one stays in force")
        return sealed, False


class Watcher:
    """Reports changed inventories and wall-clock steps."""

    def __init__(
        self,
        *,
        devices: Device,
        clock: Clock,
        submit: Submit,
        inventory: Inventory,
        seen: bool = True,
        notices: Callable[[], AsyncIterator[Notice]],
        clock_steps: Callable[[], AsyncIterator[int]],
        say: Callable[[str], None],
        contents: bool = True,
        quiet: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
    ) -> None:
        """`inventory` is what was sealed last; `seen`: and that is what was seen. `contents`: what
        is on a disk decides whether it is offered. `quiet` returns when nothing is torn down."""
        self._devices = devices
        self._seen = seen
        self._clock = clock
        self._submit = submit
        self._sealed = inventory
        self._there = _there(inventory)
        self._notices = notices
        self._clock_steps = clock_steps
        self._say = say
        self._contents = contents
        self._quiet = quiet
        self._patience = trio.CancelScope()
        self._noticed = trio.Event()
        self._heard = trio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear_notices)
            nursery.start_soon(self._hear_clock_steps)
            while True:
                with trio.move_on_after((RESCAN_NS if self._seen else AGAIN_NS) / NS_PER_S):
                    await self._heard.wait()
                    with trio.move_on_after(TOUCHED_NS / NS_PER_S):
                        await self._noticed.wait()
                    await self._clock.sleep_until(self._clock.now().boot_ns + SETTLE_NS)
                if not self._noticed.is_set():
                    with trio.move_on_after(PATIENCE_NS / NS_PER_S) as self._patience:
                        await self._quiet()
                self._noticed, self._heard = trio.Event(), trio.Event()
                await self.look()

    def notice(self, *, touched: bool = False) -> None:
        """Somebody heard of a change: look soon."""
        self._heard.set()
        if not touched:
            self._noticed.set()
            self._patience.cancel()

    def tell(self, events: Sequence[Event]) -> None:
        """What ended for want of its hardware kept that out of the inventory, also if it is back by
        now: whatever comes of the end of such a lease is a reason to look. So is a device that
        could not be made ready: until somebody has looked, the next request is sent to it, too."""
        for event in events:
            if (isinstance(event, _ENDS) and not self._has(event)) or _could_not_be_had(event):
                self.notice()

    def _has(self, event: LeaseEvent) -> bool:
        return self._there.issuperset(one.resource_id for one in event.subject.allotments)

    async def look(self) -> None:
        """Read the inventory once and report it if it differs from what was sealed last."""
        try:
            seen = await self._devices.inventory()
            if not _ids(self._sealed) <= _ids(seen):
                # What has gone ends leases: two looks have to say so.
                seen = await self._devices.inventory()
        except DeviceError as error:
            self._say(f"the inventory could not be read ({error}); the last one stays in force")
            self._seen = False
            return
        self._seen = True
        if seen == self._sealed:
            return
        before = {resource.resource_id: resource.health for resource in self._sealed.resources}
        for resource in seen.resources:
            if before.get(resource.resource_id, resource.health) != resource.health:
                # A record of its own: who looks for what became of a device finds it by name.
                health = ObserveHealth(NO_COMMAND, resource.resource_id, resource.health, cause=0)
                self._submit(health)
        self._sealed, self._there = seen, _there(seen)
        self._submit(Observe(NO_COMMAND, seen))

    async def _hear_notices(self) -> None:
        try:
            async for one in self._notices():
                if self._contents or not one.touched:
                    self.notice(touched=one.touched)
        except OSError as error:
            self._say(f"no notices of hotplug ({error.strerror}); looking every minute instead")

    async def _hear_clock_steps(self) -> None:
        async for delta_ns in self._clock_steps():
            self._submit(ObserveClockStep(NO_COMMAND, delta_ns))


def _could_not_be_had(event: Event) -> bool:
    return (
        isinstance(event, Revoked)
        and event.reason is RevocationReason.GRANT_FAILED
        and any(one.kind in _DRIVEN for one in event.subject.allotments)
    )


def _there(inventory: Inventory) -> frozenset[str]:
    return frozenset(one.resource_id for one in inventory.resources if one.health != Health.GONE)


def _ids(inventory: Inventory) -> set[str]:
    return {resource.resource_id for resource in inventory.resources}
