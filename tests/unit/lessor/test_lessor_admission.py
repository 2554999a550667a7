# SPDX-License-Identifier: Apache-2.0
"""Admission: every refusal names its reason, the numbers and the earliest moment."""

from __future__ import annotations

import pytest

from leased.lessor.budget import Prices
from leased.lessor.meaning import CAPACITY_MAX
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_S
from leased.terms.policy import (
    Budget,
    CapacityLimit,
    Group,
    LimitSet,
    Period,
    Policy,
    Price,
    TenantLimits,
)
from leased.terms.reply import Allowed, Refusal, RefusalReason
from leased.terms.resource import UNIT, Ask, Health, Resource, ResourceKind, TierKind
from tests.doubles.desk import (
    ACME,
    ANY_LEVEL,
    BETA,
    HUGE,
    OPERATOR,
    PAGE,
    Desk,
    ask_mem,
    cores,
    mem,
)

MEM_ID = "mem:node0:4096"


def numbers(refusal: Refusal) -> tuple[RefusalReason, str, int, int, int]:
    """Everything but the date."""
    return (
        refusal.reason,
        refusal.what,
        refusal.limit,
        refusal.usage,
        refusal.requested,
    )


# ---- what cannot be meant ------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -PAGE, 1, PAGE + 1, CAPACITY_MAX + 1, 2**80])
def test_a_capacity_that_cannot_be_meant(capacity: int) -> None:
    refusal = Desk().refused(Ask(ResourceKind.MEM, capacity), wait=60)
    assert refusal.reason is RefusalReason.CAPACITY_GRANULE
    assert refusal.limit == PAGE
    assert refusal.requested == max(-CAPACITY_MAX, min(CAPACITY_MAX, capacity))
    assert refusal.retry_at_ns is None


def test_larger_than_the_resource_is_refused_however_long_it_would_wait() -> None:
    refusal = Desk().refused(ask_mem(1001), wait=3600)
    assert numbers(refusal) == (
        RefusalReason.NO_CAPACITY,
        "mem",
        1000 * PAGE,
        0,
        1001 * PAGE,
    )
    assert refusal.retry_at_ns is None


@pytest.mark.parametrize(
    "ask",
    [
        Ask(ResourceKind.GPU, 1000),
        Ask(ResourceKind.MEM, PAGE, tier=TierKind.HBM),
        Ask(ResourceKind.MEM, PAGE, node=7),
        Ask(ResourceKind.MEM, PAGE, resource_id="mem:node9:4096"),
        Ask(ResourceKind.MEM, HUGE, granule=HUGE),
    ],
)
def test_what_this_node_does_not_have(ask: Ask) -> None:
    refusal = Desk().refused(ask)
    assert refusal.reason is RefusalReason.NO_SUCH_RESOURCE
    assert refusal.what == (ask.resource_id or ask.kind.name.lower())
    assert refusal.retry_at_ns is None


@pytest.mark.parametrize("count", [0, 17, 100])
def test_too_many_asks_or_none(count: int) -> None:
    desk = Desk()
    acquire = commands.Acquire(desk.command_id(), ACME, (ask_mem(1),) * count, 60 * NS_PER_S)
    refusal = desk.say(acquire)
    assert isinstance(refusal, Refusal)
    assert numbers(refusal) == (RefusalReason.CAPACITY_GRANULE, "asks", 16, 0, count)


@pytest.mark.parametrize(
    ("priority", "ceiling"),
    [(Priority.SCAVENGER, 900), (Priority.STANDARD, 14_400), (Priority.GUARANTEED, 86_400)],
)
def test_the_length_has_a_floor_and_a_ceiling_by_priority(priority: Priority, ceiling: int) -> None:
    desk = Desk(policy=ANY_LEVEL)
    assert desk.grant(priority=priority, ttl=ceiling).ttl_ns == ceiling * NS_PER_S
    assert desk.grant(priority=priority, ttl=1).ttl_ns == NS_PER_S
    refusal = desk.refused(priority=priority, ttl=ceiling + 1)
    assert numbers(refusal)[:3] == (RefusalReason.TTL_TOO_LONG, "ns", ceiling * NS_PER_S)
    refusal = desk.refused(priority=priority, ttl=0.999)
    assert numbers(refusal)[:3] == (RefusalReason.TTL_TOO_SHORT, "ns", NS_PER_S)
    assert desk.refused(ttl=-5).reason is RefusalReason.TTL_TOO_SHORT


