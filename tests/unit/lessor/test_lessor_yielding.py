# SPDX-License-Identifier: Apache-2.0
"""When room is made for whoever waits: after its own wait, not for a while after it was made in
vain, never of who is too young; and what all of this is by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from leased.terms import event as events
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState, Level, Priority
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Borrowing, Policy, Preemption
from leased.terms.policy_text import read_policy
from tests.doubles.desk import ANY_LEVEL, BETA, OPERATOR, Desk, ask_mem, mem


def told(happened: Sequence[events.Event]) -> list[LeaseId]:
    """Who was told to leave for somebody else."""
    return [one.lease_id for one in happened if isinstance(one, events.Preempted)]


def desk_of(pages: int, preemption: Preemption | None = None) -> Desk:
    """A node of so many pages, on which everybody may ask at any level."""
    policy = msgspec.structs.replace(ANY_LEVEL, preemption=preemption or Preemption())
    return Desk(mem(0, pages), policy=policy)


def victims(desk: Desk, count: int, priority: Priority = Priority.SCAVENGER) -> list[Lease]:
    """So many leases of one page each, each with a deadline of its own."""
    return [desk.lease(priority=priority, ttl=600 + 10 * n, caller=BETA) for n in range(count)]


@pytest.mark.parametrize(
    ("priority", "seconds"), [(Priority.SCAVENGER, 0), (Priority.STANDARD, 60)]
)
def test_a_victim_has_run_for_the_minimum_of_its_class(priority: Priority, seconds: int) -> None:
    desk = desk_of(1)
    [victim] = victims(desk, 1, priority)
    if seconds:
        desk.sleep(seconds - 0.001)
        assert not told(desk.propose(desk.acquire(level=Level.CRITICAL, wait=300)).events)
        desk.sleep(0.001 + 1)  # what only time changes is looked at once a second
        assert told(desk.tick().events) == [victim.lease_id]
    else:
        happened = desk.propose(desk.acquire(level=Level.CRITICAL, wait=300)).events
        assert told(happened) == [victim.lease_id]


def test_nobody_is_told_before_the_request_has_waited_as_long_as_the_policy_says() -> None:
    desk = desk_of(1, Preemption(wait_ns=10 * NS_PER_S))
    [victim] = victims(desk, 1)
    assert not told(desk.propose(desk.acquire(level=Level.CRITICAL, wait=300)).events)
    for _ in range(9):
        desk.sleep(1)
        assert not told(desk.tick().events)
    desk.sleep(1)
    assert told(desk.tick().events) == [victim.lease_id]


def test_after_a_victim_made_way_in_vain_others_are_left_alone_for_a_while() -> None:
    desk = desk_of(2, Preemption(cooldown_ns=20 * NS_PER_S))
    first, second = victims(desk, 2)
    happened = desk.propose(desk.acquire(level=Level.CRITICAL, wait=300)).events
    assert told(happened) == [first.lease_id]
    desk.sleep(31)
    desk.tick()
    desk.cut(first)
    desk.scrub(first)
    desk.prove(first, *first.subject.allotments)
    assert desk.at(first).state is LeaseState.FENCED, "nobody got anything of it"
    desk.tick()
    waited = 0
    while not (chosen := told(desk.tick().events)):
        desk.sleep(1)
        waited += 1
        assert waited < 40
    assert chosen == [second.lease_id] and 19 <= waited <= 21


def test_a_victim_is_never_told_to_leave_after_its_deadline() -> None:
    desk = desk_of(1)
    [victim] = victims(desk, 1)
    desk.sleep(590)
    assert told(desk.propose(desk.acquire(level=Level.CRITICAL, wait=300)).events)
    draining = desk.at(victim)
    assert draining.drain_deadline_ns == victim.deadline_ns, "it is only not renewed"


def test_of_those_with_the_same_deadline_the_last_one_granted_goes() -> None:
    desk = desk_of(2)
    desk.lease(priority=Priority.SCAVENGER, ttl=600, caller=BETA)
    desk.sleep(10)
    young = desk.lease(priority=Priority.SCAVENGER, ttl=590, caller=BETA)
    happened = desk.propose(desk.acquire(level=Level.CRITICAL, wait=300)).events
    assert told(happened) == [young.lease_id]


def test_nobody_leaves_where_all_of_them_together_are_not_enough() -> None:
    desk = desk_of(4)
    victims(desk, 2)
    desk.lease(ask_mem(2), priority=Priority.GUARANTEED, caller=OPERATOR)
    desk.sleep(100)
    assert not told(desk.propose(desk.acquire(ask_mem(3), level=Level.CRITICAL, wait=60)).events)


def test_what_a_policy_that_says_nothing_means() -> None:
    policy, terms, loan = Policy(), Preemption(), Borrowing()
    assert read_policy({}) == policy, "nor does an empty document say anything"
    assert (policy.overage_pm, policy.overage_ns) == (200, 900 * NS_PER_S)
    assert (policy.grace_ns_release, policy.grace_ns_preempt) == (10 * NS_PER_S, 30 * NS_PER_S)
    assert policy.grace_ns_max == 300 * NS_PER_S
    assert (terms.runtime_ns_min_standard, terms.runtime_ns_min_scavenger) == (60 * NS_PER_S, 0)
    assert (loan.limit_pm, loan.grace_ns) == (500, 300 * NS_PER_S)
    divided = read_policy({"allocation": {"gpu": {"strategy": "fair_share"}}}).allocations[0]
    assert (divided.min_share_pm, divided.max_share_pm) == (50, 500)
    assert [int(level) for level in Level] == [1, 3, 5, 7, 10]
    classes = [level.priority for level in Level]
    lower = [Priority.SCAVENGER, Priority.SCAVENGER, Priority.STANDARD]
    assert classes == [*lower, Priority.GUARANTEED, Priority.GUARANTEED]
