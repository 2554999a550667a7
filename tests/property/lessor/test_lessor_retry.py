# SPDX-License-Identifier: Apache-2.0
"""The date on a refusal: before it the same request fails, at it the request succeeds.

Rule: every lease ends on time, its teardown takes no time, nobody else asks: what the date assumes.
"""

from __future__ import annotations

import random

import pytest

from leased.lessor.lifecycle import TEARDOWN
from leased.terms.policy import CapacityLimit, Policy, TenantLimits
from leased.terms.reply import Granted, Refusal
from leased.terms.resource import Ask, ResourceKind, TierKind
from tests.doubles.desk import ACME, BETA, PAGE, Desk, ask_mem, cores, mem


def draw_asks(rng: random.Random) -> list[Ask]:
    """One to three asks."""
    return [
        rng.choice(
            (
                ask_mem(rng.randrange(1, 25)),
                ask_mem(rng.randrange(1, 25), node=rng.randrange(2)),
                Ask(ResourceKind.CPU, rng.randrange(1, 3000)),
                Ask(ResourceKind.CPU, 1000 * rng.randrange(1, 4), exclusive=True),
            )
        )
        for _ in range(rng.choice((1, 1, 2, 3)))
    ]


def settle(desk: Desk) -> None:
    """Everything that is over by now is clean by now."""
    while (due_ns := desk.lessor.next_deadline_ns()) is not None and due_ns <= desk.now_ns:
        desk.tick()
    for lease in list(desk.table.leases.values()):
        if lease.state in TEARDOWN:
            desk.reclaim(lease)


def busy_desk(rng: random.Random) -> Desk:
    """Two tenants, some limits, leases that end at many times, some of them draining or renewed."""
    policy = Policy(
        leases_max=rng.choice((6, 100)),
        tenant_default=TenantLimits(
            leases_max=rng.choice((None, 4)),
            capacities=rng.choice(
                (
                    (),
                    (CapacityLimit(ResourceKind.MEM, 30 * PAGE),),
                    (CapacityLimit(ResourceKind.MEM, 20 * PAGE, tier=TierKind.DRAM),),
                )
            ),
        ),
    )
    desk = Desk(mem(0, 30), mem(1, 20), *cores(4, per_node=2), policy=policy)
    for _ in range(14):
        how = {"caller": rng.choice((ACME, BETA)), "ttl": rng.randrange(1, 50)}
        reply = desk.ask(*draw_asks(rng), **how)
        if isinstance(reply, Granted):
            lease = desk.activate(reply.lease)
            if rng.random() < 0.3:
                desk.renew(lease, rng.randrange(1, 90), caller=how["caller"])
            if rng.random() < 0.1:
                desk.release(lease, caller=how["caller"])
    return desk


@pytest.mark.parametrize("seed", range(150))
def test_the_date_on_a_refusal_holds(seed: int) -> None:
    rng = random.Random(seed)
    desk = busy_desk(rng)
    asks = draw_asks(rng)
    refusal = desk.ask(*asks, ttl=100)
    if not isinstance(refusal, Refusal):
        return
    at_ns = refusal.retry_at_ns
    if at_ns is None:
        desk.sleep(1000)
        settle(desk)
        assert isinstance(desk.ask(*asks, ttl=100), Refusal)
        return
    assert at_ns >= desk.now_ns
    if at_ns > desk.now_ns:
        desk.now_ns = at_ns - 1
        settle(desk)
        again = desk.ask(*asks, ttl=100)
        assert isinstance(again, Refusal), "it could have succeeded earlier"
        assert again.retry_at_ns == at_ns
    desk.now_ns = at_ns
    settle(desk)
    assert isinstance(desk.ask(*asks, ttl=100), Granted)


def test_enough_of_the_drawn_requests_are_refused_with_and_without_a_date() -> None:
    dated = undated = 0
    for seed in range(150):
        rng = random.Random(seed)
        desk = busy_desk(rng)
        reply = desk.ask(*draw_asks(rng), ttl=100)
        if isinstance(reply, Refusal):
            dated += reply.retry_at_ns is not None and reply.retry_at_ns > desk.now_ns
            undated += reply.retry_at_ns is None
    assert dated > 30 and undated > 5
