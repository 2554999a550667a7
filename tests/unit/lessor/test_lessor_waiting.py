# SPDX-License-Identifier: Apache-2.0
"""Waiting: first come, first served, nobody starves, nobody waits for what cannot come."""

from __future__ import annotations

import pytest

from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.lease import Level, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import (
    Allocation,
    Budget,
    CapacityLimit,
    Period,
    Policy,
    Strategy,
    TenantLimits,
)
from leased.terms.reply import Granted, Refusal, RefusalReason
from leased.terms.resource import UNIT, Ask, Resource, ResourceKind, TierKind
from leased.terms.teardown import ProofReport
from tests.doubles.desk import (
    ACME,
    ANY_LEVEL,
    BETA,
    OPERATOR,
    PAGE,
    Desk,
    ask_mem,
    cores,
    mem,
    tenant,
)

CPU = Ask(ResourceKind.CPU, 1000)
CARL, DORA = tenant("carl", 1004), tenant("dora", 1005)


def granted(desk: Desk, acquire: commands.Acquire) -> bool:
    """Whether a request has been answered with a lease."""
    return isinstance(desk.answers.get(acquire.command_id), Granted)


def refusal_of(desk: Desk, acquire: commands.Acquire) -> Refusal:
    """The refusal that a request was answered with."""
    reply = desk.answers[acquire.command_id]
    assert isinstance(reply, Refusal), reply
    return reply


def test_a_request_waits_and_gets_its_lease_when_capacity_returns() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(8))
    waiting = desk.acquire(ask_mem(5), wait=60, ttl=30)
    assert desk.propose(waiting) == type(desk.propose(waiting))(), "nothing yet, and not twice"
    desk.sleep(5)
    desk.release(lease)
    assert not granted(desk, waiting), "released is not clean"
    desk.reclaim(lease)
    reply = desk.answers[waiting.command_id]
    assert isinstance(reply, Granted)
    assert reply.lease.deadline_ns == desk.now_ns + 30 * NS_PER_S, "time runs from the grant"
    assert len(desk.lessor.queue) == 0


def test_who_stands_behind_a_quota_is_told_of_that_quota() -> None:
    """It was told, and sealed, that the tenant had all of the node's memory."""
    five = TenantLimits(capacities=(CapacityLimit(ResourceKind.MEM, 5 * PAGE),))
    desk = Desk(mem(0, 24), policy=Policy(tenants=((BETA.tenant, five),)))
    desk.lease(ask_mem(1), caller=BETA)
    desk.propose(desk.acquire(ask_mem(5), caller=BETA, wait=60))
    late = desk.refused(ask_mem(1), caller=BETA)
    assert (late.reason, late.rule) == (RefusalReason.TENANT_CAPACITY, "queue")
    assert late.limit == late.usage == 5 * PAGE and late.requested == PAGE


def test_who_stands_behind_a_budget_is_told_of_that_budget() -> None:
    """It was told, and sealed, that the tenant had all of the node's memory."""
    seconds = 10 * UNIT[ResourceKind.MEM] * NS_PER_S
    budget = Budget(Period.DAY, kind=ResourceKind.MEM, capacity_ns=seconds)
    money = Budget(Period.MONTH, cost_nano=1 << 40)
    small = TenantLimits(leases_max=9, budgets=(money, budget))
    desk = Desk(mem(0, 1 << 20), policy=Policy(tenants=((BETA.tenant, small),)))
    gib = UNIT[ResourceKind.MEM] // PAGE
    desk.lease(ask_mem(gib), caller=BETA, ttl=8)
    desk.propose(desk.acquire(ask_mem(gib), caller=BETA, ttl=9, wait=60))
    late = desk.refused(ask_mem(gib), caller=BETA, ttl=2)
    assert (late.reason, late.rule) == (RefusalReason.BUDGET, "queue")
    assert (late.what, late.limit, late.usage, late.requested) == ("mem_seconds", 10, 10, 2)


