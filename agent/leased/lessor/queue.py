# SPDX-License-Identifier: Apache-2.0
"""The queue of requests that wait: bounded, and in one order.

Rule: the higher level first; within a level whoever was preempted and asks again, then whoever is
furthest below its fair share (where capacity is divided like that), then first come first served.
When a tenant gets or gives back capacity, its requests move at once; what it uses as time goes by
counts when the whole queue is put in order anew. The queue is not sealed: a restart empties it and
clients ask again.

Does not decide who gets what (`lessor.admission`) and does not watch the time by itself.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

import msgspec

from leased.lessor.accounts import ANY, Cell, covers
from leased.lessor.bars import Ahead, Bars, Places, Rank, places_of
from leased.lessor.deadlines import Deadlines
from leased.lessor.meaning import Verdict
from leased.lessor.placement import could_hold
from leased.lessor.pool import Pools
from leased.lessor.quota import wanted_by
from leased.terms.command import Acquire
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import LEVEL_OF, Level
from leased.terms.moment import NS_PER_S
from leased.terms.reply import RefusalReason
from leased.terms.resource import Allotment

LOOK_AGAIN_NS = NS_PER_S
"""How long what only time changes (a victim's minimum runtime, a cool-down) may go unnoticed."""

Key = tuple[int, CommandId]
LAST = 1 << 62
"""The arrival of whoever has not arrived yet."""

LAST_OF_ALL: Rank = (1, True, 0, LAST)


def key_of(acquire: Acquire) -> Key:
    """What makes a repeated request the same request: who asks, and the id they chose."""
    return (acquire.caller.uid, acquire.command_id)


def level_of(acquire: Acquire) -> Level:
    """The level of a request: that of its priority, if it names none."""
    return LEVEL_OF[acquire.priority] if acquire.level is None else acquire.level


class Waiting(msgspec.Struct):
    """A request in the queue: since when, until when, and why it did not get anything the last
    time. `lease_id` is that of the lease it is going to be, known once it preempts; `victims` are
    the leases that make way for it, and `spared_until_ns` is until when it preempts nobody. `claim`
    is what it will get of what is leaving, `share` how far its tenant was above its share when that
    was last looked at, `rank` its place among the others by that, `judged` the mark of the verdict
    (`Admission.since`), `within` that its own limits allow it as long as its holders get no more,
    `outlook` at which count of the pools' changes it was hopeless, or was not.
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
    claim: tuple[Allotment, ...] = ()
    share: int = 0
    judged: tuple[int, int, int] | None = None
    within: bool = False
    rank: Rank = LAST_OF_ALL
    outlook: tuple[int, bool] = (-1, False)

    def stand(self, share: int) -> None:
        """Take the place that follows from `share`."""
        self.share = share
        self.rank = rank_of(
            self.acquire, requeued=self.requeued, share=share, arrival=self.arrival
        )

    def is_hopeless(self, pools: Pools) -> bool:
        """Whether there is no room for it even when every lease has ended: what it wants is fenced,
        sick, cordoned or gone. Until that changes it keeps nothing from anybody."""
        if self.reason is not RefusalReason.NO_CAPACITY:
            return False
        if self.outlook[0] != pools.changes:
            self.outlook = (pools.changes, not could_hold(self.acquire.asks, pools))
        return self.outlook[1]

    @property
    def reason(self) -> RefusalReason:
        """What it waits for."""
        return self.verdict.refusal.reason

    @property
    def level(self) -> Level:
        """Its level."""
        return level_of(self.acquire)


def bar(bars: Bars, waiting: Waiting, pools: Pools) -> None:
    """Bar what a request waits for to those behind it, if it may ever have it."""
    if not waiting.is_hopeless(pools):
        bars.add(waiting.acquire, waiting.places, waiting.verdict, pools, waiting.rank)


def rank_of(acquire: Acquire, *, requeued: bool, share: int, arrival: int = LAST) -> Rank:
    """The place of a request among others; without `arrival`, behind all that are its like."""
    return (-int(level_of(acquire)), not requeued, share, arrival)


class WaitQueue:
    """Waiting requests. `bars` has what they wait for, `claims` those who will get something of
    what is leaving, `short` the pools that somebody waits for who will not, with the place of the
    first; `removals` counts those that left. `stale`: something happened since that was
    worked out, so that it may be wrong for some; `unsure` are the holders of limits that may be
    reached by now.
    """

    __slots__ = (
        "_arrivals",
        "_by_command",
        "_ends",
        "_entries",
        "_moves",
        "_order",
        "_tenants",
        "_wanted",
        "bars",
        "claims",
        "look_ns",
        "removals",
        "short",
        "stale",
        "unsure",
    )

    def __init__(self) -> None:
        self._entries: dict[Key, Waiting] = {}
        self._by_command: dict[CommandId, Key] = {}
        self._order: list[tuple[Rank, Key]] = []
        self._ends: Deadlines[Key] = Deadlines()
        self._tenants: dict[TenantId, dict[Key, Waiting]] = {}
        self._wanted: dict[Cell, dict[TenantId, int]] = {}
        self._arrivals = self._moves = 0
        self.bars = Bars()
        self.claims: dict[Key, Waiting] = {}
        self.short: dict[str, Rank] = {}
        self.look_ns: int | None = None
        self.removals = 0
        self.stale = False
        self.unsure: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Waiting]:
        return iter([self._entries[key] for _, key in self._order])

    def in_turn(self) -> Iterator[Waiting]:
        """Everybody once, always the first by the order that there is by then: whoever is served
        may move others of its tenant.
        """
        seen: dict[Key, None] = {}
        order, at, moves = self._order.copy(), 0, self._moves
        while at < len(order):
            place, at = order[at], at + 1
            waiting = self._entries.get(place[1])
            if waiting is None or place[1] in seen:
                continue
            seen[place[1]] = None
            yield waiting
            if self._moves != moves:
                order, moves = self._order.copy(), self._moves
                at = bisect.bisect_right(order, place)

    def move(self, tenant: TenantId, share: Callable[[Acquire], int]) -> None:
        """A tenant has more or less than it had: put its requests where they belong by now."""
        for key, waiting in self._tenants.get(tenant, {}).items():
            now = share(waiting.acquire)
            if now != waiting.share:
                del self._order[bisect.bisect_left(self._order, (waiting.rank, key))]
                waiting.stand(now)
                bisect.insort(self._order, (waiting.rank, key))
                self._moves += 1

    def rerank(self, share: Callable[[Acquire], int]) -> None:
        """Order anew, by how far the tenant of each is above its fair share by now."""
        for waiting in self._entries.values():
            waiting.stand(share(waiting.acquire))
        self._order = sorted((waiting.rank, key) for key, waiting in self._entries.items())

    def claim(self, waiting: Waiting, claim: tuple[Allotment, ...]) -> None:
        """A request will get `claim` of what is leaving."""
        waiting.claim = claim
        self.claims[key_of(waiting.acquire)] = waiting

    def fall_short(self, waiting: Waiting, pools: Pools) -> None:
        """A request gets nothing of what is leaving: whatever else becomes free where it waits is
        for it before those behind.
        """
        rank = waiting.rank
        for ask in waiting.acquire.asks:
            for pool in pools.usable(ask):
                name = pool.counted.resource_id
                if rank < self.short.get(name, LAST_OF_ALL):
                    self.short[name] = rank

    def short_before(self, rank: Rank) -> AbstractSet[str]:
        """The pools of which a request of `rank` would get nothing, whoever left them."""
        return {name: None for name, first in self.short.items() if first < rank}.keys()

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
        return len(self._tenants.get(tenant, ()))

    def append(self, waiting: Waiting, pools: Pools) -> None:
        """Put a request at its place, and bar what it waits for to those behind."""
        acquire = waiting.acquire
        key = key_of(acquire)
        assert key not in self._entries and acquire.command_id not in self._by_command
        self._arrivals += 1
        waiting.arrival = self._arrivals
        waiting.stand(waiting.share)
        waiting.places = places_of(acquire)
        self._entries[key] = waiting
        self._by_command[acquire.command_id] = key
        bisect.insort(self._order, (waiting.rank, key))
        self.stale = self.stale or self._order[-1][1] != key
        self._ends.set(key, waiting.until_ns)
        self._tenants.setdefault(acquire.caller.tenant, {})[key] = waiting
        self._want(acquire, 1)
        bar(self.bars, waiting, pools)

    def remove(self, waiting: Waiting) -> None:
        """Take a request out, wherever it stands."""
        acquire = waiting.acquire
        key = key_of(acquire)
        del self._entries[key], self._by_command[acquire.command_id]
        del self._order[bisect.bisect_left(self._order, (waiting.rank, key))]
        self._ends.discard(key)
        tenant = acquire.caller.tenant
        del self._tenants[tenant][key]
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self._want(acquire, -1)
        self.claims.pop(key, None)
        self.removals += 1
        if not self._entries:
            self.bars = Bars()
            self.look_ns = None
            self.short.clear()
            self.stale = False
            self.unsure.clear()

    def _want(self, acquire: Acquire, sign: int) -> None:
        tenant = acquire.caller.tenant
        for cell, capacity in wanted_by(acquire):
            wanted = self._wanted.setdefault(cell, {})
            left = wanted.get(tenant, 0) + sign * capacity
            if left:
                wanted[tenant] = left
            else:
                del wanted[tenant]
        if not self._entries:
            self._wanted = {}

    def wanted(self, kind: int, tier: int) -> dict[TenantId, int]:
        """How much those who wait want of a kind, or of one tier of it, beyond what they have."""
        found: dict[TenantId, int] = {}
        for cell, wanted in self._wanted.items():
            if covers(kind, tier, ANY, cell):
                if not found:
                    found = dict(wanted)
                    continue
                for tenant, capacity in wanted.items():
                    found[tenant] = found.get(tenant, 0) + capacity
        return found

    def ahead_of(self, rank: Rank) -> Ahead | None:
        """What those that are to be served before a request of `rank` wait for."""
        return self.bars.ahead_of(rank) if self._entries else None

    def next_ns(self) -> int | None:
        """When the first wait ends, or the queue has to be looked through again."""
        ends_ns = self._ends.next_ns()
        if ends_ns is None or self.look_ns is None:
            return ends_ns
        return min(ends_ns, self.look_ns)

    def due(self, now_ns: int, limit: int) -> list[Waiting]:
        """At most `limit` requests whose wait is over; they are still in the queue."""
        return [self._entries[key] for key in self._ends.due(now_ns, limit)]
