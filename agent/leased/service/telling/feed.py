# SPDX-License-Identifier: Apache-2.0
"""The feed: what each committed batch changed, handed to whoever watches.

Rule: values are captured in the very step in which the batch was committed, so a watcher never sees
an uncommitted lease. Whoever has nothing to see of a change is not woken for it: hundreds may watch
what one does. Each subscription has a bounded buffer; a reader that falls behind gets one
`gap` and is let go, because a stream with a silent hole is worse than none. Who only asks how
things are whenever they change (`Signal`) misses nothing by it.

Does not know the wire, and nothing waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import msgspec
import trio

from leased.service.batch import Told
from leased.terms.event import DrainNotified, Event, LeaseEvent
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease

BACKLOG_MAX = 1024
"""Batches a watcher may lag: at the busiest (thousands of batches a second) about a quarter of a
second."""


class Change(msgspec.Struct, frozen=True):
    """One committed batch as a watcher sees it. `events` and `leases` are what it changed,
    `sequence` its last record."""

    sequence: int
    events: tuple[Event, ...]
    leases: tuple[Lease, ...]
    drains: tuple[DrainNotified, ...] = ()
    gap: bool = False


Wants = Callable[[Change], bool]
"""Whether a watcher has anything to see of a change. Must not block and must not raise."""


def everything(_: Change) -> bool:
    """Of whoever follows all there is."""
    return True


S = TypeVar("S", bound="Subscription")


class Subscription:
    """One watcher's end: iterate it with `receive`."""

    def __init__(self, backlog: int, wants: Wants) -> None:
        self.wants = wants
        self._send, self._receive = trio.open_memory_channel[Change](math.inf)
        self._backlog = backlog
        self.lagged = False

    def offer(self, change: Change) -> None:
        """Leave a change, or mark the gap and take nothing more."""
        if self.lagged:
            return
        if self._send.statistics().current_buffer_used >= self._backlog:
            self.lagged = True
            change = Change(change.sequence, (), (), gap=True)
        self._send.send_nowait(change)

    async def receive(self) -> Change:
        """The next change."""
        return await self._receive.receive()

    def close(self) -> None:
        """Wake the reader with EndOfChannel."""
        self._send.close()


class Signal(Subscription):
    """Of one who is told that there was a change, however many there were."""

    def __init__(self, wants: Wants) -> None:
        super().__init__(1, wants)

    def offer(self, change: Change) -> None:
        """Leave it, unless one is there that has not been seen."""
        if not self._send.statistics().current_buffer_used:
            self._send.send_nowait(change)

    def clear(self) -> None:
        """What came until now is seen."""
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            self._receive.receive_nowait()


class Feed:
    """Every subscription of the agent."""

    def __init__(self, lease_of: Callable[[LeaseId], Lease | None]) -> None:
        self._lease_of = lease_of
        self._subscriptions: list[Subscription] = []
        self.sequence = -1

    @contextmanager
    def subscribe(
        self, backlog: int = BACKLOG_MAX, *, wants: Wants = everything
    ) -> Iterator[Subscription]:
        """What is committed from here on, as far as it is wanted."""
        with self._taken_in(Subscription(backlog, wants)) as subscription:
            yield subscription

    @contextmanager
    def signal(self, wants: Wants) -> Iterator[Signal]:
        """That something is committed, from here on, of what is wanted."""
        with self._taken_in(Signal(wants)) as signal:
            yield signal

    @contextmanager
    def _taken_in(self, subscription: S) -> Iterator[S]:
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    def tell(self, told: Told) -> None:
        """A batch was committed."""
        self.sequence = told.sequences[-1]
        if not self._subscriptions:
            return
        ids = dict.fromkeys(
            event.lease_id for event in told.events if isinstance(event, LeaseEvent)
        )
        leases = tuple(lease for lease in map(self._lease_of, ids) if lease is not None)
        drains = tuple(event for event in told.events if isinstance(event, DrainNotified))
        change = Change(self.sequence, told.events, leases, drains)
        for subscription in self._subscriptions:
            if subscription.wants(change):
                subscription.offer(change)

    def close(self) -> None:
        """End every stream: the agent stops."""
        for subscription in self._subscriptions:
            subscription.close()