# ---- limits --------------------------------------------------------------------------------------


def test_the_node_holds_so_many_leases_until_they_are_proven_clean() -> None:
    desk = Desk(policy=Policy(leases_max=2))
    first = desk.lease(ttl=10)
    desk.lease(ttl=20)
    refusal = desk.refused()
    assert numbers(refusal) == (RefusalReason.NODE_LEASES, "leases", 2, 2, 1)
    assert refusal.retry_at_ns == first.deadline_ns
    desk.release(first)
    refusal = desk.refused()
    assert refusal.retry_at_ns == desk.now_ns, "a teardown may be over any moment"
    desk.reclaim(first)
    desk.grant()


def test_a_fenced_lease_takes_no_place_on_the_node() -> None:
    desk = Desk(policy=Policy(leases_max=1))
    lease = desk.lease()
    desk.release(lease)
    desk.cut_failed(lease)
    desk.grant()


def test_a_tenant_has_so_many_leases_until_they_are_proven_clean() -> None:
    limits = TenantLimits(leases_max=2)
    desk = Desk(policy=Policy(tenants=(("acme", limits),)))
    first = desk.lease(ttl=10)
    desk.lease(ttl=20)
    refusal = desk.refused()
    assert numbers(refusal) == (RefusalReason.TENANT_LEASES, "leases", 2, 2, 1)
    assert refusal.rule == "tenants.acme.leases_max"
    assert refusal.retry_at_ns == first.deadline_ns
    desk.grant(caller=BETA)
    desk.release(first)
    refusal = desk.refused()
    assert refusal.retry_at_ns == desk.now_ns, "a teardown may be over any moment"
    desk.reclaim(first)
    desk.grant()


def test_a_tenant_uses_so_many_leases_at_once() -> None:
    limits = TenantLimits(concurrent_max=1)
    desk = Desk(policy=Policy(tenants=(("acme", limits),)))
    first = desk.lease(ttl=10)
    refusal = desk.refused()
    assert numbers(refusal) == (RefusalReason.TENANT_LEASES, "leases", 1, 1, 1)
    assert refusal.rule == "tenants.acme.concurrent_max"
    desk.release(first)
    desk.grant()


def test_a_tenant_holds_so_much_of_a_kind() -> None:
    limits = TenantLimits(capacities=(CapacityLimit(ResourceKind.MEM, 10 * PAGE),))
    desk = Desk(mem(0, 1000), *cores(2), policy=Policy(tenant_default=limits))
    small, large = desk.lease(ask_mem(2), ttl=10), desk.lease(ask_mem(6), ttl=20)
    refusal = desk.refused(ask_mem(3))
    assert numbers(refusal) == (
        RefusalReason.TENANT_CAPACITY,
        "mem",
        10 * PAGE,
        8 * PAGE,
        3 * PAGE,
    )
    assert refusal.retry_at_ns == small.deadline_ns
    assert desk.refused(ask_mem(5)).retry_at_ns == large.deadline_ns
    assert desk.refused(ask_mem(3), ask_mem(3)).requested == 6 * PAGE
    never = desk.refused(ask_mem(11), wait=60)
    assert (never.reason, never.retry_at_ns) == (RefusalReason.TENANT_CAPACITY, None)
    desk.grant(Ask(ResourceKind.CPU, 2000))


def test_no_capacity_says_when() -> None:
    desk = Desk(mem(0, 10))
    soon = desk.lease(ask_mem(3), ttl=10)
    late = desk.lease(ask_mem(6), ttl=30)
    refusal = desk.refused(ask_mem(4))
    assert numbers(refusal) == (RefusalReason.NO_CAPACITY, "mem", 10 * PAGE, 9 * PAGE, 4 * PAGE)
    assert refusal.retry_at_ns == soon.deadline_ns
    assert desk.refused(ask_mem(5)).retry_at_ns == late.deadline_ns
    desk.renew(soon, 100)
    assert desk.refused(ask_mem(4)).retry_at_ns == late.deadline_ns
    desk.renew(soon, 5)
    assert desk.refused(ask_mem(4)).retry_at_ns == desk.at(soon).deadline_ns