def test_who_stands_behind_a_share_is_told_of_that_share() -> None:
    fair = Allocation(ResourceKind.MEM, strategy=Strategy.FAIR_SHARE, max_share_pm=300)
    desk = Desk(mem(0, 20), policy=Policy(allocations=(fair,)))
    desk.lease(ask_mem(4), ttl=60)
    desk.propose(desk.acquire(ask_mem(3), wait=60))
    late = desk.refused(ask_mem(1))
    assert (late.reason, late.rule, late.requested) == (RefusalReason.SHARE, "queue", PAGE)
    assert late.limit == late.usage == 6 * PAGE


def test_who_waits_for_what_is_not_reserved_is_not_starved_by_smaller_ones_behind_it() -> None:
    """Whoever asked for a page at a time had all of it for ever."""
    own = Allocation(
        ResourceKind.MEM,
        strategy=Strategy.RESERVATION,
        reservations=((ACME.tenant, 5 * PAGE),),
        borrow_idle=False,
    )
    policy = Policy(allocations=(own,), tenants=((ACME.tenant, TenantLimits()),))
    desk = Desk(mem(0, 10), policy=policy)
    first = desk.lease(ask_mem(3), caller=BETA, ttl=600)
    head = desk.acquire(ask_mem(4), caller=CARL, wait=60)
    desk.propose(head)
    late = desk.refused(ask_mem(1), caller=DORA)
    assert (late.reason, late.rule, late.requested) == (RefusalReason.RESERVED, "queue", PAGE)
    waits = desk.acquire(ask_mem(1), caller=DORA, wait=60)
    desk.propose(waits)
    desk.lease(ask_mem(5), caller=ACME)
    desk.release(first, BETA)
    desk.reclaim(first)
    assert granted(desk, head) and granted(desk, waits), "in their order, and what is left of it"


def test_the_head_is_not_starved_by_smaller_ones_behind_it() -> None:
    desk = Desk(mem(0, 10))
    first, second = desk.lease(ask_mem(5)), desk.lease(ask_mem(5))
    large, small = desk.acquire(ask_mem(8), wait=60), desk.acquire(ask_mem(1), wait=60)
    desk.propose(large)
    desk.propose(small)
    desk.release(first)
    desk.reclaim(first)
    assert not granted(desk, large) and not granted(desk, small)
    late = desk.refused(ask_mem(1))
    assert late.reason is RefusalReason.NO_CAPACITY, "a newcomer does not overtake either"
    assert late.usage == late.limit and late.rule == "queue"
    desk.release(second)
    desk.reclaim(second)
    assert granted(desk, large) and granted(desk, small)


def test_a_request_for_something_else_passes() -> None:
    desk = Desk(mem(0, 10), mem(1, 10, tier=TierKind.CXL), *cores(2))
    desk.lease(ask_mem(8, node=0))
    desk.propose(desk.acquire(ask_mem(5, node=0), wait=60))
    desk.grant(CPU)
    desk.grant(ask_mem(5, tier=TierKind.CXL))
    assert desk.refused(ask_mem(1, node=0)).reason is RefusalReason.NO_CAPACITY


def test_a_request_for_two_things_keeps_both_from_those_behind() -> None:
    desk = Desk(mem(0, 10), *cores(1))
    cpu = desk.lease(CPU)
    both = desk.acquire(ask_mem(5), CPU, wait=60)
    desk.propose(both)
    assert desk.refused(ask_mem(1)).reason is RefusalReason.NO_CAPACITY
    desk.release(cpu)
    desk.reclaim(cpu)
    assert granted(desk, both)


@pytest.mark.parametrize(
    "limits",
    [
        TenantLimits(leases_max=1),
        TenantLimits(capacities=(CapacityLimit(ResourceKind.MEM, 5 * PAGE),)),
    ],
)
def test_a_limit_of_one_tenant_holds_up_nobody_else(limits: TenantLimits) -> None:
    desk = Desk(mem(0, 100), policy=Policy(tenants=(("acme", limits),)))
    lease = desk.lease(ask_mem(5))
    first, second = desk.acquire(ask_mem(5), wait=60), desk.acquire(ask_mem(1), wait=60)
    desk.propose(first)
    desk.propose(second)
    desk.grant(ask_mem(50), caller=BETA)
    assert not granted(desk, second)
    desk.release(lease)
    assert not granted(desk, first), "what is being cleaned is still on the account"
    desk.reclaim(lease)
    assert granted(desk, first)
    assert not granted(desk, second)


