# SPDX-License-Identifier: Apache-2.0
"""Placement: the tightest fit, whole cores, packed shares, and several asks at once."""

from __future__ import annotations

import pytest

from leased.terms.lease import Lease
from leased.terms.reply import RefusalReason
from leased.terms.resource import Ask, Resource, ResourceKind, TierKind
from tests.doubles.desk import HUGE, PAGE, Desk, ask_mem, cores, mem


def shares(lease: Lease) -> dict[str, int]:
    """What a lease holds, by resource."""
    held: dict[str, int] = {}
    for allotment in lease.subject.allotments:
        held[allotment.resource_id] = held.get(allotment.resource_id, 0) + allotment.capacity
    return held


def ask_cpu(milli: int, *, exclusive: bool = False, node: int | None = None) -> Ask:
    """So many thousandths of a core."""
    return Ask(ResourceKind.CPU, milli, node=node, exclusive=exclusive)


def test_memory_takes_the_tightest_node_that_fits() -> None:
    desk = Desk(mem(0, 100), mem(1, 50), mem(2, 70))
    assert list(shares(desk.grant(ask_mem(40)))) == ["mem:node1:4096"]
    assert list(shares(desk.grant(ask_mem(40)))) == ["mem:node2:4096"]
    assert list(shares(desk.grant(ask_mem(10)))) == ["mem:node1:4096"]


def test_equal_fits_go_by_the_order_of_the_inventory() -> None:
    desk = Desk(mem(3, 50), mem(1, 50), mem(2, 50))
    assert list(shares(desk.grant(ask_mem(1)))) == ["mem:node3:4096"]


def test_the_plainest_tier_and_page_size_come_first() -> None:
    desk = Desk(
        mem(2, 1, page=HUGE),
        mem(1, 600, tier=TierKind.HBM),
        mem(0, 1000),
    )
    assert list(shares(desk.grant(ask_mem(512)))) == ["mem:node0:4096"]
    assert list(shares(desk.grant(ask_mem(512)))) == ["mem:node2:2097152"]
    assert list(shares(desk.grant(ask_mem(512)))) == ["mem:node1:4096"]


def test_what_an_ask_pins_is_what_it_gets() -> None:
    desk = Desk(mem(0, 100), mem(1, 100, tier=TierKind.CXL), mem(1, 4, page=HUGE))
    assert list(shares(desk.grant(ask_mem(1, tier=TierKind.CXL)))) == ["mem:node1:4096"]
    huge = Ask(ResourceKind.MEM, HUGE, granule=HUGE)
    assert list(shares(desk.grant(huge))) == ["mem:node1:2097152"]
    pinned = Ask(ResourceKind.MEM, PAGE, resource_id="mem:node0:4096")
    assert list(shares(desk.grant(pinned))) == ["mem:node0:4096"]


def test_shares_of_cores_are_packed_on_as_few_as_possible() -> None:
    desk = Desk(*cores(4))
    assert shares(desk.grant(ask_cpu(300))) == {"cpu:0": 300}
    assert shares(desk.grant(ask_cpu(600))) == {"cpu:0": 600}
    assert shares(desk.grant(ask_cpu(200))) == {"cpu:1": 200}
    # 100 free on core 0, 800 on core 1, two whole ones: two cores are the fewest for 1700,
    # and the rest of it goes where it fits tightest.
    assert shares(desk.grant(ask_cpu(1700))) == {"cpu:2": 1000, "cpu:1": 700}


def test_whole_cores_are_fully_free_ones_of_one_node_where_one_suffices() -> None:
    desk = Desk(*cores(8, per_node=4))
    desk.grant(ask_cpu(10, node=0))
    assert shares(desk.grant(ask_cpu(4000, exclusive=True))) == {
        f"cpu:{core}": 1000 for core in (4, 5, 6, 7)
    }
    assert shares(desk.grant(ask_cpu(3000, exclusive=True))) == {
        f"cpu:{core}": 1000 for core in (1, 2, 3)
    }
    refusal = desk.refused(ask_cpu(1000, exclusive=True))
    assert refusal.reason is RefusalReason.NO_CAPACITY


def test_whole_cores_may_span_nodes_when_no_node_suffices() -> None:
    desk = Desk(*cores(4, per_node=2))
    assert len(shares(desk.grant(ask_cpu(3000, exclusive=True)))) == 3


def test_a_whole_core_is_nobody_elses() -> None:
    desk = Desk(*cores(1))
    desk.grant(ask_cpu(1000, exclusive=True))
    assert desk.refused(ask_cpu(1)).reason is RefusalReason.NO_CAPACITY


def test_part_of_a_core_cannot_be_exclusive() -> None:
    refusal = Desk(*cores(2)).refused(ask_cpu(1500, exclusive=True))
    assert (refusal.reason, refusal.limit) == (RefusalReason.CAPACITY_GRANULE, 1000)


def test_gpus_come_whole_and_several_at_once() -> None:
    gpus = [Resource(f"gpu:{n}", ResourceKind.GPU, None, 1000, 1000, n // 2) for n in range(4)]
    desk = Desk(*gpus)
    assert shares(desk.grant(Ask(ResourceKind.GPU, 2000))) == {"gpu:0": 1000, "gpu:1": 1000}
    refusal = desk.refused(Ask(ResourceKind.GPU, 500))
    assert refusal.reason is RefusalReason.CAPACITY_GRANULE
    assert desk.refused(Ask(ResourceKind.GPU, 3000)).reason is RefusalReason.NO_CAPACITY


def test_several_asks_are_all_or_nothing() -> None:
    desk = Desk(mem(0, 10), *cores(2))
    before = desk.free()
    assert desk.refused(ask_mem(5), ask_cpu(3000)).reason is RefusalReason.NO_CAPACITY
    assert desk.free() == before
    lease = desk.grant(ask_mem(5), ask_cpu(1500))
    assert shares(lease) == {"mem:node0:4096": 5 * PAGE, "cpu:0": 1000, "cpu:1": 500}


def test_the_same_resource_asked_twice_adds_up() -> None:
    desk = Desk(mem(0, 10))
    refusal = desk.refused(ask_mem(6), ask_mem(6), wait=60)
    assert (refusal.reason, refusal.requested) == (RefusalReason.NO_CAPACITY, 12 * PAGE)
    assert refusal.retry_at_ns is None, "it can never fit, so it is not let wait"
    lease = desk.grant(ask_mem(6), ask_mem(4))
    assert desk.free() == 0
    assert [allotment.capacity for allotment in lease.subject.allotments] == [6 * PAGE, 4 * PAGE]


def test_an_ask_without_a_choice_is_placed_before_one_that_has() -> None:
    desk = Desk(mem(0, 10), mem(1, 12))
    # Best fit alone would put the first ask on node 0 and leave no room for the second.
    lease = desk.grant(ask_mem(10), ask_mem(10, node=0))
    assert [a.resource_id for a in lease.subject.allotments] == ["mem:node1:4096", "mem:node0:4096"]


@pytest.mark.parametrize("order", [1, -1])
def test_placement_does_not_depend_on_history(order: int) -> None:
    desk = Desk(mem(0, 64), mem(1, 64))
    first = [desk.lease(ask_mem(8)) for _ in range(8)]
    for lease in first[::order]:
        desk.release(lease)
        desk.reclaim(lease)
    assert list(shares(desk.grant(ask_mem(8)))) == ["mem:node0:4096"]
