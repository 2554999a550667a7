# SPDX-License-Identifier: Apache-2.0
"""Costs and chargeback: cells of a window, priced and told.

Rule: parts add up to what is told of all of them, to the last digit.

Does not choose a window or its cells (`accounts`), and does not price (`attribution`).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, UnsetType

from leased.collector.accounts import periods
from leased.collector.accounts.answers import (
    CenterCost,
    Chargeback,
    Costs,
    GroupCost,
    Interval,
    Reach,
    TenantCost,
)
from leased.collector.accounts.cost_shares import (
    GroupBy,
    groups,
    in_order,
    money,
    named_costs,
    parts,
    ranked,
)
from leased.collector.accounts.periods import Window
from leased.economics.amounts import rounded
from leased.economics.attribution import Basis, Spread, attribute, spread_shared
from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey

_Cells = Iterable[tuple[UsageKey, int]]


def costs_of(
    cells: _Cells,
    terms: Terms,
    window: Window,
    reach: Reach,
    top: int,
    basis: Basis,
    by: GroupBy | None,
) -> Costs:
    """What everybody cost, by `basis`; the first `top` by name."""
    kept = list(cells)
    found = attribute(kept, terms, basis)
    priced = terms.infrastructure if basis is Basis.INFRASTRUCTURE else terms
    decimals = priced.decimals
    total = rounded(found.tenants_total, decimals)
    tenants = ranked(TenantCost, found.by_tenant, top, total, decimals)
    grouped: list[GroupCost] | UnsetType = UNSET
    if by is not None:
        grouped = ranked(GroupCost, groups(kept, terms, basis, by), top, total, decimals)
    pools = named_costs(found.pools, decimals)
    if basis is Basis.INFRASTRUCTURE:
        total += sum(rounded(cost, decimals) for cost in found.pools.values())
    return Costs(
        f"{periods.day(window.from_ns)}/{periods.day(window.to_ns)}",
        money(total, decimals),
        priced.currency,
        tenants,
        named_costs(found.by_type, decimals),
        pools,
        money(rounded(found.pools["idle"], decimals), decimals),
        basis.value,
        interval_of(window),
        reach,
        grouped,
    )


def chargeback_of(
    cells: _Cells, terms: Terms, month: str, window: Window, reach: Reach, how: Spread
) -> Chargeback:
    """What the infrastructure of a month cost, by cost centre."""
    found = attribute(cells, terms, Basis.INFRASTRUCTURE)
    decimals = terms.infrastructure.decimals
    centers = spread_shared(found.by_center, how)
    total = rounded(found.total, decimals)
    return Chargeback(
        month,
        money(total, decimals),
        [
            CenterCost(name, money(part, decimals), share)
            for name, part, share in parts(in_order(centers), total, decimals)
        ],
        terms.infrastructure.currency,
        how.value,
        interval_of(window),
        reach,
    )


def interval_of(window: Window) -> Interval:
    """As answers tell it."""
    return Interval(periods.instant(window.from_ns), periods.instant(window.to_ns))
