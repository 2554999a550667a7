# SPDX-License-Identifier: Apache-2.0
"""Costs and chargeback: cells of a window, priced and told.

Rule: parts add up to what is told of all of them, to the last digit, by the largest remainder. What
the infrastructure cost is rounded once, all of it: costs, chargeback and `node_costs` say the same
of the same time.

Does not choose a window or its cells (`accounts`), and does not price (`attribution`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import UNSET, UnsetType

from leased.collector.accounts import periods
from leased.collector.accounts.answers import (
    CenterCost,
    Chargeback,
    Costs,
    GroupCost,
    NamedCost,
    Reach,
    TenantCost,
    interval_of,
    money,
)
from leased.collector.accounts.cost_shares import (
    GroupBy,
    groups,
    in_order,
    named_costs,
    parts,
    ranked,
)
from leased.collector.accounts.periods import Window
from leased.economics.amounts import nearest, rounded
from leased.economics.attribution import Attributed, Basis, Spread, attribute, spread_shared
from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey

POOLS: Final = ("teardown", "fenced", "idle")
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
    priced = terms.costs_in(window.pair) if basis is Basis.INFRASTRUCTURE else terms
    decimals = priced.decimals
    total, tenants_total, pools = _amounts(found, basis, decimals)
    tenants = ranked(TenantCost, found.by_tenant, top, tenants_total, decimals)
    grouped: list[GroupCost] | UnsetType = UNSET
    if by is not None:
        grouped = ranked(GroupCost, groups(kept, terms, basis, by), top, tenants_total, decimals)
    return Costs(
        f"{periods.day(window.from_ns)}/{periods.day(window.to_ns)}",
        money(total, decimals),
        priced.currency,
        tenants,
        [
            NamedCost(name, money(part, decimals), share)
            for name, part, share in parts(
                in_order(found.by_type), rounded(found.total, decimals), decimals
            )
        ],
        named_costs(found.pools, pools, decimals),
        money(pools["idle"], decimals),
        basis.value,
        interval_of(window),
        reach,
        grouped,
    )


def _amounts(
    found: Attributed, basis: Basis, decimals: int
) -> tuple[int, int, dict[str, int]]:
    """All of it, what tenants had of it, and the pools, in 10**-decimals units."""
    if basis is Basis.INFRASTRUCTURE:
        total = rounded(found.total, decimals)
        rows = [found.tenants_total, *(found.pools[name] for name in POOLS)]
        tenants, *pools = nearest(total, [cost * 10**decimals for cost in rows])
        return total, tenants, dict(zip(POOLS, pools, strict=True))
    total = rounded(found.tenants_total, decimals)
    return total, total, {name: rounded(found.pools[name], decimals) for name in POOLS}


def chargeback_of(
    cells: _Cells, terms: Terms, month: str, window: Window, reach: Reach, how: Spread
) -> Chargeback:
    """What the infrastructure of a month cost, by cost centre."""
    found = attribute(cells, terms, Basis.INFRASTRUCTURE)
    costs = terms.costs_in(window.pair)
    decimals = costs.decimals
    centers = spread_shared(found.by_center, how)
    total = rounded(found.total, decimals)
    return Chargeback(
        month,
        money(total, decimals),
        [
            CenterCost(name, money(part, decimals), share)
            for name, part, share in parts(in_order(centers), total, decimals)
        ],
        costs.currency,
        how.value,
        interval_of(window),
        reach,
    )
