# SPDX-License-Identifier: Apache-2.0
"""Victims: strictly less important, in the one order, and no more of them than needed."""

from __future__ import annotations

import pytest

from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import Trigger
from leased.lessor.preemption import Candidates, Left, Room, choose_victims, needed_of
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.lease import LEVEL_OF, Lease, Level, Priority, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Preemption
from leased.terms.resource import Ask, ResourceKind
from tests.doubles.desk import ANY_LEVEL, OPERATOR, PAGE, Desk, ask_mem, cores, mem


def room_for(pages: int) -> Room:
    """Room for so many pages, where nothing is free but what leaves."""

    def room(gone: Left) -> Left | None:
        left = -gone.get("mem:node0:4096", 0) - pages * PAGE
        return None if left < 0 else {"mem:node0:4096": left}

    return room


def victims_of(desk: Desk, level: Level) -> list[Lease]:
    """Who a request of that level could have leave, in order."""
    return list(
        Candidates(
            desk.table, Preemption(), level=level, pools=["mem:node0:4096"], now_ns=desk.now_ns
        )
    )


def test_the_order_is_priority_then_remaining_time_then_youth() -> None:
    desk = Desk(policy=ANY_LEVEL)
    first = desk.lease(priority=Priority.STANDARD, ttl=200)
    desk.lease(priority=Priority.GUARANTEED, ttl=100)
    scavengers = [desk.lease(priority=Priority.SCAVENGER, ttl=ttl) for ttl in (300, 150)]
    desk.sleep(100)
    young = desk.lease(priority=Priority.SCAVENGER, ttl=200)
    desk.lease(priority=Priority.STANDARD, ttl=10)
    ordered = victims_of(desk, Level.HIGH)
    expected = [scavengers[1], young, scavengers[0], first]
    assert [lease.lease_id for lease in ordered] == [lease.lease_id for lease in expected]


@pytest.mark.parametrize("priority", list(Priority))
def test_only_strictly_lower_priorities_are_victims(priority: Priority) -> None:
    desk = Desk(policy=ANY_LEVEL)
    for other in Priority:
        desk.lease(priority=other, ttl=600)
    desk.sleep(100)
    ordered = victims_of(desk, LEVEL_OF[priority])
    assert all(lease.subject.priority < priority for lease in ordered)
    assert len(ordered) == int(priority)


def test_a_standard_lease_is_safe_for_its_first_minute() -> None:
    desk = Desk(policy=ANY_LEVEL)
    desk.lease(priority=Priority.STANDARD, ttl=600)
    for seconds, safe in ((59.9, True), (0.1, False)):
        desk.sleep(seconds)
        ordered = victims_of(desk, Level.HIGH)
        assert (ordered == []) == safe


def test_who_is_leaving_already_is_no_victim() -> None:
    desk = Desk(policy=ANY_LEVEL)
    granted = desk.grant(priority=Priority.SCAVENGER, ttl=600)
    told, released = (desk.lease(priority=Priority.SCAVENGER, ttl=600) for _ in range(2))
    assert len(victims_of(desk, Level.NORMAL)) == 3
    desk.release(released)
    revoke = commands.Revoke(desk.command_id(), OPERATOR, told.lease_id, grace_ns=30 * NS_PER_S)
    desk.say(revoke)
    assert victims_of(desk, Level.NORMAL) == [desk.at(granted)]
    desk.activate(granted)
    assert victims_of(desk, Level.NORMAL) == [desk.at(granted)]


def test_no_more_victims_than_needed() -> None:
    desk = Desk(mem(0, 100), policy=ANY_LEVEL)
    leases = [desk.lease(ask_mem(n), priority=Priority.SCAVENGER) for n in (1, 2, 10, 3)]

    def chosen(need: int) -> tuple[Lease, ...] | None:
        return choose_victims(leases, room_for(need), {})

    assert chosen(3) == tuple(leases[:2])
    assert chosen(10) == (leases[2],)
    assert chosen(17) is None
    assert chosen(0) == ()


def test_what_else_a_victim_has_does_not_keep_it_among_the_victims() -> None:
    desk = Desk(mem(0, 100), *cores(2), policy=ANY_LEVEL)
    cpu, memory = Ask(ResourceKind.CPU, 10), "mem:node0:4096"
    leases = [desk.lease(ask_mem(2), cpu) for _ in range(3)]
    spare = {memory: 4 * PAGE}
    assert needed_of(leases, spare, {}) == leases[:1]
    assert spare == {memory: 0}


def test_two_shares_of_one_pool_are_spared_together_or_not_at_all() -> None:
    desk = Desk(mem(0, 100), policy=ANY_LEVEL)
    lease = desk.lease(ask_mem(2), ask_mem(3))
    for pages, needed in ((4, True), (5, False)):
        assert bool(needed_of([lease], {"mem:node0:4096": pages * PAGE}, {})) is needed


def test_a_preemption_names_victim_and_preemptor_and_gives_notice() -> None:
    desk = Desk(policy=ANY_LEVEL)
    victim = desk.lease(priority=Priority.SCAVENGER, ttl=600)
    winner = desk.lease(priority=Priority.GUARANTEED)
    draft = Draft(desk.table, desk.ids, desk.moment)
    facts = Facts(
        desk.now_ns,
        reason=RevocationReason.PRIORITY_PREEMPTION,
        until_ns=desk.now_ns + 30 * NS_PER_S,
        preemptor_lease_id=winner.lease_id,
        preemptor_tenant=winner.subject.tenant,
    )
    draft.move(victim, Trigger.PREEMPT, facts)
    preempted, notified = draft.events
    assert isinstance(preempted, events.Preempted)
    assert isinstance(notified, events.DrainNotified)
    assert (preempted.lease_id, preempted.preemptor_lease_id) == (
        victim.lease_id,
        winner.lease_id,
    )
    assert desk.at(victim).reason is RevocationReason.PRIORITY_PREEMPTION