def test_a_full_node_holds_up_everybody_in_turn() -> None:
    desk = Desk(policy=Policy(leases_max=1))
    lease = desk.lease()
    first, second = desk.acquire(wait=60), desk.acquire(wait=60, caller=BETA)
    desk.propose(first)
    desk.propose(second)
    desk.release(lease)
    desk.reclaim(lease)
    assert granted(desk, first) and not granted(desk, second)


def test_a_wait_ends_at_its_end_with_what_was_missing() -> None:
    desk = Desk(mem(0, 10))
    desk.lease(ask_mem(8), ttl=600)
    waiting = desk.acquire(ask_mem(5), wait=20)
    desk.propose(waiting)
    assert desk.lessor.next_deadline_ns() == desk.now_ns + 20 * NS_PER_S
    desk.sleep(19.9)
    desk.tick()
    assert waiting.command_id not in desk.answers
    desk.sleep(0.1)
    proposal = desk.tick()
    refusal = refusal_of(desk, waiting)
    assert (refusal.reason, refusal.what) == (RefusalReason.WAIT_EXPIRED, "mem")
    assert (refusal.limit, refusal.usage, refusal.requested) == (10 * PAGE, 8 * PAGE, 5 * PAGE)
    assert refusal.retry_at_ns is not None
    [event] = proposal.events
    assert isinstance(event, events.Refused)
    assert (event.command_id, event.reason) == (
        waiting.command_id,
        int(RefusalReason.WAIT_EXPIRED),
    )
    desk.grant(ask_mem(2))


def test_a_wait_is_over_at_its_end_even_if_the_tick_is_late() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(8))
    waiting = desk.acquire(ask_mem(5), wait=20)
    desk.propose(waiting)
    desk.release(lease)
    desk.sleep(20)
    desk.reclaim(lease)
    assert refusal_of(desk, waiting).reason is RefusalReason.WAIT_EXPIRED


def test_a_wait_is_no_longer_than_the_policy_allows() -> None:
    desk = Desk(mem(0, 10), policy=Policy(wait_ns_max=5 * NS_PER_S))
    desk.lease(ask_mem(8))
    desk.propose(desk.acquire(ask_mem(5), wait=3600))
    assert desk.lessor.next_deadline_ns() == desk.now_ns + 5 * NS_PER_S


def test_giving_up_makes_room_for_those_behind() -> None:
    desk = Desk(mem(0, 10))
    desk.lease(ask_mem(5))
    large, small = desk.acquire(ask_mem(8), wait=60), desk.acquire(ask_mem(1), wait=60)
    desk.propose(large)
    desk.propose(small)
    desk.say(commands.CancelWait(desk.command_id(), large.command_id))
    assert granted(desk, small)
    assert large.command_id not in desk.answers
    desk.say(commands.CancelWait(desk.command_id(), large.command_id))


def test_the_last_to_give_up_leaves_nothing_barred() -> None:
    desk = Desk(mem(0, 10))
    desk.lease(ask_mem(5))
    large = desk.acquire(ask_mem(8), wait=60)
    desk.propose(large)
    desk.say(commands.CancelWait(desk.command_id(), large.command_id))
    desk.grant(ask_mem(5))


