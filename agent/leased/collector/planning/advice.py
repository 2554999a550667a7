# SPDX-License-Identifier: Apache-2.0
"""Advice: where a request would go best, and what workloads live by.

Rule: placement is scored on what is held now; sensitivity is the share of each kind in the cost of
a workload.

Does not act on any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach
from leased.collector.accounts.periods import Window
from leased.economics.placement import Score, Site, Strategy, rank
from leased.economics.pools import Pool
from leased.economics.sensitivity import Sensitivity, sensitivity
from leased.terms.resource import ResourceKind


class Placement(msgspec.Struct, frozen=True):
    """Nodes on which a request fits, best first."""

    strategy: str
    nodes: list[Score]
    reach: Reach


class SensitivityRow(msgspec.Struct, frozen=True):
    """What one kind is to one workload (a project of a tenant)."""

    tenant: str
    project: str
    kind: str
    cost_share: Decimal
    level: str


class SensitivityReport(msgspec.Struct, frozen=True):
    """Of every workload, every kind."""

    rows: list[SensitivityRow]
    reach: Reach


def placement(accounts: Accounts, asked: Mapping[str, int], strategy: Strategy) -> Placement:
    """Score every node that takes leases for a request in raw units by kind."""
    total: dict[str, dict[str, int]] = {}
    used: dict[str, dict[str, int]] = {}
    draining = accounts.source.draining()
    for one in accounts.source.held():
        where = total if one.pool is Pool.PROVISIONED else used
        kinds = where.setdefault(one.node_id, {})
        name = one.kind.name.lower()
        kinds[name] = kinds.get(name, 0) + one.capacity
    sites = [
        Site(node, has, used.get(node, {})) for node, has in total.items() if node not in draining
    ]
    now_ns = accounts.now_ns()
    reach = accounts.reach(Window(now_ns, now_ns))
    return Placement(strategy.value, rank(sites, asked, strategy), reach)


def sensitivities(accounts: Accounts, window: Window) -> SensitivityReport:
    """What every workload lives by, by the cost of what it held. What was waited for is not in
    records, so it counts as none."""
    costs: dict[tuple[str, str], dict[ResourceKind, Fraction]] = {}
    for key, amount in accounts.priced_sums(window):
        if key.pool is not Pool.TENANT or key.priority is None:
            continue
        card = accounts.terms.cards[accounts.terms.card_number(key.bucket)].card
        cost = card.cost(amount, key.kind, key.tier, key.priority)
        kinds = costs.setdefault((key.tenant, key.tag.project if key.tag else ""), {})
        priced = Fraction(cost.numerator, cost.denominator)
        kinds[key.kind] = kinds.get(key.kind, Fraction(0)) + priced
    rows = [
        row
        for (tenant, project), kinds in sorted(costs.items())
        for row in _levels(tenant, project, kinds)
    ]
    return SensitivityReport(rows, accounts.reach(window))


def _levels(
    tenant: str, project: str, kinds: Mapping[ResourceKind, Fraction]
) -> Iterator[SensitivityRow]:
    total = sum(kinds.values(), Fraction(0))
    for kind in ResourceKind:
        share = Fraction(kinds.get(kind, Fraction(0)), total) if total else Fraction(0)
        level: Sensitivity = sensitivity(int(share * 1000), 0, used=kind in kinds)
        cut = Decimal(int(share * 100)).scaleb(-2)
        yield SensitivityRow(tenant, project, kind.name.lower(), cut, level.value)
