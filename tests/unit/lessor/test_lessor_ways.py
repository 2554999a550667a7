# SPDX-License-Identifier: Apache-2.0
"""Ways: several resources to the same capacity are counted once, wherever it is looked from."""

from __future__ import annotations

import msgspec
import pytest

from leased.terms import command as commands
from leased.terms.lease import LeaseState
from leased.terms.reply import Inventoried, RefusalReason, ResourceUse
from leased.terms.resource import (
    Ask,
    Inventory,
    Resource,
    ResourceKind,
    Shape,
    TierKind,
    capacity_id,
    shape_of,
)
from tests.doubles.desk import HUGE, OPERATOR, PAGE, Desk, ask_mem, mem

BUDGET = "mem:budget:node0:4096"


def budget(node: int, pages: int) -> Resource:
    """The way to a node's memory by a budget."""
    return msgspec.structs.replace(mem(node, pages), resource_id=f"mem:budget:node{node}:4096")


def ask_budget(pages: int, node: int | None = None) -> Ask:
    """So many pages of a budget."""
    return msgspec.structs.replace(ask_mem(pages, node=node), shape=Shape.BUDGET)


def used(desk: Desk, resource_id: str) -> ResourceUse:
    """How a resource is used now."""
    reply = desk.say(commands.ListResources(desk.command_id(), OPERATOR))
    assert isinstance(reply, Inventoried)
    [use] = [use for use in reply.use if use.resource_id == resource_id]
    return use


@pytest.mark.parametrize(
    ("resource_id", "shape", "counted_by"),
    [
        ("mem:node0:4096", Shape.MEMFD, "mem:node0:4096"),
        ("mem:budget:node12:4096", Shape.BUDGET, "mem:node12:4096"),
        ("mem:rdma-0a:node1:2097152", Shape.RDMA, "mem:node1:2097152"),
        ("mem:dax-ab:node1", Shape.DAX, "mem:dax-ab:node1"),
        ("cpu:3", None, "cpu:3"),
        ("gpu:GPU-a", None, "gpu:GPU-a"),
    ],
)
def test_an_id_says_its_shape_and_who_counts_it(
    resource_id: str, shape: Shape | None, counted_by: str
) -> None:
    assert shape_of(resource_id) is shape
    assert capacity_id(resource_id) == counted_by


def test_what_one_way_takes_is_gone_from_the_other() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    lease = desk.grant(ask_budget(6))
    assert [a.resource_id for a in lease.subject.allotments] == [BUDGET]
    assert desk.refused(ask_mem(5)).reason is RefusalReason.NO_CAPACITY
    desk.grant(ask_mem(4))
    assert desk.refused(ask_budget(1)).reason is RefusalReason.NO_CAPACITY
    for resource_id in (BUDGET, "mem:node0:4096"):
        use = used(desk, resource_id)
        assert (use.free, use.leased) == (0, 10 * PAGE)


def test_both_in_one_request_have_to_add_up() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    refusal = desk.refused(ask_mem(6), ask_budget(5))
    assert refusal.reason is RefusalReason.NO_CAPACITY and refusal.retry_at_ns is None
    desk.grant(ask_mem(6), ask_budget(4))


def test_who_names_no_shape_gets_a_descriptor_of_memory() -> None:
    dax = Resource("mem:dax-a", ResourceKind.MEM, TierKind.CXL, 64 * PAGE, 64 * PAGE, 2)
    far = Resource("mem:rdma-b:node0:4096", ResourceKind.MEM, TierKind.REMOTE, 64 * PAGE, PAGE, 0)
    desk = Desk(budget(0, 64), dax, far, mem(0, 64))
    [share] = desk.grant(ask_mem(64)).subject.allotments
    assert share.resource_id == "mem:node0:4096"
    assert desk.refused(ask_mem(64)).reason is RefusalReason.NO_CAPACITY
    [share] = desk.grant(msgspec.structs.replace(ask_mem(64), shape=Shape.DAX)).subject.allotments
    assert share.resource_id == "mem:dax-a"
    refusal = desk.refused(msgspec.structs.replace(ask_mem(1), tier=TierKind.REMOTE))
    assert refusal.reason is RefusalReason.NO_CAPACITY, "it is there, and node 0 is full"


def test_a_resource_that_is_named_needs_no_shape() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    [share] = desk.grant(Ask(ResourceKind.MEM, PAGE, resource_id=BUDGET)).subject.allotments
    assert share.resource_id == BUDGET
    contradiction = Ask(ResourceKind.MEM, PAGE, resource_id=BUDGET, shape=Shape.MEMFD)
    assert desk.refused(contradiction).reason is RefusalReason.NO_SUCH_RESOURCE


def test_room_is_expected_when_the_other_way_s_lease_ends() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    desk.grant(ask_budget(10), ttl=30)
    ends_ns = desk.now_ns + 30 * 10**9
    assert desk.refused(ask_mem(1)).retry_at_ns == ends_ns
    assert desk.refused(ask_mem(1), ask_budget(1)).retry_at_ns == ends_ns


def test_a_drained_node_gives_no_budget_either_and_tells_who_has_one() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    lease = desk.grant(ask_budget(1))
    desk.activate(lease)
    desk.say(commands.Drain(desk.command_id(), OPERATOR, "mem:node0:4096", None))
    assert desk.refused(ask_budget(1)).reason is RefusalReason.CORDONED
    assert used(desk, BUDGET).cordoned
    assert desk.table.leases[lease.lease_id].state is LeaseState.DRAINING


def test_what_an_operator_fences_of_a_way_is_fenced_of_the_memory() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    desk.say(commands.Fence(desk.command_id(), OPERATOR, BUDGET, 4 * PAGE))
    assert used(desk, "mem:node0:4096").fenced == 4 * PAGE
    desk.say(commands.Unfence(desk.command_id(), OPERATOR, None, "mem:node0:4096"))
    assert used(desk, BUDGET).fenced == 0


def test_a_way_that_is_lost_ends_the_leases_that_used_it_and_no_others() -> None:
    desk = Desk(budget(0, 10), mem(0, 10))
    lost, kept = desk.grant(ask_budget(2)), desk.grant(ask_mem(3))
    desk.say(commands.Observe(desk.command_id(), Inventory((mem(0, 10),))))
    assert desk.table.leases[lost.lease_id].state is LeaseState.REVOKING
    assert desk.table.leases[kept.lease_id].state is LeaseState.GRANTED
    use = used(desk, "mem:node0:4096")
    assert (use.leased, use.teardown, use.free) == (3 * PAGE, 2 * PAGE, 5 * PAGE)


def test_a_way_to_what_is_not_offered_leads_nowhere() -> None:
    desk = Desk(budget(0, 10), mem(0, 1, page=HUGE))
    assert desk.refused(ask_budget(1)).reason is RefusalReason.NO_SUCH_RESOURCE
