# SPDX-License-Identifier: Apache-2.0
"""Fairness: the formulas, exactly, in integers.

Rule: a tenant's share is its weight over the sum of weights of those who want something, of the
capacity; what one does not want, or may not have, is redistributed among the others in the same
way, until nobody is left to take it. Nobody gets less than the floor (unless it wants less, or the
floors together are more than there is: then they are scaled down) or more than the ceiling. What
does not divide goes to the largest remainders, ties to the first name.

Does not know what anybody has (`shares`) and does not act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Final

from leased.terms.identity import TenantId

WHOLE_PM: Final = 1000
INDEX_ONE: Final = 1_000_000
_SCALE_BITS: Final = 48
_STEPS: Final = 64


def entitlements(
    capacity: int,
    weights: Mapping[TenantId, int],
    demands: Mapping[TenantId, int],
    *,
    min_pm: int,
    max_pm: int,
) -> dict[TenantId, int]:
    """How much of `capacity` each of `demands` is entitled to; `weights` has all of them."""
    active = sorted(tenant for tenant, demand in demands.items() if demand > 0)
    if not active:
        return {}
    ceiling = capacity * max_pm // WHOLE_PM
    most = {tenant: min(demands[tenant], ceiling) for tenant in active}
    floor = min(capacity * min_pm // WHOLE_PM, capacity // len(active))
    least = {tenant: min(floor, most[tenant]) for tenant in active}
    frozen: dict[TenantId, int] = {}
    while len(frozen) < len(active):
        rest = [tenant for tenant in active if tenant not in frozen]
        left = capacity - sum(frozen.values())
        total = sum(weights[tenant] for tenant in rest)
        below = {t: least[t] for t in rest if left * weights[t] < least[t] * total}
        above = {t: most[t] for t in rest if left * weights[t] > most[t] * total}
        # What lifting some to their floor costs, less what holding others at their ceiling saves:
        # only those on the heavier side are certain to end there.
        cost = sum(least[t] * total - left * weights[t] for t in below)
        cost -= sum(left * weights[t] - most[t] * total for t in above)
        if cost > 0:
            frozen.update(below)
        elif cost < 0:
            frozen.update(above)
        else:
            others = {t: weights[t] for t in rest if t not in below and t not in above}
            frozen.update(below)
            frozen.update(above)
            if others:
                frozen.update(_divided(capacity - sum(frozen.values()), others))
    return frozen


def _divided(amount: int, weights: Mapping[TenantId, int]) -> dict[TenantId, int]:
    """`amount` by `weights`, to the last unit."""
    total = sum(weights.values())
    parts = {tenant: divmod(amount * weight, total) for tenant, weight in weights.items()}
    shares = {tenant: whole for tenant, (whole, _) in parts.items()}
    left = amount - sum(shares.values())
    if not left:
        return shares
    for tenant in sorted(parts, key=lambda one: (-parts[one][1], one))[:left]:
        shares[tenant] += 1
    return shares


def jain_index(values: Sequence[tuple[int, int]]) -> int:
    """Jain's index of the quotients (numerator, denominator), in millionths: 1000000 when all are
    the same, and for nobody.
    """
    quotients = [
        (numerator << _SCALE_BITS) // denominator
        for numerator, denominator in values
        if denominator
    ]
    squares = sum(quotient * quotient for quotient in quotients)
    if not squares:
        return INDEX_ONE
    total = sum(quotients)
    return INDEX_ONE * total * total // (len(quotients) * squares)


def decay_weights(count: int, step_ns: int, half_life_ns: int) -> tuple[int, ...]:
    """What counts of something that is 0, 1, ... `count` - 1 steps old, in 2^-48; half as much
    every `half_life_ns` (0: all of it).
    """
    one = 1 << _SCALE_BITS
    if not half_life_ns:
        return (one,) * count
    root = one >> 1
    for _ in range(_STEPS.bit_length() - 1):
        root = isqrt(root << _SCALE_BITS)  # 2^-1/2, 2^-1/4, ... 2^-1/64
    fractions = [one]
    for _ in range(_STEPS - 1):
        fractions.append(fractions[-1] * root >> _SCALE_BITS)
    weights = []
    for age in range(count):
        halvings, rest_ns = divmod(age * step_ns, half_life_ns)
        weights.append(fractions[rest_ns * _STEPS // half_life_ns] >> halvings)
    return tuple(weights)
