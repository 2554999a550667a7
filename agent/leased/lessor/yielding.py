# SPDX-License-Identifier: Apache-2.0
"""Yielding: making room for requests that wait, by telling others to leave.

Rule: only for whoever waits, in the order of the queue, and only if what is leaving already
(notices given, teardowns under way) is not enough; so one request's victims are never taken for
another's, and no more leave than are needed. Nobody leaves for a request that stands behind one
which waits for the same and cannot be helped: that one would have it. A victim is told why and for
whom, has its grace, and keeps its deadline if that comes first: then denying it a renewal is all
that happens.

Does not choose whom (`victims`) and does not grant.
"""

from __future__ import annotations

import msgspec

from leased.lessor.admission import Admission
from leased.lessor.bars import Places
from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import Trigger
from leased.lessor.meaning import Verdict
from leased.lessor.placement import place
from leased.lessor.preemption import Left, take
from leased.lessor.queue import Waiting, WaitQueue, key_of
from leased.lessor.table import LeaseTable
from leased.lessor.victims import Surroundings, Victim, find_victims
from leased.terms.identity import LeaseId
from leased.terms.lease import LeaseState
from leased.terms.policy import Policy
from leased.terms.reply import RefusalReason

TRIES_MAX = 8
"""Searches for victims in one go. Whoever is left has its turn when those have had theirs."""


class Attempt(msgspec.Struct, frozen=True):
    """What came of making room for one request. `again`: it may be otherwise soon, by time alone;
    `told`: others were told to leave; `held_back`: they would have been.
    """

    searched: bool = False
    again: bool = False
    told: bool = False
    held_back: bool = False


def make_room(draft: Draft, queue: WaitQueue, admission: Admission) -> bool:
    """Tell as few as possible to leave for those who wait. Whether to look again before anything
    else happens.
    """
    table, look, tries = draft.table, False, 0
    around, leaving = Surroundings(table, queue, admission), leaving_of(table)
    queue.claims.clear()
    queue.short.clear()
    queue.stale = False
    without: list[Waiting] = []
    short: dict[Places, None] = {}
    for waiting in queue:
        no_room = waiting.reason is RefusalReason.NO_CAPACITY
        if not no_room or waiting.is_hopeless(table.pools):
            continue
        if waiting.places in short:
            without.append(waiting)
            continue
        if tries == TRIES_MAX:
            queue.stale = True
            return True
        attempt = _make_room_for(draft, queue, around, waiting, leaving)
        tries += attempt.searched
        look |= attempt.again
        if not _claims(queue, waiting):
            without.append(waiting)
            short[waiting.places] = None
            queue.fall_short(waiting, table.pools)
        if attempt.told:
            _give_what_is_left(table, queue, without, leaving)
            queue.stale |= len(queue) > 1
    return look


def _claims(queue: WaitQueue, waiting: Waiting) -> bool:
    """Whether a request will get something of what is leaving."""
    return queue.claims.get(key_of(waiting.acquire)) is waiting


def _give_what_is_left(
    table: LeaseTable, queue: WaitQueue, without: list[Waiting], leaving: Left
) -> None:
    """More may leave than one request needs: enough for somebody before it, perhaps. The first ones
    are looked at.
    """
    for waiting in without[:TRIES_MAX]:
        placed = place(waiting.acquire.asks, table.pools, taken=leaving)
        if isinstance(placed, tuple):
            take(leaving, placed, 1)
            queue.claim(waiting, placed)
            without.remove(waiting)


def make_room_for(
    draft: Draft, queue: WaitQueue, admission: Admission, waiting: Waiting
) -> Attempt:
    """As `make_room`, for one that has just come, with what those ahead of it leave. What capacity
    is divided fairly by is looked at with the others, within LOOK_AGAIN_NS. Nobody is told to leave
    as long as the queue is `stale`.
    """
    no_room = waiting.reason is RefusalReason.NO_CAPACITY
    if not no_room or waiting.is_hopeless(draft.table.pools):
        return Attempt()
    leaving = leaving_of(draft.table)
    for other in queue.claims.values():
        if other.rank < waiting.rank:
            take(leaving, other.claim, 1)
    around = Surroundings(draft.table, queue, admission, fair=False)
    attempt = _make_room_for(draft, queue, around, waiting, leaving, tell=not queue.stale)
    if not _claims(queue, waiting):
        queue.fall_short(waiting, draft.table.pools)
    queue.stale |= attempt.told and len(queue) > 1
    again = attempt.again or queue.stale or bool(admission.shares.fair())
    return msgspec.structs.replace(attempt, again=again)


def _make_room_for(
    draft: Draft,
    queue: WaitQueue,
    around: Surroundings,
    waiting: Waiting,
    leaving: Left,
    *,
    tell: bool = True,
) -> Attempt:
    """`leaving` is what is leaving and nobody before claims; what is claimed here is taken from
    it.
    """
    table, acquire = draft.table, waiting.acquire
    barred = queue.short_before(waiting.rank)
    placed = place(acquire.asks, table.pools, taken=leaving, barred=barred)
    attempt = Attempt()
    if not isinstance(placed, tuple):
        if not _may(draft, waiting, around.admission.policy):
            return Attempt(again=True)
        search = find_victims(table, around, acquire, leaving, draft.now_ns, barred=barred)
        told = bool(search.victims)
        if not search.found or (told and not tell):
            return Attempt(searched=True, again=search.later, held_back=told)
        if told and not _still_lacks_room(draft, queue, around.admission, waiting):
            return Attempt(searched=True, again=True)
        attempt = Attempt(searched=True, again=search.later, told=told)
        if waiting.lease_id is None:
            waiting.lease_id = LeaseId(draft.ids())
        for victim in search.victims:
            _tell(draft, victim, waiting)
            take(leaving, victim.lease.subject.allotments, -1)
        around.forget_vain()
        waiting.victims = tuple(victim.lease.lease_id for victim in search.victims)
        placed = place(acquire.asks, table.pools, taken=leaving, barred=barred)
        assert isinstance(placed, tuple), "the victims were chosen so that it fits"
    take(leaving, placed, 1)
    queue.claim(waiting, placed)
    return attempt


def _still_lacks_room(
    draft: Draft, queue: WaitQueue, admission: Admission, waiting: Waiting
) -> bool:
    """Whether it is room that a request lacks, and nothing else by now."""
    if waiting.within:
        return True
    verdict = admission.judge(waiting.acquire, queue.ahead_of(waiting.rank), draft.now_ns)
    if isinstance(verdict, Verdict):
        waiting.verdict = verdict
    return waiting.reason is RefusalReason.NO_CAPACITY


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
        leases = draft.table.leases
        known = [leases[one] for one in waiting.victims if one in leases]
        if any(one.state is not LeaseState.FENCED for one in known):
            return False  # some are still on their way
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
