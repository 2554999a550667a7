# SPDX-License-Identifier: Apache-2.0
"""Yielding: making room for requests that wait, by telling others to leave.

Rule: only for whoever waits, in the order of the queue, and only if what is leaving already
(notices given, teardowns under way) is not enough; so one request's victims are never taken for
another's, and no more leave than are needed. First goes what lies above its tenant's own line where
the request is for what is its tenant's own; then, where capacity is divided fairly, what lies above
a tenant's part, which is only not renewed; then the lower levels. A victim is told why and for
whom, has its grace, and keeps its deadline if that comes first: then denying it a renewal is all
that happens.

Does not choose among leases of one kind (`preemption`) and does not grant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from leased.lessor.admission import Admission
from leased.lessor.bars import Places, places_of
from leased.lessor.draft import Draft, Facts
from leased.lessor.extension import notice_ceiling
from leased.lessor.lifecycle import Trigger
from leased.lessor.placement import place, spans
from leased.lessor.preemption import Candidates, Left, choose_victims, take
from leased.lessor.queue import Waiting, WaitQueue, level_of
from leased.lessor.quota import wanted_by
from leased.lessor.shares import Division, Share
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import wholes_of
from leased.terms.command import Acquire
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease, LeaseState, Level, RevocationReason
from leased.terms.policy import Policy
from leased.terms.reply import RefusalReason
from leased.terms.resource import capacity_id

STAYING = (LeaseState.GRANTED, LeaseState.ACTIVE)
TRIES_MAX = 8
"""Searches for victims in one go. Whoever is left has its turn when those have had theirs."""


class Victim(msgspec.Struct, frozen=True):
    """A lease that would make way, why, and how long it may take; None: until its deadline."""

    lease: Lease
    reason: RevocationReason
    grace_ns: int | None


class Search(msgspec.Struct):
    """What looking for victims found. `later`: only time is missing."""

    victims: tuple[Victim, ...] = ()
    found: bool = False
    later: bool = False


class Surroundings:
    """What is the same for every search in one go: how capacity is divided fairly among those who
    have or want it, and what was looked for in vain.

    A search that found nobody to preempt says so for everybody who wants as much or more of the
    same at the same level or a lower one.
    """

    __slots__ = ("_fair", "_owed", "_parts", "_queue", "_table", "_vain", "admission")

    def __init__(
        self, table: LeaseTable, queue: WaitQueue, admission: Admission, *, fair: bool = True
    ) -> None:
        self._table, self._queue, self.admission = table, queue, admission
        self._fair = admission.shares.fair() if fair else []
        self._parts: dict[str, dict[TenantId, int]] = {}
        self._owed: bool | None = None
        self._vain: dict[Likes, list[tuple[Level, int, bool]]] = {}

    @property
    def owed(self) -> bool:
        """Whether anybody has more than its line or part, so that it could be called back."""
        if self._owed is None:
            self._owed = (
                bool(self._table.yielders.lent)
                or self.admission.shares.lent_out
                or any(map(self._uneven, self._fair))
            )
        return self._owed

    def _uneven(self, division: Division) -> bool:
        parts = self.parts(division)
        return any(used > parts.get(tenant, 0) for tenant, used in division.share.used.items())

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
            if more:
                parts = self.parts(division)
                if division.share.used.get(tenant, 0) + more <= parts.get(tenant, 0):
                    yield from _above(table, division.share, parts, pools, None)

    def _lent(self, acquire: Acquire, pools: Mapping[str, None]) -> Iterator[Victim]:
        """What was lent while `acquire` waited ahead of whoever has it."""
        table, waiting = self._table, self._queue.find(acquire.command_id)
        for lease_id in table.yielders.lent if waiting is not None else ():
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


def make_room(draft: Draft, queue: WaitQueue, admission: Admission) -> bool:
    """Tell as few as possible to leave for those who wait. Whether to look again before anything
    else happens.
    """
    table, look, tries = draft.table, False, 0
    around, leaving = Surroundings(table, queue, admission), leaving_of(table)
    queue.claims.clear()
    for waiting in queue:
        if waiting.reason is not RefusalReason.NO_CAPACITY:
            continue
        later = around.in_vain(waiting.acquire)
        if later is not None and not around.owed:
            look |= later
            continue
        if tries == TRIES_MAX:
            return True
        searched, again = _make_room_for(draft, queue, around, waiting, leaving)
        tries += searched
        look |= again
    return look


def make_room_for(draft: Draft, queue: WaitQueue, admission: Admission, waiting: Waiting) -> bool:
    """As `make_room`, for one that has just come, with what those ahead of it leave. What capacity
    is divided fairly by is looked at with the others, within LOOK_AGAIN_NS.
    """
    if waiting.reason is not RefusalReason.NO_CAPACITY:
        return False
    leaving = leaving_of(draft.table)
    for other in queue.claims.values():
        if other.rank < waiting.rank:
            take(leaving, other.claim, 1)
    around = Surroundings(draft.table, queue, admission, fair=False)
    _, again = _make_room_for(draft, queue, around, waiting, leaving)
    return again or bool(admission.shares.fair())


def _make_room_for(
    draft: Draft, queue: WaitQueue, around: Surroundings, waiting: Waiting, leaving: Left
) -> tuple[bool, bool]:
    """Whether there was a search, and whether to look again. `leaving` is what is leaving and
    nobody before claims; what is claimed here is taken from it.
    """
    table, acquire = draft.table, waiting.acquire
    placed = place(acquire.asks, table.pools, taken=leaving)
    searched = again = False
    if not isinstance(placed, tuple):
        if not _may(draft, waiting, around.admission.policy):
            return False, True
        search = find_victims(table, around, acquire, leaving, draft.now_ns)
        searched, again = True, search.later
        if not search.found:
            return searched, again
        if waiting.lease_id is None:
            waiting.lease_id = LeaseId(draft.ids())
        for victim in search.victims:
            _tell(draft, victim, waiting)
            take(leaving, victim.lease.subject.allotments, -1)
        around.forget_vain()
        waiting.victims = tuple(victim.lease.lease_id for victim in search.victims)
        placed = place(acquire.asks, table.pools, taken=leaving)
        assert isinstance(placed, tuple), "the victims were chosen so that it fits"
    take(leaving, placed, 1)
    queue.claim(waiting, placed)
    return searched, again


def leaving_of(table: LeaseTable) -> Left:
    """What is going to be free without anybody being told anything more."""
    return {
        pool.resource_id: -(pool.teardown + pool.draining)
        for pool in table.pools.by_id.values()
        if pool.counted is pool and (pool.teardown or pool.draining)
    }


def _may(draft: Draft, waiting: Waiting, policy: Policy) -> bool:
    """Whether it is time for a request to have others leave. One whose victims made way in vain
    leaves everybody alone for a while.
    """
    if waiting.victims:
        if any(lease_id in draft.table.leases for lease_id in waiting.victims):
            return False
        waiting.victims = ()
        waiting.spared_until_ns = draft.now_ns + policy.preemption.cooldown_ns
    return draft.now_ns >= max(
        waiting.spared_until_ns, waiting.since_ns + policy.preemption.wait_ns
    )


def _tell(draft: Draft, victim: Victim, waiting: Waiting) -> None:
    lease, now_ns = victim.lease, draft.now_ns
    until_ns = lease.deadline_ns
    if victim.grace_ns is not None:
        until_ns = min(until_ns, now_ns + victim.grace_ns)
    assert waiting.lease_id is not None
    facts = Facts(
        now_ns,
        reason=victim.reason,
        until_ns=until_ns,
        preemptor_lease_id=waiting.lease_id,
        preemptor_tenant=waiting.acquire.caller.tenant,
    )
    draft.end(lease, Trigger.PREEMPT, facts)


def find_victims(
    table: LeaseTable, around: Surroundings, acquire: Acquire, leaving: Left, now_ns: int
) -> Search:
    """Who would have to leave for `acquire`, besides what is leaving."""
    policy = around.admission.policy
    pools = dict.fromkeys(
        pool.counted.resource_id for ask in acquire.asks for pool in table.pools.usable(ask)
    )
    level = level_of(acquire)
    called = tuple(around.called_back(acquire, pools))
    if not called:
        later = around.in_vain(acquire)
        if later is not None:
            return Search(later=later)
        if not policy.preemption.enabled or not _could_do(table, acquire, level, leaving):
            around.note_vain(acquire, later=False)
            return Search()
    why = {victim.lease.lease_id: victim for victim in called}
    candidates: Candidates | None = None
    if policy.preemption.enabled:
        candidates = Candidates(table, policy.preemption, level=level, pools=pools, now_ns=now_ns)

    def ordered() -> Iterator[Lease]:
        yield from (victim.lease for victim in called)
        for lease in candidates or ():
            if lease.lease_id not in why:
                yield lease

    def room(gone: Left) -> Left | None:
        placed = place(acquire.asks, table.pools, taken=gone)
        if not isinstance(placed, tuple):
            return None
        left = dict(gone)
        take(left, placed, 1)
        by_id = table.pools.by_id
        return {one: by_id[one].free - left.get(one, 0) for one in pools}

    chosen = choose_victims(ordered(), room, leaving)
    if chosen is None:
        later = candidates is not None and candidates.young
        if not called:
            around.note_vain(acquire, later=later)
        return Search(later=later)
    reason = RevocationReason.PRIORITY_PREEMPTION
    victims = tuple(
        why.get(lease.lease_id) or Victim(lease, reason, _grace_ns(lease, policy))
        for lease in chosen
    )
    return Search(victims, found=True)


def _could_do(table: LeaseTable, acquire: Acquire, level: Level, leaving: Left) -> bool:
    """Whether there would be enough for every ask by itself if everybody below `level` left: if
    not, there is no need to look at them one by one.
    """
    below = table.yielders.capacity_below
    for ask in acquire.asks:
        counted = {one.counted.resource_id: one.counted for one in table.pools.usable(ask)}
        rooms = [
            (pool.free - leaving.get(name, 0) + below(level, name), pool.capacity)
            for name, pool in counted.items()
        ]
        wanted = wholes_of(ask)
        if wanted is not None:
            if sum(room >= size >= wanted.least for room, size in rooms) < wanted.count:
                return False
        elif spans(ask):
            if sum(room for room, _ in rooms) < ask.capacity:
                return False
        elif max(rooms, default=(0, 0))[0] < ask.capacity:
            return False
    return True


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
