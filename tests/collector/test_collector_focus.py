# SPDX-License-Identifier: Apache-2.0
"""FOCUS: the rows tie out with the bill, keep the rules of 1.2 by the official validator, and are
what the model of 1.4 says."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.focus import COLUMNS, CUSTOM, focus_csv
from leased.collector.accounts.focus_1_4 import COLUMNS_1_4, VERSIONS
from leased.collector.accounts.focus_table import parquet_of
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
from leased.economics.rates import DEFAULT_CARD, NANO, Rate, RateCard
from leased.terms.errors import InvalidParameter
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind
from tests.doubles.accounts import GIB, JANUARY_NS, WrittenSource
from tests.doubles.host import not_proven

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


def costs_what_it_says(row: dict[str, str]) -> None:
    """Cost = price x quantity, by the list and as contracted; the latter is what was billed, but
    for its rounding."""
    if not row["PricingQuantity"]:
        return
    quantity = Fraction(row["PricingQuantity"])
    for name in ("List", "Contracted"):
        assert Fraction(row[f"{name}Cost"]) == Fraction(row[f"{name}UnitPrice"]) * quantity
    assert abs(Fraction(row["ContractedCost"]) - Fraction(row["BilledCost"])) < Fraction(1, 100)


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
        costs_what_it_says(row)
    for name in ("BilledCost", "EffectiveCost"):
        assert sum((Decimal(row[name]) for row in rows), Decimal(0)) == Decimal(bill.total)


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
    assert rows[0]["ConsumedQuantity"] == "43200.0" and rows[0]["ConsumedUnit"] == "Device-Seconds"


CRITERIA = (
    "ACCOUNT_NAMING_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
    "NEGOTIATED_PRICING_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
    "UNIT_PRICING_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "TAGGING_SUPPORTED",
)
"""What a collector does; regions, reservations of capacity and the like it does not."""

CANNOT_BE_TOLD = {
    # "Null when the charge is not associated with an invoice": the rows do not say whether it is,
    # and the validator's rule holds every invoice's id for wrong.
    "InvoiceId-C-004-C",
}
"""Rules that the validator fails whatever is right, each looked at."""

MAKER = Path(__file__).parents[1] / "focus-validator"


@pytest.mark.parametrize("rest_by_card", [True, False])
def test_a_line_of_a_part_of_the_month_is_divided_as_any_other(rest_by_card: bool):
    """It was one row of the whole month, without a tag."""
    source = WrittenSource()
    source.hold("t", ResourceKind.GPU, 1000, range(48), tag=TAG)
    since_ns, until_ns = (JANUARY_NS + hour * HOUR_NS for hour in (12, 36))
    agreed = Contract("t", since_ns, Model.USAGE_BASED, until_ns, rest_by_card=rest_by_card)
    accounts = Accounts(source, Terms(CARDS[:1], contracts=(agreed,)))
    rows = rows_of(accounts.focus("t", "2024-01"))
    times = [(r["ChargePeriodStart"][8:13], r["ChargePeriodEnd"][8:13]) for r in rows]
    within = [("01T12", "02T00"), ("02T00", "02T12")] if rest_by_card else []
    assert times == [("01T00", "01T12"), *within, ("02T12", "03T00")]
    assert {r["Tags"] for r in rows} == {'{"cost_center": "CC-1", "project": "atlas"}'}
    assert {r["BilledCost"] for r in rows} == {"432.00"}


def test_an_id_of_a_price_is_of_one_price_and_stays_when_that_changes():
    """FOCUS 1.2: it is of one price, and the same over time and from contract to contract. Three
    tiers had one, and a new version of the card had others for everything."""
    source = WrittenSource()
    source.hold("t", ResourceKind.GPU, 1000, range(48))
    source.hold("t", ResourceKind.CPU, 4000, range(48))
    half_ns = JANUARY_NS + 24 * HOUR_NS
    plan = Plan("p", 1000, GIB, 31 * NANO, NANO // 7, NANO // 9)
    tiers = (TaskTier(0, NANO), TaskTier(3, NANO // 3))
    agreed = (
        Contract("t", 0, Model.RESERVED, until_ns=half_ns, plan="p"),
        Contract("t", half_ns, Model.TIERED, tiers=tiers, rates=UsageRates(NANO)),
    )
    source.done = {("t", half_ns // HOUR_NS): 5}
    dear = msgspec.structs.replace(CARDS[0].card, rates=(Rate(ResourceKind.GPU, NANO),))
    terms = Terms((CARDS[0], CardVersion(half_ns, dear)), plans=(plan,), contracts=agreed)
    rows = rows_of(Accounts(source, terms).focus("t", "2024-01"))
    gpu = [row for row in rows if row["SkuId"] == "gpu"]
    assert {row["SkuPriceId"] for row in gpu} == {"gpu/-/standard"}
    assert len({row["ListUnitPrice"] for row in gpu}) == 2
    others = [(row["SkuPriceId"], row["ListUnitPrice"]) for row in rows if row not in gpu]
    assert len({price for price, _ in others}) == len(others) == 6
    assert "task/tasks-0-to-3" in dict(others) and "month/reserved-capacity-p" in dict(others)


def everything() -> Accounts:
    """A month with a plan for a part of it, its overage, two cards, tags, tasks and a credit."""
    source = WrittenSource()
    source.done = {("t", JANUARY_NS // HOUR_NS): 5}
    source.hold("t", ResourceKind.GPU, 1000, range(12, 36), tag=TAG)
    source.hold(
        *("t", ResourceKind.MEM, GIB, range(12, 36)),
        tier=TierKind.DRAM,
        priority=Priority.SCAVENGER,
    )
    source.hold("t", ResourceKind.CPU, 3000, range(2, 40), tag=AccountingTag("CC-2"))
    return Accounts(
        source,
        Terms(
            CARDS,
            plans=(Plan("p", 1000, GIB, 31 * NANO, NANO // 7, NANO // 9),),
            contracts=(
                Contract("t", 0, Model.RESERVED, until_ns=JANUARY_NS + 20 * HOUR_NS, plan="p"),
            ),
            credits=(Credit("t", "2024-01", 20, "outage"),),
        ),
    )


@pytest.mark.root
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_official_validator(tmp_path: Path, form: str):
    """All its rules that apply, on text and on a table; it lives in a Debian of its own, for it
    wants Python 3.12."""
    probe = subprocess.run([MAKER, "check", "/dev/null"], capture_output=True, text=True)
    if os.geteuid() or probe.returncode == 69:
        not_proven("the official FOCUS rules", "needs root and `tests/focus-validator make`")
    rows, path = everything().focus_rows("t", "2024-01", "1.2"), tmp_path / f"focus.{form}"
    if form == "csv":
        path.write_text(focus_csv(rows, VERSIONS["1.2"]))
    else:
        path.write_bytes(parquet_of(rows, VERSIONS["1.2"]))
    words = ["--applicability-criteria", ",".join(CRITERIA)]
    told = subprocess.run(
        [MAKER, "check", path, *words], capture_output=True, text=True, timeout=240
    )
    # Its exit status is 0 whatever it finds.
    counts = re.search(r"Pass: (\d+) \| Fail: (\d+)", told.stdout)
    assert counts is not None and int(counts[1]) > 200, told.stdout[-2000:] + told.stderr[-2000:]
    failed = set(re.findall(r"^❌ (\S+): FAIL", told.stdout, re.MULTILINE))
    assert failed == CANNOT_BE_TOLD, told.stdout[told.stdout.index("--- Failures") :]
    assert len(failed) == int(counts[2])


def test_1_4_is_what_its_model_says(tmp_path: Path):
    """The model, and the check of a row against it, are `focus-data-toolkit`'s."""
    path = tmp_path / "focus.csv"
    path.write_text(everything().focus("t", "2024-01", "1.4"))
    supports = ("SupportsUnitPricing", "SupportsMultiplePricingCategories")
    words = [Path(sys.executable).parent / "focus-toolkit", "validate", path]
    words += ["--dataset", "cost-and-usage", *(w for one in supports for w in ("--supports", one))]
    told = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stdout + told.stderr
    # It is a judge: a row that is wrong is found.
    path.write_text(path.read_text().replace(",Usage,", ",Use,"))
    assert subprocess.run(words, capture_output=True, timeout=120).returncode == 1


