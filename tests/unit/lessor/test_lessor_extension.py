# SPDX-License-Identifier: Apache-2.0
"""Asking for time during a notice: within the ceiling of the class, counted from the first one."""

from __future__ import annotations

import pytest

from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.effect import MoveDeadline, Notify
from leased.terms.lease import Ending, Lease, LeaseState, Level, Priority
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy, Preemption, TenantLimits
from leased.terms.reply import Changed, Explained, Missing, Refusal, RefusalReason, Reply
from tests.doubles.desk import ACME, ANY_LEVEL, BETA, OPERATOR, Desk, ask_mem, mem

CEILINGS = {Priority.SCAVENGER: 60, Priority.STANDARD: 300}


def extend(desk: Desk, lease: Lease, seconds: float, caller: commands.Caller = ACME) -> Reply:
    """Ask for the notice to end so long from now."""
    needed_ns = round(seconds * NS_PER_S)
    reply = desk.say(commands.Extend(desk.command_id(), caller, lease.lease_id, needed_ns))
    assert reply is not None
    return reply


def refusal(reply: Reply) -> Refusal:
    """A reply that says no."""
    assert isinstance(reply, Refusal), reply
    return reply


def preempted(priority: Priority = Priority.STANDARD, ttl: float = 600) -> tuple[Desk, Lease]:
    """A lease that was told, this moment, to make way for another tenant's within 30 s."""
    desk = Desk(mem(0, 10), policy=ANY_LEVEL)
    victim = desk.lease(ask_mem(10), priority=priority, ttl=ttl)
    desk.sleep(61)
    assert desk.ask(ask_mem(10), caller=BETA, level=Level.CRITICAL, wait=3600) is None
    assert desk.at(victim).state is LeaseState.DRAINING
    return desk, victim


@pytest.mark.parametrize("priority", list(CEILINGS))
def test_a_notice_is_put_off_up_to_the_ceiling_of_its_class_and_no_further(
    priority: Priority,
) -> None:
    desk, victim = preempted(priority)
    told_ns, ceiling = desk.now_ns, CEILINGS[priority]
    desk.sleep(20)
    del desk.effects[:]
    start = len(desk.history)
    reply = extend(desk, victim, ceiling - 20)
    assert isinstance(reply, Changed)
    after = desk.at(victim)
    assert after.drain_deadline_ns == told_ns + ceiling * NS_PER_S
    assert reply.lease == after and after.told_ns == told_ns
    assert [type(event) for event, _ in desk.history[start:]] == [events.DrainNotified]
    assert [type(effect) for effect in desk.effects] == [MoveDeadline, Notify]
    assert desk.lessor.next_deadline_ns() == after.drain_deadline_ns
    said = refusal(extend(desk, victim, ceiling - 20 + 0.001))
    assert said.reason is RefusalReason.NOTICE_LIMIT
    assert (said.limit, said.usage) == (ceiling * NS_PER_S, ceiling * NS_PER_S)
    assert said.rule == f"preemption.checkpoint_max_{priority.name.lower()}"
    assert desk.at(victim) == after


def test_asking_for_ever_gains_nothing() -> None:
    desk, victim = preempted()
    told_ns, asked = desk.now_ns, 0
    while desk.at(victim).state is LeaseState.DRAINING:
        extend(desk, victim, (7, 29, 300)[asked % 3])
        asked += 1
        desk.sleep(0.9)
        desk.tick()
    ended = desk.at(victim)
    assert desk.now_ns <= told_ns + 301 * NS_PER_S and asked > 300
    assert ended.ended is Ending.REVOKED
    notices = [event for event, _ in desk.history if isinstance(event, events.DrainNotified)]
    assert max(one.drain_deadline_ns for one in notices) <= told_ns + 300 * NS_PER_S
    desk.reclaim(victim)
    assert any(lease.subject.tenant == BETA.tenant for lease in desk.table.leases.values()), (
        "whoever waited has it"
    )


def test_time_that_the_notice_gives_anyway_seals_nothing() -> None:
    desk, victim = preempted()
    start = len(desk.history)
    reply = extend(desk, victim, 30)
    assert isinstance(reply, Changed) and reply.lease == desk.at(victim)
    assert len(desk.history) == start


