# SPDX-License-Identifier: Apache-2.0
"""Shares of a cost: by whatever name, the largest first, and all of it.

Rule: parts and shares are rounded by the largest remainder, so that they add up; who is not among
the first so many is in OTHER, last, which says how many these are: somebody may be called OTHER.
Leases without the tag, or the tier, that is grouped by are one group, whose name is empty.

Does not price (`attribution`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeVar

import msgspec

from leased.collector.accounts.answers import GroupCost, NamedCost, TenantCost, money
from leased.economics.amounts import nearest, split, wholes
from leased.economics.attribution import Basis, by_name
from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey

OTHER: Final = "OTHER"
Name = TypeVar("Name", str, str | None)
Row = TypeVar("Row", TenantCost, GroupCost)


class GroupBy(enum.StrEnum):
    """What costs of tenants can be put together by: tags, and what was held."""

    COST_CENTER = "cost_center"
    PROJECT = "project"
    REQUEST_CLASS = "request_class"
    BUDGET_GROUP = "budget_group"
    KIND = "kind"
    TIER = "tier"
    PRIORITY = "priority"


def groups(
    cells: Iterable[tuple[UsageKey, int]], terms: Terms, basis: Basis, by: GroupBy
) -> dict[str | None, Fraction]:
    """What tenants' cells cost, by one of the words that a usage row has."""
    return by_name(cells, terms, basis, lambda key: _name(key, by))


def _name(key: UsageKey, by: GroupBy) -> str | None:
    if by in (GroupBy.KIND, GroupBy.TIER, GroupBy.PRIORITY):
        what: Any = getattr(key, by.value)
        return None if what is None else str(what.name.lower())
    return None if key.tag is None else str(getattr(key.tag, by.value)) or None


def in_order(costs: Mapping[Any, Fraction]) -> list[tuple[Any, Fraction]]:
    """The largest first; what costs the same by its name."""
    sizes = dict(zip(costs, wholes(costs.values()), strict=True))
    return sorted(costs.items(), key=lambda item: (-sizes[item[0]], item[0] or ""))


def first(costs: Mapping[Any, Fraction], top: int) -> list[tuple[Any, Fraction]]:
    """The first `top`, largest first, and the rest as OTHER."""
    found = in_order(costs)
    named, rest = found[:top], found[top:]
    if rest:
        named.append((OTHER, sum((cost for _, cost in rest), Fraction(0))))
    return named


def parts(
    named: list[tuple[Name, Fraction]], total: int, decimals: int
) -> list[tuple[Name, int, Decimal]]:
    """Each with its part of `total` (10**-decimals units) and its share in hundredths, both adding
    up. What is below zero stays so, and has no share."""
    weights = [max(0, cost) for cost in wholes([cost for _, cost in named])]
    names = [name for name, _ in named]
    if all(cost >= 0 for _, cost in named):
        told = split(total, weights)
    else:
        told = nearest(total, [cost * 10**decimals for _, cost in named])
    return list(zip(names, told, _shares(weights), strict=True))


def _shares(weights: list[int]) -> list[Decimal]:
    """In hundredths that add up; none, where all weigh nothing."""
    hundredths = split(100, weights) if any(weights) else [0] * len(weights)
    return [Decimal(share).scaleb(-2) for share in hundredths]


def ranked(
    kind: Callable[[Any, Decimal, Decimal], Row],
    costs: Mapping[Any, Fraction],
    top: int,
    total: int,
    decimals: int,
) -> list[Row]:
    """The first `top` as they are told, and the rest as one row."""
    rows = [
        kind(name, money(part, decimals), share)
        for name, part, share in parts(first(costs, top), total, decimals)
    ]
    if len(costs) > top:
        rows[-1] = msgspec.structs.replace(rows[-1], others=len(costs) - top)
    return rows


def named_costs(
    costs: Mapping[str, Fraction], amounts: Mapping[str, int], decimals: int
) -> list[NamedCost]:
    """Costs by name, largest first, as they were rounded; shares of what is positive."""
    found = in_order(costs)
    shares = _shares([max(0, cost) for cost in wholes([cost for _, cost in found])])
    return [
        NamedCost(name, money(amounts[name], decimals), share)
        for (name, _), share in zip(found, shares, strict=True)
    ]
