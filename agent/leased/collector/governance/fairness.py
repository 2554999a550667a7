# SPDX-License-Identifier: Apache-2.0
"""Fairness: who is entitled to how much, and how even what came of it is.

Rule: shares by weight are filled like water: nobody is given more than it wants or may have, what
that leaves is divided among the others, and what cannot be divided goes to the largest remainders.

Does not know what anybody has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_DOWN, Decimal
from typing import Final

WHOLE_PM: Final = 1000


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
    names = sorted(weights)
    if not names or total <= 0:
        return dict.fromkeys(names, 0)
    floor = total * min(min_pm, WHOLE_PM // len(names)) // WHOLE_PM
    ceiling = total * max_pm // WHOLE_PM
    bounds = {
        name: (min(floor, demand.get(name, 0)), min(ceiling, demand.get(name, 0))) for name in names
    }
    given: dict[str, int] = {}
    left, open_names = total, list(names)
    while open_names:
        shares = _divided(left, {name: max(1, weights[name]) for name in open_names})
        # Who wants less than its share frees the rest; only then is anybody raised to a floor.
        settled = {name: bounds[name][1] for name in open_names if shares[name] >= bounds[name][1]}
        if not settled:
            settled = {
                name: bounds[name][0] for name in open_names if shares[name] < bounds[name][0]
            }
        if not settled:
            return {**given, **shares}
        given |= settled
        left = max(0, left - sum(settled.values()))
        open_names = [name for name in open_names if name not in settled]
    return given


def _divided(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` by weight, whole: the largest remainders get what is over, by name if equal."""
    whole = sum(weights.values())
    found = {name: total * weight // whole for name, weight in weights.items()}
    over = total - sum(found.values())
    ranked = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    for name in ranked[:over]:
        found[name] += 1
    return found


def jain(values: Sequence[int]) -> Decimal:
    """Jain's index of fairness, cut to four digits: 1 if all are equal, 1/n if one has all."""
    squares = sum(value * value for value in values)
    if not squares:
        return Decimal(1)
    total = sum(values)
    index = Decimal(total * total) / Decimal(len(values) * squares)
    return index.quantize(Decimal("0.0001"), ROUND_DOWN)