def test_the_queue_is_bounded_for_the_node_and_for_each_tenant() -> None:
    own = TenantLimits(waiting_max=1)
    policy = Policy(waiting_max=2, tenants=(("acme", own),))
    desk = Desk(mem(0, 10), policy=policy)
    desk.lease(ask_mem(10), caller=BETA)
    assert desk.ask(wait=60) is None
    full = desk.refused(wait=60)
    assert (full.reason, full.what, full.limit, full.usage) == (
        RefusalReason.QUEUE_FULL,
        "waiting",
        1,
        1,
    )
    assert desk.ask(wait=60, caller=BETA) is None
    full = desk.refused(wait=60, caller=BETA)
    assert (full.reason, full.limit, full.usage) == (RefusalReason.QUEUE_FULL, 2, 2)


def test_an_id_that_waits_cannot_be_taken_by_another_caller() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(10), ttl=100)
    waiting = desk.acquire(wait=60)
    desk.propose(waiting)
    reply = desk.lessor.propose(
        desk.acquire(caller=BETA, wait=60, command_id=waiting.command_id), desk.moment
    )
    [(_, refusal)] = reply.answers
    assert isinstance(refusal, Refusal) and refusal.reason is RefusalReason.BUSY
    # Nor can the lease be taken for the answer to another command of the same id.
    desk.release(lease)
    desk.cut(lease)
    desk.scrub(lease)
    report = ProofReport(lease.lease_id, desk.now_ns, (), ())
    desk.propose(commands.ProofEnded(waiting.command_id, report, b"e" * 32))
    assert not granted(desk, waiting)
    desk.sleep(1)
    desk.tick()
    assert granted(desk, waiting)


def test_what_can_no_longer_come_is_refused_while_waiting() -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    lease = desk.lease(ask_mem(10, node=0))
    waiting = desk.acquire(ask_mem(5, node=0), wait=600)
    desk.propose(waiting)
    desk.inventory = type(desk.inventory)((mem(1, 10),))
    desk.say(commands.Observe(desk.command_id(), desk.inventory))
    assert refusal_of(desk, waiting).reason is RefusalReason.NO_SUCH_RESOURCE
    desk.reclaim(lease)


def test_a_cordon_can_be_waited_out() -> None:
    desk = Desk(mem(0, 10))
    desk.say(commands.Drain(desk.command_id(), OPERATOR, ""))
    waiting = desk.acquire(wait=60)
    assert desk.say(waiting) is None
    desk.say(commands.Resume(desk.command_id(), OPERATOR, ""))
    assert granted(desk, waiting)


def test_a_wider_policy_serves_the_queue() -> None:
    desk = Desk(policy=Policy(leases_max=1))
    desk.lease()
    waiting = desk.acquire(wait=60)
    desk.propose(waiting)
    wider = Policy(generation=2)
    desk.say(commands.SetPolicy(desk.command_id(), OPERATOR, wider, b"P" * 32, b"R" * 32))
    assert granted(desk, waiting)


def test_nothing_is_granted_from_the_queue_without_a_reserve() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(10))
    waiting = desk.acquire(wait=60)
    desk.propose(waiting)
    desk.lessor.admitting = False
    desk.release(lease)
    desk.reclaim(lease)
    assert not granted(desk, waiting)
    desk.lessor.admitting = True
    desk.tick()
    assert granted(desk, waiting)


def test_a_stop_answers_everybody_who_waits() -> None:
    desk = Desk(mem(0, 10))
    desk.lease(ask_mem(10))
    waiting = [desk.acquire(wait=60) for _ in range(3)]
    for acquire in waiting:
        desk.propose(acquire)
    desk.say(commands.Stop(desk.command_id()))
    assert {refusal_of(desk, one).reason for one in waiting} == {RefusalReason.STOPPING}
    assert desk.lessor.next_deadline_ns() is not None, "leases go on"


def test_a_restart_forgets_who_waited() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(10), caller=ACME)
    desk.propose(desk.acquire(wait=60))
    desk.restart(known=[lease.lease_id])
    assert len(desk.lessor.queue) == 0


