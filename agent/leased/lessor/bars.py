# SPDX-License-Identifier: Apache-2.0
"""Bars: what requests that wait need, so that those behind them leave it alone.

Rule: a request that waits for capacity bars every resource it could use, one that waits for a limit
of somebody bars that limit for whoever it counts; what comes behind may only take what nobody
before it waits for. So the head cannot starve, and a request for a GPU does not hold up one for
memory.

Does not order anybody (`queue`): ranks are handed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from leased.lessor.accounts import OCCUPIED
from leased.lessor.meaning import Verdict
from leased.lessor.pool import Pools, Where, where_of
from leased.lessor.quota import Limits, wanted_by
from leased.lessor.shares import Shares
from leased.terms.command import Acquire
from leased.terms.reply import Refusal, RefusalReason

K = TypeVar("K", bound=Hashable)
_COUNTED = frozenset({RefusalReason.TENANT_LEASES})
MEASURED = frozenset(
    {
        RefusalReason.TENANT_CAPACITY,
        RefusalReason.BUDGET,
        RefusalReason.SHARE,
        RefusalReason.RESERVED,
    }
)
Behind = tuple[RefusalReason, str, Refusal | None]
"""Why, because of whose limit, and what the first was told that waits for that limit (None: it
waits for room)."""

Places = tuple[Where, ...]
Rank = tuple[int, bool, int, int]
"""A place in the queue: level (the higher first, so negative), whether it was not preempted, how
far its tenant is above its share, arrival."""


class Bars:
    """What requests that wait need: each thing with the rank of the first that waits for it.
    `heads` are those who are first at their places, `told` is what those were told who are first
    at a limit.
    """

    __slots__ = ("heads", "holder_kinds", "holders", "node", "places", "pools", "told")

    def __init__(self) -> None:
        self.node: dict[str, Rank] = {}
        self.pools: dict[str, Rank] = {}
        self.places: dict[Places, Rank] = {}
        self.heads: dict[Places, Acquire] = {}
        self.holders: dict[str, Rank] = {}
        self.holder_kinds: dict[tuple[str, int], Rank] = {}
        self.told: dict[tuple[str, int], Refusal] = {}

    def add(
        self, acquire: Acquire, places: Places, verdict: Verdict, pools: Pools, rank: Rank
    ) -> None:
        """Bar what `acquire`, which waits because of `verdict`, needs."""
        reason = verdict.refusal.reason
        if reason is RefusalReason.NO_CAPACITY:
            known = self.places.get(places)
            if known is not None and known < rank:
                return  # whoever it was has barred the same pools
            self.places[places], self.heads[places] = rank, acquire
            for ask in acquire.asks:
                for pool in pools.usable(ask):
                    _first(self.pools, pool.counted.resource_id, rank)
        elif reason is RefusalReason.NODE_LEASES:
            if _first(self.node, "", rank):
                self.told["", OCCUPIED] = verdict.refusal
        elif reason in _COUNTED:
            if _first(self.holders, verdict.holder, rank):
                self.told[verdict.holder, OCCUPIED] = verdict.refusal
        elif reason in MEASURED:
            for ask in acquire.asks:
                limited = (verdict.holder, int(ask.kind))
                if _first(self.holder_kinds, limited, rank):
                    self.told[limited] = verdict.refusal

    def ahead_of(self, rank: Rank) -> Ahead:
        """What is barred for a request of `rank`."""
        return Ahead(self, rank)


def _first(barred: dict[K, Rank], what: K, rank: Rank) -> bool:
    known = barred.get(what)
    if known is not None and known <= rank:
        return False
    barred[what] = rank
    return True


class Ahead:
    """The bars of those that are served before one request."""

    __slots__ = ("_bars", "_lent", "_rank")

    def __init__(self, bars: Bars, rank: Rank, *, lent: bool = False) -> None:
        self._bars, self._rank, self._lent = bars, rank, lent

    def lent(self) -> Ahead:
        """The same but for capacity: of that, what is free is lent."""
        return Ahead(self._bars, self._rank, lent=True)

    def heads(self) -> list[Acquire]:
        """Those who wait for capacity, the first of each that wait for the same."""
        heads, rank = self._bars.heads, self._rank
        return [heads[places] for places, first in self._bars.places.items() if first < rank]

    def _has(self, barred: Mapping[K, Rank], what: K) -> bool:
        known = barred.get(what)
        return known is not None and known < self._rank

    def hold_back(self, acquire: Acquire, limits: Limits, shares: Shares) -> Behind | None:
        """Why `acquire` has to wait behind another, judged without looking at any pool."""
        bars = self._bars
        if bars.node and self._has(bars.node, ""):
            return self._as_told("", OCCUPIED)
        for one in limits.chain():
            if bars.holders and self._has(bars.holders, one.holder):
                return self._as_told(one.holder, OCCUPIED)
            for ask in acquire.asks if bars.holder_kinds else ():
                if self._has(bars.holder_kinds, (one.holder, int(ask.kind))):
                    return self._as_told(one.holder, int(ask.kind))
        for common in _commons(acquire, shares) if bars.holder_kinds else ():
            if self._has(bars.holder_kinds, common):
                return self._as_told(*common)
        if not self._lent and bars.places and self._has(bars.places, places_of(acquire)):
            return RefusalReason.NO_CAPACITY, "", None
        return None

    def _as_told(self, holder: str, kind: int) -> Behind:
        told = self._bars.told[holder, kind]
        return told.reason, holder, told

    @property
    def pools(self) -> AbstractSet[str]:
        """Every pool that is barred."""
        barred, rank = {} if self._lent else self._bars.pools, self._rank
        if all(first < rank for first in barred.values()):
            return barred.keys()
        return {resource_id: None for resource_id, first in barred.items() if first < rank}.keys()


def _commons(acquire: Acquire, shares: Shares) -> Iterator[tuple[str, int]]:
    """Where a request wants more than is reserved for its tenant: whose limit that is, and the
    kind."""
    charge = wanted_by(acquire)
    for one in shares.divisions:
        more = 0 if one.fair else one.share.wanted(charge)
        if more and not one.share.own(acquire.caller.tenant, more):
            yield one.holder, one.share.kind


def places_of(acquire: Acquire) -> Places:
    """Where the asks of a request may go; two with the same places wait for the same pools."""
    return tuple(map(where_of, acquire.asks))
