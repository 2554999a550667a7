# SPDX-License-Identifier: Apache-2.0
"""Usage as rows: hourly cells put together by hour, by day or in all, with peak and price; and the
price of anything else that is told in such rows (`lease_rows`).

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
from leased.collector.accounts.answers import UsageRow, to_decimals
from leased.collector.accounts.periods import Window
from leased.collector.metering.sources import Counted
from leased.economics.amounts import exact
from leased.economics.contracts import Terms
from leased.economics.hourly import PeakKey
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, UNIT_NAME
from leased.terms.lease import AccountingTag, Priority, is_probe
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.resource import ResourceKind, TierKind

Priced = tuple[ResourceKind, TierKind | None, Priority, AccountingTag | None]
"""What a price is for, and whom it is charged to."""

_RowKey = tuple[int, ResourceKind, TierKind | None, Priority, AccountingTag | None]


def usage_rows(
    cells: Mapping[UsageKey, int],
    peaks: Mapping[PeakKey, int],
    terms: Terms,
    window: Window,
    bucket_ns: int,
    leases: Mapping[UsageKey, Counted],
) -> tuple[list[UsageRow], Fraction]:
    """Cells put together by bucket, each cell priced by the card of its hour; and what all cost.
    `leases` are those behind each row, by its first hour."""
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
        amounts[row] = amounts.get(row, 0) + amount
        costs[row] = costs.get(row, Fraction(0)) + priced(terms, key.bucket, amount, row[1:])
    by_row = {
        (key.bucket * HOUR_NS, key.kind, key.tier, key.priority, key.tag): counted
        for key, counted in leases.items()
        if key.priority is not None
    }
    rows = []
    for row in sorted(amounts, key=_row_order):
        start_ns, kind, tier = row[:3]
        end_ns = window.to_ns
        if bucket_ns:
            end_ns = min(end_ns, start_ns // bucket_ns * bucket_ns + bucket_ns)
        most = highest.get((start_ns, kind, tier), 0)
        when = (start_ns, end_ns)
        found = row_of(when, row[1:], amounts[row], costs[row], most, terms.decimals)
        behind = by_row.get(row)
        known = behind is not None and behind.cap_ns == amounts[row]
        count = behind.leases if behind is not None and known else None
        rows.append(msgspec.structs.replace(found, leases=count))
    return rows, sum(costs.values(), Fraction(0))


def priced(terms: Terms, hour: int, amount: int, what: Priced) -> Fraction:
    """What an amount costs by the card of its hour. A synthetic probe costs nothing."""
    kind, tier, priority, tag = what
    if is_probe(tag):
        return Fraction(0)
    return terms.card_of(hour).cost(amount, kind, tier, priority)


def _bucket(hour: int, window: Window, bucket_ns: int) -> int:
    """Where the row of an hour begins."""
    at_ns = hour * HOUR_NS
    return max(window.from_ns, at_ns // bucket_ns * bucket_ns) if bucket_ns else window.from_ns


def _row_order(row: _RowKey) -> tuple[object, ...]:
    bucket, kind, tier, priority, tag = row
    tagged = () if tag is None else msgspec.structs.astuple(tag)
    return (bucket, kind, -1 if tier is None else tier, priority, tagged)


def row_of(
    when: tuple[int, int], what: Priced, amount: int, cost: Fraction, most: int, decimals: int
) -> UsageRow:
    """One row; `most` was held at once."""
    kind, tier, priority, tag = what
    unit = UNIT[kind]
    return UsageRow(
        periods.exact_instant(when[0]),
        periods.exact_instant(when[1]),
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
        Decimal(exact(Fraction(most, unit))),
        to_decimals(cost, decimals),
        exact(cost),
    )
