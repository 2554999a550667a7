# SPDX-License-Identifier: Apache-2.0
"""What nodes cost: every part of it, and what was held beyond what there was."""

from __future__ import annotations

from decimal import Decimal

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.node_costs import node_costs
from leased.collector.metering.reference import Chain, ReferenceSource
from leased.collector.metering.sources import NodeAmount
from leased.economics.contracts import Terms
from leased.economics.hourly import HOUR_NS
from leased.economics.pools import Pool
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.accounts import JANUARY_NS, WrittenSource
from tests.doubles.economics_history import History, subject

CPU = ResourceKind.CPU
CORE_HOUR = 1000 * HOUR_NS


def test_what_is_below_zero_stands_by_itself_and_the_parts_are_all() -> None:
    source = WrittenSource()
    hours = range(39 * 24, 40 * 24)
    source.hold("", CPU, 8_000, hours, pool=Pool.PROVISIONED)
    source.hold("acme", CPU, 3_000, hours)
    amounts = {"a": (96, 24, 0, 0, 72, 0), "b": (96, 48, 0, 0, 72, -24)}
    source.by_node = [
        NodeAmount(node, CPU, None, *(CORE_HOUR * one for one in parts))
        for node, parts in amounts.items()
    ]
    accounts = Accounts(source, Terms())
    told = node_costs(accounts, accounts.last("24h"))
    # A core is 7.20 an hour.
    assert [one.node for one in told.nodes] == ["a", "b"]
    assert told.nodes[1].idle_cost == Decimal("518.4")
    assert told.nodes[1].unattributed_negative == told.unattributed_negative == Decimal("-172.8")
    assert told.provisioned_cost == Decimal("1382.4") and told.idle_cost == Decimal("1036.8")
    assert told.complete
    source.by_node.pop()
    assert not node_costs(accounts, accounts.last("24h")).complete


def test_a_device_that_vanishes_under_a_lease_makes_no_idle_time_smaller() -> None:
    core = Allotment("cpu:0", CPU, None, 1000)
    history = History(wall_offset_ns=JANUARY_NS)
    history.start()
    history.inventory(core)
    history.allocate(1, subject(core), history.boot_ns + 100 * HOUR_NS)
    history.boot_ns += HOUR_NS
    history.inventory()
    history.boot_ns += HOUR_NS
    history.release(1)
    history.reclaim(1)
    history.inventory(core)
    history.boot_ns += 2 * HOUR_NS
    history.touch()
    source = ReferenceSource([Chain("0a" * 16, "0b" * 16).read(history.records, "ab" * 32)])
    (one,) = source.node_amounts((JANUARY_NS, JANUARY_NS + 24 * HOUR_NS))
    assert (one.provisioned, one.tenant) == (3 * CORE_HOUR, 2 * CORE_HOUR)
    assert (one.idle, one.missing) == (2 * CORE_HOUR, -CORE_HOUR)
