# SPDX-License-Identifier: Apache-2.0
"""What each node cost, who had it, and what of it was idle.

Rule: a node costs what having its capacity costs (`[infrastructure]` of the terms), held or not;
what tenants had, teardown, fences and idle are parts of that, and together with what was held
beyond what there was they are all of it. Idle is never clamped silently: what is below zero is
`unattributed_negative`. All nodes are rounded together, once, as `cost_answers` rounds them; what
they had is divided by the largest remainder into its parts, and each part so among the nodes. So
rows and columns add up. Where the rows are not what the hours say (records were removed since, or
more are projected just now) they are not `complete`.

Does not sweep (`metering.node_amounts`), and nothing is billed from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Interval, Reach, interval_of, money
from leased.collector.accounts.periods import Window
from leased.collector.accounts.priced_cells import cut
from leased.collector.metering.sources import NodeAmount
from leased.economics.amounts import nearest, rounded
from leased.economics.pools import Pool
from leased.terms.resource import ResourceKind, TierKind

_Cell = tuple[Pool, ResourceKind, TierKind | None]


class NodeCost(msgspec.Struct, frozen=True):
    """One node: `provisioned_cost` is the sum of what follows it."""

    node: str
    provisioned_cost: Decimal
    tenant_cost: Decimal
    teardown_cost: Decimal
    fenced_cost: Decimal
    idle_cost: Decimal
    unattributed_negative: Decimal


class NodeCosts(msgspec.Struct, frozen=True):
    """Every node that had something, the most idle first, and all of them together."""

    period: str
    interval: Interval
    nodes: list[NodeCost]
    provisioned_cost: Decimal
    idle_cost: Decimal
    unattributed_negative: Decimal
    complete: bool
    currency: str
    reach: Reach


def node_costs(accounts: Accounts, window: Window) -> NodeCosts:
    """Of `window`. Raises NoData."""
    accounts.now_ns()
    terms = accounts.costed(window)
    card, amounts = terms.costs_in(window.pair), []
    sums: dict[str, list[Fraction]] = {}
    for part in cut(window.pair, [version.since_ns for version in terms.costs]):
        costs = terms.costs_at(part[0])
        for one in accounts.source.node_amounts(part):
            amounts.append(one)
            mine = sums.setdefault(one.node_id, [Fraction(0)] * 6)
            for at, amount in enumerate(_parts(one)):
                mine[at] += costs.cost(amount, one.kind, one.tier, None)
    ranked = sorted(sums.items(), key=lambda item: (-item[1][4], item[0]))
    scale = 10**card.decimals
    whole = [sum((parts[at] for parts in sums.values()), Fraction(0)) for at in range(6)]
    total = rounded(whole[0], card.decimals)
    fleet = nearest(total, [cost * scale for cost in whole[1:]])
    columns = [
        nearest(part, [costs[at] * scale for _, costs in ranked])
        for at, part in enumerate(fleet, 1)
    ]

    def figures(parts: Iterable[int]) -> list[Decimal]:
        told = list(parts)
        return [money(amount, card.decimals) for amount in (sum(told), *told)]

    everything = figures(fleet)
    return NodeCosts(
        f"{periods.day(window.from_ns)}/{periods.day(window.to_ns)}",
        interval_of(window),
        [
            NodeCost(node, *figures(column[row] for column in columns))
            for row, (node, _) in enumerate(ranked)
        ],
        everything[0],
        everything[4],
        everything[5],
        _is_complete(accounts, window, amounts),
        card.currency,
        accounts.reach(window),
    )


def _parts(one: NodeAmount) -> tuple[int, ...]:
    return one.provisioned, one.tenant, one.teardown, one.fenced, one.idle, one.missing


def _is_complete(accounts: Accounts, window: Window, amounts: Iterable[NodeAmount]) -> bool:
    """Whether the rows are all that the hours say, kind by kind and tier by tier."""
    hours: dict[_Cell, int] = {}
    for key, amount in accounts.source.sums(window.pair).items():
        cell = (key.pool, key.kind, key.tier)
        hours[cell] = hours.get(cell, 0) + amount
    rows: dict[_Cell, int] = {}
    pools = (Pool.PROVISIONED, Pool.TENANT, Pool.TEARDOWN, Pool.FENCED)
    for one in amounts:
        for pool, amount in zip(pools, _parts(one), strict=False):
            cell = (pool, one.kind, one.tier)
            rows[cell] = rows.get(cell, 0) + amount
    return {cell: n for cell, n in rows.items() if n} == {cell: n for cell, n in hours.items() if n}
