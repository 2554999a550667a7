# SPDX-License-Identifier: Apache-2.0
"""Who has borrowed, who has not, and what a request is told that can never be had."""

from __future__ import annotations

from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.lease import LeaseState, Level
from leased.terms.policy import (
    Allocation,
    Borrowing,
    CapacityLimit,
    Policy,
    Strategy,
    TenantLimits,
)
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind
from tests.doubles.desk import ACME, BETA, OPERATOR, PAGE, Desk, ask_mem, mem, tenant

CARL = tenant("carl", 3000)


def quota(pages: int) -> TenantLimits:
    """A hard quota of memory."""
    return TenantLimits(capacities=(CapacityLimit(ResourceKind.MEM, pages * PAGE),))


LENDING = Policy(
    borrowing=Borrowing(enabled=True),
    tenants=((ACME.tenant, quota(8)), (BETA.tenant, quota(6))),
    tenant_default=TenantLimits(level_max=Level.CRITICAL),
)


def test_whoever_has_no_quota_has_borrowed_nothing() -> None:
    """An owner calls back what was borrowed, not what a tenant without a quota has."""
    desk = Desk(mem(0, 10), policy=LENDING)
    free = desk.lease(ask_mem(10), caller=CARL, ttl=600)
    desk.sleep(100)
    assert desk.ask(ask_mem(4), caller=ACME, wait=60) is None
    assert desk.at(free).state is LeaseState.ACTIVE
    assert desk.ask(ask_mem(4), caller=BETA, wait=60) is None
    assert desk.at(free).state is LeaseState.ACTIVE


def test_what_others_have_without_a_quota_keeps_nobody_from_borrowing() -> None:
    desk = Desk(mem(0, 100), policy=LENDING)
    desk.lease(ask_mem(50), caller=CARL)
    desk.lease(ask_mem(12), caller=ACME)


def test_the_same_policy_again_cuts_no_borrower() -> None:
    """A collector hands out its document time and again; what was lent by it stays lent."""
    desk = Desk(mem(0, 100), policy=LENDING)
    borrower = desk.lease(ask_mem(12), caller=ACME, ttl=600)
    sealed = len(desk.history)
    again = commands.SetPolicy(desk.command_id(), OPERATOR, LENDING, b"p" * 32, b"r" * 32)
    desk.say(again)
    kinds = [type(event) for event, _ in desk.history[sealed:]]
    assert kinds == [events.PolicyChanged]
    desk.sleep(100)
    desk.tick()
    assert desk.at(borrower).state is LeaseState.ACTIVE


def test_lending_that_ends_does_cut_them() -> None:
    desk = Desk(mem(0, 100), policy=LENDING)
    borrower = desk.lease(ask_mem(12), caller=ACME, ttl=600)
    ended = Policy(tenants=LENDING.tenants)
    desk.say(commands.SetPolicy(desk.command_id(), OPERATOR, ended, b"p" * 32, b"r" * 32))
    desk.tick()
    assert desk.at(borrower).state is LeaseState.DRAINING


def test_more_than_anybody_may_have_at_once_is_not_promised_for_later() -> None:
    fair = Allocation(ResourceKind.MEM, strategy=Strategy.FAIR_SHARE, max_share_pm=300)
    desk = Desk(mem(0, 10), policy=Policy(allocations=(fair,)))
    desk.lease(ask_mem(2), ttl=60)
    never = desk.refused(ask_mem(4))
    assert (never.reason, never.retry_at_ns) == (RefusalReason.SHARE, None)
    later = desk.refused(ask_mem(3))
    assert (later.reason, later.retry_at_ns) == (RefusalReason.SHARE, desk.now_ns + 60 * 10**9)
    assert desk.refused(ask_mem(11), caller=BETA).retry_at_ns is None
