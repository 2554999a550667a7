# SPDX-License-Identifier: Apache-2.0
"""Fairness: who is entitled to how much, and how even what came of it is.

Rule: shares by weight are filled like water: nobody is given more than it wants or may have, what
that leaves is divided among the others, and what cannot be divided goes to the largest remainders.
How even it is is judged by what each has of what it should have, and that is never more than it
wants: who wants nothing is no sign of unfairness.

Does not know what anybody has or wants: it is handed in.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

from leased.terms.policy import Allocation, Strategy
from leased.terms.quantity import WHOLE_PM

_FINE: Final = 10**30
"""Ratios are exact up to such a common denominator: that of a thousand tenants has no end."""


def filled(
    total: int,
    weights: Mapping[str, int],
    demand: Mapping[str, int],
    *,
    min_pm: int,
    max_pm: int,
) -> dict[str, int]:
    """What each is entitled to of `total`: by weight, at least `min_pm` of it where it wants that
    much, at most `max_pm`. Minimums that do not fit together are made smaller."""
    exact = water(total, weights, demand, min_pm=min_pm, max_pm=max_pm)
    found = {name: int(share) for name, share in exact.items()}
    over = int(sum(exact.values())) - sum(found.values())
    ranked = sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))
    for name in ranked[:over]:
        found[name] += 1
    return found


def water(
    total: int,
    weights: Mapping[str, int],
    demand: Mapping[str, int],
    *,
    min_pm: int,
    max_pm: int,
) -> dict[str, Fraction]:
    """The same before it is made whole: everybody has its weight times one level, or its bound
    where that is below or above it, and all of `total` is had by somebody who wants it."""
    names = sorted(weights)
    if not names or total <= 0:
        return dict.fromkeys(names, Fraction(0))
    weight = {name: max(1, weights[name]) for name in names}
    floor = min(Fraction(total * min_pm, WHOLE_PM), Fraction(total, len(names)))
    ceiling = Fraction(total * max_pm, WHOLE_PM)
    most = {name: min(ceiling, Fraction(demand.get(name, 0))) for name in names}
    least = {name: min(floor, most[name]) for name in names}
    if sum(most.values()) <= total:
        return most

    def at(level: Fraction) -> dict[str, Fraction]:
        return {name: max(least[name], min(most[name], weight[name] * level)) for name in names}

    def had(level: Fraction) -> Fraction:
        return sum(at(level).values(), Fraction(0))

    # Between two levels at which somebody comes to a bound, what is had grows in a straight line.
    turns = sorted({bound[name] / weight[name] for name in names for bound in (least, most)})
    above = bisect.bisect_left(turns, Fraction(total), key=had)
    high = turns[above]
    low = turns[above - 1] if above else Fraction(0)
    before, after = had(low), had(high)
    if after == before:
        return at(high)
    return at(low + (high - low) * (total - before) / (after - before))


def entitled(
    plan: Allocation, total: int, allocated: Mapping[str, int], demand: Mapping[str, int]
) -> dict[str, int]:
    """What each that wants something should have. By reservation what is reserved for it, or what
    it has beyond that; by priority nobody has a part of its own, and each should have what it
    wants."""
    if plan.strategy is Strategy.FAIR_SHARE:
        weights = {str(tenant): pm for tenant, pm in plan.weights_pm}
        return filled(
            total,
            {tenant: weights.get(tenant, WHOLE_PM) for tenant in demand},
            demand,
            min_pm=plan.min_share_pm,
            max_pm=plan.max_share_pm,
        )
    if plan.strategy is Strategy.RESERVATION:
        reserved = {str(tenant): amount for tenant, amount in plan.reservations}
        return {one: max(reserved.get(one, 0), allocated.get(one, 0)) for one in demand}
    return {tenant: min(total, wanted) for tenant, wanted in demand.items()}


def evenness(
    allocated: Mapping[str, int], demand: Mapping[str, int], goals: Mapping[str, int]
) -> Decimal:
    """Jain's index over min(allocated, demand) / min(demand, entitled) of each that wants
    something."""
    goals = {tenant: min(wanted, goals.get(tenant, 0)) for tenant, wanted in demand.items()}
    scale = min(_FINE, math.lcm(*(goal for goal in goals.values() if goal)))
    return jain(
        [
            min(allocated.get(tenant, 0), demand[tenant]) * scale // goal
            for tenant, goal in goals.items()
            if goal
        ]
    )


def jain(values: Sequence[int]) -> Decimal:
    """Jain's index of fairness, cut to four digits: 1 if all are equal, 1/n if one has all."""
    squares = sum(value * value for value in values)
    if not squares:
        return Decimal(1)
    return Decimal(sum(values) ** 2 * 10_000 // (len(values) * squares)).scaleb(-4)
