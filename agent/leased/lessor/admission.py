# SPDX-License-Identifier: Apache-2.0
"""Admission: may this request have a lease now, and of what; if not, why, and when it could at the
earliest.

Rule: the checks run in one order (can it be meant, node, tenant, capacity) and the first that fails
is the reason. `Verdict.waitable` says whether time or other people's leases could change the
answer: a request larger than its resource is refused at once however long it would wait. When it
could change is worked out only for a refusal that is given (`lessor.estimate`).

Does not change the table and does not build events.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import msgspec

from leased.lessor.estimate import node_ns, room_ns, tenant_ns
from leased.lessor.placement import NONE_BARRED, place, spans
from leased.lessor.pool import Pool
from leased.lessor.queue import Bars
from leased.lessor.quota import Limits, Overrun, TenantBook, taken_by_kind, wanted_by_kind
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import GPU_MILLI, Wholes, wholes_of
from leased.terms.command import Acquire
from leased.terms.lease import Priority
from leased.terms.policy import Policy
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import Allotment, Ask, ResourceKind

CAPACITY_MAX = 2**63 - 1
"""Nothing is larger than this; it also bounds what a refusal writes to the chain."""

CORE_MILLI = 1000


class Verdict(msgspec.Struct, frozen=True):
    """No. `waitable`: it may become yes without the caller changing anything."""

    refusal: Refusal
    waitable: bool


def _clip(number: int) -> int:
    return max(-CAPACITY_MAX, min(CAPACITY_MAX, number))


def _no(
    reason: RefusalReason,
    what: str,
    *,
    limit: int = 0,
    usage: int = 0,
    requested: int = 0,
    waitable: bool = False,
) -> Verdict:
    return Verdict(Refusal(reason, what, _clip(limit), _clip(usage), _clip(requested)), waitable)


def name_of(ask: Ask) -> str:
    """What a refusal calls the thing asked for: the pinned resource, else kind and shape."""
    if ask.resource_id is not None:
        return ask.resource_id
    kind = ask.kind.name.lower()
    return kind if ask.shape is None else f"{kind}:{ask.shape}"


class Admission:
    """The judge: a table to look at and a policy to hold it against."""

    __slots__ = ("_book", "_table", "_ttl_max", "policy")

    def __init__(self, table: LeaseTable, policy: Policy) -> None:
        self._table = table
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Judge by `policy` from here on."""
        self.policy = policy
        self._book = TenantBook(policy)
        self._ttl_max = tuple(policy.ttl_ns_max(priority) for priority in Priority)

    # ---- yes or no -------------------------------------------------------------------------------

    def judge(self, acquire: Acquire, bars: Bars | None) -> tuple[Allotment, ...] | Verdict:
        """The allotments of the lease, or why not. `bars`: what requests ahead of this one wait
        for.
        """
        verdict = self.meant(acquire)
        if verdict is not None:
            return verdict
        asks, table = acquire.asks, self._table
        if table.occupied >= self.policy.leases_max:
            return self._node_full()
        limits = self._book.limits(acquire.caller.tenant)
        if not limits.unlimited:
            overrun = limits.overrun(
                table.accounts.get(acquire.caller.tenant), wanted_by_kind(asks)
            )
            if overrun is not None:
                return _over_quota(overrun)
        barred: AbstractSet[str] = NONE_BARRED
        if bars is not None:
            behind = bars.hold_back(acquire)
            if behind is not None:
                return self._behind(behind, acquire)
            barred = bars.pools
        placed = place(asks, table.pools, barred=barred)
        if isinstance(placed, tuple):
            return placed if limits.unlimited else self._within(limits, acquire, placed)
        return self._no_room(asks, placed, barred)

    def _within(
        self, limits: Limits, acquire: Acquire, placed: tuple[Allotment, ...]
    ) -> tuple[Allotment, ...] | Verdict:
        """Entire devices can be larger than what was asked of them, and they count whole."""
        if all(wholes_of(ask) is None for ask in acquire.asks):
            return placed
        account = self._table.accounts.get(acquire.caller.tenant)
        overrun = limits.overrun(account, taken_by_kind(placed))
        return placed if overrun is None else _over_quota(overrun)

    def judge_ttl(self, ttl_ns: int, priority: Priority) -> Verdict | None:
        """Whether a length of time is within the floor and the ceiling of its priority."""
        if ttl_ns < self.policy.ttl_ns_min:
            return _no(
                RefusalReason.TTL_TOO_SHORT, "ns", limit=self.policy.ttl_ns_min, requested=ttl_ns
            )
        ceiling = self._ttl_max[priority]
        if ttl_ns > ceiling:
            return _no(RefusalReason.TTL_TOO_LONG, "ns", limit=ceiling, requested=ttl_ns)
        return None

    def judge_wait(self, acquire: Acquire, *, waiting: int, of_tenant: int) -> Verdict | None:
        """Whether the queue has a place for one more request."""
        limit, usage = self.policy.waiting_max, waiting
        own = self._book.limits(acquire.caller.tenant).waiting_max
        if own is not None and of_tenant >= own:
            limit, usage = own, of_tenant
        if usage < limit:
            return None
        return _no(RefusalReason.QUEUE_FULL, "waiting", limit=limit, usage=usage, requested=1)

    def meant(self, acquire: Acquire) -> Verdict | None:
        """Whether the request can be meant on this node at all."""
        asks = acquire.asks
        verdict = self.judge_ttl(acquire.ttl_ns, acquire.priority)
        if verdict is not None:
            return verdict
        if not 0 < len(asks) <= self.policy.asks_max:
            return _no(
                RefusalReason.CAPACITY_GRANULE,
                "asks",
                limit=self.policy.asks_max,
                requested=len(asks),
            )
        for ask in asks:
            verdict = self._meant_ask(ask)
            if verdict is not None:
                return verdict
        return None if len(asks) == 1 else self._meant_together(asks)

    def _meant_ask(self, ask: Ask) -> Verdict | None:
        pools = self._table.pools.matching(ask)
        need = ask.capacity
        if not pools:
            return _no(RefusalReason.NO_SUCH_RESOURCE, name_of(ask), requested=need)
        wanted = wholes_of(ask)
        if wanted is not None:
            return self._meant_wholes(ask, wanted, pools)
        unit = CORE_MILLI if ask.exclusive and ask.kind == ResourceKind.CPU else 1
        largest = total = 0
        granule = 0
        for pool in pools:
            if need % pool.granule:
                granule = min(granule or pool.granule, pool.granule)
                continue
            total += pool.capacity
            if pool.capacity > largest:
                largest = pool.capacity
        if need <= 0 or need > CAPACITY_MAX or need % unit or (granule and not total):
            limit = max(unit, granule or pools[0].granule)
            return _no(RefusalReason.CAPACITY_GRANULE, name_of(ask), limit=limit, requested=need)
        room = total if spans(ask) else largest
        if need > room:
            return _no(RefusalReason.NO_CAPACITY, name_of(ask), limit=room, requested=need)
        return self._open(ask, pools)

    def _meant_wholes(self, ask: Ask, wanted: Wholes, pools: tuple[Pool, ...]) -> Verdict | None:
        need = ask.capacity
        if ask.kind == ResourceKind.GPU and not ask.count and need % GPU_MILLI:
            limit = GPU_MILLI
            return _no(RefusalReason.CAPACITY_GRANULE, name_of(ask), limit=limit, requested=need)
        sizes = [pool.capacity for pool in pools if pool.capacity >= wanted.least]
        if len(sizes) < wanted.count:
            limit = sum(sizes) if sizes else max(pool.capacity for pool in pools)
            requested = wanted.count * wanted.least
            return _no(RefusalReason.NO_CAPACITY, name_of(ask), limit=limit, requested=requested)
        return self._open(ask, pools)

    def _open(self, ask: Ask, pools: tuple[Pool, ...]) -> Verdict | None:
        if not self._table.pools.usable(ask):
            return self._closed_off(ask, pools)
        if "" in self._table.pools.cordoned:
            return _no(RefusalReason.CORDONED, "node", requested=ask.capacity, waitable=True)
        return None

    def _closed_off(self, ask: Ask, pools: tuple[Pool, ...]) -> Verdict:
        if all(map(self._table.pools.is_cordoned, pools)):
            return _no(RefusalReason.CORDONED, name_of(ask), requested=ask.capacity, waitable=True)
        return _no(RefusalReason.UNHEALTHY, name_of(ask), requested=ask.capacity, waitable=True)

    def _meant_together(self, asks: tuple[Ask, ...]) -> Verdict | None:
        """Whether all asks would fit at once on an empty node: one resource asked twice has to add
        up.
        """
        pools = self._table.pools
        empty = {pool.counted.resource_id: -pool.used for pool in pools.by_id.values()}
        placed = place(asks, pools, taken=empty)
        if isinstance(placed, tuple):
            return None
        ask = asks[placed]
        sizes = [pool.capacity for pool in pools.usable(ask)]
        room = sum(sizes) if spans(ask) else max(sizes)
        together = sum(other.capacity for other in asks if other.kind == ask.kind)
        return _no(RefusalReason.NO_CAPACITY, name_of(ask), limit=room, requested=together)

    def _node_full(self) -> Verdict:
        return _no(
            RefusalReason.NODE_LEASES,
            "leases",
            limit=self.policy.leases_max,
            usage=self._table.occupied,
            requested=1,
            waitable=True,
        )

    def _no_room(self, asks: tuple[Ask, ...], failed: int, barred: AbstractSet[str]) -> Verdict:
        """NO_CAPACITY in numbers: of the resource with the most room, or of all together where an
        ask may span.
        """
        ask = asks[failed]
        wanted = wholes_of(ask)
        least = 0 if wanted is None else wanted.least
        pools = [pool for pool in self._table.pools.usable(ask) if pool.capacity >= least]
        rooms = [
            (0 if pool.counted.resource_id in barred else max(0, pool.free), pool.capacity)
            for pool in pools
        ]
        if spans(ask):
            free, limit = sum(room for room, _ in rooms), sum(capacity for _, capacity in rooms)
        else:
            free, limit = max(rooms)
        return _no(
            RefusalReason.NO_CAPACITY,
            name_of(ask),
            limit=limit,
            usage=limit - free,
            requested=ask.capacity,
            waitable=True,
        )

    def _behind(self, reason: RefusalReason, acquire: Acquire) -> Verdict:
        """It would fit, but an earlier request waits for the same: all of it counts as spoken
        for.
        """
        if reason is RefusalReason.NODE_LEASES:
            limit, what, requested = self.policy.leases_max, "leases", 1
        elif reason is RefusalReason.TENANT_LEASES:
            limit, what, requested = (
                self._book.limits(acquire.caller.tenant).leases_max or 0,
                "leases",
                1,
            )
        else:
            ask = acquire.asks[0]
            limit = sum(pool.capacity for pool in self._table.pools.usable(ask))
            what, requested = name_of(ask), ask.capacity
        return _no(reason, what, limit=limit, usage=limit, requested=requested, waitable=True)

    def earliest_ns(self, acquire: Acquire, now_ns: int) -> int | None:
        """When `acquire` could succeed at the earliest, given the deadlines of the leases that are
        there now.
        """
        if self.meant(acquire) is not None:
            return None
        limits = self._book.limits(acquire.caller.tenant)
        instants = (
            node_ns(self._table, self.policy.leases_max, now_ns),
            tenant_ns(self._table, limits, acquire, now_ns),
            room_ns(self._table, acquire.asks, now_ns),
        )
        known = [at_ns for at_ns in instants if at_ns is not None]
        return max(known) if len(known) == len(instants) else None


def _over_quota(overrun: Overrun) -> Verdict:
    by_count = overrun.kind is None
    return _no(
        RefusalReason.TENANT_LEASES if by_count else RefusalReason.TENANT_CAPACITY,
        "leases" if overrun.kind is None else overrun.kind.name.lower(),
        limit=overrun.limit,
        usage=overrun.usage,
        requested=overrun.requested,
        # A request that is larger than the limit by itself never fits, whoever leaves.
        waitable=overrun.requested <= overrun.limit,
    )
