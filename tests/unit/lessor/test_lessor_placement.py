# SPDX-License-Identifier: Apache-2.0
"""Placement: the tightest fit, whole cores, packed shares, and several asks at once."""

from __future__ import annotations

import pytest

from leased.terms import command as commands
from leased.terms.lease import Lease, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import CapacityLimit, Policy, TenantLimits
from leased.terms.reply import Done, RefusalReason
from leased.terms.resource import Ask, Inventory, Resource, ResourceKind, Shape, TierKind
from tests.doubles.desk import HUGE, OPERATOR, PAGE, Desk, ask_mem, cores, mem


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


def gpu(number: int, node: int = 0, **attributes: str) -> Resource:
    """One GPU; `nvlink` names numbers."""
    links = attributes.get("nvlink", "").split()
    attributes["nvlink"] = ",".join(f"GPU-{link}" for link in links)
    said = tuple(attributes.items())
    name = f"gpu:GPU-{number}"
    return Resource(name, ResourceKind.GPU, None, 1000, 1000, node, attributes=said)


def instance(number: int, profile: str, weight: int) -> Resource:
    """One MIG instance."""
    name, said = f"gpu:MIG-{number}", (("mig", profile),)
    return Resource(name, ResourceKind.GPU, None, weight, weight, attributes=said)


def disk(name: str, gib: int, node: int = -1) -> Resource:
    """One namespace."""
    return Resource(name, ResourceKind.BLOCK, None, gib << 30, gib << 30, node)


def ask_gpus(count: int, **attributes: str) -> Ask:
    """So many GPUs that say so of themselves."""
    return Ask(ResourceKind.GPU, 1, count=count, attributes=tuple(attributes.items()))


def ask_disk(gib: int, **how: object) -> Ask:
    """A namespace of at least so much."""
    return Ask(ResourceKind.BLOCK, gib << 30, **how)  # type: ignore[arg-type]


def test_gpus_with_links_to_each_other_come_together() -> None:
    pairs = {0: "2", 2: "0", 1: "3", 3: "1"}
    desk = Desk(*(gpu(n, nvlink=links) for n, links in sorted(pairs.items())))
    assert list(shares(desk.grant(Ask(ResourceKind.GPU, 1000)))) == ["gpu:GPU-0"]
    assert list(shares(desk.grant(Ask(ResourceKind.GPU, 2000)))) == ["gpu:GPU-1", "gpu:GPU-3"]


def test_one_gpu_is_taken_where_it_breaks_up_nothing() -> None:
    desk = Desk(gpu(0, nvlink="1"), gpu(1, nvlink="0"), gpu(2))
    assert list(shares(desk.grant(Ask(ResourceKind.GPU, 1000)))) == ["gpu:GPU-2"]


def test_gpus_without_links_share_a_node_where_one_suffices() -> None:
    desk = Desk(gpu(0, 0), gpu(1, 1), gpu(2, 1))
    assert list(shares(desk.grant(Ask(ResourceKind.GPU, 2000)))) == ["gpu:GPU-1", "gpu:GPU-2"]
    assert desk.refused(Ask(ResourceKind.GPU, 2000)).reason is RefusalReason.NO_CAPACITY


def test_what_is_asked_together_comes_from_one_node() -> None:
    host = (mem(0, 50), mem(1, 100), *cores(4, per_node=2), gpu(0, 1), gpu(1, 0))
    held = shares(Desk(*host).grant(ask_mem(1), ask_cpu(1000), Ask(ResourceKind.GPU, 1000)))
    assert held == {"mem:node1:4096": PAGE, "cpu:2": 1000, "gpu:GPU-0": 1000}
    held = shares(Desk(*host).grant(ask_mem(1, node=0), Ask(ResourceKind.GPU, 1000)))
    assert held == {"mem:node0:4096": PAGE, "gpu:GPU-1": 1000}
    held = shares(Desk(*host).grant(ask_mem(60), ask_cpu(1000)))
    assert list(held) == ["mem:node1:4096", "cpu:2"]


def test_a_near_node_without_room_keeps_nobody_from_a_far_one() -> None:
    desk = Desk(mem(0, 10), mem(1, 100), gpu(0, 0))
    held = shares(desk.grant(ask_mem(60), Ask(ResourceKind.GPU, 1000)))
    assert held == {"mem:node1:4096": 60 * PAGE, "gpu:GPU-0": 1000}


