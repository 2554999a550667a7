# SPDX-License-Identifier: Apache-2.0
"""The accounts against the source document's own numbers, and what they refuse."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts, NoData, UnknownTenant
from leased.collector.metering.reference import Chain, ReferenceSource
from leased.collector.metering.sources import Held, Quiet
from leased.collector.planning import capacity as looks
from leased.collector.planning.forecast import forecast
from leased.economics.attribution import Basis
from leased.economics.contracts import (
    CardVersion,
    Contract,
    Credit,
    Model,
    Plan,
    TaskTier,
    Terms,
    TierMode,
    UsageRates,
    check_terms,
)
from leased.economics.pools import Pool
from leased.economics.rates import DEFAULT_CARD, NANO, Rate, RateCard
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import DAY_NS, HOUR_NS
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import GIB, JANUARY_HOURS, JANUARY_NS, NODE, WrittenSource
from tests.doubles.economics_history import History, memory, subject

CPU, MEM, BLOCK, GPU = ResourceKind.CPU, ResourceKind.MEM, ResourceKind.BLOCK, ResourceKind.GPU
DOLLARS = RateCard(DEFAULT_CARD.rates, "USD", 2)
MEDIUM = Plan("medium", 50_000, 128 * GIB, 2000 * NANO, NANO // 20, NANO // 100)


def dollars(**more: object) -> Terms:
    return check_terms(Terms(cards=(CardVersion(0, DOLLARS),), infrastructure=DOLLARS, **more))


def medium(**more: object) -> Contract:
    storage = UsageRates(storage_gib_month_nano=NANO // 10)
    return Contract("tenant-acme", 0, Model.RESERVED, plan="medium", rates=storage, **more)


def sample_bill() -> tuple[WrittenSource, Terms]:
    """A month that ends at the source document's sample: 450 core-hours beyond the plan, 250
    GB-months of storage, 100 given back."""
    source = WrittenSource()
    source.hold("tenant-acme", CPU, 50_000, range(JANUARY_HOURS))
    source.hold("tenant-acme", CPU, 45_000, range(100, 110))
    source.hold("tenant-acme", MEM, 128 * GIB, range(JANUARY_HOURS))
    source.hold("tenant-acme", BLOCK, 250 * GIB, range(JANUARY_HOURS))
    credit = Credit("tenant-acme", "2024-01", 100 * NANO, "goodwill")
    return source, dollars(plans=(MEDIUM,), contracts=(medium(),), credits=(credit,))


def test_the_bill_of_the_source_document():
    source, terms = sample_bill()
    summary = Accounts(source, terms).summary("tenant-acme", "2024-01")
    told = [(i.description, i.quantity, i.unit_price, i.total) for i in summary.line_items]
    assert told == [
        ("Reserved Capacity (Medium)", 1, 2000, Decimal("2000.00")),
        ("CPU Overage (hours)", 450, Decimal("0.05"), Decimal("22.50")),
        ("Storage (GB-months)", 250, Decimal("0.1"), Decimal("25.00")),
    ]
    assert (summary.subtotal, summary.credits, summary.total) == (
        Decimal("2047.50"),
        Decimal("-100.00"),
        Decimal("1947.50"),
    )
    assert (summary.currency, summary.status, summary.period) == ("USD", "final", "2024-01")
    assert summary.audit == [NODE]


def test_overage_is_what_was_held_beyond_the_plan_hour_by_hour_and_not_the_peak():
    source = WrittenSource()
    source.hold("tenant-acme", CPU, 95_000, range(10))
    source.hold("tenant-acme", CPU, 5_000, range(10, 20))
    terms = dollars(plans=(MEDIUM,), contracts=(medium(),))
    bill = Accounts(source, terms).bill("tenant-acme", "2024-01")
    overage = next(line for line in bill.line_items if line.description.startswith("CPU"))
    assert (overage.quantity, overage.total) == ("450", "22.50")


def test_a_plan_that_began_within_the_month_costs_its_days():
    source = WrittenSource()
    source.hold("tenant-acme", CPU, 1_000, range(JANUARY_HOURS))
    since = JANUARY_NS + 21 * 24 * HOUR_NS
    contract = msgspec.structs.replace(medium(), since_ns=since)
    bill = Accounts(source, dollars(plans=(MEDIUM,), contracts=(contract,))).bill(
        "tenant-acme", "2024-01"
    )
    fee = next(line for line in bill.line_items if line.description.startswith("Reserved"))
    assert (fee.cost_exact, fee.total) == ("20000/31", "645.16")
    by_card = next(line for line in bill.line_items if line.description.startswith("CPU ("))
    assert by_card.quantity == str(21 * 24 * 3600)  # before the plan, by the rate card


def test_usage_rates_and_the_monthly_minimum():
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(100))
    source.hold("t", MEM, GIB, range(100))
    source.done = {("t", source.since_ns // HOUR_NS): 5}
    rates = UsageRates(NANO // 25, 6 * NANO // 1000, NANO // 10, NANO // 10_000)
    contract = Contract("t", 0, Model.USAGE_BASED, rates=rates, monthly_minimum_nano=100 * NANO)
    bill = Accounts(source, dollars(contracts=(contract,))).bill("t", "2024-01")
    assert [(line.description, line.total) for line in bill.line_items] == [
        ("CPU (core-hours)", "4.00"),
        ("Memory (GB-hours)", "0.60"),
        ("Tasks", "0.00"),
        ("Minimum commitment adjustment", "95.40"),
    ]
    assert (bill.subtotal, bill.total) == ("100.00", "100.00")


@pytest.mark.parametrize(
    ("tasks", "mode", "total"),
    [
        (1_000_000, TierMode.GRADUATED, "200.00"),
        (1_000_001, TierMode.GRADUATED, "200.00"),  # 200.00015, half to even at the line
        (10_000_000, TierMode.GRADUATED, "1550.00"),
        (12_000_000, TierMode.GRADUATED, "1750.00"),
        (999_999, TierMode.VOLUME, "200.00"),
        (1_000_000, TierMode.VOLUME, "150.00"),
        (10_000_000, TierMode.VOLUME, "1000.00"),
    ],
)
def test_tiers_of_tasks(tasks: int, mode: TierMode, total: str):
    source = WrittenSource()
    source.done = {("t", source.since_ns // HOUR_NS): tasks}
    tiers = (TaskTier(0, 200_000), TaskTier(1_000_000, 150_000), TaskTier(10_000_000, 100_000))
    contract = Contract("t", 0, Model.TIERED, tiers=tiers, tier_mode=mode)
    assert Accounts(source, dollars(contracts=(contract,))).bill("t", "2024-01").total == total


def test_the_default_rates_are_per_capacity_second():
    """Cost = capacity x duration x rate: a GPU 0.01, a core 0.002, a GiB 0.001."""
    source = WrittenSource()
    source.hold("t", GPU, 1_000, range(1))
    source.hold("t", CPU, 1_000, range(1))
    source.hold("t", MEM, GIB, range(1))
    source.hold("t", BLOCK, GIB, range(1))
    bill = Accounts(source, Terms()).bill("t", "2024-01")
    assert {line.kind: line.total for line in bill.line_items} == {
        "gpu": "36.000000",
        "cpu": "7.200000",
        "mem": "3.600000",
        "block": "1.800000",
    }


def test_a_new_version_of_the_card_prices_the_hours_from_its_beginning_on():
    dear = RateCard(tuple(Rate(rate.kind, 2 * rate.nano) for rate in DEFAULT_CARD.rates))
    terms = check_terms(
        Terms((CardVersion(0, DEFAULT_CARD), CardVersion(JANUARY_NS + 10 * HOUR_NS, dear)))
    )
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(15))
    bill = Accounts(source, terms).bill("t", "2024-01")
    assert [(line.card, line.total) for line in bill.line_items] == [
        (0, "72.000000"),
        (1, "72.000000"),
    ]


def test_credits_never_make_a_bill_negative_unless_the_terms_say_so():
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(1))
    credit = Credit("t", "2024-01", 50 * NANO, "outage")
    bill = Accounts(source, dollars(credits=(credit,))).bill("t", "2024-01")
    assert (bill.credits, bill.total) == ((("outage", "-7.20"),), "0.00")
    bill = Accounts(source, dollars(credits=(credit,), allow_negative=True)).bill("t", "2024-01")
    assert (bill.credits_total, bill.total) == ("-50.00", "-42.80")


def test_synthetic_probes_are_told_and_not_billed():
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(1), tag=AccountingTag("cc", flags=1))
    accounts = Accounts(source, Terms())
    assert accounts.bill("t", "2024-01").line_items == ()
    report = accounts.usage("t", periods.window("2024-01-01", "2024-01-01"))
    assert [(row.capacity_seconds, row.cost) for row in report.rows] == [(3600, 0)]


def test_the_costs_of_the_source_document():
    """30 days, 50400, of which the three largest have 30, 25 and 15 in a hundred."""
    source = WrittenSource()
    for tenant, milli in (("enterprise-a", 2_400), ("enterprise-b", 2_000), ("startup-c", 1_200)):
        source.hold(tenant, CPU, milli, range(700))
    for number in range(3):
        source.hold(f"small-{number}", CPU, 800, range(700))
    rates = tuple(Rate(kind, 2_500_000 if kind is CPU else 0) for kind in ResourceKind)
    terms = Terms((CardVersion(0, RateCard(rates, "USD", 2)),))
    accounts = Accounts(source, terms)
    window = periods.Window(JANUARY_NS, JANUARY_NS + 720 * HOUR_NS)
    costs = accounts.costs(window, top=3)
    assert costs.period == "2024-01-01/2024-01-31"
    assert costs.total_cost == Decimal("50400.00")
    assert [(row.tenant, row.cost, row.share) for row in costs.by_tenant] == [
        ("enterprise-a", Decimal("15120.00"), Decimal("0.30")),
        ("enterprise-b", Decimal("12600.00"), Decimal("0.25")),
        ("startup-c", Decimal("7560.00"), Decimal("0.15")),
        ("OTHER", Decimal("15120.00"), Decimal("0.30")),
    ]
    assert sum(row.share for row in costs.by_tenant) == 1
    assert sum(row.cost for row in costs.by_tenant) == costs.total_cost
    assert [row.others for row in costs.by_tenant] == [0, 0, 0, 3]


def test_a_tenant_that_is_called_as_the_rest_is_told_from_it():
    source = WrittenSource()
    for number, name in enumerate(("c", "b", "a", "OTHER")):
        source.hold(name, CPU, 1_000 * (number + 1), range(10))
    window = periods.Window(JANUARY_NS, JANUARY_NS + 10 * HOUR_NS)
    costs = Accounts(source, Terms()).costs(window, top=2)
    told = [(row.tenant, row.others, row.cost) for row in costs.by_tenant]
    assert [row[:2] for row in told] == [("OTHER", 0), ("a", 0), ("OTHER", 2)]
    assert [row[2] for row in told] == [Decimal(288), Decimal(216), Decimal(216)]


def test_the_chargeback_of_the_source_document():
    """40, 30 and 20 in a hundred to three teams, and the tenth that nobody held is shared."""
    source = WrittenSource()
    for center, milli in (("ENGINEERING", 400), ("DATASCIENCE", 300), ("ANALYTICS", 200)):
        tag = AccountingTag(f"CC-{center}")
        source.hold("t", CPU, milli, range(JANUARY_HOURS), tag=tag)
    source.hold("", CPU, 1_000, range(JANUARY_HOURS), pool=Pool.PROVISIONED)
    accounts = Accounts(source, dollars())
    told = accounts.chargeback("2024-01")
    assert [(row.cost_center, row.share) for row in told.allocations] == [
        ("CC-ENGINEERING", Decimal("0.40")),
        ("CC-DATASCIENCE", Decimal("0.30")),
        ("CC-ANALYTICS", Decimal("0.20")),
        ("CC-SHARED", Decimal("0.10")),
    ]
    assert told.total_infrastructure_cost == Decimal("5356.80")
    assert sum(row.cost for row in told.allocations) == told.total_infrastructure_cost
    spread = accounts.chargeback("2024-01", spread="proportional")
    assert [row.share for row in spread.allocations] == [
        Decimal("0.45"),
        Decimal("0.33"),
        Decimal("0.22"),
    ]
    assert sum(row.cost for row in spread.allocations) == told.total_infrastructure_cost


def test_idle_teardown_and_fenced_are_told_apart_and_add_up():
    source = WrittenSource()
    source.hold("", CPU, 10_000, range(10), pool=Pool.PROVISIONED)
    source.hold("t", CPU, 6_000, range(10))
    source.hold("t", CPU, 1_000, range(10), pool=Pool.TEARDOWN)
    source.hold("", CPU, 1_000, range(10), pool=Pool.FENCED)
    window = periods.Window(JANUARY_NS, JANUARY_NS + 10 * HOUR_NS)
    costs = Accounts(source, dollars()).costs(window, basis="infrastructure")
    assert {pool.name: pool.cost for pool in costs.pools} == {
        "idle": Decimal("144.00"),
        "teardown": Decimal("72.00"),
        "fenced": Decimal("72.00"),
    }
    assert costs.total_cost == Decimal("720.00") and costs.idle_cost == Decimal("144.00")
    assert [kind.name for kind in costs.by_type] == ["compute"]


def test_costs_by_infrastructure_are_in_its_currency():
    source = WrittenSource()
    source.hold("", CPU, 1_000, range(1), pool=Pool.PROVISIONED)
    source.hold("t", CPU, 1_000, range(1))
    window = periods.Window(JANUARY_NS, JANUARY_NS + HOUR_NS)
    accounts = Accounts(source, Terms(infrastructure=DOLLARS))
    told = {basis: accounts.costs(window, basis=basis) for basis in Basis}
    assert told[Basis.INFRASTRUCTURE].currency == "USD"
    assert str(told[Basis.INFRASTRUCTURE].total_cost) == "7.20"
    assert told[Basis.RATE_CARD].currency == "credits"
    assert str(told[Basis.RATE_CARD].total_cost) == "7.200000"


def test_negative_idle_is_told():
    """A device that vanished under a lease: more was held than there was."""
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(1))
    window = periods.Window(JANUARY_NS, JANUARY_NS + HOUR_NS)
    costs = Accounts(source, dollars()).costs(window, basis="infrastructure")
    assert costs.idle_cost == Decimal("-7.20") and costs.total_cost == 0


def test_negative_idle_takes_from_no_cost_centre():
    """Everybody is charged what they had, and the centre that is shared is below zero."""
    source = WrittenSource()
    for center, capacity in (("a", 1_000), ("b", 500)):
        source.hold("t", CPU, capacity, range(1), tag=AccountingTag(center))
    source.hold("", CPU, 501, range(1), pool=Pool.PROVISIONED)
    told = Accounts(source, dollars()).chargeback("2024-01")
    costs = {one.cost_center: str(one.cost) for one in told.allocations}
    assert costs == {"a": "7.20", "b": "3.60", "CC-SHARED": "-7.19"}
    assert str(told.total_infrastructure_cost) == "3.61"
    assert sum(one.share for one in told.allocations) == 1


def test_what_is_asked_wrongly_is_a_typed_error():
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(1))
    accounts = Accounts(source, Terms())
    for month in ("2024-13", "2024-1", "24-01", "", "2024-01-01", "２０２４-01", "9999-01"):
        with pytest.raises(InvalidParameter):
            accounts.summary("t", month)
    with pytest.raises(NoData):
        accounts.summary("t", "2023-12")
    with pytest.raises(NoData):
        accounts.summary("t", "2030-01")
    with pytest.raises(UnknownTenant):
        accounts.summary("nobody", "2024-01")
    for tenant in ("Übermut", "тенант", "", "a b", "x" * 65, "a\x00"):
        with pytest.raises(InvalidParameter):
            accounts.usage(tenant, accounts.last("24h"))
    for period in ("30", "0d", "-1d", "1y", "99999d", "1.5h", "", "３0d"):
        with pytest.raises(InvalidParameter):
            accounts.last(period)
    for start, end in (
        ("2024-02-01", "2024-01-01"),
        ("2024-01-01T00:30:00Z", "2024-01-02"),
        ("2024-01-01T00:00:00", "2024-01-02"),
        ("2024-02-30", "2024-03-01"),
        ("1024-01-01", "2024-03-01"),
        ("2020-01-01", "2024-01-01"),
        ("now", "then"),
    ):
        with pytest.raises(InvalidParameter):
            periods.window(start, end)
    window = accounts.last("24h")
    for refused in (
        lambda: accounts.costs(window, top=0),
        lambda: accounts.costs(window, basis="guess"),
        lambda: accounts.usage("t", window, "minute"),
        lambda: accounts.chargeback("2024-01", spread="unfair"),
        lambda: forecast(accounts, "90d", "qubit"),
        lambda: forecast(accounts, "1h"),
    ):
        with pytest.raises(InvalidParameter):
            refused()


def test_without_a_node_there_is_no_data():
    source = WrittenSource()
    source.spans = ()
    with pytest.raises(NoData):
        Accounts(source, Terms()).last("24h")


def test_a_date_as_an_end_is_the_whole_of_its_day():
    assert periods.window("2024-01-01", "2024-01-31").to_ns == JANUARY_NS + 31 * DAY_NS
    half_open = periods.window("2024-01-01T00:00:00Z", "2024-01-31T00:00:00Z")
    assert half_open.to_ns == JANUARY_NS + 30 * DAY_NS
    assert periods.window("2024-01-01T01:00:00+01:00", "2024-01-01").from_ns == JANUARY_NS


def test_a_month_is_that_of_the_tenants_time_zone():
    month = periods.month("2024-03", "America/New_York")
    assert month.to_ns - month.from_ns == 31 * DAY_NS - HOUR_NS  # the clocks go forward
    with pytest.raises(InvalidParameter):
        periods.month("2024-03", "Asia/Kathmandu")  # 05:45: not on a full hour
    with pytest.raises(InvalidParameter):
        periods.month("2024-03", "Mars/Olympus")


def test_an_answer_says_which_nodes_are_behind_and_does_not_wait_for_a_retired_one():
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(1))
    late = msgspec.structs.replace(NODE, node_id="5e" * 16, watermark_ns=JANUARY_NS + HOUR_NS)
    source.spans = (NODE, late)
    summary = Accounts(source, Terms()).summary("t", "2024-01")
    assert summary.status == "draft" and summary.reach.nodes_behind == ["5e" * 16]
    assert summary.reach.provisional and summary.reach.watermark == "2024-01-01T01:00:00Z"
    terms = Terms(retired_nodes=("5e" * 16,))
    summary = Accounts(source, terms).summary("t", "2024-01")
    assert summary.status == "final" and not summary.reach.nodes_behind


def test_the_capacity_report_of_the_source_document():
    source = WrittenSource()
    nodes = [msgspec.structs.replace(NODE, node_id=f"{n:032x}") for n in range(50)]
    source.spans = tuple(nodes)
    source.cordoned = frozenset(node.node_id for node in nodes[45:47])
    for node in nodes:
        source.now.append(Held(node.node_id, Pool.PROVISIONED, "", CPU, None, 8_000))
    source.now.append(Held(nodes[0].node_id, Pool.PROVISIONED, "", MEM, None, 1024 * GIB))
    for node in nodes[:45]:
        source.now.append(Held(node.node_id, Pool.TENANT, "t", CPU, None, 7_000))
    source.now.append(Held(nodes[0].node_id, Pool.TEARDOWN, "t", CPU, None, 5_000))
    source.now.append(Held(nodes[0].node_id, Pool.TENANT, "t", MEM, None, 768 * GIB))
    told = looks.capacity(Accounts(source, Terms()))
    cpu, memory = told.current.cpu_cores, told.current.memory_gb
    assert (cpu.total, cpu.allocated, cpu.available) == (400, 320, 80)
    assert (memory.total, memory.allocated, memory.available) == (1024, 768, 256)
    workers = told.current.workers
    assert (workers.total, workers.active, workers.draining, workers.idle) == (50, 45, 2, 3)
    assert told.utilization == msgspec.convert(
        {"cpu": "0.80", "memory": "0.75", "overall": "0.77"}, type(told.utilization)
    )
    assert told.headroom.burst_capacity_percent == 20
    assert told.headroom.estimated_burst_duration_minutes == 15


def test_the_idle_node_of_the_source_document():
    """168 hours at 0.50 an hour are 84, and ended stretches count in the total of the week."""
    source = WrittenSource()
    end, other = NODE.watermark_ns, "5e" * 16
    source.spans = (NODE, msgspec.structs.replace(NODE, node_id=other))
    for node in (NODE.node_id, other):
        source.now.append(Held(node, Pool.PROVISIONED, "", CPU, None, 1_000))
    source.stretches = [
        Quiet(NODE.node_id, end - 168 * HOUR_NS, end),
        Quiet(other, end - 300 * HOUR_NS, end - 200 * HOUR_NS),
        Quiet(other, end - 150 * HOUR_NS, end - 50 * HOUR_NS),
        Quiet(other, end - 9 * HOUR_NS, end - 9 * HOUR_NS + HOUR_NS // 2),
    ]
    card = RateCard(tuple(Rate(kind, 125_000_000 // 900) for kind in ResourceKind), "USD", 2)
    told = looks.idle(Accounts(source, Terms(infrastructure=card)))
    assert [(r.resource, r.idle_hours, r.wasted_cost) for r in told.idle_resources] == [
        (NODE.node_id, 168, Decimal("84.00"))
    ]
    assert told.total_waste_last_7d == Decimal("134.00")


def test_a_node_is_idle_since_it_is_and_the_week_is_a_week():
    """Ten days: it said that it was idle for seven."""
    source = WrittenSource()
    end = NODE.watermark_ns
    source.now.append(Held(NODE.node_id, Pool.PROVISIONED, "", CPU, None, 1_000))
    source.stretches = [Quiet(NODE.node_id, end - 240 * HOUR_NS, end)]
    card = RateCard(tuple(Rate(kind, 125_000_000 // 900) for kind in ResourceKind), "USD", 2)
    told = looks.idle(Accounts(source, Terms(infrastructure=card)))
    (row,) = told.idle_resources
    assert (row.idle_since, row.idle_hours) == (print_instant(end - 240 * HOUR_NS), 240)
    assert (row.wasted_cost, told.total_waste_last_7d) == (Decimal("120.00"), Decimal("84.00"))


def test_a_forecast_sees_a_trend_and_the_days_of_the_week():
    source = WrittenSource()
    source.spans = (msgspec.structs.replace(NODE, watermark_ns=JANUARY_NS + 120 * DAY_NS),)
    for day in range(120):
        weekend = (day % 7) in (5, 6)
        cores = 100 + 2 * day - (40 if weekend else 0)
        source.hold("t", CPU, 1000 * cores, range(24 * day + 12, 24 * day + 13))
    for worker in range(50):
        node = f"{worker:032x}"
        source.now.append(Held(node, Pool.PROVISIONED, "", CPU, None, 8_000))
    told = forecast(Accounts(source, Terms()), "90d")
    assert [one.date for one in told.predictions] == ["2024-05-01", "2024-06-01", "2024-07-01"]
    # 2024-05-01 is day 121, a Wednesday; 2024-06-01 day 152, a Saturday.
    assert [one.predicted_cpu_demand for one in told.predictions] == [342, 364, 464]
    assert all(one.confidence == 1 for one in told.predictions)
    assert [(a.action, a.add_workers, a.by_date) for a in told.recommendations] == [
        ("scale_up", 15, "2024-05-15")
    ]
    assert told.recommendations[0].reason.endswith("by May")


def test_with_little_history_nothing_is_predicted():
    source = WrittenSource(since_ns=JANUARY_NS + 20 * DAY_NS)
    source.hold("t", CPU, 1_000, range(1))
    told = forecast(Accounts(source, Terms()))
    assert told.predictions == [] and told.reason == "insufficient_history"


def test_usage_costs_the_same_by_the_hour_the_day_and_in_all():
    source = WrittenSource()
    source.hold("t", CPU, 1, range(JANUARY_HOURS))  # 0.0072 dollars an hour
    accounts = Accounts(source, dollars())
    window = periods.window("2024-01-01", "2024-01-31")
    told = {by: accounts.usage("t", window, by).total_cost for by in ("hour", "day", "total")}
    assert set(told.values()) == {accounts.costs(window).total_cost} == {Decimal("5.36")}


def test_costs_by_what_is_asked_for_add_up_to_those_of_tenants():
    source = WrittenSource()
    tags = [None, AccountingTag("cc-1", "atlas"), AccountingTag("cc-1", "search")]
    for tenant, tag, hours in zip("aab", tags, (1, 2, 3), strict=True):
        source.hold(tenant, CPU, 1_000, range(hours), tag=tag)
    source.hold("b", MEM, GIB, range(7), tag=tags[2])
    accounts = Accounts(source, dollars())
    window = periods.window("2024-01-01", "2024-01-31")

    def told(by: str, **more: Any) -> list[tuple[str | None, Decimal, Decimal]]:
        costs = accounts.costs(window, group_by=by, **more)
        assert sum(row.cost for row in costs.groups) == costs.total_cost == Decimal("68.40")
        assert sum(row.share for row in costs.groups) == 1
        return [(row.group, row.cost, row.share) for row in costs.groups]

    assert told("project") == [
        ("search", Decimal("46.80"), Decimal("0.68")),
        ("atlas", Decimal("14.40"), Decimal("0.21")),
        (None, Decimal("7.20"), Decimal("0.11")),
    ]
    assert [row[:2] for row in told("cost_center")] == [
        ("cc-1", Decimal("61.20")),
        (None, Decimal("7.20")),
    ]
    assert [row[0] for row in told("kind")] == ["cpu", "mem"]
    assert [row[:2] for row in told("project", top=1)] == [
        ("search", Decimal("46.80")),
        ("OTHER", Decimal("21.60")),
    ]
    with pytest.raises(InvalidParameter, match="one of budget_group, cost_center, kind"):
        told("tenant")
    assert accounts.costs(window).groups is msgspec.UNSET


def test_a_synthetic_probe_costs_nothing_wherever_it_is_told():
    source = WrittenSource()
    source.hold("t", CPU, 1_000, range(4))
    source.hold("t", CPU, 1_000, range(4), tag=AccountingTag("probe", flags=1))
    accounts = Accounts(source, dollars())
    window = periods.window("2024-01-01", "2024-01-31")
    costs = accounts.costs(window)
    assert [(row.tenant, row.cost) for row in costs.by_tenant] == [("t", Decimal("28.80"))]
    assert costs.total_cost == accounts.usage("t", window).total_cost
    assert str(costs.total_cost) == accounts.bill("t", "2024-01").total


def test_the_reference_reads_sealed_history():
    history = History(wall_offset_ns=JANUARY_NS)
    history.start()
    history.inventory(memory(4 * GIB))
    tag = AccountingTag("cc-1", "atlas")
    history.allocate(1, subject(memory(2 * GIB), tag=tag), 7_200 * 10**9)
    history.boot_ns = 5_400 * 10**9
    history.end(1)
    history.boot_ns = 5_410 * 10**9
    history.reclaim(1)
    history.boot_ns = 9_000 * 10**9
    history.touch()
    chain = Chain("4e" * 16, "1d" * 16).read(history.records, "ab" * 32)
    source = ReferenceSource([chain])
    accounts = Accounts(source, Terms())
    report = accounts.usage("acme", periods.window("2024-01-01", "2024-01-01"))
    assert [(r.start, r.capacity_seconds, r.peak, r.cost_center) for r in report.rows] == [
        ("2024-01-01T00:00:00Z", 7200, 2, "cc-1"),
        ("2024-01-01T01:00:00Z", 3600, 2, "cc-1"),
    ]
    assert report.total_cost == Decimal("10.800000")
    assert accounts.usage("acme", accounts.last("2h"), "total").rows[0].cost == Decimal("10.8")
    bill = accounts.bill("acme", "2024-01")
    assert not bill.final and bill.total == "10.800000"
    assert bill.audit[0].last_sequence == len(history.records) - 1
    (quiet,) = source.quiet((JANUARY_NS, JANUARY_NS + 3 * HOUR_NS))
    assert quiet.from_ns == JANUARY_NS + 5_400 * 10**9
    assert {one.pool for one in source.held()} == {Pool.PROVISIONED}


@pytest.mark.parametrize(
    "terms",
    [
        Terms(cards=()),
        Terms(cards=(CardVersion(1, DEFAULT_CARD),)),
        Terms(cards=(CardVersion(HOUR_NS, DEFAULT_CARD), CardVersion(0, DEFAULT_CARD))),
        Terms(cards=(CardVersion(0, DEFAULT_CARD), CardVersion(HOUR_NS, DOLLARS))),
        Terms(contracts=(Contract("t", 0, Model.RESERVED),)),
        Terms(contracts=(Contract("t", 0, Model.RESERVED, plan="none"),)),
        Terms(contracts=(Contract("t", 0, Model.TIERED),)),
        Terms(contracts=(Contract("t", 0, Model.TIERED, tiers=(TaskTier(5, 1),)),)),
        Terms(contracts=(Contract("t", 0, Model.RATE_CARD), Contract("t", 0, Model.RATE_CARD))),
        Terms(contracts=(Contract("t", 0, Model.RATE_CARD, monthly_minimum_nano=-1),)),
        Terms(contracts=(Contract("t", HOUR_NS, Model.RATE_CARD, until_ns=HOUR_NS),)),
        Terms(contracts=(Contract("t", 7, Model.RATE_CARD),)),
        Terms(plans=(MEDIUM, MEDIUM)),
        Terms(credits=(Credit("t", "2024-01", -1, ""),)),
    ],
)
def test_terms_that_cannot_be_meant_are_refused(terms: Terms):
    with pytest.raises(ConfigError):
        check_terms(terms)


def test_priorities_pay_their_multiplier():
    card = RateCard(
        DEFAULT_CARD.rates,
        multipliers_pm=((Priority.GUARANTEED, 1500), (Priority.SCAVENGER, 300)),
    )
    source = WrittenSource()
    for priority in Priority:
        source.hold("t", GPU, 1_000, range(1), priority=priority)
    accounts = Accounts(source, Terms((CardVersion(0, card),)))
    assert {line.priority: line.total for line in accounts.bill("t", "2024-01").line_items} == {
        "guaranteed": "54.000000",
        "standard": "36.000000",
        "scavenger": "10.800000",
    }
    for line in accounts.summary("t", "2024-01").line_items:
        # Whoever reads a line can compute it.
        assert line.quantity * line.unit_price * line.multiplier == line.total
