# SPDX-License-Identifier: Apache-2.0
"""What is worth reserving, by the guide's own price and by an operator's."""

from __future__ import annotations

from decimal import Decimal

import pytest

from leased.collector.accounts.accounts import Accounts
from leased.collector.planning.reserving import (
    Offer,
    check_offer,
    reservations,
    worth_reserving,
)
from leased.economics.contracts import Terms
from leased.terms.errors import ConfigError
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import WrittenSource

GPU = ResourceKind.GPU


def test_a_unit_is_worth_reserving_if_it_is_used_for_more_hours_than_it_costs() -> None:
    assert worth_reserving([3] * 65 + [0] * 35, 650) == 3
    assert worth_reserving([3] * 64 + [0] * 36, 650) == 0
    assert worth_reserving([], 650) == 0
    source = WrittenSource()
    source.hold("t", GPU, 10_000, range(24 * 40))
    told = reservations(Accounts(source, Terms()), "30d")
    (advice,) = told.recommendations
    # All hours in use: 35 in a hundred are saved, and half of the year's price is back after 5.8
    # months (3.9 of 12 paid upfront, 0.675 saved a month).
    assert (advice.instance_type, advice.quantity) == ("gpu", 10)
    assert advice.estimated_savings_percent == Decimal("35.0")
    assert advice.break_even_months == Decimal("5.8")
    assert advice.estimated_savings_annual == Decimal("1103760.00")


def test_an_operators_offer_is_what_it_goes_by() -> None:
    source = WrittenSource()
    source.hold("t", GPU, 10_000, range(24 * 25))
    source.hold("t", GPU, 15_000, range(24 * 25, 24 * 40))
    accounts = Accounts(source, Terms())
    (advice,) = reservations(accounts, "30d").recommendations
    assert (advice.quantity, advice.term) == (10, "1yr")
    # Cheaper, the five that are used half of the time are worth it too; nothing upfront is back at
    # once.
    offer = Offer(price_pm=400, upfront_pm=0, months=36)
    (advice,) = reservations(accounts, "30d", offer).recommendations
    assert (advice.quantity, advice.term, advice.break_even_months) == (15, "3yr", Decimal(0))
    assert Offer(months=18).term == "18mo"


@pytest.mark.parametrize(
    ("offer", "named"),
    [
        (Offer(price_pm=0), "reservations.price"),
        (Offer(price_pm=1001), "reservations.price"),
        (Offer(upfront_pm=1001), "reservations.upfront"),
        (Offer(months=0), "reservations.months"),
    ],
)
def test_an_offer_that_cannot_be_meant_is_refused(offer: Offer, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_offer(offer)
