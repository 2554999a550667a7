# SPDX-License-Identifier: Apache-2.0
"""Right-sizing: leases of a template (a tenant's workload, and a kind) that ask for more than they
use.

Rule: by what was seen, never by an average alone: cores by a percentile of use over the target,
memory by its peak over the target; and nothing is recommended of what too little was seen of, or
whose peak was not recorded. Devices and cores come whole, and memory by the GiB. Savings are at the
card in force: what leases held above what is recommended, each of its own size, for as long as they
did, and 730 hours a month.

Does not bill, and resizes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, to_decimals
from leased.collector.fleet import Fleet
from leased.collector.planning.capacity import MONTH_H
from leased.collector.telemetry.rollup import WINDOW_S
from leased.collector.telemetry.store import Spread, Store
from leased.economics.pools import UNIT
from leased.economics.rates import RateCard
from leased.terms.lease import Priority
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind

USED: Final = "leased.lease.utilization"
WINDOWS_MIN: Final = 12
"""An hour of windows: less says nothing about a peak."""

TARGET_PM: Final[Mapping[ResourceKind, int]] = {
    ResourceKind.CPU: 700,
    ResourceKind.GPU: 700,
    ResourceKind.MEM: 800,
}
_KINDS: Final = {kind.name.lower(): kind for kind in TARGET_PM}
_NAMES: Final[Mapping[ResourceKind, tuple[str, str]]] = {
    ResourceKind.CPU: ("cpu_request", ""),
    ResourceKind.GPU: ("gpu_request", ""),
    ResourceKind.MEM: ("memory_request", "Gi"),
}


class RightSize(msgspec.Struct, frozen=True):
    """A template that asks for more than it uses. `leases` is how many were seen."""

    component: str
    current: dict[str, str]
    recommended: dict[str, str]
    rationale: str
    estimated_savings_monthly: Decimal
    leases: int
    windows: int


class RightSizing(msgspec.Struct, frozen=True):
    """Of the last `period`. `unknown` are templates of which too little was seen."""

    recommendations: list[RightSize]
    total_estimated_savings: Decimal
    currency: str
    period: str
    percentile: int
    unknown: int
    reach: Reach


_Held = tuple[TierKind | None, Priority, int]


class _Template(msgspec.Struct):
    """What was seen of one kind of a template. `held`: for how many windows so much was."""

    capacity: int = 0
    leases: int = 0
    windows: int = 0
    most_ppm: int = 0
    counts: dict[int, int] = {}
    held: dict[_Held, int] = {}

    def percentile_ppm(self, percent: int) -> int:
        """So much was used in at most so many of 100 windows, to a hundredth above."""
        wanted, seen = -(-self.windows * percent // 100), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(self.most_ppm, (bucket + 1) * 10_000)
        return self.most_ppm


def rightsizing(
    accounts: Accounts,
    fleet: Fleet,
    store: Store | None,
    *,
    begin_s: int,
    end_s: int,
    period: str,
    percentile: int,
) -> RightSizing:
    """Of the leases that were seen in [begin_s, end_s)."""
    spreads = store.spreads(USED, begin_s, end_s) if store is not None else []
    found = _templates(fleet, spreads)
    card = accounts.terms.card_at(accounts.now_ns())
    rows, unknown = list[RightSize](), 0
    for (name, kind), one in sorted(found.items()):
        if one.windows < WINDOWS_MIN or not one.most_ppm:
            unknown += 1
            continue
        used_ppm = one.percentile_ppm(percentile)
        if kind is ResourceKind.MEM:
            used_ppm = one.most_ppm
        unit = UNIT[kind]
        needed = Fraction(one.capacity * used_ppm, 1000 * TARGET_PM[kind])
        wanted = max(1, -(-needed // unit)) * unit
        if wanted >= one.capacity:
            continue
        spared = Fraction(_spared(one, card, kind, wanted), max(1, (end_s - begin_s) // WINDOW_S))
        saved = to_decimals(spared, accounts.terms.decimals)
        if saved > 0:
            rows.append(_row(name, kind, one, int(wanted), used_ppm, percentile, saved))
    rows = _by_component(rows)
    rows.sort(key=lambda row: (-row.estimated_savings_monthly, row.component))
    how = (period, percentile, unknown, accounts.reach_now())
    total = sum((row.estimated_savings_monthly for row in rows), Decimal(0))
    return RightSizing(rows, total, accounts.terms.currency, *how)


def _spared(one: _Template, card: RateCard, kind: ResourceKind, wanted: int) -> Fraction:
    """What a month of all windows would cost less, had no lease asked for more than is wanted."""
    found = Fraction(0)
    for (tier, priority, capacity), windows in one.held.items():
        more = max(0, capacity - wanted) * windows
        found += card.cost(more * HOUR_NS * MONTH_H, kind, tier, priority)
    return found


def _templates(
    fleet: Fleet, spreads: Iterable[Spread]
) -> dict[tuple[str, ResourceKind], _Template]:
    found: dict[tuple[str, ResourceKind], _Template] = {}
    subjects = fleet.subjects()
    for spread in spreads:
        kind = _KINDS.get(spread.kind)
        subject = subjects.get(spread.lease)
        if kind is None or subject is None:
            continue
        mine = [one for one in subject.allotments if one.kind is kind]
        if not mine:
            continue
        name = f"{subject.tenant}/{subject.workload or '-'}"
        one = found.setdefault((name, kind), _Template())
        capacity = sum(allotment.capacity for allotment in mine)
        held = (mine[0].tier, subject.priority, capacity)
        one.capacity = max(one.capacity, capacity)
        one.held[held] = one.held.get(held, 0) + spread.windows
        one.leases += 1
        one.windows += sum(spread.counts.values())
        one.most_ppm = max(one.most_ppm, spread.most_ppm)
        for bucket, count in spread.counts.items():
            one.counts[bucket] = one.counts.get(bucket, 0) + count
    return found


def _row(
    name: str,
    kind: ResourceKind,
    one: _Template,
    wanted: int,
    used_ppm: int,
    percentile: int,
    saved: Decimal,
) -> RightSize:
    key, suffix = _NAMES[kind]
    unit = UNIT[kind]
    what = "peak" if kind is ResourceKind.MEM else f"{percentile}th percentile"
    title = {ResourceKind.CPU: "CPU", ResourceKind.GPU: "GPU", ResourceKind.MEM: "memory"}[kind]
    return RightSize(
        name,
        {key: _amount(one.capacity, unit) + suffix},
        {key: _amount(wanted, unit) + suffix},
        f"The {what} of use is {used_ppm // 10_000}% {title}; the target is "
        f"{TARGET_PM[kind] // 10}%",
        saved,
        one.leases,
        one.windows,
    )


def _by_component(rows: Iterable[RightSize]) -> list[RightSize]:
    """One row for each: what it asks for too much of, together."""
    found: dict[str, RightSize] = {}
    for row in rows:
        known = found.get(row.component)
        found[row.component] = (
            row
            if known is None
            else RightSize(
                row.component,
                known.current | row.current,
                known.recommended | row.recommended,
                f"{known.rationale}. {row.rationale}",
                known.estimated_savings_monthly + row.estimated_savings_monthly,
                max(known.leases, row.leases),
                known.windows + row.windows,
            )
        )
    return list(found.values())


def _amount(raw: int, unit: int) -> str:
    whole = Fraction(raw, unit)
    return str(whole.numerator) if whole.denominator == 1 else f"{float(whole):.2f}"
