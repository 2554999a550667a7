# SPDX-License-Identifier: Apache-2.0
"""Meaning: whether a request can be meant on this node at all, and what to say where there is no
room for it.

Rule: what could never be granted here, however empty the node, is refused at once; what is only
taken, closed off or sick now may be waited for.

Does not look at anybody's limits (`admission`) and does not place (`placement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import msgspec

from leased.lessor.placement import place, spans
from leased.lessor.pool import Pool
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import GPU_MILLI, Wholes, wholes_of
from leased.terms.command import Acquire
from leased.terms.lease import Priority
from leased.terms.policy import Policy, WhenOver
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import Ask, ResourceKind

CAPACITY_MAX = 2**63 - 1
"""Nothing is larger than this; it also bounds what a refusal writes to the chain."""

CORE_MILLI = 1000
QUEUE = "queue"
"""The rule of a refusal where others who wait come first."""

_KINDS = {kind.name.lower(): kind for kind in ResourceKind}


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """No. `waitable`: it may become yes without the caller changing anything. `holder` is whose
    limit it is, where it is somebody's, and `when_over` what the policy says should become of the
    request then. `behind`: it stands behind another that waits for the same.
    """

    refusal: Refusal
    waitable: bool
    holder: str = ""
    when_over: WhenOver = WhenOver.REJECT
    behind: bool = False


def clip(number: int) -> int:
    return max(-CAPACITY_MAX, min(CAPACITY_MAX, number))


def no(
    reason: RefusalReason,
    what: str,
    *,
    limit: int = 0,
    usage: int = 0,
    requested: int = 0,
    rule: str = "",
    waitable: bool = False,
) -> Verdict:
    return Verdict(
        Refusal(reason, what, clip(limit), clip(usage), clip(requested), rule=rule), waitable
    )


def kind_named(what: str) -> ResourceKind | None:
    """The kind that a refusal's numbers are of, if it names one (`name_of`, or a limit's kind)."""
    return _KINDS.get(what.partition(":")[0])


def name_of(ask: Ask) -> str:
    """What a refusal calls the thing asked for: the pinned resource, else kind and shape."""
    if ask.resource_id is not None:
        return ask.resource_id
    kind = ask.kind.name.lower()
    return kind if ask.shape is None else f"{kind}:{ask.shape}"


class Meaning:
    """What can be asked of a table under a policy."""

    __slots__ = ("_policy", "_table", "_ttl_max")

    def __init__(self, table: LeaseTable, policy: Policy) -> None:
        self._table = table
        self._policy = policy
        self._ttl_max = tuple(policy.ttl_ns_max(priority) for priority in Priority)

    def judge_ttl(self, ttl_ns: int, priority: Priority) -> Verdict | None:
        """Whether a length of time is within the floor and the ceiling of its priority."""
        if ttl_ns < self._policy.ttl_ns_min:
            return no(
                RefusalReason.TTL_TOO_SHORT, "ns", limit=self._policy.ttl_ns_min, requested=ttl_ns
            )
        ceiling = self._ttl_max[priority]
        if ttl_ns > ceiling:
            return no(RefusalReason.TTL_TOO_LONG, "ns", limit=ceiling, requested=ttl_ns)
        return None

    def meant(self, acquire: Acquire) -> Verdict | None:
        """Whether the request can be meant on this node at all."""
        asks = acquire.asks
        verdict = self.judge_ttl(acquire.ttl_ns, acquire.priority)
        if verdict is not None:
            return verdict
        if not 0 < len(asks) <= self._policy.asks_max:
            return no(
                RefusalReason.CAPACITY_GRANULE,
                "asks",
                limit=self._policy.asks_max,
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
            return no(RefusalReason.NO_SUCH_RESOURCE, name_of(ask), requested=need)
        wanted = wholes_of(ask)
        if wanted is not None:
            return self._meant_wholes(ask, wanted, pools)
        of_cores = ask.kind == ResourceKind.CPU  # all that spans, of what is not whole
        unit = CORE_MILLI if ask.exclusive and of_cores else 1
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
            return no(RefusalReason.CAPACITY_GRANULE, name_of(ask), limit=limit, requested=need)
        room = total if of_cores else largest
        if need > room:
            return no(RefusalReason.NO_CAPACITY, name_of(ask), limit=room, requested=need)
        return self._open(ask, pools)

    def _meant_wholes(self, ask: Ask, wanted: Wholes, pools: tuple[Pool, ...]) -> Verdict | None:
        need = ask.capacity
        if ask.kind == ResourceKind.GPU and not ask.count and need % GPU_MILLI:
            limit = GPU_MILLI
            return no(RefusalReason.CAPACITY_GRANULE, name_of(ask), limit=limit, requested=need)
        sizes = [pool.capacity for pool in pools if pool.capacity >= wanted.least]
        if len(sizes) < wanted.count:
            limit = sum(sizes) if sizes else max(pool.capacity for pool in pools)
            requested = wanted.count * wanted.least
            return no(RefusalReason.NO_CAPACITY, name_of(ask), limit=limit, requested=requested)
        return self._open(ask, pools)

    def _open(self, ask: Ask, pools: tuple[Pool, ...]) -> Verdict | None:
        if not self._table.pools.usable(ask):
            return self._closed_off(ask, pools)
        if "" in self._table.pools.cordoned:
            return no(RefusalReason.CORDONED, "node", requested=ask.capacity, waitable=True)
        return None

    def _closed_off(self, ask: Ask, pools: Sequence[Pool]) -> Verdict:
        if all(map(self._table.pools.is_cordoned, pools)):
            return no(RefusalReason.CORDONED, name_of(ask), requested=ask.capacity, waitable=True)
        return no(RefusalReason.UNHEALTHY, name_of(ask), requested=ask.capacity, waitable=True)

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
        return no(RefusalReason.NO_CAPACITY, name_of(ask), limit=room, requested=together)

    def no_room(self, asks: tuple[Ask, ...], failed: int, barred: AbstractSet[str]) -> Verdict:
        """NO_CAPACITY in numbers: of the resource with the most room, or of all together where an
        ask may span; or why all those that it fits into are closed off.
        """
        ask = asks[failed]
        wanted = wholes_of(ask)
        least = 0 if wanted is None else wanted.least
        pools = [pool for pool in self._table.pools.usable(ask) if pool.capacity >= least]
        if wanted is None and not spans(ask):
            pools = [pool for pool in pools if _fits(ask, pool)]
            if not pools:
                fitting = [pool for pool in self._table.pools.matching(ask) if _fits(ask, pool)]
                return self._closed_off(ask, fitting)
        rooms = [
            (0 if pool.counted.resource_id in barred else max(0, pool.free), pool.capacity)
            for pool in pools
        ]
        if spans(ask):
            free, limit = sum(room for room, _ in rooms), sum(capacity for _, capacity in rooms)
        else:
            free, limit = max(rooms)
        return no(
            RefusalReason.NO_CAPACITY,
            name_of(ask),
            limit=limit,
            usage=limit - free,
            requested=ask.capacity,
            waitable=True,
        )


def _fits(ask: Ask, pool: Pool) -> bool:
    """Whether a pool could hold what is asked of one pool, were it empty."""
    return ask.capacity <= pool.capacity and not ask.capacity % pool.granule
