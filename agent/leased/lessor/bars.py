# SPDX-License-Identifier: Apache-2.0
"""Bars: what requests that wait need, so that those behind them leave it alone.

Rule: a request that waits for capacity bars every resource it could use, one that waits for a limit
of somebody bars that limit for whoever it counts; what comes behind may only take what nobody
before it waits for. So the head cannot starve, and a request for a GPU does not hold up one for
memory.

Does not order anybody (`queue`) and does not know who is ahead of whom.
"""

from __future__ import annotations

from collections.abc import Iterable

from leased.lessor.meaning import Verdict
from leased.lessor.pool import Pools, Where, where_of
from leased.lessor.quota import Limits
from leased.terms.command import Acquire
from leased.terms.reply import RefusalReason

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


class Bars:
    """What some requests wait for."""

    __slots__ = ("holder_kinds", "holders", "node", "places", "pools")

    def __init__(self) -> None:
        self.node = False
        self.pools: set[str] = set()
        self.places: set[Places] = set()
        self.holders: set[str] = set()
        self.holder_kinds: set[tuple[str, int]] = set()

    def add(self, acquire: Acquire, verdict: Verdict, pools: Pools) -> None:
        """Bar what `acquire`, which waits because of `verdict`, needs."""
        reason = verdict.refusal.reason
        if reason is RefusalReason.NODE_LEASES:
            self.node = True
        elif reason in _COUNTED:
            self.holders.add(verdict.holder)
        elif reason in MEASURED:
            self.holder_kinds.update((verdict.holder, int(ask.kind)) for ask in acquire.asks)
        elif reason is RefusalReason.NO_CAPACITY:
            self.places.add(places_of(acquire))
            for ask in acquire.asks:
                self.pools.update(pool.counted.resource_id for pool in pools.usable(ask))

    def hold_back(self, acquire: Acquire, limits: Limits) -> tuple[RefusalReason, str] | None:
        """Why, and because of whose limit, `acquire` has to wait behind another, judged without
        looking at any pool.
        """
        if self.node:
            return RefusalReason.NODE_LEASES, ""
        for one in limits.chain():
            if one.holder in self.holders:
                return RefusalReason.TENANT_LEASES, one.holder
            if self.holder_kinds and any(
                (one.holder, int(ask.kind)) in self.holder_kinds for ask in acquire.asks
            ):
                return RefusalReason.TENANT_CAPACITY, one.holder
        if self.places and places_of(acquire) in self.places:
            return RefusalReason.NO_CAPACITY, ""
        return None


def places_of(acquire: Acquire) -> Places:
    """Where the asks of a request may go; two with the same places wait for the same pools."""
    return tuple(map(where_of, acquire.asks))


def together(several: Iterable[Bars]) -> Bars:
    """All that any of `several` bars."""
    whole = Bars()
    for bars in several:
        whole.node |= bars.node
        whole.pools |= bars.pools
        whole.places |= bars.places
        whole.holders |= bars.holders
        whole.holder_kinds |= bars.holder_kinds
    return whole
