# SPDX-License-Identifier: Apache-2.0
"""Victims: strictly less important, in the one order, and no more of them than needed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import Trigger
from leased.lessor.preemption import choose_victims, order_victims
from leased.terms import event as events
from leased.terms.lease import Lease, LeaseState, Priority, RevocationReason
from leased.terms.moment import NS_PER_S
from tests.doubles.desk import PAGE, Desk, ask_mem, mem


def held(victims: Sequence[Lease]) -> int:
    """Pages that go free with `victims`."""
    return sum(a.capacity for lease in victims for a in lease.subject.allotments) // PAGE


def test_the_order_is_priority_then_remaining_time_then_youth() -> None:
    desk = Desk()
    first = desk.lease(priority=Priority.STANDARD, ttl=200)
    desk.lease(priority=Priority.GUARANTEED, ttl=100)
    scavengers = [desk.lease(priority=Priority.SCAVENGER, ttl=ttl) for ttl in (300, 150)]
    desk.sleep(100)
    young = desk.lease(priority=Priority.SCAVENGER, ttl=200)
    desk.lease(priority=Priority.STANDARD, ttl=10)
    ordered = order_victims(
        desk.table.leases.values(), priority=Priority.GUARANTEED, now_ns=desk.now_ns
    )
    expected = [scavengers[1], young, scavengers[0], first]
    assert [lease.lease_id for lease in ordered] == [lease.lease_id for lease in expected]


@pytest.mark.parametrize("priority", list(Priority))
def test_only_strictly_lower_priorities_are_victims(priority: Priority) -> None:
    desk = Desk()
    for other in Priority:
        desk.lease(priority=other, ttl=600)
    desk.sleep(100)
    ordered = order_victims(desk.table.leases.values(), priority=priority, now_ns=desk.now_ns)
    assert all(lease.subject.priority < priority for lease in ordered)
    assert len(ordered) == int(priority)


def test_a_standard_lease_is_safe_for_its_first_minute() -> None:
    desk = Desk()
    lease = desk.lease(priority=Priority.STANDARD, ttl=600)
    for seconds, safe in ((59.9, True), (0.1, False)):
        desk.sleep(seconds)
        ordered = order_victims([lease], priority=Priority.GUARANTEED, now_ns=desk.now_ns)
        assert (ordered == []) == safe


def test_who_is_leaving_already_is_no_victim() -> None:
    lease = Desk().lease(priority=Priority.SCAVENGER)
    for state in LeaseState:
        there = msgspec.structs.replace(lease, state=state)
        ordered = order_victims([there], priority=Priority.STANDARD, now_ns=lease.granted_ns)
        assert bool(ordered) == (state in (LeaseState.GRANTED, LeaseState.ACTIVE))


def test_no_more_victims_than_needed() -> None:
    desk = Desk(mem(0, 100))
    leases = [desk.lease(ask_mem(n), priority=Priority.SCAVENGER) for n in (1, 2, 10, 3)]
    assert choose_victims(leases, lambda some: held(some) >= 3) == tuple(leases[:2])
    assert choose_victims(leases, lambda some: held(some) >= 10) == (leases[2],)
    assert choose_victims(leases, lambda some: held(some) >= 17) is None
    assert choose_victims(leases, lambda some: True) == ()


def test_a_preemption_names_victim_and_preemptor_and_gives_notice() -> None:
    desk = Desk()
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
