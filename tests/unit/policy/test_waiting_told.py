# SPDX-License-Identifier: Apache-2.0
"""What a node tells of who waits, and what a collector takes of it."""

from __future__ import annotations

import json

import pytest

from leased.collector.api.handing import _waiting
from leased.collector.api.problems import Problem
from leased.service.policy.waiting import ROWS_MAX, waiting_text
from leased.terms.policy import CapacityLimit, Policy, TenantLimits
from leased.terms.resource import ResourceKind
from tests.doubles.desk import ACME, BETA, PAGE, Desk, ask_mem, mem

LIMITS = TenantLimits(capacities=(CapacityLimit(ResourceKind.MEM, 4 * PAGE),))


def told(desk: Desk) -> list[list[object]]:
    text = waiting_text(desk.lessor.queue)
    return json.loads(text) if text else []


def test_who_waits_for_a_limit_is_told_and_who_waits_for_room_is_not() -> None:
    desk = Desk(mem(0, 10), policy=Policy(tenants=((ACME.tenant, LIMITS),)))
    assert told(desk) == []
    unit = desk.lease(ask_mem(4), caller=ACME).subject.allotments[0].capacity // 4
    for count in (1, 3):
        desk.propose(desk.acquire(ask_mem(count), wait=60, caller=ACME))
    desk.propose(desk.acquire(ask_mem(10), wait=60, caller=BETA))
    assert told(desk) == [[ACME.tenant, "mem", 4 * unit]]
    assert _waiting(waiting_text(desk.lessor.queue)) == {(ACME.tenant, "memory_gb"): 4 * unit}
    desk.sleep(61)
    desk.tick()
    assert told(desk) == []


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "{}",
        "[1]",
        '[["acme","gpu",0]]',
        '[["acme","gpu",-5]]',
        '[["acme","gpu",1e400]]',
        '[["acme","gpu",99999999999999999999999]]',
        '[["","gpu",1]]',
        json.dumps([["acme", "gpu", 1]] * 65),
    ],
)
def test_what_is_told_wrongly_is_a_problem(text: str) -> None:
    with pytest.raises(Problem):
        _waiting(text)


def test_kinds_that_nobody_knows_are_nobodys_limits() -> None:
    many = json.dumps([["acme", "leases", 1]] * ROWS_MAX + [["acme", "tpu", 5]])
    assert _waiting(many) == {
        ("acme", "max_leases"): ROWS_MAX,
        ("acme", "max_concurrent_tasks"): ROWS_MAX,
    }
    assert _waiting("") == {}
