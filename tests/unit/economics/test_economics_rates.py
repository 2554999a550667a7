# SPDX-License-Identifier: Apache-2.0
"""Money: looked up by the most specific rate, exact until it is rounded once, half to even."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from leased.economics.amounts import exact, rounded
from leased.economics.bill_text import card_of
from leased.economics.rates import (
    DEFAULT_CARD,
    Rate,
    RateCard,
    check,
    parse_price,
    parse_rate,
)
from leased.economics.statement import rate_text
from leased.terms.errors import ConfigError
from leased.terms.lease import Priority
from leased.terms.resource import ResourceKind, TierKind

HOUR_NS = 3_600_000_000_000
GIB = 1 << 30
MEM, GPU, CPU = ResourceKind.MEM, ResourceKind.GPU, ResourceKind.CPU


@pytest.mark.parametrize(
    ("kind", "capacity", "cost"),
    [
        (ResourceKind.GPU, 1_000, "36"),
        (ResourceKind.CPU, 1_000, "7.2"),
        (ResourceKind.MEM, GIB, "3.6"),
        (ResourceKind.BLOCK, GIB, "1.8"),
        (ResourceKind.NET, 1_000_000_000, "1.08"),
    ],
)
def test_the_default_card_is_the_source_documents(
    kind: ResourceKind, capacity: int, cost: str
) -> None:
    assert check(DEFAULT_CARD) is DEFAULT_CARD
    assert exact(DEFAULT_CARD.cost(capacity * HOUR_NS, kind, None, Priority.STANDARD)) == cost


def test_the_most_specific_rate_wins_and_no_tier_is_not_dram() -> None:
    card = RateCard(
        rates=(
            *DEFAULT_CARD.rates,
            Rate(MEM, 5, TierKind.HBM),
            Rate(MEM, 7, TierKind.HBM, Priority.SCAVENGER),
            Rate(MEM, 9, TierKind.DRAM),
        )
    )
    assert card.rate(MEM, TierKind.HBM, Priority.SCAVENGER).nano == 7
    assert card.rate(MEM, TierKind.HBM, Priority.STANDARD).nano == 5
    assert card.rate(MEM, TierKind.CXL, Priority.SCAVENGER).nano == 1_000_000
    assert card.rate(MEM, None, Priority.STANDARD).nano == 1_000_000


def test_a_priority_multiplies() -> None:
    card = RateCard(DEFAULT_CARD.rates, multipliers_pm=((Priority.GUARANTEED, 1_500),))
    assert card.cost(1_000 * HOUR_NS, GPU, None, Priority.GUARANTEED) == 54
    assert card.cost(1_000 * HOUR_NS, GPU, None, Priority.STANDARD) == 36


@pytest.mark.parametrize(
    ("numerator", "cents"), [(5, 0), (15, 2), (25, 2), (26, 3), (-5, 0), (-15, -2), (-26, -3)]
)
def test_rounding_is_half_to_even(numerator: int, cents: int) -> None:
    assert rounded(Fraction(numerator, 1_000), 2) == cents


def test_one_byte_nanosecond_has_an_exact_price() -> None:
    cost = DEFAULT_CARD.cost(1, MEM, None, Priority.STANDARD)
    assert Decimal(exact(cost)) * GIB == Decimal("0.001") / 1_000_000_000


def test_the_hash_is_over_canonical_bytes_and_ignores_the_order_of_rows() -> None:
    shuffled = RateCard(rates=tuple(reversed(DEFAULT_CARD.rates)))
    assert shuffled.digest() == DEFAULT_CARD.digest()
    assert DEFAULT_CARD.canonical() == (
        b'{"currency":"credits","decimals":6,"multipliers_pm":[],"rates":[["block","","",500000],'
        b'["cpu","","",2000000],["gpu","","",10000000],["mem","","",1000000],'
        b'["net","","",300000]],"version":1}'
    )
    dearer = RateCard(rates=(*DEFAULT_CARD.rates, Rate(MEM, 1, TierKind.CXL)))
    assert dearer.digest() != DEFAULT_CARD.digest()


@pytest.mark.parametrize(
    ("card", "key"),
    [
        (RateCard(rates=DEFAULT_CARD.rates[1:]), "rates.gpu"),
        (RateCard(rates=(*DEFAULT_CARD.rates, Rate(CPU, 1))), "rates.cpu: listed twice"),
        (RateCard(rates=(*DEFAULT_CARD.rates, Rate(CPU, -1, TierKind.CXL))), "negative"),
        (RateCard(DEFAULT_CARD.rates, currency=""), "rates.currency"),
        (RateCard(DEFAULT_CARD.rates, currency="x y"), "rates.currency"),
        (RateCard(DEFAULT_CARD.rates, decimals=10), "rates.decimals"),
        (RateCard(DEFAULT_CARD.rates, multipliers_pm=((Priority.STANDARD, -1),)), "multipliers"),
        (
            RateCard(
                DEFAULT_CARD.rates,
                multipliers_pm=((Priority.STANDARD, 1), (Priority.STANDARD, 2)),
            ),
            "listed twice",
        ),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused_by_key(card: RateCard, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check(card)


def test_rates_are_decimal_strings() -> None:
    assert parse_rate("0.0005", "rates.block") == (500_000, 0)
    assert parse_rate("12", "rates.gpu") == (12_000_000_000, 0)
    assert parse_rate("0.000000008751", "rates.block") == (8, 751)
    assert parse_price("0.0005", "monthly_price") == 500_000
    for text in ("", ".5", "1.", "-1", "1e3", "0.0000000000001", "1.2.3", "٣"):
        with pytest.raises(ConfigError, match="rates.x"):
            parse_rate(text, "rates.x")
    with pytest.raises(ConfigError, match="at most 9 digits"):
        parse_price("0.0000000001", "monthly_price")


def test_a_rate_of_twelve_digits_is_charged_and_leaves_other_cards_their_names() -> None:
    """0.023 for a GiB and month of 730 h: nine digits would be 3 % more."""
    fine = Rate(ResourceKind.BLOCK, 8, pico=752)
    rest = tuple(one for one in DEFAULT_CARD.rates if one.kind is not fine.kind)
    card = check(RateCard((*rest, fine)))
    cost = card.cost((1 << 30) * 730 * 3_600 * 10**9, fine.kind, None, Priority.STANDARD)
    assert exact(cost) == "0.023000256"
    assert card_of(card.document()).digest() == card.digest()
    assert fine in card_of(card.document()).rates and rate_text(fine) == "0.000000008752"
    assert all(len(row) == 4 for row in DEFAULT_CARD.document()["rates"])
    with pytest.raises(ConfigError, match="rates.block"):
        check(RateCard((*rest, Rate(ResourceKind.BLOCK, 8, pico=1_000))))
