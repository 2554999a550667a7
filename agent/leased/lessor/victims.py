# SPDX-License-Identifier: Apache-2.0
"""Victims: who would have to leave for a request, and as few of them as will do.

Rule: first goes what lies above its tenant's own line where the request is for what is its tenant's
own; then, where capacity is divided fairly, what lies above a tenant's part, which is only not
renewed; then the lower levels. Whatever is leaving already counts as gone. A request that takes of
one pool is decided by sums, lease by lease; one of several resources by placing it.

Does not tell anybody (`yielding`) and does not order leases of lower levels (`preemption`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from operator import gt

import msgspec

from leased.lessor.admission import Admission
from leased.lessor.bars import Places, places_of
from leased.lessor.extension import notice_ceiling
from leased.lessor.fairness import least_part
from leased.lessor.placement import NONE_BARRED, place, spans
from leased.lessor.preemption import (
    Candidates,
    Left,
    Room,
    choose_in_one,
    choose_victims,
    take,
)
from leased.lessor.queue import WaitQueue, level_of
from leased.lessor.quota import wanted_by
from leased.lessor.several import Enough, Stretches, choose_in_several
from leased.lessor.shares import Division, Share
from leased.lessor.table import LeaseTable
from leased.lessor.yielders import Some
from leased.terms.command import Acquire
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease, LeaseState, Level, RevocationReason
from leased.terms.policy import Policy
from leased.terms.resource import Ask, capacity_id

STAYING = (LeaseState.GRANTED, LeaseState.ACTIVE)


class Victim(msgspec.Struct, frozen=True, gc=False):
    """A lease that would make way, why, and how long it may take; None: until its deadline."""

    lease: Lease
    reason: RevocationReason
    grace_ns: int | None


class Victims:
    """Those who would have to leave, each with why and how long when it is asked for. `why` has
    those that are called back.
    """

    __slots__ = ("_leases", "_policy", "_why")

    def __init__(
        self, leases: Sequence[Lease], why: Mapping[LeaseId, Victim], policy: Policy
    ) -> None:
        self._leases, self._why, self._policy = leases, why, policy

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Victim]:
        why, policy = self._why, self._policy
        for lease in self._leases:
            yield why.get(lease.lease_id) or Victim(
                lease, RevocationReason.PRIORITY_PREEMPTION, _grace_ns(lease, policy)
            )


class Search(msgspec.Struct):
    """What looking for victims found. `later`: only time is missing."""

    victims: Victims | tuple[Victim, ...] = ()
    found: bool = False
    later: bool = False


class Surroundings:
    """What is the same for every search in one go: how capacity is divided fairly among those who
    have or want it, and what was looked for in vain.

    A search that found nobody to preempt says so for everybody who wants as much or more of the
    same at the same level or a lower one.
    """

    __slots__ = ("_fair", "_owed", "_parts", "_queue", "_table", "_unevens", "_vain", "admission")

    def __init__(
        self, table: LeaseTable, queue: WaitQueue, admission: Admission, *, fair: bool = True
    ) -> None:
        self._table, self._queue, self.admission = table, queue, admission
        self._fair = admission.shares.fair() if fair else []
        self._parts: dict[str, dict[TenantId, int]] = {}
        self._owed: bool | None = None
        self._unevens: dict[str, bool] = {}
        self._vain: dict[Likes, list[tuple[Level, int, bool]]] = {}

    @property
    def owed(self) -> bool:
        """Whether anybody has more than its line or part, so that it could be called back."""
        if self._owed is None:
            self._owed = (
                bool(self._table.yielders.lent)
                or self.admission.shares.lent_out
                or any(map(self._is_uneven, self._fair))
            )
        return self._owed

    def _is_uneven(self, division: Division) -> bool:
        """Whether somebody has more than its part of a division."""
        uneven = self._unevens.get(division.name)
        if uneven is None:
            uneven = self._unevens[division.name] = self._uneven(division)
        return uneven

    def _uneven(self, division: Division) -> bool:
        used, terms, pools = division.share.used, division.allocation, self._table.pools
        if not used:
            return False
        wanted = self._queue.wanted(division.share.kind, division.share.tier)
        least = least_part(
            division.capacity(pools),
            len(used.keys() | wanted.keys()),
            equal=not division.weights,
            min_pm=terms.min_share_pm,
            max_pm=terms.max_share_pm,
        )
        if max(used.values()) <= least:
            return False
        parts = self.parts(division)
        return any(map(gt, used.values(), map(parts.__getitem__, used)))

    def parts(self, division: Division) -> dict[TenantId, int]:
        """Everybody's part of a division."""
        parts = self._parts.get(division.name)
        if parts is None:
            wanted = self._queue.wanted(division.share.kind, division.share.tier)
            parts = self._parts[division.name] = division.entitled(self._table.pools, wanted)
        return parts

    def called_back(self, acquire: Acquire, pools: Mapping[str, None]) -> Iterator[Victim]:
        """What lies above somebody's line or part, or was lent until it is needed, and is called
        back for `acquire`.
        """
        if not self.owed:
            return
        admission, table = self.admission, self._table
        yield from self._lent(acquire, pools)
        tenant, charge = acquire.caller.tenant, wanted_by(acquire)
        grace_ns = admission.policy.borrowing.grace_ns
        for share in admission.shares.owned(tenant, charge):
            lines = {other: share.line(other) for other in share.used}
            yield from _above(table, share, lines, pools, grace_ns)
        for division in self._fair:
            more = division.share.wanted(charge)
            if more and self._is_uneven(division):
                parts = self.parts(division)
                if division.share.used.get(tenant, 0) + more <= parts.get(tenant, 0):
                    yield from _above(table, division.share, parts, pools, None)

    def _lent(self, acquire: Acquire, pools: Mapping[str, None]) -> Iterator[Victim]:
        """What was lent while `acquire` waited ahead of whoever has it."""
        table, waiting = self._table, self._queue.find(acquire.command_id)
        if waiting is None:
            return
        for lease_id in table.yielders.lent:
            lease = table.leases[lease_id]
            ahead = waiting.since_ns <= lease.granted_ns and waiting.level >= table.level(lease)
            if ahead and any(capacity_id(a.resource_id) in pools for a in lease.subject.allotments):
                grace_ns = _grace_ns(lease, self.admission.policy)
                yield Victim(lease, RevocationReason.QUOTA_RECLAIM, grace_ns)

    def in_vain(self, acquire: Acquire) -> bool | None:
        """Whether only time is missing to preempt for `acquire`, if it is known that nobody can be
        preempted for it now; None: it has to be looked for.
        """
        rows = self._vain.get(_likes(acquire))
        if rows is None:
            return None
        level, size = level_of(acquire), acquire.asks[0].capacity
        for known, least, later in rows:
            if level <= known and size >= least:
                return later
        return None

    def note_vain(self, acquire: Acquire, *, later: bool) -> None:
        """Nobody can be preempted for `acquire`."""
        if len(acquire.asks) == 1:
            rows = self._vain.setdefault(_likes(acquire), [])
            rows.append((level_of(acquire), acquire.asks[0].capacity, later))

    def forget_vain(self) -> None:
        """Somebody was told to leave: there may be more room than was needed."""
        self._vain.clear()


