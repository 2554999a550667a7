# SPDX-License-Identifier: Apache-2.0
"""The history of allocations: how much of what there was was held, and how evenly.

Rule: from hourly cells, capacity x time and not instants; as few points as can be drawn, each the
sum of whole hours. What was held is not what was used: that is telemetry's word, over what it saw
of what was held, and null where it saw nothing.

Does not know the present (`fleet`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Interval, Reach, cut, interval_of
from leased.collector.governance.fairness import entitled, evenness
from leased.collector.governance.strategies import Plans
from leased.economics.pools import Pool
from leased.terms.moment import HOUR_NS, HOUR_S, NS_PER_S
from leased.terms.policy import Allocation
from leased.terms.quantity import print_instant
from leased.terms.resource import UNIT, ResourceKind

POINTS_MAX: Final = 500


class AllocationPoint(msgspec.Struct, frozen=True):
    """Means over the time from `ts` on, in units of the kind. `allocation_ratio` is allocated of
    capacity; `efficiency` what was used of what was allocated, null where nobody measured it;
    `fairness_index` is Jain's over the tenants that held something, of what each held to what it
    was entitled to by the strategy that was in force in each hour. What somebody wanted and had not
    is not in it."""

    ts: str
    allocated: Decimal
    capacity: Decimal
    allocation_ratio: Decimal | None
    efficiency: Decimal | None
    fairness_index: Decimal


class AllocationHistory(msgspec.Struct, frozen=True):
    """`resolution` is the length of a point."""

    period: str
    resolution: str
    kind: str
    points: list[AllocationPoint]
    interval: Interval
    reach: Reach


class _Part(msgspec.Struct):
    """Of the hours of a point that were divided in one way: capacity x ns, by tenant and in all."""

    held: dict[str, int]
    there: int = 0


Shares = Callable[[str, int, int, int], Mapping[int, tuple[int, int]]]
"""Of a kind, from and to an instant in Unix seconds, by steps of so many: (used, held while that
was seen), as telemetry has it."""


def allocations(
    accounts: Accounts, period: str, plans: Plans, shares: Shares | None = None
) -> AllocationHistory:
    """The last `period` of a kind, as it was divided by its `plans`. Raises InvalidParameter,
    NoData."""
    kind = plans[0][1].kind
    window = accounts.last(period)
    hours = -(-len(window.hours) // POINTS_MAX) or 1
    parts: dict[int, dict[int, _Part]] = {}
    since = [since_ns for since_ns, _ in plans]
    for key, amount in accounts.source.cells(window.pair).items():
        if key.kind is not kind:
            continue
        point = (key.bucket - window.hours.start) // hours
        if key.pool not in (Pool.PROVISIONED, Pool.TENANT):
            continue
        # An hour is divided by what was in force at its beginning.
        version = max(0, bisect_right(since, key.bucket * HOUR_NS) - 1)
        part = parts.setdefault(point, {}).setdefault(version, _Part({}))
        if key.pool is Pool.PROVISIONED:
            part.there += amount
        else:
            part.held[key.tenant] = part.held.get(key.tenant, 0) + amount
    count = -(-len(window.hours) // hours)
    used: Mapping[int, tuple[int, int]] = {}
    if shares is not None:
        begin_s, end_s = window.from_ns // NS_PER_S, window.to_ns // NS_PER_S
        used = shares(kind.name.lower(), begin_s, end_s, hours * HOUR_S)
    points = [
        _point(
            window.from_ns + point * hours * HOUR_NS,
            min(hours, len(window.hours) - point * hours),
            [(plans[number][1], part) for number, part in sorted(parts.get(point, {}).items())],
            kind,
            used.get(point, (0, 0)),
        )
        for point in range(count)
    ]
    return AllocationHistory(
        period,
        f"{hours}h",
        kind.name.lower(),
        points,
        interval_of(window),
        accounts.reach(window),
    )


def _point(
    from_ns: int,
    hours: int,
    parts: Sequence[tuple[Allocation, _Part]],
    kind: ResourceKind,
    used: tuple[int, int],
) -> AllocationPoint:
    whole = UNIT[kind] * hours * HOUR_NS
    tenants: dict[str, int] = {}
    goals: dict[str, int] = {}
    for plan, part in parts:
        for tenant, amount in entitled(plan, part.there, part.held, part.held).items():
            goals[tenant] = goals.get(tenant, 0) + amount
            tenants[tenant] = tenants.get(tenant, 0) + part.held[tenant]
    capacity_ns = sum(part.there for _, part in parts)
    held_ns = sum(tenants.values())
    return AllocationPoint(
        print_instant(from_ns),
        cut(Fraction(held_ns, whole), 3),
        cut(Fraction(capacity_ns, whole), 3),
        cut(Fraction(held_ns, capacity_ns), 3) if capacity_ns else None,
        cut(min(Fraction(1), Fraction(*used)), 3) if used[1] else None,
        evenness(tenants, tenants, goals),
    )
