# SPDX-License-Identifier: Apache-2.0
"""What is worth reserving: how many units of a kind, at the price that reserving has.

Rule: the k-th unit is worth it if at least k were in use in so great a share of the hours as its
price is of the list price. What is paid at once is back when what is saved by the month has come to
as much. Money is exact until it is told.

Does not reserve anything: it recommends.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import ReservationAdvice, Reservations, to_decimals
from leased.collector.planning.capacity import MONTH_H, list_price
from leased.collector.planning.history import since_begun
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, Pool
from leased.terms.errors import ConfigError
from leased.terms.moment import HOUR_NS
from leased.terms.quantity import WHOLE_PM
from leased.terms.reading import Keys, integer, section, share
from leased.terms.resource import ResourceKind, TierKind

YEAR_MONTHS: Final = 12
MONTHS_MAX: Final = 120


class Offer(msgspec.Struct, frozen=True):
    """What reserving costs: `price_pm` of the list price, of which `upfront_pm` is paid at once."""

    price_pm: int = 650
    upfront_pm: int = 500
    months: int = 12

    @property
    def term(self) -> str:
        """As it is told: 1yr, 18mo."""
        years, rest = divmod(self.months, YEAR_MONTHS)
        return f"{self.months}mo" if rest else f"{years}yr"


def check_offer(offer: Offer) -> None:
    """Raises ConfigError for what cannot be meant."""
    at = "reservations."
    if not 0 < offer.price_pm <= WHOLE_PM:
        raise ConfigError(f"{at}price: above 0%, 100% at most")
    if offer.upfront_pm > WHOLE_PM:
        raise ConfigError(f"{at}upfront: 100% at most")
    if not 1 <= offer.months <= MONTHS_MAX:
        raise ConfigError(f"{at}months: 1 to {MONTHS_MAX}")


def reservations(
    accounts: Accounts, period: str = "90d", offer: Offer | None = None
) -> Reservations:
    """How many units of each kind and tier to reserve, by the hours of `period`."""
    offer = offer or Offer()
    window = since_begun(accounts, accounts.last(period))
    used = _units_by_hour(accounts.source.cells(window.pair))
    advice = []
    for (kind, tier), by_hour in sorted(
        used.items(), key=lambda item: (item[0][0], str(item[0][1]))
    ):
        series = [by_hour.get(hour, 0) for hour in window.hours]
        quantity = worth_reserving(series, offer.price_pm)
        if quantity:
            price = list_price(accounts.terms.card_at(accounts.now_ns()), kind, tier)
            advice.append(_advise(kind, tier, quantity, series, price, offer))
    return Reservations(period, advice, accounts.terms.currency, accounts.reach(window))


def worth_reserving(series: list[int], price_pm: int) -> int:
    """The most units k such that at least k were in use in a share of the hours that is not below
    `price_pm` per mille: each of them then costs less reserved than by the hour."""
    ranked = sorted(series, reverse=True)
    if not ranked:
        return 0
    needed = max(1, -(-len(ranked) * price_pm // 1000))
    return ranked[needed - 1] if needed <= len(ranked) else 0


def _advise(
    kind: ResourceKind,
    tier: TierKind | None,
    quantity: int,
    series: list[int],
    price: Fraction,
    offer: Offer,
) -> ReservationAdvice:
    hours = Fraction(len(series))
    listed = price * sum(min(used, quantity) for used in series) / hours
    reserved = price * quantity * Fraction(offer.price_pm, 1000)
    saved = listed - reserved
    name = kind.name.lower() + ("" if tier is None else f"/{tier.name.lower()}")
    upfront = reserved * MONTH_H * offer.months * Fraction(offer.upfront_pm, 1000)
    recurring = reserved * MONTH_H * Fraction(1000 - offer.upfront_pm, 1000)
    gained = listed * MONTH_H - recurring
    return ReservationAdvice(
        name,
        quantity,
        offer.term,
        to_decimals(saved * 100 / listed, 1) if listed else Decimal(0),
        to_decimals(saved * MONTH_H * YEAR_MONTHS, 2),
        to_decimals(upfront / gained, 1) if gained > 0 else None,
    )


def _units_by_hour(
    cells: Mapping[UsageKey, int],
) -> dict[tuple[ResourceKind, TierKind | None], dict[int, int]]:
    """Whole units that tenants held on average, by kind and tier and hour."""
    sums: dict[tuple[ResourceKind, TierKind | None], dict[int, int]] = {}
    for key, amount in cells.items():
        if key.pool is Pool.TENANT:
            hours = sums.setdefault((key.kind, key.tier), {})
            hours[key.bucket] = hours.get(key.bucket, 0) + amount
    return {
        name: {hour: amount // (UNIT[name[0]] * HOUR_NS) for hour, amount in hours.items()}
        for name, hours in sums.items()
    }


KEYS: Final[Keys] = {
    "price": ("price_pm", share),
    "upfront": ("upfront_pm", share),
    "months": ("months", integer),
}
SECTION: Final = ("reservations", section(Offer, KEYS, "reservations."))