Likes = tuple[Places, tuple[tuple[int, bool], ...]]


def _likes(acquire: Acquire) -> Likes:
    """What two requests have in common that differ only in how much they want."""
    return places_of(acquire), tuple((ask.count, ask.exclusive) for ask in acquire.asks)


def find_victims(
    table: LeaseTable,
    around: Surroundings,
    acquire: Acquire,
    leaving: Left,
    now_ns: int,
    *,
    barred: AbstractSet[str] = NONE_BARRED,
) -> Search:
    """Who would have to leave for `acquire`, besides what is leaving. `barred` is for others."""
    policy = around.admission.policy
    pools = dict.fromkeys(
        pool.counted.resource_id
        for ask in acquire.asks
        for pool in table.pools.usable(ask)
        if pool.counted.resource_id not in barred
    )
    if not pools:
        return Search()
    level, enough = level_of(acquire), Enough(acquire.asks, table.pools, pools)
    frees = {one: table.pools.by_id[one].free for one in pools}
    called = tuple(around.called_back(acquire, pools))
    if not called:
        later = around.in_vain(acquire)
        if later is not None:
            return Search(later=later)
        below = table.yielders.capacity_below
        most = {one: free - leaving.get(one, 0) + below(level, one) for one, free in frees.items()}
        if not policy.preemption.enabled or not enough.holds(most):
            around.note_vain(acquire, later=False)
            return Search()
    why = {victim.lease.lease_id: victim for victim in called}
    candidates: Candidates | None = None
    if policy.preemption.enabled:
        candidates = Candidates(table, policy.preemption, level=level, pools=pools, now_ns=now_ns)

    def room(gone: Left) -> Left | None:
        free = {one: free - gone.get(one, 0) for one, free in frees.items()}
        placed = (
            place(acquire.asks, table.pools, taken=gone, barred=barred)
            if enough.holds(free)
            else None
        )
        if not isinstance(placed, tuple):
            return None
        take(free, placed, -1)
        return free

    if len(acquire.asks) == 1 and not spans(acquire.asks[0]):
        chosen = _choose_by_pool(table, acquire.asks[0], pools, leaving, why, candidates)
    elif candidates is None:
        chosen = choose_victims([victim.lease for victim in called], room, leaving)
    else:
        some = candidates
        chosen = choose_in_several(
            [victim.lease for victim in called],
            lambda: Stretches(table, some, pools, why),
            room,
            leaving,
            _fits(enough, frees, room),
        )
    if chosen is None:
        later = candidates is not None and candidates.young
        if not called:
            around.note_vain(acquire, later=later)
        return Search(later=later)
    return Search(Victims(chosen, why, policy), found=True)


