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

from collections.abc import Callable, Iterable

from leased.lessor.accounts import ANY, Account, Charge, weigh
from leased.lessor.placement import place, spans
from leased.lessor.pool import Pool
from leased.lessor.quota import Limits, Row, account_of, wanted_by
from leased.lessor.table import LeaseTable
from leased.terms.command import Acquire
from leased.terms.identity import LeaseId
from leased.terms.policy import Mode
from leased.terms.resource import Ask, capacity_id

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


LentAt = Callable[[int, int], int | None]
"""When others lend so much of a kind to whoever asks; None: no end of a lease makes them."""


def tenant_ns(
    table: LeaseTable,
    limits: Limits,
    acquire: Acquire,
    now_ns: int,
    *,
    from_ns: int,
    lent_ns: LentAt,
) -> int | None:
    """When, from `from_ns` on, the tenant is below its own limits again, and those that it
    shares.
    """
    if limits.unlimited:
        return from_ns
    charge, latest = _surely(table, acquire), from_ns
    for one in limits.chain():
        account = account_of(table.accounts, one)
        leases = 0 if account is None else account.leases
        for most in (one.leases_max, one.concurrent_max):
            if most is not None:
                at_ns = less_ns(account, leases + 1 - most, lambda lease_id: 1, now_ns)
                if at_ns is None:
                    return None
                latest = max(latest, at_ns)
        for row in one.rows:
            more = weigh(charge, row.kind, row.tier, row.node)
            if not more:
                continue
            at_ns = _row_ns(table, one, row, more, now_ns, latest)
            if one is limits and row.borrows and at_ns != latest:
                at_ns = first_of(at_ns, lent_ns(row.kind, more))
            if at_ns is None:
                return None
            latest = max(latest, at_ns)
    return latest


def _surely(table: LeaseTable, acquire: Acquire) -> Charge:
    """What a request wants; and where, if it says so or all that could serve it is of one tier, or
    on one node: a limit on that counts it, wherever it goes.
    """
    charge = []
    for ((kind, tier, node), capacity), ask in zip(wanted_by(acquire), acquire.asks, strict=True):
        cells = [pool.cell for pool in table.pools.usable(ask)]
        tier = _only(tier, (cell[1] for cell in cells))
        node = _only(node, (cell[2] for cell in cells))
        charge.append(((kind, tier, node), capacity))
    return tuple(charge)


def _only(said: int, there: Iterable[int]) -> int:
    """What is said, or all that is there."""
    found = dict.fromkeys(there)
    return next(iter(found)) if said == ANY and len(found) == 1 else said


def _row_ns(
    table: LeaseTable, limits: Limits, row: Row, more: int, now_ns: int, from_ns: int
) -> int | None:
    """When, from `from_ns` on, one row has room for `more`: below what it never lets through and,
    where it bears more than its limit for a while, when it does so again, or below the limit.
    """
    account, used = account_of(table.accounts, limits), 0
    if account is not None:
        used = account.used(row.kind, row.tier, row.node) - account.teardown[row.kind]
    weigh_lease = _weigher(account, row)
    within_ns = less_ns(account, used + more - row.ceiling, weigh_lease, now_ns)
    if row.mode is not Mode.SOFT or used + more <= row.limit or within_ns is None:
        return None if within_ns is None else max(within_ns, from_ns)
    within_ns = max(within_ns, from_ns)
    below_ns = less_ns(account, used - row.limit, weigh_lease, now_ns)
    borne_ns = table.overages.bearable_ns(limits.holder, row, within_ns, below_ns, now_ns)
    return first_of(borne_ns, less_ns(account, used + more - row.limit, weigh_lease, now_ns))


def first_of(one_ns: int | None, other_ns: int | None) -> int | None:
    """The earlier of two instants of which neither may ever come."""
    known = [at_ns for at_ns in (one_ns, other_ns) if at_ns is not None]
    return min(known, default=None)


Weigh = Callable[[LeaseId], int]


def less_ns(account: Account | None, over: int, weigh_lease: Weigh, now_ns: int) -> int | None:
    """When a holder has `over` less, if its leases end on time."""
    if over <= 0:
        return now_ns
    return None if account is None else account.endings.covering_ns(over, weigh_lease, WALK_MAX)


def _weigher(account: Account | None, row: Row) -> Weigh:
    def weigh_lease(lease_id: LeaseId) -> int:
        assert account is not None
        return weigh(account.charges.get(lease_id, ()), row.kind, row.tier, row.node)

    return weigh_lease


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


def ends_of(
    table: LeaseTable, pools: Iterable[Pool], now_ns: int
) -> tuple[list[tuple[int, str, LeaseId, int]], int | None]:
    """(instant, resource, lease, capacity) of the leases that end first, and beyond when not all of
    them are known.
    """
    ends: list[tuple[int, str, LeaseId, int]] = []
    horizon_ns: int | None = None
    for pool in pools:
        first = pool.endings.first(WALK_MAX)
        if len(first) == WALK_MAX:
            horizon_ns = first_of(horizon_ns, first[-1][0])
        for at_ns, lease_id in first:
            capacity = held(table, lease_id, pool.resource_id)
            ends.append((max(at_ns, now_ns), pool.resource_id, lease_id, capacity))
    return ends, horizon_ns


def _together_ns(table: LeaseTable, asks: tuple[Ask, ...], now_ns: int) -> int | None:
    """Several resources at once: imagine the leases gone in the order of their ends, and bisect for
    the first fit.
    """
    usable = (pool.counted for ask in asks for pool in table.pools.usable(ask))
    pools = {pool.resource_id: pool for pool in usable}
    leases, horizon_ns = ends_of(table, pools.values(), now_ns)
    ends = [(now_ns, pool.resource_id, pool.teardown) for pool in pools.values()]
    ends += [(at_ns, resource_id, capacity) for at_ns, resource_id, _, capacity in leases]
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
