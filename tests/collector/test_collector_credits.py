# SPDX-License-Identifier: Apache-2.0
"""A credit is given once: on the bill of its month, or the next one that is not issued."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.crediting import CreditLeft, left
from leased.collector.accounts.invoices import Invoices
from leased.economics.billing import Bill, Month, make_bill
from leased.economics.contracts import CardVersion, Contract, Credit, Model, Terms
from leased.economics.rates import DEFAULT_CARD, NANO
from leased.terms.errors import ConfigError
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import JANUARY_HOURS, JANUARY_NS, NODE, WrittenSource

CPU = ResourceKind.CPU
HOURS = {"01": 0, "02": JANUARY_HOURS, "03": JANUARY_HOURS + 29 * 24, "04": JANUARY_HOURS + 60 * 24}
LATER = msgspec.structs.replace(NODE, watermark_ns=NODE.watermark_ns + 90 * 24 * HOUR_NS)


def fleet(tmp_path: Path) -> tuple[WrittenSource, Invoices]:
    """Ten hours of a core in each month: 72."""
    source = WrittenSource(node=LATER)
    for first in HOURS.values():
        source.hold("t", CPU, 1_000, range(first, first + 10))
    return source, Invoices(tmp_path)


def credit(amount: int, month: str = "2024-01", reason: str = "outage of the 12th") -> Credit:
    return Credit("t", month, amount * NANO, reason)


def terms(*credits: Credit, currency: str = "USD", decimals: int = 2, negative: bool = False):
    card = msgspec.structs.replace(DEFAULT_CARD, currency=currency, decimals=decimals)
    return Terms((CardVersion(0, card),), credits=credits, allow_negative=negative)


def issue(source: WrittenSource, agreed: Terms, invoices: Invoices, month: str) -> Bill:
    (bill,) = Accounts(source, agreed, invoices).issue(f"2024-{month}")
    return bill


def test_a_credit_for_a_month_that_is_issued_is_on_the_next_bill_and_only_there(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    january = issue(source, terms(), invoices, "01")
    raw = (tmp_path / "invoices" / "tenant=t" / "2024-01.json").read_bytes()
    accounts = Accounts(source, terms(credit(20)), invoices)
    assert accounts.bill("t", "2024-01") == january
    february = issue(source, terms(credit(20)), invoices, "02")
    assert february.credits == (("outage of the 12th (of 2024-01)", "-20.00"),)
    assert (february.subtotal, february.total) == ("72.00", "52.00")
    (told,) = accounts.summary("t", "2024-02").credit_items
    assert (told.month, told.amount, told.left) == ("2024-01", -20, 0)
    for version in ("1.2", "1.4"):
        *_, row = accounts.focus_rows("t", "2024-02", version)
        assert (row["ChargeCategory"], row["ChargeClass"]) == ("Credit", "Correction")
        assert (row["BilledCost"], row["InvoiceId"]) == ("-20.00", "INV-2024-02-t")
        assert "2024-01" in row["ChargeDescription"]
    march = issue(source, terms(credit(20)), invoices, "03")
    assert march.credits == () and march.total == "72.00"
    assert (tmp_path / "invoices" / "tenant=t" / "2024-01.json").read_bytes() == raw


def test_what_a_bill_cannot_give_is_left_for_the_next(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    agreed = terms(credit(100), credit(90, "2024-02", "goodwill"))
    assert issue(source, agreed, invoices, "01").total == "0.00"
    (told,) = Accounts(source, agreed, invoices).summary("t", "2024-01").credit_items
    assert (told.amount, told.left) == (-72, 28)
    assert left(agreed, invoices, "2024-01") == [
        CreditLeft("t", "2024-01", "outage of the 12th", Decimal("28.00"))
    ]
    assert issue(source, agreed, invoices, "02").credits == (
        ("outage of the 12th (of 2024-01)", "-28.00"),
        ("goodwill", "-44.00"),
    )
    assert issue(source, agreed, invoices, "03").total == "26.00"
    assert left(agreed, invoices, "2024-12") == []


def test_usage_that_comes_after_a_credit_is_charged_and_not_credited_again(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    agreed = terms(credit(100))
    issue(source, agreed, invoices, "01")
    source.hold("t", CPU, 1_000, range(20, 25))
    february = issue(source, agreed, invoices, "02")
    assert february.corrections == (("Correction of 2024-01", "36.00"),)
    assert (february.subtotal, february.credits_total, february.total) == (
        *("108.00", "-28.00", "80.00"),
    )


def test_a_credit_of_another_time_is_no_part_of_a_bill(tmp_path: Path):
    """Of a month to come, or of one that can still be issued with it."""
    source, invoices = fleet(tmp_path)
    agreed = terms(credit(5, "2024-02"), credit(7, "2024-03"))
    assert issue(source, agreed, invoices, "04").credits == ()
    assert issue(source, agreed, invoices, "03").total == "65.00"
    assert issue(source, agreed, invoices, "02").total == "67.00"


def test_two_credits_that_are_alike_are_two(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    assert issue(source, terms(credit(50)), invoices, "01").total == "22.00"
    twice = terms(credit(50), credit(50))
    assert issue(source, twice, invoices, "02").total == "22.00"
    assert issue(source, twice, invoices, "03").total == "72.00"


def test_a_credit_that_was_given_does_not_become_another(tmp_path: Path):
    """Who mends its reason or its amount would have given it twice."""
    source, invoices = fleet(tmp_path)
    issue(source, terms(credit(20)), invoices, "01")
    for other in (credit(30), credit(20, reason="outage of the 13th")):
        with pytest.raises(ConfigError, match=r"20 \(outage of the 12th\) was given to t for 2024"):
            Accounts(source, terms(other), invoices).issue("2024-02")
    assert issue(source, terms(credit(20), credit(10)), invoices, "02").total == "62.00"
    assert issue(source, terms(), invoices, "03").total == "72.00"  # listed no more


def test_a_credit_of_half_a_cent_is_rounded_once(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    odd = msgspec.structs.replace(credit(0), nano=73 * NANO + 5_000_000)
    assert issue(source, terms(odd), invoices, "01").total == "0.00"
    assert issue(source, terms(odd), invoices, "02").total == "71.00"
    assert issue(source, terms(odd), invoices, "03").total == "72.00"


def test_what_is_left_in_another_currency_is_told_once_and_in_no_sum(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    issue(source, terms(credit(100)), invoices, "01")
    yen = terms(credit(100), currency="JPY", decimals=0)
    february = issue(source, yen, invoices, "02")
    told = "Correction of 2024-01: 28.00 USD left of a credit (outage of the 12th), to be settled"
    assert february.corrections == ((f"{told} apart", "0"),) and february.total == "72"
    march = issue(source, yen, invoices, "03")
    assert march.corrections == () == march.credits


def test_a_credit_of_a_bill_of_before_ended_with_it(tmp_path: Path):
    """Bills that earlier releases issued are what they were, and the rest was gone."""
    source, invoices = fleet(tmp_path)
    agreed = terms(credit(100))
    month = Month("2024-01", JANUARY_NS, JANUARY_NS + JANUARY_HOURS * HOUR_NS)
    window = (month.from_ns, month.to_ns)
    old = make_bill(
        *("t", month, source.cells(window, "t"), {}, agreed, (LATER,)),
        fleet_watermark_ns=LATER.watermark_ns,
        version=1,
    )
    assert (old.version, old.total) == (1, "0.00")
    assert '"given_nano"' not in old.canonical().decode()
    invoices.issue(old, b"")
    assert invoices.issued("t", "2024-01") == old
    source.hold("t", CPU, 1_000, range(20, 22))
    assert issue(source, agreed, invoices, "02").total == "72.00"
    source.hold("t", CPU, 1_000, range(30, 40))
    march = issue(source, agreed, invoices, "03")
    assert march.corrections == (("Correction of 2024-01", "58.40"),) and march.credits == ()


def test_who_left_is_given_back_what_a_bill_may_give(tmp_path: Path):
    """A plan's fee, refunded to who never had a lease."""
    source, invoices = fleet(tmp_path)
    least = Contract("idle", 0, Model.USAGE_BASED, JANUARY_NS + JANUARY_HOURS * HOUR_NS)
    paid = msgspec.structs.replace(least, monthly_minimum_nano=50 * NANO)
    back = Credit("idle", "2024-01", 50 * NANO, "cancelled")
    agreed = msgspec.structs.replace(terms(negative=True), contracts=(paid,))
    assert [bill.total for bill in Accounts(source, agreed, invoices).issue("2024-01")] == [
        *("50.00", "72.00"),
    ]
    agreed = msgspec.structs.replace(agreed, credits=(back,))
    told = {bill.tenant: bill.total for bill in Accounts(source, agreed, invoices).issue("2024-02")}
    assert told == {"idle": "-50.00", "t": "72.00"}
    told = {bill.tenant: bill.total for bill in Accounts(source, agreed, invoices).issue("2024-03")}
    assert told == {"t": "72.00"}
