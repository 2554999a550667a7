# SPDX-License-Identifier: Apache-2.0
"""The estimate: the earliest instant at which each check of admission could pass, if every present
lease ends on time.

Rule: it is never too late: the request cannot succeed before, unless somebody releases early.
Leases in teardown count as gone now, nobody renews, and the queue ahead is not counted. It is exact
as long as no more than `WALK_MAX` leases of a resource have to end first; beyond that it is the
end of the last one looked at, so that a refusal stays cheap however much is asked. None means that
no end of a present lease would make room.

Does not say whether the check fails (`lessor.admission`) and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from leased.lessor.placement import place, spans
from leased.lessor.pool import Pool
from leased.lessor.quota import Account, Limits, wanted_by_kind
from leased.lessor.table import LeaseTable
from leased.terms.command import Acquire
from leased.terms.identity import LeaseId
from leased.terms.resource import Ask, ResourceKind, capacity_id

WALK_MAX = 256
"""Leases looked at per resource or tenant for one refusal: about 0.3 ms of work at the worst."""


def node_ns(table: LeaseTable, leases_max: int, now_ns: int) -> int | None:
    """When the node has a place for one more lease."""
    need = table.live - leases_max + 1
    if need <= 0:
        return now_ns
    if need == 1:
        return table.deadlines.next_ns()
    instants = sorted(table.deadlines.current.values())
    return instants[need - 1] if need <= len(instants) else None


def tenant_ns(table: LeaseTable, limits: Limits, acquire: Acquire, now_ns: int) -> int | None:
    """When the tenant is below its own limits again."""
    account = table.accounts.get(acquire.caller.tenant)
    wanted = wanted_by_kind(acquire.asks)
    if limits.unlimited or limits.overrun(account, wanted) is None:
        return now_ns
    if account is None:
        return None
    latest = now_ns
    if limits.leases_max is not None:
        at_ns = _covered_ns(
            account, account.leases + 1 - limits.leases_max, lambda lease_id: 1, now_ns
        )
        if at_ns is None:
            return None
        latest = at_ns
    for kind in ResourceKind:
        limit = limits.capacities[kind]
        if limit is None or not wanted[kind]:
            continue
        over = account.capacities[kind] + wanted[kind] - limit
        at_ns = _covered_ns(account, over, _weigh_kind(table, kind), now_ns)
        if at_ns is None:
            return None
        latest = max(latest, at_ns)
    return latest


def room_ns(table: LeaseTable, asks: tuple[Ask, ...], now_ns: int) -> int | None:
    """When the resources have room for all asks at once."""
    if len(asks) == 1 and not spans(asks[0]):
        need = asks[0].capacity
        instants = [
            _pool_ns(table, pool, need, now_ns)
            for pool in table.pools.usable(asks[0])
            if need <= pool.capacity and need % pool.granule == 0
        ]
        known = [at_ns for at_ns in instants if at_ns is not None]
        return min(known) if known else None
    return _together_ns(table, asks, now_ns)


def _covered_ns(
    account: Account, over: int, weigh: Callable[[LeaseId], int], now_ns: int
) -> int | None:
    return now_ns if over <= 0 else account.endings.covering_ns(over, weigh, WALK_MAX)


def _weigh_kind(table: LeaseTable, kind: ResourceKind) -> Callable[[LeaseId], int]:
    def weigh(lease_id: LeaseId) -> int:
        return sum(a.capacity for a in table.leases[lease_id].subject.allotments if a.kind == kind)

    return weigh


def held(table: LeaseTable, lease_id: LeaseId, resource_id: str) -> int:
    """What a lease holds of the capacity that one resource counts."""
    return sum(
        a.capacity
        for a in table.leases[lease_id].subject.allotments
        if capacity_id(a.resource_id) == resource_id
    )


def _pool_ns(table: LeaseTable, pool: Pool, need: int, now_ns: int) -> int | None:
    missing = need - pool.free - pool.teardown
    if missing <= 0:
        return now_ns
    return pool.endings.covering_ns(
        missing, lambda lease_id: held(table, lease_id, pool.counted.resource_id), WALK_MAX
    )


def _together_ns(table: LeaseTable, asks: tuple[Ask, ...], now_ns: int) -> int | None:
    """Several resources at once: imagine the leases gone in the order of their ends, and bisect for
    the first fit.
    """
    usable = (pool.counted for ask in asks for pool in table.pools.usable(ask))
    pools = {pool.resource_id: pool for pool in usable}
    ends = [(now_ns, pool.resource_id, pool.teardown) for pool in pools.values()]
    horizon_ns: int | None = None  # beyond it, not every end is known
    for pool in pools.values():
        first = pool.endings.first(WALK_MAX)
        if len(first) == WALK_MAX:
            horizon_ns = first[-1][0] if horizon_ns is None else min(horizon_ns, first[-1][0])
        for at_ns, lease_id in first:
            capacity = held(table, lease_id, pool.resource_id)
            ends.append((max(at_ns, now_ns), pool.resource_id, capacity))
    instants = sorted(
        {at_ns: None for at_ns, _, _ in ends if horizon_ns is None or at_ns <= horizon_ns}
    )

    def fits(by_ns: int) -> bool:
        gone: dict[str, int] = {}
        for at_ns, resource_id, capacity in ends:
            if at_ns <= by_ns:
                gone[resource_id] = gone.get(resource_id, 0) - capacity
        return isinstance(place(asks, table.pools, taken=gone), tuple)

    if not instants or not fits(instants[-1]):
        return horizon_ns
    low, high = 0, len(instants) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(instants[middle]):
            high = middle
        else:
            low = middle + 1
    return instants[high]