def _fits(enough: Enough, frees: Left, room: Room) -> Callable[[Left], bool]:
    """Whether there is `room`, by sums where those are exact."""
    if not enough.exact:
        return lambda gone: room(gone) is not None
    return lambda gone: enough.holds({one: free - gone.get(one, 0) for one, free in frees.items()})


def _choose_by_pool(
    table: LeaseTable,
    ask: Ask,
    pools: Mapping[str, None],
    leaving: Left,
    why: Mapping[LeaseId, Victim],
    candidates: Candidates | None,
) -> Sequence[Lease] | None:
    """Whom an ask that takes of one pool has leave: of the pool where it is enough first."""
    best: tuple[tuple[int, ...], int, Sequence[Lease]] | None = None
    for pool in table.pools.usable(ask):
        name = pool.counted.resource_id
        if ask.capacity % pool.granule or name not in pools:
            continue
        room = pool.free - leaving.get(name, 0)
        if room >= ask.capacity:
            return ()
        called = Some(_shares_of([victim.lease for victim in why.values()], name))
        below = candidates.of_one(name) if candidates is not None else ()
        if why:
            below = (
                Some([one for one in some.each() if one[0].lease_id not in why]) for some in below
            )
        chosen = choose_in_one(chain((called,), below), ask.capacity, room)
        if chosen:
            last, places = chosen[-1], list(why)
            called_last = last.lease_id in why
            where = places.index(last.lease_id) if called_last else int(table.level(last))
            rank = (not called_last, where, last.deadline_ns, -last.granted_ns)
            if best is None or (rank, len(chosen)) < best[:2]:
                best = (rank, len(chosen), chosen)
    return None if best is None else best[2]


def _shares_of(leases: Sequence[Lease], resource_id: str) -> list[tuple[Lease, int]]:
    """Those that have something of a resource, and how much."""
    found: list[tuple[Lease, int]] = []
    for lease in leases:
        capacity = sum(
            one.capacity
            for one in lease.subject.allotments
            if capacity_id(one.resource_id) == resource_id
        )
        if capacity:
            found.append((lease, capacity))
    return found


def _grace_ns(lease: Lease, policy: Policy) -> int:
    return min(lease.grace_ns, notice_ceiling(policy, lease.subject.priority)[0])


def _above(
    table: LeaseTable,
    share: Share,
    lines: Mapping[TenantId, int],
    pools: Mapping[str, None],
    grace_ns: int | None,
) -> Iterator[Victim]:
    """Leases of those who have more than their line, the lowest level and the newest first, as far
    as it is more.
    """
    over = {
        tenant: used - lines.get(tenant, 0)
        for tenant, used in share.used.items()
        if used > lines.get(tenant, 0)
    }
    rows = []
    for tenant in over:
        account = table.accounts.get(tenant)
        assert account is not None
        for lease_id, charge in account.charges.items():
            lease = table.leases[lease_id]
            capacity = share.wanted(charge)
            if not capacity:
                continue
            if lease.state not in STAYING:
                over[tenant] -= capacity  # it leaves, or has left, anyway
            elif any(capacity_id(a.resource_id) in pools for a in lease.subject.allotments):
                rows.append((int(table.level(lease)), -lease.granted_ns, lease_id, capacity, lease))
    for _, _, _, capacity, lease in sorted(rows, key=lambda row: row[:3]):
        tenant = lease.subject.tenant
        if over[tenant] > 0:
            over[tenant] -= capacity
            yield Victim(lease, RevocationReason.QUOTA_RECLAIM, grace_ns)
