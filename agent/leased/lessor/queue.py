# SPDX-License-Identifier: Apache-2.0
"""The queue of requests that wait: bounded, and in one order.

Rule: the higher level first; within a level whoever was preempted and asks again, then whoever is
furthest below its fair share (where capacity is divided like that), then first come first served.
The queue is not sealed: a restart empties it and clients ask again.

Does not decide who gets what (`lessor.admission`) and does not watch the time by itself.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

import msgspec

from leased.lessor.bars import Bars, Places, places_of, together
from leased.lessor.deadlines import Deadlines
from leased.lessor.meaning import Verdict
from leased.lessor.pool import Pools
from leased.terms.command import Acquire
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import LEVEL_OF, Level
from leased.terms.moment import NS_PER_S
from leased.terms.reply import RefusalReason

LOOK_AGAIN_NS = NS_PER_S
"""How long what only time changes (a victim's minimum runtime, a cool-down) may go unnoticed."""

Key = tuple[int, CommandId]
Rank = tuple[int, bool, int]
"""Level (larger first, so negative), whether it was not preempted, arrival."""


def key_of(acquire: Acquire) -> Key:
    """What makes a repeated request the same request: who asks, and the id they chose."""
    return (acquire.caller.uid, acquire.command_id)


def level_of(acquire: Acquire) -> Level:
    """The level of a request: that of its priority, if it names none."""
    return LEVEL_OF[acquire.priority] if acquire.level is None else acquire.level


class Waiting(msgspec.Struct):
    """A request in the queue: since when, until when, and why it did not get anything the last
    time. `lease_id` is that of the lease it is going to be, known once it preempts; `victims` are
    the leases that make way for it, and `spared_until_ns` is until when it preempts nobody.
    """

    acquire: Acquire
    since_ns: int
    until_ns: int
    verdict: Verdict
    requeued: bool = False
    arrival: int = 0
    places: Places = ()
    lease_id: LeaseId | None = None
    victims: tuple[LeaseId, ...] = ()
    spared_until_ns: int = 0

    @property
    def reason(self) -> RefusalReason:
        """What it waits for."""
        return self.verdict.refusal.reason

    @property
    def level(self) -> Level:
        """Its level."""
        return level_of(self.acquire)

    @property
    def rank(self) -> Rank:
        """Its place among the others, shares apart."""
        return (-int(self.level), not self.requeued, self.arrival)


class WaitQueue:
    """Waiting requests. `bars` has, by level, what those of that level wait for; `removals` counts
    those that left.
    """

    __slots__ = (
        "_arrivals",
        "_by_command",
        "_ends",
        "_entries",
        "_order",
        "_tenants",
        "bars",
        "look_ns",
        "removals",
    )

    def __init__(self) -> None:
        self._entries: dict[Key, Waiting] = {}
        self._by_command: dict[CommandId, Key] = {}
        self._order: list[tuple[Rank, Key]] = []
        self._ends: Deadlines[Key] = Deadlines()
        self._tenants: dict[TenantId, int] = {}
        self._arrivals = 0
        self.bars: dict[Level, Bars] = {}
        self.look_ns: int | None = None
        self.removals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Waiting]:
        return iter([self._entries[key] for _, key in self._order])

    def ordered(self, share: Callable[[Acquire], int] | None) -> list[Waiting]:
        """In the order they are served. `share` says how far a request's tenant is above its fair
        share; None: nothing is divided by shares.
        """
        waiting = list(self)
        if share is not None:
            waiting.sort(key=lambda one: (*one.rank[:2], share(one.acquire), one.arrival))
        return waiting

    def get(self, key: Key) -> Waiting | None:
        """The waiting request of that key, if it waits."""
        return self._entries.get(key)

    def find(self, waiting_id: CommandId) -> Waiting | None:
        """The waiting request of that command id; at most one waits under an id."""
        key = self._by_command.get(waiting_id)
        return None if key is None else self._entries[key]

    def tenants(self) -> Iterator[TenantId]:
        """Who waits."""
        return iter(tuple(self._tenants))

    def count_of(self, tenant: TenantId) -> int:
        """How many requests of a tenant wait."""
        return self._tenants.get(tenant, 0)

    def append(self, waiting: Waiting, pools: Pools) -> None:
        """Put a request at its place, and bar what it waits for to those behind."""
        acquire = waiting.acquire
        key = key_of(acquire)
        assert key not in self._entries and acquire.command_id not in self._by_command
        self._arrivals += 1
        waiting.arrival = self._arrivals
        waiting.places = places_of(acquire)
        self._entries[key] = waiting
        self._by_command[acquire.command_id] = key
        bisect.insort(self._order, (waiting.rank, key))
        self._ends.set(key, waiting.until_ns)
        self._tenants[acquire.caller.tenant] = self.count_of(acquire.caller.tenant) + 1
        self.bars.setdefault(waiting.level, Bars()).add(acquire, waiting.verdict, pools)

    def remove(self, waiting: Waiting) -> None:
        """Take a request out, wherever it stands."""
        acquire = waiting.acquire
        key = key_of(acquire)
        del self._entries[key], self._by_command[acquire.command_id]
        del self._order[bisect.bisect_left(self._order, (waiting.rank, key))]
        self._ends.discard(key)
        tenant = acquire.caller.tenant
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self.removals += 1
        if not self._entries:
            self.bars = {}
            self.look_ns = None

    def bars_from(self, level: Level) -> Bars | None:
        """What those that wait at `level` or above need."""
        ahead = [bars for at, bars in self.bars.items() if at >= level]
        if len(ahead) <= 1:
            return ahead[0] if ahead else None
        return together(ahead)

    def next_ns(self) -> int | None:
        """When the first wait ends, or the queue has to be looked through again."""
        ends_ns = self._ends.next_ns()
        if ends_ns is None or self.look_ns is None:
            return ends_ns
        return min(ends_ns, self.look_ns)

    def due(self, now_ns: int, limit: int) -> list[Waiting]:
        """At most `limit` requests whose wait is over; they are still in the queue."""
        return [self._entries[key] for key in self._ends.due(now_ns, limit)]
