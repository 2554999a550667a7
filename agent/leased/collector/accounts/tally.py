# SPDX-License-Identifier: Apache-2.0
"""The tally: what tenants had since the first record, as counters tell it.

Rule: a counter never falls. What hours had counted that are let go is carried on by the floor, at
the price of their time; those from the floor's beginning on are counted from the cells of the
bills. Exact: an amount is a fraction until it is written.

Does not write what Prometheus reads (`metrics`) and lets nothing go (`retention`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec

from leased.collector.archive.floor import Floor
from leased.collector.metering.sources import Source
from leased.economics.attribution import TYPE_OF, Basis, by_name
from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, Pool
from leased.terms.moment import HOUR_NS, NS_PER_S

Labels = tuple[str, ...]


class _Row(msgspec.Struct, frozen=True):
    """One counter; `amount` is a fraction."""

    labels: Labels
    amount: str


class _Carried(msgspec.Struct, frozen=True):
    costs: tuple[_Row, ...] = ()
    seconds: tuple[_Row, ...] = ()
    tasks: tuple[_Row, ...] = ()


class Tally:
    """`costs` by tenant and type, capacity-`seconds` by tenant, kind, tier and priority, and
    `tasks` done by tenant."""

    def __init__(self, source: Source, terms: Terms, floor: Floor, end_ns: int) -> None:
        """All that was had before `end_ns`. The floor is not older than the source, which may still
        have hours that the floor has carried on."""
        carried = msgspec.convert(floor.carried, _Carried)
        self.costs, self.seconds, self.tasks = (
            {row.labels: Fraction(row.amount) for row in rows}
            for rows in (carried.costs, carried.seconds, carried.tasks)
        )
        begin_ns = max(source.first_ns() // HOUR_NS * HOUR_NS, floor.begin_ns)
        if begin_ns < end_ns:
            self._count(source, terms, begin_ns, end_ns)

    def carried(self) -> dict[str, Any]:
        """For a floor to carry on."""
        rows = (
            tuple(_Row(labels, str(amount)) for labels, amount in sorted(counts.items()))
            for counts in (self.costs, self.seconds, self.tasks)
        )
        plain: dict[str, Any] = msgspec.to_builtins(_Carried(*rows))
        return plain

    def _count(self, source: Source, terms: Terms, begin_ns: int, end_ns: int) -> None:
        starts = [max(begin_ns, version.since_ns) for version in terms.cards]
        starts[0] = begin_ns
        for start_ns, stop_ns in zip(starts, [*starts[1:], end_ns], strict=True):
            cells = source.sums((start_ns, min(stop_ns, end_ns))) if start_ns < stop_ns else {}
            priced = by_name(cells.items(), terms, Basis.RATE_CARD, _cost_labels)
            for labels, cost in priced.items():
                _add(self.costs, labels, cost)
            for key, amount in cells.items():
                if key.pool is not Pool.TENANT:
                    continue
                tier = "" if key.tier is None else key.tier.name.lower()
                priority = "" if key.priority is None else key.priority.name.lower()
                row = (key.tenant, key.kind.name.lower(), tier, priority)
                _add(self.seconds, row, Fraction(amount, NS_PER_S * UNIT[key.kind]))
        for (tenant, _), count in source.tasks((begin_ns, end_ns)).items():
            _add(self.tasks, (tenant,), Fraction(count))


def _cost_labels(key: UsageKey) -> Labels:
    return (key.tenant, TYPE_OF[key.kind])


def _add(counts: dict[Labels, Fraction], labels: Labels, amount: Fraction) -> None:
    counts[labels] = counts.get(labels, Fraction(0)) + amount
