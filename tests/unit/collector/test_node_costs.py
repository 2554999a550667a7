# SPDX-License-Identifier: Apache-2.0
"""What nodes cost: every part of it, and what was held beyond what there was."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from random import Random

import msgspec
import pytest
from msgspec import UnsetType

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.node_costs import node_costs
from leased.collector.accounts.periods import Window
from leased.collector.metering.reference import Chain, ReferenceSource
from leased.collector.metering.sources import Held, NodeAmount, Quiet
from leased.collector.planning import capacity
from leased.economics.attribution import Spread
from leased.economics.contracts import CardVersion, Terms
from leased.economics.pools import UNIT, Pool
from leased.economics.rates import DEFAULT_CARD, RateCard
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.accounts import GIB, JANUARY_HOURS, JANUARY_NS, NODE, WrittenSource
from tests.doubles.economics_history import History, subject

CPU, MEM, BLOCK = ResourceKind.CPU, ResourceKind.MEM, ResourceKind.BLOCK
CORE_HOUR = 1000 * HOUR_NS
ONE_HOUR = Window(JANUARY_NS, JANUARY_NS + HOUR_NS)


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


@pytest.mark.parametrize("seed", range(20))
def test_what_the_infrastructure_cost_is_one_number_and_its_parts_add_up(seed: int) -> None:
    """Of January, in whole cents, of amounts that are none: added up here by hand."""
    dice, source, exact = Random(seed), WrittenSource(), Fraction(0)
    prices = {CPU: Fraction(2, 1000), MEM: Fraction(1, 1000), BLOCK: Fraction(5, 10_000)}
    units = {CPU: 1000, MEM: GIB, BLOCK: GIB}
    for node in ("a", "b", "c"):
        for kind, price in prices.items():
            parts = [dice.randrange(units[kind] // 7) for _ in range(4)]
            exact += price * 3600 * Fraction(sum(parts), units[kind])
            tag = AccountingTag(f"CC-{node}") if dice.random() < 0.5 else None
            source.hold(f"t{dice.randrange(3)}", kind, parts[0], range(1), tag=tag)
            for pool, part in ((Pool.TEARDOWN, parts[1]), (Pool.FENCED, parts[2])):
                source.hold("", kind, part, range(1), pool=pool)
            source.hold("", kind, sum(parts), range(1), pool=Pool.PROVISIONED)
            amounts = [part * HOUR_NS for part in (sum(parts), *parts)]
            source.by_node.append(NodeAmount(node, kind, None, *amounts, 0))
    card = RateCard(DEFAULT_CARD.rates, "USD", 2)
    accounts = Accounts(source, Terms((CardVersion(0, card),), card))
    window = Window(JANUARY_NS, JANUARY_NS + JANUARY_HOURS * HOUR_NS)
    total = Decimal(round(exact * 100)) / 100
    costs = accounts.costs(window, basis="infrastructure", group_by="kind")
    assert costs.total_cost == total
    tenants = sum(one.cost for one in costs.by_tenant)
    assert tenants + sum(one.cost for one in costs.pools) == total
    assert sum(one.cost for one in costs.by_type) == total
    assert not isinstance(costs.groups, UnsetType)
    assert sum(one.cost for one in costs.groups) == tenants
    for spread in Spread:
        charged = accounts.chargeback("2024-01", spread=spread)
        assert charged.total_infrastructure_cost == total
        assert sum(one.cost for one in charged.allocations) == total
    told = node_costs(accounts, window)
    assert told.complete and told.provisioned_cost == total and told.idle_cost == costs.idle_cost
    assert sum(one.provisioned_cost for one in told.nodes) == total
    for one in told.nodes:
        parts_of = (one.tenant_cost, one.teardown_cost, one.fenced_cost, one.idle_cost)
        assert sum(parts_of) + one.unattributed_negative == one.provisioned_cost


@pytest.mark.parametrize("seed", range(20))
def test_columns_add_up_to_what_is_told_of_all_nodes(seed: int) -> None:
    dice, source = Random(seed), WrittenSource()
    cent = UNIT[CPU] * NS_PER_S * 5  # at 0.002 a second
    exact: dict[str, list[Fraction]] = {}
    for node in ("a", "b", "c", "d", "e"):
        parts = [dice.randrange(40 * cent) for _ in range(4)] + [-dice.randrange(3 * cent)]
        source.by_node.append(NodeAmount(node, CPU, None, sum(parts), *parts))
        exact[node] = [Fraction(part, cent) / 100 for part in parts]
    card = RateCard(DEFAULT_CARD.rates, "USD", 2)
    told = node_costs(Accounts(source, Terms((CardVersion(0, card),), card)), ONE_HOUR)
    assert sum(one.provisioned_cost for one in told.nodes) == told.provisioned_cost
    assert sum(one.idle_cost for one in told.nodes) == told.idle_cost
    missing = sum(one.unattributed_negative for one in told.nodes)
    assert missing == told.unattributed_negative
    for one in told.nodes:
        parts_told = msgspec.structs.astuple(one)[2:]
        assert sum(parts_told) == one.provisioned_cost
        for said, part in zip(parts_told, exact[one.node], strict=True):
            assert abs(Fraction(said) - part) < Fraction(1, 100)


def test_an_idle_node_costs_what_its_idle_capacity_costs() -> None:
    """Also where leases of standard priority are free, or pay half."""
    source, end_ns = WrittenSource(), NODE.watermark_ns
    source.now = [Held(NODE.node_id, Pool.PROVISIONED, "", CPU, None, 8_000)]
    source.stretches = [Quiet(NODE.node_id, end_ns - 2 * HOUR_NS, end_ns)]
    amount = 8_000 * 2 * HOUR_NS
    source.by_node = [NodeAmount(NODE.node_id, CPU, None, amount, 0, 0, 0, amount, 0)]
    for paid_pm in (0, 500, 1000):
        card = RateCard(DEFAULT_CARD.rates, "USD", 2, ((Priority.STANDARD, paid_pm),))
        accounts = Accounts(source, Terms((CardVersion(0, card),), card))
        wasted = capacity.idle(accounts).total_waste_last_7d
        assert wasted == node_costs(accounts, accounts.last("2h")).idle_cost == Decimal("115.20")