def test_a_notice_may_go_beyond_the_deadline_that_it_began_with() -> None:
    desk, victim = preempted(ttl=70)  # nine seconds are left
    assert isinstance(extend(desk, victim, 120), Changed)
    after = desk.at(victim)
    assert after.deadline_ns == after.drain_deadline_ns == desk.now_ns + 120 * NS_PER_S
    desk.sleep(119)
    desk.tick()
    assert desk.at(victim).state is LeaseState.DRAINING
    desk.sleep(1)
    desk.tick()
    assert desk.at(victim).state is LeaseState.REVOKING


def test_a_restart_keeps_what_was_given_and_what_is_left() -> None:
    desk, victim = preempted(ttl=70)
    extend(desk, victim, 120)
    before = desk.at(victim)
    desk.sleep(10)
    desk.restart(known=[victim.lease_id])
    after = desk.at(victim)
    assert (after.deadline_ns, after.drain_deadline_ns, after.told_ns) == (
        before.deadline_ns,
        before.drain_deadline_ns,
        before.told_ns,
    )
    assert refusal(extend(desk, victim, 291)).reason is RefusalReason.NOTICE_LIMIT
    assert isinstance(extend(desk, victim, 290), Changed)


def test_only_who_was_told_may_and_only_in_time() -> None:
    desk = Desk(policy=ANY_LEVEL)
    lease = desk.lease(ttl=60)
    said = refusal(extend(desk, lease, 10))
    assert said.reason is RefusalReason.NOT_NOTIFIED
    assert isinstance(extend(desk, lease, 10, BETA), Missing)
    order = commands.Drain(desk.command_id(), OPERATOR, "", 10 * NS_PER_S)
    desk.say(order)
    desk.sleep(10)
    assert refusal(extend(desk, lease, 10)).reason is RefusalReason.DEADLINE_PASSED
    desk.tick()
    assert refusal(extend(desk, lease, 10)).reason is RefusalReason.DEADLINE_PASSED


def test_what_an_operator_orders_of_one_lease_stands() -> None:
    desk = Desk(policy=ANY_LEVEL)
    lease = desk.lease(ttl=600)
    desk.say(commands.Drain(desk.command_id(), OPERATOR, "", 100 * NS_PER_S))
    assert isinstance(extend(desk, lease, 200), Changed)
    revoke = commands.Revoke(desk.command_id(), OPERATOR, lease.lease_id, grace_ns=5 * NS_PER_S)
    desk.say(revoke)
    assert refusal(extend(desk, lease, 6)).reason is RefusalReason.NOTICE_FINAL
    assert desk.at(lease).drain_deadline_ns == desk.now_ns + 5 * NS_PER_S


def test_the_age_a_lease_may_reach_bounds_it_too() -> None:
    limits = TenantLimits(duration_ns_max=100 * NS_PER_S, level_max=Level.CRITICAL)
    desk = Desk(policy=Policy(tenants=((ACME.tenant, limits),)))
    lease = desk.lease(ttl=100)
    desk.sleep(50)
    desk.say(commands.Drain(desk.command_id(), OPERATOR, "", 10 * NS_PER_S))
    assert refusal(extend(desk, lease, 51)).reason is RefusalReason.DURATION
    assert isinstance(extend(desk, lease, 50), Changed)


def test_why_says_since_when_and_until_when_at_most() -> None:
    desk, victim = preempted()
    told_ns = desk.now_ns
    desk.sleep(5)
    explained = desk.say(commands.Why(desk.command_id(), ACME, victim.lease_id))
    assert isinstance(explained, Explained)
    assert explained.told_ns == told_ns
    assert explained.latest == (
        told_ns + 300 * NS_PER_S,
        "preemption.checkpoint_max_standard",
    )
    desk.release(victim)
    explained = desk.say(commands.Why(desk.command_id(), ACME, victim.lease_id))
    assert isinstance(explained, Explained)
    assert (explained.told_ns, explained.latest) == (told_ns, None)


def test_a_policy_that_grants_less_shortens_no_notice_but_gives_no_more() -> None:
    desk, victim = preempted()
    extend(desk, victim, 100)
    less = Policy(preemption=Preemption(checkpoint_ns_max_standard=50 * NS_PER_S))
    desk.say(commands.SetPolicy(desk.command_id(), OPERATOR, less, b"q" * 32, b"r" * 32))
    until_ns = desk.at(victim).drain_deadline_ns
    assert refusal(extend(desk, victim, 101)).reason is RefusalReason.NOTICE_LIMIT
    assert desk.at(victim).drain_deadline_ns == until_ns