def test_what_one_used_of_another_kind_counts_against_nobody() -> None:
    fair = [
        Allocation(kind, strategy=Strategy.FAIR_SHARE, min_share_pm=0, max_share_pm=1000)
        for kind in (ResourceKind.MEM, ResourceKind.CPU)
    ]
    desk = Desk(mem(0, 10), *cores(2), policy=Policy(allocations=tuple(fair)))
    memory = desk.lease(ask_mem(9), caller=BETA, ttl=600)
    desk.lease(ask_mem(1), caller=CARL, ttl=600)
    desk.lease(Ask(ResourceKind.CPU, 2000), ttl=600)
    desk.sleep(60)
    less, none = desk.acquire(ask_mem(9), caller=CARL, wait=60), desk.acquire(ask_mem(9), wait=60)
    both = desk.acquire(ask_mem(9), CPU, caller=DORA, wait=60)
    for acquire in (less, none, both):
        desk.propose(acquire)
    order = [waiting.acquire for waiting in desk.lessor.queue]
    assert order == [none, both, less], "who has no memory first, whatever it has of cores"
    desk.release(memory, BETA)
    desk.reclaim(memory)
    assert granted(desk, none)


@pytest.mark.parametrize(
    ("asks", "fits"),
    [
        ((ask_mem(2), CPU), True),
        ((ask_mem(1), ask_mem(1)), True),
        ((ask_mem(3),), False),
        ((ask_mem(2), ask_mem(1)), False),
        ((ask_mem(2), Ask(ResourceKind.CPU, 2000)), False),
        ((ask_mem(1), Ask(ResourceKind.GPU, 1000)), False),
    ],
)
def test_who_lost_a_little_does_not_ask_for_much_at_the_head(
    asks: tuple[Ask, ...], fits: bool
) -> None:
    gpu = Resource("gpu:0", ResourceKind.GPU, None, 1000, 1000, 0)
    desk = Desk(mem(0, 10), *cores(2), gpu, policy=ANY_LEVEL)
    lost = desk.lease(ask_mem(2), CPU, level=Level.LOW, ttl=600)
    desk.lease(ask_mem(8), caller=DORA, level=Level.NORMAL, ttl=600)
    rival = desk.acquire(ask_mem(1), caller=CARL, level=Level.LOW, wait=3_600)
    desk.propose(rival)
    desk.ask(ask_mem(1), caller=BETA, level=Level.HIGH, wait=3_600)
    assert desk.at(lost).reason is RevocationReason.PRIORITY_PREEMPTION
    again = desk.acquire(*asks, level=Level.LOW, wait=3_600, requeue_of=lost.lease_id)
    desk.propose(again)
    waiting = [one.acquire.command_id for one in desk.lessor.queue]
    if fits:
        assert waiting.index(again.command_id) < waiting.index(rival.command_id)
    else:
        assert refusal_of(desk, again).reason is RefusalReason.NOT_PREEMPTED


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_who_lost_a_lease_does_not_ask_at_the_head_of_a_higher_level(
    restarted: bool, closed: bool
) -> None:
    """Two levels are of one priority."""
    desk = Desk(mem(0, 10), policy=ANY_LEVEL)
    lost = desk.activate(desk.lease(ask_mem(10), level=Level.BACKGROUND, ttl=600))
    desk.ask(ask_mem(8), caller=BETA, level=Level.HIGH, wait=3_600)
    desk.sleep(60)
    desk.propose(commands.Tick(desk.command_id()))
    assert desk.at(lost).reason is RevocationReason.PRIORITY_PREEMPTION
    if closed:
        desk.reclaim(lost)
    if restarted:
        desk.restart()
    rival = desk.acquire(ask_mem(10), caller=CARL, level=Level.LOW, wait=3_600)
    higher = desk.acquire(ask_mem(10), level=Level.LOW, wait=3_600, requeue_of=lost.lease_id)
    same = desk.acquire(ask_mem(10), level=Level.BACKGROUND, wait=3_600, requeue_of=lost.lease_id)
    for acquire in (rival, higher, same):
        desk.propose(acquire)
    assert refusal_of(desk, higher).reason is RefusalReason.NOT_PREEMPTED
    waiting = [one.acquire for one in desk.lessor.queue]
    assert [one for one in waiting if one.caller is not BETA] == [rival, same]