def test_columns_of_1_4_are_those_of_the_published_model():
    from focus_data_toolkit.model.validator import load_model

    columns = load_model()["datasets"]["Cost and Usage"]["columns"]
    wanted = {name for name, one in columns.items() if one["feature_level"] == "Mandatory"}
    assert wanted <= set(COLUMNS_1_4) <= set(columns)


def test_versions_have_the_same_sums():
    accounts = everything()
    one, two = (accounts.focus_rows("t", "2024-01", version) for version in ("1.2", "1.4"))
    for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
        assert [row[name] for row in one] == [row[name] for row in two]
    total = Decimal(accounts.bill("t", "2024-01").total)
    for name in ("BilledCost", "EffectiveCost"):
        assert sum(Decimal(row[name]) for row in one) == total


def test_a_table_says_what_the_text_says():
    rows = everything().focus_rows("t", "2024-01", "1.2")
    table = parquet.read_table(io.BytesIO(parquet_of(rows, VERSIONS["1.2"])))
    assert table.column_names == list(VERSIONS["1.2"]) and table.num_rows == len(rows)
    for row, told in zip(rows, table.to_pylist(), strict=True):
        assert Decimal(row["BilledCost"]) == told["BilledCost"]
        assert told["BillingPeriodStart"].isoformat()[:19] + "Z" == row["BillingPeriodStart"]
        assert (told["ChargeClass"] or "") == row["ChargeClass"]


def test_a_table_has_every_digit_or_is_refused_in_words():
    """Of a node that says that it has 2^63 of something."""
    source = WrittenSource()
    source.hold("t", ResourceKind.NET, (1 << 63) - 1, range(744))
    rows = (accounts := Accounts(source, Terms(CARDS[:1]))).focus_rows("t", "2024-01", "1.2")
    table = parquet.read_table(io.BytesIO(parquet_of(rows, VERSIONS["1.2"])))
    billed = sum(Fraction(one) for one in table.column("BilledCost").to_pylist())
    assert billed == Fraction(accounts.bill("t", "2024-01").total) > 10**12
    source.hold("t", ResourceKind.GPU, 1 << 90, range(744))
    rows = accounts.focus_rows("t", "2024-01", "1.2")
    with pytest.raises(InvalidParameter, match="more digits than decimals of Parquet"):
        parquet_of(rows, VERSIONS["1.2"])
