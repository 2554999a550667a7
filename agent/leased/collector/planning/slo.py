# SPDX-License-Identifier: Apache-2.0
"""Service levels: what each tier promises, what of it was kept, and what it would be charged.

Rule: a tier is of one priority. Attainment is good of all, from records (`attainment`): of leases
for availability and latency, of whole hours for throughput; nothing to count is null, neither kept
nor broken. The price of a tier is the list price of what it held, without its priority, times its
multiplier: an estimate, on no bill. What a bill charges a priority is in the rate card.

Does not enforce: priorities do, on the nodes.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, cut, to_decimals
from leased.collector.fleet import Fleet
from leased.collector.planning.attainment import Ends, together
from leased.collector.planning.capacity import list_cost
from leased.collector.planning.flow import DAYS_KEPT
from leased.economics.pools import Pool
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.lease import Priority
from leased.terms.moment import DAY_NS, HOUR_NS, HOUR_S
from leased.terms.reading import Keys, duration, fields, member, rate, table, text

P99: Final = Fraction(99, 100)


class Tier(msgspec.Struct, frozen=True):
    """What is promised to the leases of a priority: 99 of 100 held for `latency_ns` at most, so
    many of a million (`availability_ppm`) not taken away, so many ended an hour; 0: nothing is
    promised. `multiplier_pm` of the list price, per mille."""

    name: str
    priority: Priority
    latency_ns: int = 0
    availability_ppm: int = 0
    per_hour_min: int = 0
    multiplier_pm: int = 1000


TIERS: Final = (
    Tier("platinum", Priority.GUARANTEED, 50 * 10**6, 999_900, 10_000 * HOUR_S, 3000),
    Tier("gold", Priority.STANDARD, 100 * 10**6, 999_000, 5_000 * HOUR_S, 1500),
    Tier("silver", Priority.SCAVENGER, 250 * 10**6, 990_000, 1_000 * HOUR_S, 1000),
)
"""The documented ones."""


class Objective(msgspec.Struct, frozen=True):
    """One promise: `objective` in words, the share of `total` that is to be good, and the share
    that was. `met` null: there was nothing to count."""

    name: str
    objective: str
    target: Decimal
    good: int
    total: int
    attainment: Decimal | None
    met: bool | None


class TierSeen(msgspec.Struct, frozen=True):
    """One tier: `estimated_cost` is `base_cost` times `cost_multiplier`."""

    tier: str
    priority: str
    cost_multiplier: Decimal
    base_cost: Decimal
    estimated_cost: Decimal
    objectives: list[Objective]


class ServiceLevels(msgspec.Struct, frozen=True):
    """Every tier, over the whole hours of a period."""

    tiers: list[TierSeen]
    period: str
    currency: str
    reach: Reach


def check_tiers(tiers: tuple[Tier, ...]) -> None:
    """Raises ConfigError for tiers that cannot be meant."""
    priorities = [tier.priority for tier in tiers]
    if len(priorities) != len(frozenset(priorities)):
        raise ConfigError("slo_tiers: a priority is of one tier")
    for tier in tiers:
        if tier.availability_ppm > 10**6:
            raise ConfigError(f"slo_tiers.{tier.name}.availability: 100% at most")


def service_levels(
    accounts: Accounts, fleet: Fleet, period: str, tiers: tuple[Tier, ...] = TIERS
) -> ServiceLevels:
    """What was kept in the last `period`. Raises InvalidParameter, NoData."""
    if periods.duration(period) > DAYS_KEPT * DAY_NS:
        raise InvalidParameter("period", f"at most {DAYS_KEPT}d")
    window = accounts.last(period)
    hours = window.hours
    ended = together(view.attainment.between(hours) for view in fleet.known())
    costs: dict[Priority, Fraction] = {}
    for key, amount in accounts.priced_sums(window):
        # Where tags are not asked for there is none but a probe's, which costs nothing.
        if key.pool is Pool.TENANT and key.priority is not None and key.tag is None:
            cost = list_cost(accounts, key, amount)
            costs[key.priority] = costs.get(key.priority, Fraction(0)) + cost
    decimals = accounts.terms.decimals

    def money(amount: Fraction) -> Decimal:
        return to_decimals(amount, decimals)

    seen = []
    for tier in tiers:
        base = costs.get(tier.priority, Fraction(0))
        seen.append(
            TierSeen(
                tier.name,
                tier.priority.name.lower(),
                Decimal(tier.multiplier_pm).scaleb(-3),
                money(base),
                money(base * tier.multiplier_pm / 1000),
                _objectives(tier, ended.get(tier.priority, {}), hours),
            )
        )
    return ServiceLevels(seen, period, accounts.terms.currency, accounts.reach(window))


def _objectives(tier: Tier, by_hour: dict[int, Ends], hours: range) -> list[Objective]:
    whole = Ends()
    for ends in by_hour.values():
        whole.add(ends)
    found = []
    if tier.latency_ns:
        words = f"held for {tier.latency_ns // 10**6} ms at most"
        good = whole.within(tier.latency_ns)
        found.append(_objective("latency_p99", words, P99, good, whole.ended))
    if tier.availability_ppm:
        share = Fraction(tier.availability_ppm, 10**6)
        good = whole.ended - whole.taken
        found.append(_objective("availability", "not taken away", share, good, whole.ended))
    if tier.per_hour_min:
        good = sum(
            by_hour[hour].ended >= tier.per_hour_min for hour in hours if hour in by_hour
        )
        words = f"{tier.per_hour_min / HOUR_S:g}/s in an hour"
        total = len(hours) if whole.ended else 0
        found.append(_objective("throughput_min", words, Fraction(1), good, total))
    return found


def _objective(name: str, words: str, target: Fraction, good: int, total: int) -> Objective:
    share = Fraction(good, total) if total else None
    return Objective(
        name,
        words,
        _cut(target),
        good,
        total,
        None if share is None else _cut(share),
        None if share is None else share >= target,
    )


def _cut(share: Fraction) -> Decimal:
    """To six digits, never rounded up."""
    return cut(share, 6).normalize() + 0


def _tiers(value: Any) -> tuple[Tier, ...]:
    return tuple(
        _tier(name, fields(table(one), KEYS, f"slo_tiers.{name}."))
        for name, one in table(value).items()
    )


def _tier(name: str, found: dict[str, Any]) -> Tier:
    if "priority" not in found:
        raise ValueError(f"{name} needs a priority: guaranteed, standard or scavenger")
    return Tier(name, **found)


def _availability(value: Any) -> int:
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,4}))?%", text(value), re.ASCII)
    if match is None:
        raise ValueError('a share in quotes, such as "99.99%"')
    return int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0"))


def _multiplier(value: Any) -> int:
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,3}))?", text(value), re.ASCII)
    if match is None:
        raise ValueError('a factor in quotes, such as "1.5"')
    return int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))


def _per_hour(value: Any) -> int:
    count, per_ns = rate(value)
    return count * HOUR_NS // per_ns


KEYS: Final[Keys] = {
    "priority": ("priority", lambda value: member(Priority, value)),
    "latency_p99": ("latency_ns", duration),
    "availability": ("availability_ppm", _availability),
    "throughput_min": ("per_hour_min", _per_hour),
    "estimated_cost_multiplier": ("multiplier_pm", _multiplier),
}
SECTION: Final = ("slo_tiers", _tiers)
