# SPDX-License-Identifier: Apache-2.0
"""Lines of a bill that are not of the whole month say of which time they are, and by which
contract; what was issued before they did is what it was."""

from __future__ import annotations

from pathlib import Path

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.invoices import Invoices
from leased.economics.bill_text import parse_bill
from leased.economics.billing import Bill, Month, make_bill
from leased.economics.contracts import CardVersion, Contract, Model, Plan, Terms, UsageRates
from leased.economics.hourly import HOUR_NS
from leased.economics.rates import DEFAULT_CARD, NANO, Rate
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import JANUARY_HOURS, JANUARY_NS, NODE, WrittenSource

CPU, BLOCK = ResourceKind.CPU, ResourceKind.BLOCK
FEBRUARY_NS = JANUARY_NS + JANUARY_HOURS * HOUR_NS
MIDDLE_NS = JANUARY_NS + 15 * 24 * HOUR_NS
START, MIDDLE, END = "2024-01-01T00:00:00Z", "2024-01-16T00:00:00Z", "2024-02-01T00:00:00Z"


def used() -> WrittenSource:
    """A core and a GiB of storage, a day before the middle of the month and a day after it."""
    later = msgspec.structs.replace(NODE, watermark_ns=FEBRUARY_NS + 40 * 24 * HOUR_NS)
    source = WrittenSource(node=later)
    for kind, capacity in ((CPU, 1_000), (BLOCK, 1 << 30)):
        source.hold("t", kind, capacity, range(24))
        source.hold("t", kind, capacity, range(16 * 24, 17 * 24))
    return source


def storage(cents: int, **when: int) -> Contract:
    rates = UsageRates(storage_gib_month_nano=cents * NANO // 100)
    return Contract("t", model=Model.USAGE_BASED, rates=rates, **{"since_ns": 0} | when)


def lines(terms: Terms, source: WrittenSource) -> list[tuple[object, ...]]:
    told = Accounts(source, terms).summary("t", "2024-01").line_items
    return [(one.description, one.start, one.end, one.contract) for one in told]


def same_read_again(bill: Bill) -> bool:
    return parse_bill(bill.canonical()).canonical() == bill.canonical()


def test_lines_of_two_contracts_say_which_and_when() -> None:
    terms = Terms(contracts=(storage(10, until_ns=MIDDLE_NS), storage(5, since_ns=MIDDLE_NS)))
    first, then = "usage_based", f"usage_based since {MIDDLE}"
    assert lines(terms, used()) == [
        ("Storage (GB-months)", START, MIDDLE, first),
        ("CPU (standard)", START, MIDDLE, first),
        ("Storage (GB-months)", MIDDLE, END, then),
        ("CPU (standard)", MIDDLE, END, then),
    ]
    bill = Accounts(used(), terms).bill("t", "2024-01")
    assert bill.version == 3 and same_read_again(bill)
    assert [line.contract for line in bill.line_items] == [0, 0, 1, 1]


def test_what_is_outside_a_contract_is_of_none_and_a_minimum_is_of_its_contract() -> None:
    least = Contract("t", MIDDLE_NS, Model.RATE_CARD, monthly_minimum_nano=10_000 * NANO)
    found = lines(Terms(contracts=(least,)), used())
    assert found[0] == ("Storage (standard)", START, MIDDLE, None)
    named = ("Minimum commitment adjustment", MIDDLE, END, f"rate_card since {MIDDLE}")
    assert found[-1] == named


def test_a_price_that_changes_within_the_month_has_lines_with_dates() -> None:
    dear = msgspec.structs.replace(DEFAULT_CARD, rates=(Rate(CPU, NANO), *DEFAULT_CARD.rates[:4]))
    at_ns = MIDDLE_NS + 12 * HOUR_NS
    terms = Terms(cards=(CardVersion(0, DEFAULT_CARD), CardVersion(at_ns, dear)))
    found = lines(terms, used())
    assert found[2:] == [
        ("CPU (standard)", START, "2024-01-16T12:00:00Z", None),
        ("CPU (standard)", "2024-01-16T12:00:00Z", END, None),
    ]
    rows = list(Accounts(used(), terms).focus_rows("t", "2024-01", "1.2"))
    days = [(row["ChargePeriodStart"], row["ChargePeriodEnd"]) for row in rows[2:]]
    assert days == [
        (START, "2024-01-02T00:00:00Z"),
        ("2024-01-17T00:00:00Z", "2024-01-18T00:00:00Z"),
    ]


def test_a_fee_of_a_part_of_the_month_is_exported_for_that_part() -> None:
    plan = Plan("small", 1_000, 1 << 30, 31 * NANO)
    terms = Terms(
        plans=(plan,), contracts=(Contract("t", MIDDLE_NS, Model.RESERVED, plan="small"),)
    )
    for version in ("1.2", "1.4"):
        rows = list(Accounts(used(), terms).focus_rows("t", "2024-01", version))
        fees = [row for row in rows if row["ChargeDescription"].startswith("Reserved")]
        assert fees and {row["ChargePeriodStart"] for row in fees} == {MIDDLE}
        assert {(row["ChargePeriodEnd"], row["BillingPeriodStart"]) for row in fees} == {
            (END, START)
        }


def test_a_bill_of_a_whole_month_has_the_bytes_that_it_had() -> None:
    """An earlier release reads it, and the API tells of which time its lines are all the same."""
    for terms in (Terms(), Terms(contracts=(storage(10),))):
        bill = Accounts(used(), terms).bill("t", "2024-01")
        assert bill.version == 1 and b'"contract":' not in bill.canonical()
        assert all("from_ns" not in line for line in bill.document()["line_items"])
        assert {one[1:3] for one in lines(terms, used())} == {(START, END)}


def test_what_was_issued_without_dates_stays_as_it_is(tmp_path: Path) -> None:
    source, invoices = used(), Invoices(tmp_path)
    terms = Terms(contracts=(storage(10, until_ns=MIDDLE_NS), storage(5, since_ns=MIDDLE_NS)))
    month = Month("2024-01", JANUARY_NS, FEBRUARY_NS)
    for version in (1, 2):
        old = make_bill(
            *("t", month, source.cells((JANUARY_NS, FEBRUARY_NS)), {}, terms, source.spans),
            fleet_watermark_ns=FEBRUARY_NS,
            version=version,
        )
        assert same_read_again(old) and b'"from_ns"' in old.canonical()
        invoices.issue(old, b"")
        kept = tmp_path / "invoices" / "tenant=t" / "2024-01.json"
        kept.with_suffix(".hours").unlink()
        accounts = Accounts(source, terms, invoices)
        assert accounts.bill("t", "2024-01").canonical() == old.canonical()
        assert accounts.bill("t", "2024-02").corrections == ()
        told = accounts.summary("t", "2024-01").line_items
        assert {(one.start, one.contract) for one in told} == {(None, None)}
        rows = list(accounts.focus_rows("t", "2024-01", "1.2"))
        assert len([row for row in rows if row["SkuId"] == "cpu"]) == 2
        kept.unlink()
