# SPDX-License-Identifier: Apache-2.0
"""Usage as rows: hourly cells put together by hour, by day or in all, with peak and price.

Rule: a cell is priced by the card of its hour, exactly; a row is rounded once, and so is the total,
of what is exact: it is the same by the hour and by the day. Synthetic probes are told and cost
nothing.

Does not choose what is asked about (`accounts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.answers import UsageRow
from leased.collector.accounts.periods import Window
from leased.economics.amounts import exact, rounded
from leased.economics.contracts import Terms
from leased.economics.hourly import HOUR_NS, PeakKey
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, UNIT_NAME
from leased.economics.statement import SYNTHETIC, fixed
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind, TierKind

_RowKey = tuple[int, ResourceKind, TierKind | None, Priority, AccountingTag | None]


def usage_rows(
    cells: Mapping[UsageKey, int],
    peaks: Mapping[PeakKey, int],
    terms: Terms,
    window: Window,
    bucket_ns: int,
) -> tuple[list[UsageRow], Fraction]:
    """Cells put together by bucket, each cell priced by the card of its hour; and what all cost."""
    amounts: dict[_RowKey, int] = {}
    costs: dict[_RowKey, Fraction] = {}
    highest: dict[tuple[int, ResourceKind, TierKind | None], int] = {}
    for peak, capacity in peaks.items():
        at = (_bucket(peak.hour, window, bucket_ns), peak.kind, peak.tier)
        highest[at] = max(capacity, highest.get(at, 0))
    for key, amount in cells.items():
        if key.priority is None:
            continue
        bucket = _bucket(key.bucket, window, bucket_ns)
        row = (bucket, key.kind, key.tier, key.priority, key.tag)
        card = terms.cards[terms.card_number(key.bucket)].card
        cost = card.cost(amount, key.kind, key.tier, key.priority)
        free = key.tag is not None and key.tag.flags & SYNTHETIC
        priced = Fraction(0) if free else Fraction(cost.numerator, cost.denominator)
        amounts[row] = amounts.get(row, 0) + amount
        costs[row] = costs.get(row, Fraction(0)) + priced
    rows = [
        _usage_row(row, amounts[row], costs[row], highest, window, bucket_ns, terms.decimals)
        for row in sorted(amounts, key=_row_order)
    ]
    return rows, sum(costs.values(), Fraction(0))


def _bucket(hour: int, window: Window, bucket_ns: int) -> int:
    """Where the row of an hour begins."""
    at_ns = hour * HOUR_NS
    return max(window.from_ns, at_ns // bucket_ns * bucket_ns) if bucket_ns else window.from_ns


def _row_order(row: _RowKey) -> tuple[object, ...]:
    bucket, kind, tier, priority, tag = row
    tagged = () if tag is None else msgspec.structs.astuple(tag)
    return (bucket, kind, -1 if tier is None else tier, priority, tagged)


def _usage_row(
    row: _RowKey,
    amount: int,
    cost: Fraction,
    highest: Mapping[tuple[int, ResourceKind, TierKind | None], int],
    window: Window,
    bucket_ns: int,
    decimals: int,
) -> UsageRow:
    start_ns, kind, tier, priority, tag = row
    end_ns = window.to_ns
    if bucket_ns:
        end_ns = min(end_ns, start_ns // bucket_ns * bucket_ns + bucket_ns)
    unit = UNIT[kind]
    return UsageRow(
        periods.instant(start_ns),
        periods.instant(end_ns),
        kind.name.lower(),
        None if tier is None else tier.name.lower(),
        priority.name.lower(),
        None if tag is None else tag.cost_center,
        None if tag is None else tag.project,
        None if tag is None else tag.request_class,
        None if tag is None else tag.budget_group,
        UNIT_NAME[kind],
        Decimal(exact(Fraction(amount, unit * NS_PER_S))),
        str(amount),
        Decimal(exact(Fraction(highest.get((start_ns, kind, tier), 0), unit))),
        Decimal(fixed(rounded(cost, decimals), decimals)),
        exact(cost),
    )