def test_the_latest_of_several_reasons_is_when() -> None:
    limits = TenantLimits(leases_max=1)
    policy = Policy(tenants=(("acme", limits),))
    desk = Desk(mem(0, 10), policy=policy)
    desk.lease(ask_mem(1), ttl=10)
    other = desk.lease(ask_mem(9), ttl=90, caller=BETA)
    refusal = desk.refused(ask_mem(5))
    assert refusal.reason is RefusalReason.TENANT_LEASES
    assert refusal.retry_at_ns == other.deadline_ns


def test_when_for_several_asks_at_once() -> None:
    desk = Desk(mem(0, 10), *cores(2))
    desk.lease(ask_mem(8), ttl=10)
    cpu = desk.lease(Ask(ResourceKind.CPU, 1500), ttl=40)
    refusal = desk.refused(ask_mem(8), Ask(ResourceKind.CPU, 2000))
    assert refusal.retry_at_ns == cpu.deadline_ns


def test_fenced_capacity_does_not_come_back_by_waiting() -> None:
    desk = Desk(mem(0, 10))
    desk.say(commands.Fence(desk.command_id(), OPERATOR, MEM_ID, 4 * PAGE))
    refusal = desk.refused(ask_mem(7))
    assert numbers(refusal) == (RefusalReason.NO_CAPACITY, "mem", 10 * PAGE, 4 * PAGE, 7 * PAGE)
    assert refusal.retry_at_ns is None


# ---- closed off ----------------------------------------------------------------------------------


def test_a_cordoned_resource_grants_nothing_until_it_is_resumed() -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    desk.say(commands.Drain(desk.command_id(), OPERATOR, MEM_ID))
    assert desk.grant(ask_mem(1)).subject.allotments[0].resource_id == "mem:node1:4096"
    assert desk.refused(ask_mem(1, node=0)).reason is RefusalReason.CORDONED
    desk.say(commands.Resume(desk.command_id(), OPERATOR, MEM_ID))
    desk.grant(ask_mem(1, node=0))


