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
from leased.terms.quantity import WHOLE_PM

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
    active = [tenant for tenant, demand in demands.items() if demand > 0]
    if not active:
        return {}
    ceiling = capacity * max_pm // WHOLE_PM
    floor = min(capacity * min_pm // WHOLE_PM, capacity // len(active))
    most = {tenant: min(demands[tenant], ceiling) for tenant in active}
    frozen: dict[TenantId, int] = {}
    left, rest = capacity, {tenant: weights[tenant] for tenant in active}
    while rest:
        total = sum(rest.values())
        above = [(t, most[t]) for t, weight in rest.items() if left * weight > most[t] * total]
        below = []
        if floor:
            least = ((t, weight, min(floor, most[t])) for t, weight in rest.items())
            below = [(t, few) for t, weight, few in least if left * weight < few * total]
        # What lifting some to their floor costs, less what holding others at their ceiling saves:
        # only those on the heavier side are certain to end there.
        cost = sum([few * total - left * rest[t] for t, few in below])
        cost -= sum([left * rest[t] - many * total for t, many in above])
        certain = [*below, *above] if cost == 0 else below if cost > 0 else above
        frozen.update(certain)
        for tenant, part in certain:
            left -= part
            del rest[tenant]
        if cost == 0:
            frozen.update(_divided(left, rest))
            break
    return frozen


def least_part(capacity: int, count: int, *, equal: bool, min_pm: int, max_pm: int) -> int:
    """What each of `count` who want as much is certainly entitled to, whatever the others want.
    `equal`: so are their weights.
    """
    each = capacity // count
    least = each if equal else min(each, capacity * min_pm // WHOLE_PM)
    return min(least, capacity * max_pm // WHOLE_PM)


def _divided(amount: int, weights: Mapping[TenantId, int]) -> dict[TenantId, int]:
    """`amount` by `weights`, to the last unit."""
    total = sum(weights.values())
    shares = {tenant: amount * weight // total for tenant, weight in weights.items()}
    left = amount - sum(shares.values())
    if left:
        rest = [(-(amount * weight % total), tenant) for tenant, weight in weights.items()]
        for _, tenant in sorted(rest)[:left]:
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
