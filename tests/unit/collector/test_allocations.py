# SPDX-License-Identifier: Apache-2.0
"""How what there is is divided: who has, who wants, who should have, by the records of nodes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from leased.collector.api.allocations import WANTED_NS, seen_of
from leased.collector.api.fleet_answers import AllocationsSeen, TenantShare
from leased.collector.fleet import Fleet
from leased.terms.event import Refused
from leased.terms.identity import CommandId, TenantId
from leased.terms.policy import Allocation, Policy, Strategy
from leased.terms.reply import RefusalReason
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.economics_history import History, subject
from tests.doubles.fleets import fleet_of

CPU, GPU = ResourceKind.CPU, ResourceKind.GPU
SHARED = Policy(allocations=(Allocation(CPU, strategy=Strategy.FAIR_SHARE, max_share_pm=1000),))
LATER_NS = 10 * WANTED_NS


def cores(count: int) -> Allotment:
    return Allotment("cpu:0", CPU, None, count * 1000)


def refuse(history: History, tenant: str, count: int, reason: RefusalReason, **more: Any) -> None:
    history.boot_ns += 1_000
    asked = (TenantId(tenant), 1000, CommandId(bytes(16)), int(reason), 0, 0, count * 1000)
    history.seal(Refused(history.event_id(), *asked, **{"resource_kind": CPU, **more}))


def two_hosts() -> tuple[History, History]:
    found = (History(), History())
    for history in found:
        history.start()
        history.inventory(cores(20))
    return found


def read(*histories: History) -> Fleet:
    return fleet_of({f"host-{number}": history for number, history in enumerate(histories)})


def seen(*histories: History, ground: Policy = SHARED, after_ns: int = 0) -> AllocationsSeen:
    now_ns = max(one.boot_ns + one.wall_offset_ns for one in histories) + after_ns
    return seen_of(read(*histories), ground, now_ns)


def rows(found: AllocationsSeen) -> dict[str, TenantShare]:
    return {one.tenant: one for one in found.tenants}


def test_shares_add_up_to_one() -> None:
    first, second = two_hosts()
    for number, tenant in enumerate(("a", "b", "c")):
        first.allocate(number, subject(cores(1), tenant=tenant), LATER_NS)
    shares = [one.share for one in seen(first, second).tenants]
    assert shares == [Decimal("0.3334"), Decimal("0.3333"), Decimal("0.3333")]
    assert sum(shares) == 1


def test_what_is_fenced_is_the_operators_and_not_free() -> None:
    first, second = two_hosts()
    first.allocate(1, subject(cores(8), tenant="a"), LATER_NS)
    first.end(1)
    first.fence(1, cores(2))  # six of the eight are free again
    second.fence_resource(cores(5), fenced=True)
    second.fence_resource(cores(4), fenced=False)
    fleet = read(first, second)
    assert (fleet.held(), fleet.held("a"), fleet.standing().held_by) == ({CPU: 3000}, {}, {"a": {}})
    first.unfence(1)
    second.fence_resource(cores(1), fenced=False)
    assert read(first, second).held() == {}


def test_who_was_refused_for_want_of_room_wants_it_for_a_minute() -> None:
    first, second = two_hosts()
    first.allocate(1, subject(cores(20), tenant="a"), LATER_NS)
    second.allocate(2, subject(cores(20), tenant="a"), LATER_NS)
    for history in (first, second):  # one after the other: it wants it once
        refuse(history, "b", 10, RefusalReason.NO_CAPACITY)
    found = seen(first, second)
    one = rows(found)["b"]
    assert (one.demand, one.allocated) == ({"cpu_cores": 10}, {})
    assert (one.entitled, rows(found)["a"].entitled) == ({"cpu_cores": 10}, {"cpu_cores": 30})
    # a has 40 of 30, b nothing of 10: (4/3)^2 / (2 (4/3)^2).
    assert (found.fairness, found.fairness_index) == ({"cpu_cores": Decimal("0.5")}, Decimal("0.5"))
    assert rows(seen(first, second, after_ns=WANTED_NS)).keys() == {"a"}


def test_who_was_given_it_afterwards_wants_it_no_more() -> None:
    first, second = two_hosts()
    first.allocate(1, subject(cores(20), tenant="a"), LATER_NS)
    refuse(first, "b", 10, RefusalReason.WAIT_EXPIRED)
    second.boot_ns = 2_000
    second.allocate(2, subject(cores(10), tenant="b"), LATER_NS)
    found = seen(first, second)
    assert rows(found)["b"].demand == {"cpu_cores": 10} and found.fairness_index == 1


@pytest.mark.parametrize(
    ("reason", "count", "more"),
    [
        (RefusalReason.TENANT_CAPACITY, 10, {}),  # its own limit: nobody has what it wants
        (RefusalReason.NO_CAPACITY, 21, {}),  # no host has so much
        (RefusalReason.QUEUE_FULL, 1, {"resource_kind": None}),
    ],
)
def test_what_nobody_keeps_from_it_is_no_demand(
    reason: RefusalReason, count: int, more: dict[str, Any]
) -> None:
    first, second = two_hosts()
    first.allocate(1, subject(cores(20), tenant="a"), LATER_NS)
    refuse(first, "b", count, reason, **more)
    found = seen(first, second)
    assert rows(found).keys() == {"a"} and found.fairness_index == 1


def test_by_priority_it_is_how_evenly_what_is_wanted_is_had() -> None:
    first, second = two_hosts()
    first.allocate(1, subject(cores(20), tenant="a"), LATER_NS)
    second.allocate(2, subject(cores(10), tenant="b"), LATER_NS)
    refuse(second, "b", 20, RefusalReason.NO_CAPACITY)
    found = seen(first, second, ground=Policy())
    assert rows(found)["b"].entitled == {"cpu_cores": 30}
    assert found.fairness_index == Decimal("0.8")  # (1 + 1/3)^2 / (2 (1 + 1/9))


def test_a_reservation_that_is_wanted_and_not_had_is_unfair() -> None:
    plan = Allocation(
        CPU, strategy=Strategy.RESERVATION, reservations=((TenantId("b"), 20_000),)
    )
    first, second = two_hosts()
    first.allocate(1, subject(cores(20), tenant="a"), LATER_NS)
    second.allocate(2, subject(cores(10), tenant="b"), LATER_NS)
    assert seen(first, second, ground=Policy(allocations=(plan,))).fairness_index == 1
    refuse(second, "b", 20, RefusalReason.RESERVED)
    found = seen(first, second, ground=Policy(allocations=(plan,)))
    assert rows(found)["b"].entitled == {"cpu_cores": 20}
    assert found.fairness_index == Decimal("0.9")  # (1 + 1/2)^2 / (2 (1 + 1/4))


def test_the_index_is_that_of_the_kind_that_is_divided_least_evenly() -> None:
    first, second = two_hosts()
    gpu = Allotment("gpu:0", GPU, None, 1000)
    for history in (first, second):
        history.inventory(cores(20), gpu)
    first.allocate(1, subject(cores(10), gpu, tenant="a"), LATER_NS)
    second.allocate(2, subject(cores(10), gpu, tenant="a"), LATER_NS)
    second.allocate(3, subject(cores(10), tenant="b"), LATER_NS)
    refuse(second, "b", 1, RefusalReason.NO_CAPACITY, resource_kind=GPU)
    found = seen(first, second, ground=Policy())
    assert found.fairness == {"cpu_cores": 1, "gpus": Decimal("0.5")}
    assert found.fairness_index == Decimal("0.5")
