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

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from leased.lessor.admission import Admission
from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import Trigger
from leased.lessor.placement import place
from leased.lessor.preemption import STAYING, Candidates, choose_victims
from leased.lessor.queue import Waiting, WaitQueue, level_of
from leased.lessor.quota import wanted_by
from leased.lessor.shares import Division, Share
from leased.lessor.table import LeaseTable
from leased.terms.command import Acquire
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease, Priority, RevocationReason
from leased.terms.policy import Policy
from leased.terms.reply import RefusalReason
from leased.terms.resource import Allotment, capacity_id

TRIES_MAX = 8
"""Requests that choose victims in one go. The others have their turn when those have theirs."""

Left = dict[str, int]
"""Capacity to leave out of a placement by resource, negative where it is going to be free."""


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


def make_room(draft: Draft, queue: WaitQueue, admission: Admission) -> bool:
    """Tell as few as possible to leave for those who wait. Whether to look again before anything
    else happens.
    """
    table, look = draft.table, False
    leaving = leaving_of(table)
    tries = 0
    for waiting in queue:
        if waiting.reason is not RefusalReason.NO_CAPACITY:
            continue
        acquire = waiting.acquire
        placed = place(acquire.asks, table.pools, taken=leaving)
        if isinstance(placed, tuple):
            _take(leaving, placed, 1)
            continue
        if tries == TRIES_MAX:
            return True
        tries += 1
        if not _may(draft, waiting, admission.policy):
            look = True
            continue
        search = find_victims(table, queue, admission, acquire, leaving, draft.now_ns)
        look |= search.later
        if not search.found:
            continue
        if waiting.lease_id is None:
            waiting.lease_id = LeaseId(draft.ids())
        for victim in search.victims:
            _tell(draft, victim, waiting)
            _take(leaving, victim.lease.subject.allotments, -1)
        waiting.victims = tuple(victim.lease.lease_id for victim in search.victims)
        placed = place(acquire.asks, table.pools, taken=leaving)
        assert isinstance(placed, tuple), "the victims were chosen so that it fits"
        _take(leaving, placed, 1)
    return look


def leaving_of(table: LeaseTable) -> Left:
    """What is going to be free without anybody being told anything more."""
    leaving: Left = {
        pool.resource_id: -pool.teardown
        for pool in table.pools.by_id.values()
        if pool.counted is pool and pool.teardown
    }
    for lease_id in table.draining:
        _take(leaving, table.leases[lease_id].subject.allotments, -1)
    return leaving


def _take(leaving: Left, allotments: Sequence[Allotment], sign: int) -> None:
    for one in allotments:
        resource_id = capacity_id(one.resource_id)
        leaving[resource_id] = leaving.get(resource_id, 0) + sign * one.capacity


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
    table: LeaseTable,
    queue: WaitQueue,
    admission: Admission,
    acquire: Acquire,
    leaving: Left,
    now_ns: int,
) -> Search:
    """Who would have to leave for `acquire`, besides what is leaving."""
    policy = admission.policy
    pools = dict.fromkeys(
        pool.counted.resource_id for ask in acquire.asks for pool in table.pools.usable(ask)
    )
    why: dict[LeaseId, Victim] = {}
    candidates: Candidates | None = None
    if policy.preemption.enabled:
        level = level_of(acquire)
        candidates = Candidates(table, policy.preemption, level=level, pools=pools, now_ns=now_ns)

    def ordered() -> Iterator[Lease]:
        for victim in _callable_back(table, queue, admission, acquire, pools):
            why[victim.lease.lease_id] = victim
            yield victim.lease
        for lease in candidates or ():
            if lease.lease_id not in why:
                grace_ns = _grace_ns(lease, policy)
                reason = RevocationReason.PRIORITY_PREEMPTION
                why[lease.lease_id] = Victim(lease, reason, grace_ns)
                yield lease

    def room(victims: Sequence[Lease]) -> Left | None:
        gone = dict(leaving)
        for victim in victims:
            _take(gone, victim.subject.allotments, -1)
        placed = place(acquire.asks, table.pools, taken=gone)
        if not isinstance(placed, tuple):
            return None
        _take(gone, placed, 1)
        return {
            pool.resource_id: pool.free - gone.get(pool.resource_id, 0)
            for pool in map(table.pools.by_id.__getitem__, pools)
        }

    chosen = choose_victims(ordered(), room)
    if chosen is None:
        return Search(later=candidates is not None and candidates.young)
    return Search(tuple(why[lease.lease_id] for lease in chosen), found=True)


def _grace_ns(lease: Lease, policy: Policy) -> int:
    terms = policy.preemption
    longest = (
        terms.checkpoint_ns_max_scavenger
        if lease.subject.priority is Priority.SCAVENGER
        else terms.checkpoint_ns_max_standard
    )
    return min(lease.grace_ns, longest)


def _callable_back(
    table: LeaseTable,
    queue: WaitQueue,
    admission: Admission,
    acquire: Acquire,
    pools: Mapping[str, None],
) -> Iterator[Victim]:
    """What lies above somebody's line or part and is called back for `acquire`."""
    tenant, charge = acquire.caller.tenant, wanted_by(acquire)
    grace_ns = admission.policy.borrowing.grace_ns
    for share in admission.shares.owned(tenant, charge):
        lines = {other: share.lines.get(other, 0) for other in share.used}
        yield from _above(table, share, lines, pools, grace_ns)
    for division in admission.shares.fair():
        more = division.share.wanted(charge)
        if more:
            parts = division.entitled(table.pools, wanted_of(queue, division))
            if division.share.used.get(tenant, 0) + more <= parts.get(tenant, 0):
                yield from _above(table, division.share, parts, pools, None)


def wanted_of(queue: WaitQueue, division: Division) -> dict[TenantId, int]:
    """What those who wait want of a division, beyond what they have."""
    wanted: dict[TenantId, int] = {}
    for waiting in queue:
        tenant = waiting.acquire.caller.tenant
        more = division.share.wanted(wanted_by(waiting.acquire))
        if more:
            wanted[tenant] = wanted.get(tenant, 0) + more
    return wanted


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
