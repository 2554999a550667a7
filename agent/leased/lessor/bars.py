# SPDX-License-Identifier: Apache-2.0
"""Bars: what requests that wait need, so that those behind them leave it alone.

Rule: a request that waits for capacity bars every resource it could use, one that waits for a limit
of somebody bars that limit for whoever it counts; what comes behind may only take what nobody
before it waits for. So the head cannot starve, and a request for a GPU does not hold up one for
memory.

Does not order anybody (`queue`): ranks are handed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from leased.lessor.meaning import Verdict
from leased.lessor.pool import Pools, Where, where_of
from leased.lessor.quota import Limits
from leased.terms.command import Acquire
from leased.terms.reply import RefusalReason

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
Places = tuple[Where, ...]
Rank = tuple[int, bool, int, int]
"""A place in the queue: level (the higher first, so negative), whether it was not preempted, how
far its tenant is above its share, arrival."""


class Bars:
    """What requests that wait need: each thing with the rank of the first that waits for it.
    `heads` are those who are first at their places.
    """

    __slots__ = ("heads", "holder_kinds", "holders", "node", "places", "pools")

    def __init__(self) -> None:
        self.node: dict[str, Rank] = {}
        self.pools: dict[str, Rank] = {}
        self.places: dict[Places, Rank] = {}
        self.heads: dict[Places, Acquire] = {}
        self.holders: dict[str, Rank] = {}
        self.holder_kinds: dict[tuple[str, int], Rank] = {}

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
            _first(self.node, "", rank)
        elif reason in _COUNTED:
            _first(self.holders, verdict.holder, rank)
        elif reason in MEASURED:
            for ask in acquire.asks:
                _first(self.holder_kinds, (verdict.holder, int(ask.kind)), rank)

    def ahead_of(self, rank: Rank) -> Ahead:
        """What is barred for a request of `rank`."""
        return Ahead(self, rank)


def _first(barred: dict[K, Rank], what: K, rank: Rank) -> None:
    known = barred.get(what)
    if known is None or rank < known:
        barred[what] = rank


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

    def hold_back(self, acquire: Acquire, limits: Limits) -> tuple[RefusalReason, str] | None:
        """Why, and because of whose limit, `acquire` has to wait behind another, judged without
        looking at any pool.
        """
        bars = self._bars
        if bars.node and self._has(bars.node, ""):
            return RefusalReason.NODE_LEASES, ""
        for one in limits.chain():
            if bars.holders and self._has(bars.holders, one.holder):
                return RefusalReason.TENANT_LEASES, one.holder
            if bars.holder_kinds and any(
                self._has(bars.holder_kinds, (one.holder, int(ask.kind))) for ask in acquire.asks
            ):
                return RefusalReason.TENANT_CAPACITY, one.holder
        if not self._lent and bars.places and self._has(bars.places, places_of(acquire)):
            return RefusalReason.NO_CAPACITY, ""
        return None

    @property
    def pools(self) -> AbstractSet[str]:
        """Every pool that is barred."""
        barred, rank = {} if self._lent else self._bars.pools, self._rank
        if all(first < rank for first in barred.values()):
            return barred.keys()
        return {resource_id: None for resource_id, first in barred.items() if first < rank}.keys()


def places_of(acquire: Acquire) -> Places:
    """Where the asks of a request may go; two with the same places wait for the same pools."""
    return tuple(map(where_of, acquire.asks))
