# SPDX-License-Identifier: Apache-2.0
"""Rates: what a capacity-second costs.

Rule: a rate is an integer of nano-units of currency per rate unit (GiB, GiB, Gbit/s, device, core)
and second, and of thousandths of these: a GiB of cheap storage costs 8.75 of them. A cost is an
exact fraction until the bill line, where it is rounded once, half to even, to the card's decimals.
A card is known by its hash, the SHA-256 of its canonical bytes; a lease is priced by the card that
was in force at its grant.

Does not add up usage (`meter`) and does not decide who pays (`intervals`).
"""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from typing import Final

import msgspec

from leased.economics.pools import UNIT
from leased.terms.errors import ConfigError
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import WHOLE_PM
from leased.terms.resource import ResourceKind, TierKind

NANO: Final = 1_000_000_000
PICO: Final = 1_000 * NANO
RATE_DIGITS: Final = 12
CURRENCY_CHARS_MAX: Final = 16
DECIMALS_MAX: Final = 9
MULTIPLIER_PM_MAX: Final = 1_000_000 * WHOLE_PM


class Rate(msgspec.Struct, frozen=True):
    """`nano` units, and `pico` thousandths of one, per rate unit and second of `kind`; None of tier
    or priority is "any"."""

    kind: ResourceKind
    nano: int
    tier: TierKind | None = None
    priority: Priority | None = None
    pico: int = 0

    @property
    def exact(self) -> int:
        """All of it, in 10^-12 units."""
        return self.nano * 1_000 + self.pico


class RateCard(msgspec.Struct, frozen=True):
    """Prices. `decimals` is what a bill line is rounded to; `multipliers_pm` are per mille, per
    priority.
    """

    rates: tuple[Rate, ...]
    currency: str = "credits"
    decimals: int = 6
    multipliers_pm: tuple[tuple[Priority, int], ...] = ()

    def rate(self, kind: ResourceKind, tier: TierKind | None, priority: Priority | None) -> Rate:
        """The most specific rate: (kind, tier, priority), else (kind, tier), else (kind)."""
        for wanted in ((kind, tier, priority), (kind, tier, None), (kind, None, None)):
            for rate in self.rates:
                if (rate.kind, rate.tier, rate.priority) == wanted:
                    return rate
        raise ConfigError(f"rates.{kind.name.lower()}: no rate")

    def multiplier_pm(self, priority: Priority | None) -> int:
        """What a priority pays, in per mille of the rate."""
        for listed, multiplier_pm in self.multipliers_pm:
            if listed is priority:
                return multiplier_pm
        return WHOLE_PM

    def cost(
        self, capacity_ns: int, kind: ResourceKind, tier: TierKind | None, priority: Priority | None
    ) -> Fraction:
        """What `capacity_ns` (raw unit x ns) costs, exactly; a priority of None: by the list of its
        kind and tier, whoever had it."""
        price = self.rate(kind, tier, priority).exact * self.multiplier_pm(priority)
        return Fraction(capacity_ns * price, UNIT[kind] * NS_PER_S * PICO * WHOLE_PM)

    def canonical(self) -> bytes:
        """The one encoding of this card: JSON, keys and rows sorted, integers only, no spaces."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        return text.encode("ascii")

    def document(self) -> dict[str, object]:
        """The card as plain values, rows sorted. Thousandths of a nano-unit stand last, where there
        are any: a card without has the name that it always had."""
        return {
            "currency": self.currency,
            "decimals": self.decimals,
            "multipliers_pm": sorted([p.name.lower(), m] for p, m in self.multipliers_pm),
            "rates": sorted(
                [
                    rate.kind.name.lower(),
                    "" if rate.tier is None else rate.tier.name.lower(),
                    "" if rate.priority is None else rate.priority.name.lower(),
                    rate.nano,
                    *([rate.pico] if rate.pico else []),
                ]
                for rate in self.rates
            ),
            "version": 1,
        }

    def digest(self) -> bytes:
        """The card's name: SHA-256 of its canonical bytes."""
        return hashlib.sha256(self.canonical()).digest()


DEFAULT_CARD: Final = RateCard(
    rates=(
        Rate(ResourceKind.GPU, 10_000_000),
        Rate(ResourceKind.CPU, 2_000_000),
        Rate(ResourceKind.MEM, 1_000_000),
        Rate(ResourceKind.BLOCK, 500_000),
        Rate(ResourceKind.NET, 300_000),
    )
)
"""The source document's defaults: GPU 0.01, CPU 0.002, memory 0.001, block 0.0005, network 0.0003.
"""


def check(card: RateCard) -> RateCard:
    """Return `card` if it prices everything exactly once. Raises ConfigError naming the key."""
    if not 0 < len(card.currency) <= CURRENCY_CHARS_MAX or not card.currency.isalnum():
        raise ConfigError("rates.currency: 1 to 16 letters or digits")
    if not card.currency.isascii():
        raise ConfigError("rates.currency: ASCII only")
    if not 0 <= card.decimals <= DECIMALS_MAX:
        raise ConfigError(f"rates.decimals: 0 to {DECIMALS_MAX}")
    seen: set[tuple[ResourceKind, TierKind | None, Priority | None]] = set()
    for rate in card.rates:
        name = f"rates.{rate.kind.name.lower()}"
        key = (rate.kind, rate.tier, rate.priority)
        if key in seen:
            raise ConfigError(f"{name}: listed twice for the same tier and priority")
        seen.add(key)
        if rate.nano < 0:
            raise ConfigError(f"{name}: must not be negative")
        if not 0 <= rate.pico < 1_000:
            raise ConfigError(f"{name}: so many thousandths are a unit more")
    for kind in ResourceKind:
        if (kind, None, None) not in seen:
            raise ConfigError(
                f"rates.{kind.name.lower()}: every kind needs a rate without tier or priority"
            )
    priorities = [priority for priority, _ in card.multipliers_pm]
    if len(priorities) != len(frozenset(priorities)):
        raise ConfigError("rates.multipliers: a priority is listed twice")
    if any(multiplier_pm < 0 for _, multiplier_pm in card.multipliers_pm):
        raise ConfigError("rates.multipliers: must not be negative")
    if any(multiplier_pm > MULTIPLIER_PM_MAX for _, multiplier_pm in card.multipliers_pm):
        raise ConfigError(f"rates.multipliers: at most {MULTIPLIER_PM_MAX} per mille")
    return card


def parse_rate(text: str, key: str) -> tuple[int, int]:
    """A decimal string such as "0.0005" as integer nano-units and thousandths of one. Raises
    ConfigError; a float never gets here.
    """
    return divmod(_parsed(text, key, RATE_DIGITS), 1_000)


def parse_price(text: str, key: str) -> int:
    """What is for an hour, a month or a piece, as integer nano-units. Raises ConfigError."""
    return _parsed(text, key, 9)


def _parsed(text: str, key: str, digits: int) -> int:
    whole, _, fraction = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 9):
        raise ConfigError(f'{key}: a decimal string such as "0.0005"')
    if fraction and not (fraction.isascii() and fraction.isdigit() and len(fraction) <= digits):
        raise ConfigError(f"{key}: at most {digits} digits after the point")
    if text.endswith("."):
        raise ConfigError(f"{key}: a digit must follow the point")
    return int(whole) * int(10**digits) + int(fraction.ljust(digits, "0"))
