# SPDX-License-Identifier: Apache-2.0
"""Backfill: what is free, and spoken for by those who wait, is lent until they could need it.

Rule: by the deadlines that leases have now there is an instant before which the head cannot begin;
a lease that is proven clean before that, by the published bounds of its teardown, takes nothing
from it, and is not renewed beyond while anybody waits. If others leave earlier than they had to, so
that the head could begin but for what is lent, what is lent is called back (`yielding`). A resource
that does not say how long its teardown may take is not lent.

Does not order the queue and does not grant (`requests`).
"""

from __future__ import annotations

from leased.lessor.admission import Admission, Offer
from leased.lessor.bars import Ahead
from leased.lessor.estimate import held, room_ns
from leased.lessor.meaning import Verdict
from leased.lessor.placement import spans
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import wholes_of
from leased.terms.bounds import Bounds, in_turn, published
from leased.terms.command import Acquire
from leased.terms.reply import RefusalReason
from leased.terms.resource import Ask, ResourceKind

HOLDERS_MAX = 1_024
"""Leases on what a head could span. With more, nothing is lent beside it."""

HEADS_MAX = 8
"""Different things that those ahead wait for. With more, nothing is lent."""


class Lender:
    """Lends what is free of a table to those who stand behind others in a queue."""

    __slots__ = ("_admission", "_table")

    def __init__(self, table: LeaseTable, admission: Admission) -> None:
        self._table, self._admission = table, admission

    def lend(
        self, acquire: Acquire, ahead: Ahead, verdict: Verdict, now_ns: int
    ) -> Offer | Verdict:
        """What is lent to a request that others stand before; else the verdict that it has."""
        if verdict.refusal.reason is not RefusalReason.NO_CAPACITY or not verdict.waitable:
            return verdict
        until_ns = lent_until_ns(self._table, ahead, acquire, now_ns)
        if until_ns is None:
            return verdict
        offer = self._admission.judge(acquire, ahead.lent(), now_ns)
        if not isinstance(offer, Offer):
            return verdict
        offer.backfill_until_ns = until_ns
        return offer


def lent_until_ns(table: LeaseTable, ahead: Ahead, acquire: Acquire, now_ns: int) -> int | None:
    """Until when a lease for `acquire` may last at the most without delaying anybody `ahead` of it;
    None: it may not be lent anything.
    """
    teardown_ns = teardown_most_ns(table, acquire)
    if teardown_ns is None:
        return None
    heads = ahead.heads()
    if len(heads) > HEADS_MAX:
        return None
    until_ns = 1 << 62
    for head in heads:
        begins_ns = not_before_ns(table, head.asks, now_ns)
        if begins_ns is None or begins_ns - teardown_ns < now_ns + acquire.ttl_ns:
            return None
        until_ns = min(until_ns, begins_ns - teardown_ns)
    return until_ns if heads else None


def not_before_ns(table: LeaseTable, asks: tuple[Ask, ...], now_ns: int) -> int | None:
    """An instant before which there is no room for all of `asks`, by the deadlines that there are;
    it may come later. None: it is not known.
    """
    latest = now_ns
    for ask in asks:
        at_ns = _spanning_ns(table, ask, now_ns) if spans(ask) else room_ns(table, (ask,), now_ns)
        if at_ns is None:
            return None
        latest = max(latest, at_ns)
    return latest


def _spanning_ns(table: LeaseTable, ask: Ask, now_ns: int) -> int | None:
    """As `not_before_ns`, for an ask that may take of several resources: when there are enough
    entire devices, or enough shares in sum.
    """
    pools = {one.counted.resource_id: one.counted for one in table.pools.usable(ask)}.values()
    if sum(len(pool.holders) for pool in pools) > HOLDERS_MAX:
        return None
    current, wanted = table.deadlines.current, wholes_of(ask)
    if wanted is not None:
        fitting = (pool for pool in pools if pool.capacity >= wanted.least)
        ends = sorted(
            max((current.get(one, now_ns) for one in pool.holders), default=now_ns)
            for pool in fitting
        )
        return ends[wanted.count - 1] if wanted.count <= len(ends) else None
    missing = ask.capacity - sum(pool.free + pool.teardown for pool in pools)
    shares = sorted(
        (current.get(lease_id, now_ns), held(table, lease_id, pool.resource_id))
        for pool in pools
        for lease_id in pool.holders
        if lease_id in current
    )
    at_ns = now_ns
    for end_ns, capacity in shares:
        if missing <= 0:
            break
        missing -= capacity
        at_ns = end_ns
    return at_ns if missing <= 0 else None


def teardown_most_ns(table: LeaseTable, acquire: Acquire) -> int | None:
    """From the end of a lease to its proof, at the worst of what it could be given; None: that is
    not known. Namespaces may all be of one drive, which is made clean in turn.
    """
    longest = 0
    line: list[Bounds] = []
    for ask in acquire.asks:
        worst: Bounds | None = None
        for pool in table.pools.usable(ask):
            bounds = published(pool.resource)
            if bounds is None:
                return None
            if worst is None or bounds.total_ns > worst.total_ns:
                worst = bounds
        if worst is not None:
            longest = max(longest, worst.total_ns)
            if ask.kind == ResourceKind.BLOCK:
                line += [worst] * max(1, ask.count)
    return max(longest, in_turn(line).total_ns) if line else longest