def test_instances_are_for_those_who_ask_for_them() -> None:
    desk = Desk(*(instance(n, "1g.10gb", 142) for n in range(7)), instance(7, "3g.40gb", 428))
    assert desk.refused(Ask(ResourceKind.GPU, 1000)).reason is RefusalReason.NO_SUCH_RESOURCE
    held = shares(desk.grant(ask_gpus(2, mig="1g.10gb")))
    assert held == {"gpu:MIG-0": 142, "gpu:MIG-1": 142}, "each counts what it weighs"
    assert list(shares(desk.grant(ask_gpus(1, mig="3G.40GB")))) == ["gpu:MIG-7"]
    assert desk.refused(ask_gpus(1, mig="3g.40gb")).reason is RefusalReason.NO_CAPACITY
    by_name = Ask(ResourceKind.GPU, 1, resource_id="gpu:MIG-3", count=1)
    assert list(shares(desk.grant(by_name))) == ["gpu:MIG-3"]


def test_a_gpu_is_found_by_a_word_of_what_it_is() -> None:
    desk = Desk(gpu(0, model="NVIDIA L4"), gpu(1, model="NVIDIA H200 141GB"))
    assert list(shares(desk.grant(ask_gpus(1, model="h200")))) == ["gpu:GPU-1"]
    assert desk.refused(ask_gpus(1, model="H20")).reason is RefusalReason.NO_SUCH_RESOURCE


def test_a_namespace_is_the_smallest_that_suffices_and_comes_whole() -> None:
    desk = Desk(disk("block:a", 400), disk("block:b", 100), disk("block:c", 200))
    assert shares(desk.grant(ask_disk(150))) == {"block:c": 200 << 30}
    assert shares(desk.grant(ask_disk(150))) == {"block:a": 400 << 30}
    refusal = desk.refused(ask_disk(150))
    assert (refusal.reason, refusal.limit) == (RefusalReason.NO_CAPACITY, 600 << 30)
    assert refusal.retry_at_ns == desk.now_ns + 60 * NS_PER_S, "when the first of the two ends"


def test_a_namespace_larger_than_any_is_refused_at_once() -> None:
    desk = Desk(disk("block:a", 400), disk("block:b", 100))
    refusal = desk.refused(ask_disk(500), wait=60)
    assert (refusal.reason, refusal.limit) == (RefusalReason.NO_CAPACITY, 400 << 30)
    assert desk.refused(ask_disk(200, count=2)).reason is RefusalReason.NO_CAPACITY
    assert len(shares(desk.grant(ask_disk(50, count=2)))) == 2


def test_raw_is_for_those_who_ask_for_it_and_is_the_same_namespace() -> None:
    desk = Desk(disk("block:a", 100), disk("block:raw:a", 100))
    assert list(shares(desk.grant(ask_disk(1, shape=Shape.RAW)))) == ["block:raw:a"]
    assert desk.refused(ask_disk(1)).reason is RefusalReason.NO_CAPACITY, "it is taken"
    assert desk.refused(ask_disk(1, shape=Shape.RAW)).reason is RefusalReason.NO_CAPACITY


def test_a_namespace_counts_whole_against_the_quota() -> None:
    limits = TenantLimits(capacities=(CapacityLimit(ResourceKind.BLOCK, 150 << 30),))
    desk = Desk(disk("block:a", 200), policy=Policy(tenant_default=limits))
    refusal = desk.refused(ask_disk(100))
    assert (refusal.reason, refusal.requested) == (RefusalReason.TENANT_CAPACITY, 200 << 30)


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


def test_a_kind_is_drained_as_a_whole_also_what_comes_later() -> None:
    desk = Desk(mem(0, 10), gpu(0))
    lease = desk.lease(Ask(ResourceKind.GPU, 1000))
    drain = commands.Drain(desk.command_id(), OPERATOR, "gpu:", 10**9, RevocationReason.MAINTENANCE)
    assert desk.say(drain) == Done((lease.lease_id,))
    assert desk.at(lease).reason is RevocationReason.MAINTENANCE
    assert desk.refused(Ask(ResourceKind.GPU, 1000)).reason is RefusalReason.CORDONED
    grown = Inventory((*desk.inventory.resources, gpu(1)))
    desk.say(commands.Observe(desk.command_id(), grown))
    assert desk.refused(ask_gpus(1)).reason is RefusalReason.CORDONED
    desk.grant(ask_mem(1))
    desk.say(commands.Resume(desk.command_id(), OPERATOR, "gpu:"))
    assert list(shares(desk.grant(ask_gpus(1)))) == ["gpu:GPU-1"]