def test_what_fits_only_into_closed_resources_is_told_of_those() -> None:
    desk = Desk(mem(0, 10), mem(0, 1, page=HUGE))
    desk.say(commands.Drain(desk.command_id(), OPERATOR, MEM_ID))
    assert desk.refused(ask_mem(1)).reason is RefusalReason.CORDONED
    desk.lease(ask_mem(HUGE // PAGE))
    refusal = desk.refused(ask_mem(HUGE // PAGE))
    assert numbers(refusal) == (RefusalReason.NO_CAPACITY, "mem", HUGE, HUGE, HUGE)



def test_a_cordoned_node_grants_nothing() -> None:
    desk = Desk()
    desk.say(commands.Drain(desk.command_id(), OPERATOR, ""))
    refusal = desk.refused()
    assert (refusal.reason, refusal.what) == (RefusalReason.CORDONED, "node")


def test_a_sick_resource_grants_nothing_until_it_is_well() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.say(commands.ObserveHealth(desk.command_id(), MEM_ID, Health.SICK, 79))
    assert desk.refused().reason is RefusalReason.UNHEALTHY
    assert desk.at(lease).ended is None, "it is not taken from whoever has it"
    desk.say(commands.ObserveHealth(desk.command_id(), MEM_ID, Health.OK, 0))
    desk.grant()


def test_a_shrunk_resource_grants_nothing_until_it_fits_again() -> None:
    desk = Desk(mem(0, 100))
    lease = desk.lease(ask_mem(60))
    desk.lease(ask_mem(30))
    smaller = Resource(MEM_ID, ResourceKind.MEM, TierKind.DRAM, 50 * PAGE, PAGE, 0)
    desk.inventory = type(desk.inventory)((smaller,))
    desk.say(commands.Observe(desk.command_id(), desk.inventory))
    assert desk.free() == -40 * PAGE
    refusal = desk.refused(ask_mem(1))
    assert numbers(refusal) == (RefusalReason.NO_CAPACITY, "mem", 50 * PAGE, 50 * PAGE, PAGE)
    desk.release(lease)
    desk.reclaim(lease)
    desk.grant(ask_mem(20))
    assert desk.free() == 0


def test_without_a_reserve_in_the_journal_nothing_is_admitted_and_nothing_sealed() -> None:
    desk = Desk()
    desk.lessor.admitting = False
    proposal = desk.propose(desk.acquire())
    [(_, reply)] = proposal.answers
    assert isinstance(reply, Refusal) and reply.reason is RefusalReason.AUDIT_UNAVAILABLE
    assert proposal.events == ()
    desk.lessor.admitting = True
    desk.grant()


def test_after_stop_nothing_is_admitted() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.say(commands.Stop(desk.command_id()))
    assert desk.refused().reason is RefusalReason.STOPPING
    assert desk.at(lease).ended is None
    assert isinstance(desk.history[-1][0], events.NodeStopped)


# ---- what is sealed ------------------------------------------------------------------------------


def test_a_refusal_is_sealed_with_its_numbers() -> None:
    desk = Desk(mem(0, 10))
    acquire = desk.acquire(ask_mem(11))
    proposal = desk.propose(acquire)
    [event] = proposal.events
    assert isinstance(event, events.Refused)
    assert (event.tenant, event.uid, event.command_id) == ("acme", 1000, acquire.command_id)
    assert (event.reason, event.limit, event.requested) == (
        int(RefusalReason.NO_CAPACITY),
        10 * PAGE,
        11 * PAGE,
    )


def test_a_new_policy_holds_from_the_next_request_on() -> None:
    desk = Desk()
    desk.grant()
    order = commands.SetPolicy(
        desk.command_id(), OPERATOR, Policy(generation=7, leases_max=1), b"P" * 32, b"R" * 32
    )
    proposal = desk.propose(order)
    [event] = proposal.events
    assert isinstance(event, events.PolicyChanged)
    assert (event.policy_generation, event.operator_uid) == (7, 0)
    assert desk.refused().reason is RefusalReason.NODE_LEASES
    assert desk.table.rate_hash == b"R" * 32


def test_a_budget_of_money_is_held_against_the_tier_that_a_lease_gets() -> None:
    """The request names no tier; only memory of the tier that it is given costs anything."""
    budgets = (Budget(Period.DAY, cost_nano=100),)
    policy = Policy(tenants=((ACME.tenant, TenantLimits(budgets=budgets)),))
    desk = Desk(policy=policy)
    dram, standard = int(TierKind.DRAM), int(Priority.STANDARD)
    per_page_second = 1_000_000 * (UNIT[ResourceKind.MEM] // PAGE)  # a nano
    price = Price(ResourceKind.MEM, dram, standard, per_page_second)
    desk.lessor.admission.prices = Prices((price,))
    desk.grant(ask_mem(1), ttl=60)
    refusal = desk.refused(ask_mem(1), ttl=60)
    assert numbers(refusal) == (RefusalReason.BUDGET, "cost_nano", 100, 60, 60)
    desk.grant(ask_mem(1), ttl=40)


def test_what_a_group_used_is_rounded_up_once_however_many_used_it() -> None:
    """Two members with half a nano each were shown as two of one."""
    crew = Group(LimitSet(budgets=(Budget(Period.DAY, cost_nano=100),)))
    members = (ACME.tenant, BETA.tenant)
    policy = Policy(
        groups=(("crew", crew),),
        tenants=tuple((one, TenantLimits(group="crew")) for one in members),
    )
    desk = Desk(policy=policy)
    half = 500_000 * (UNIT[ResourceKind.MEM] // PAGE)  # of a nano, per page and second
    price = Price(ResourceKind.MEM, int(TierKind.DRAM), int(Priority.STANDARD), half)
    desk.lessor.admission.prices = Prices((price,))
    for caller in (ACME, BETA):
        desk.grant(ask_mem(1), caller=caller, ttl=61)
    told = desk.say(commands.Quotas(desk.command_id(), OPERATOR))
    assert isinstance(told, Allowed)
    [shown] = [one for one in told.allowances if one.what == "cost_nano"]
    assert (shown.limit, shown.usage) == (100, 61)
    refusal = desk.refused(ask_mem(1), ttl=79)
    assert numbers(refusal) == (RefusalReason.BUDGET, "cost_nano", 100, 61, 40)
