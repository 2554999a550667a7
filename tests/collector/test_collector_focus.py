# SPDX-License-Identifier: Apache-2.0
"""FOCUS 1.2: the rows tie out with the bill, and every column keeps the rules of the
specification that can be checked without its validator."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.collector.accounts import Accounts
from leased.collector.focus import COLUMNS, CUSTOM
from leased.economics.contracts import (
    CardVersion,
    Contract,
    Credit,
    Model,
    Plan,
    TaskTier,
    Terms,
    UsageRates,
)
from leased.economics.hourly import HOUR_NS
from leased.economics.rates import DEFAULT_CARD, NANO, Rate, RateCard
from leased.terms.lease import AccountingTag, Priority
from leased.terms.resource import ResourceKind, TierKind
from tests.doubles.accounts import GIB, JANUARY_NS, WrittenSource

DOLLARS = RateCard(
    DEFAULT_CARD.rates,
    "USD",
    2,
    ((Priority.GUARANTEED, 1500), (Priority.SCAVENGER, 333)),
)
DEAR = RateCard(tuple(Rate(r.kind, 3 * r.nano) for r in DEFAULT_CARD.rates), "USD", 2)
CARDS = (CardVersion(0, DOLLARS), CardVersion(JANUARY_NS + 30 * HOUR_NS, DEAR))
TAG = AccountingTag("CC-1", "atlas")
NOT_NULL = [
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargeCategory",
    "ChargeDescription",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
]
NUMBERS = [
    "BilledCost",
    "ContractedCost",
    "EffectiveCost",
    "ListCost",
    "ListUnitPrice",
    "ContractedUnitPrice",
    "PricingQuantity",
    "ConsumedQuantity",
]
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"Compute", "Storage", "Networking", "Other"},
}
contracts = st.sampled_from(
    (
        (),
        (Contract("t", 0, Model.RESERVED, plan="p"),),
        (Contract("t", 0, Model.RESERVED, until_ns=JANUARY_NS + 20 * HOUR_NS, plan="p"),),
        (Contract("t", 0, Model.USAGE_BASED, rates=UsageRates(NANO, NANO // 3, NANO, NANO)),),
        (Contract("t", 0, Model.TIERED, tiers=(TaskTier(0, NANO), TaskTier(3, NANO // 3))),),
        (Contract("t", 0, Model.RATE_CARD, monthly_minimum_nano=10**6 * NANO),),
    )
)


def check_row(row: dict[str, str]) -> None:
    """The rules of FOCUS 1.2 for one row."""
    assert tuple(row) == (*COLUMNS, *CUSTOM)
    for name in NOT_NULL:
        assert row[name] != "", name
    for name in NUMBERS:
        assert row[name] == "" or Decimal(row[name]).is_finite()
    for name, values in ALLOWED.items():
        assert row[name] in values, (name, row[name])
    for name in ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[name])
    assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"]
    assert row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
    assert bool(row["PricingQuantity"]) == bool(row["PricingUnit"])
    assert bool(row["ConsumedQuantity"]) == bool(row["ConsumedUnit"])
    if row["ChargeCategory"] == "Usage":
        assert row["PricingCategory"] and row["SkuId"] and row["SkuPriceId"]
        assert row["ChargeFrequency"] == "Usage-Based"
    if row["ChargeCategory"] in ("Credit", "Adjustment"):
        assert not row["ConsumedQuantity"] and not row["SkuPriceId"]
    if row["ChargeCategory"] == "Purchase":
        assert row["ChargeFrequency"] != "Usage-Based" and not row["ConsumedQuantity"]
    if row["Tags"]:
        assert isinstance(json.loads(row["Tags"]), dict)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ResourceKind),
            st.sampled_from(Priority),
            st.sampled_from((None, TAG, AccountingTag("CC-2", flags=1))),
            st.integers(1, 5 * GIB),
            st.integers(0, 700),
            st.integers(1, 44),
        ),
        max_size=8,
    ),
    contracts,
    st.integers(0, 20),
    st.integers(0, 50 * NANO),
)
def test_the_rows_of_a_bill_add_up_to_it(held, terms, tasks, credit):
    source = WrittenSource()
    source.done = {("t", JANUARY_NS // HOUR_NS): tasks}
    for kind, priority, tag, capacity, hour, length in held:
        tier = TierKind.DRAM if kind is ResourceKind.MEM else None
        source.hold(
            "t", kind, capacity, range(hour, hour + length), tier=tier, priority=priority, tag=tag
        )
    accounts = Accounts(
        source,
        Terms(
            CARDS,
            plans=(Plan("p", 1000, GIB, 31 * NANO, NANO // 7, NANO // 9),),
            contracts=terms,
            credits=(Credit("t", "2024-01", credit, "outage"),),
        ),
    )
    bill = accounts.bill("t", "2024-01")
    rows = rows_of(accounts.focus("t", "2024-01"))
    for row in rows:
        check_row(row)
    assert sum((Decimal(row["BilledCost"]) for row in rows), Decimal(0)) == Decimal(bill.total)


def test_a_line_is_divided_by_day_and_tag():
    source = WrittenSource()
    source.hold("t", ResourceKind.GPU, 1000, range(12, 36), tag=TAG)
    source.hold("t", ResourceKind.GPU, 1000, range(12, 13))
    rows = rows_of(Accounts(source, Terms(CARDS[:1])).focus("t", "2024-01"))
    told = [(r["ChargePeriodStart"][:10], r["Tags"], r["BilledCost"]) for r in rows]
    assert told == [
        ("2024-01-01", '{"cost_center": "CC-1", "project": "atlas"}', "432.00"),
        ("2024-01-01", "{}", "36.00"),
        ("2024-01-02", '{"cost_center": "CC-1", "project": "atlas"}', "432.00"),
    ]
    assert rows[0]["ConsumedQuantity"] == "43200" and rows[0]["ConsumedUnit"] == "device-seconds"


def test_the_official_validator(tmp_path: Path):
    """It wants Python 3.12: where somebody has put it on the path, it is asked."""
    validator = shutil.which("focus-validator")
    if validator is None:
        pytest.skip(
            "no focus-validator on the path (it needs Python 3.12, which Debian 12 does not have): "
            "not proven that the official rules hold; columns and values were checked here"
        )
    source = WrittenSource()
    source.hold("t", ResourceKind.GPU, 1000, range(12, 36), tag=TAG)
    path = tmp_path / "focus.csv"
    path.write_text(Accounts(source, Terms(CARDS[:1])).focus("t", "2024-01"))
    words = ["--validate-version", "1.2.0.1", "--focus-dataset", "CostAndUsage"]
    words += ["--block-download", "--data-file", str(path)]
    told = subprocess.run([validator, *words], capture_output=True, text=True, timeout=120)
    # Its exit status is 0 whatever it finds.
    assert "Fail: 0" in told.stdout, told.stdout[-2000:]
