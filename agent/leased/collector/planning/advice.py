# SPDX-License-Identifier: Apache-2.0
"""Advice: where a request would go best, and what workloads live by.

Rule: placement is scored on what is held now, on how hot nodes run (by telemetry of the last
quarter of an hour), on how near they are to what the workload has, and on what the workload lives
by. Sensitivity is the share of each kind in the cost of a workload, and of the time that its
tenant's leases waited for it. Without telemetry no node is hot and nobody waited.

Does not act on any of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, cut
from leased.collector.accounts.periods import Window
from leased.collector.telemetry.store import Store
from leased.collector.telemetry.views import heat, waits
from leased.economics.placement import Score, Site, Strategy, binding, rank
from leased.economics.pools import UNIT, Pool
from leased.economics.sensitivity import Sensitivity, sensitivity
from leased.terms.lease import is_probe
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import WHOLE_PM
from leased.terms.resource import ResourceKind

KINDS = ("gpu", "cpu", "mem", "block")
"""What can be placed, as it is asked for: in devices, cores and GiB."""


def raw_amounts(asked: object) -> dict[str, int]:
    """What the fields of `asked` say of `KINDS`, in raw units, without those of which it is 0."""
    amounts = {kind: int(getattr(asked, kind)) for kind in KINDS}
    return {kind: n * UNIT[ResourceKind[kind.upper()]] for kind, n in amounts.items() if n}


class Request(msgspec.Struct, frozen=True):
    """What is to be placed: raw units by kind. It wants to be on the nodes `near`, or else where
    `tenant` has most already; `project` of the tenant is the workload that it belongs to, of which
    `learned` (a period up to now) tells what it lives by."""

    asked: Mapping[str, int]
    strategy: Strategy
    near: tuple[str, ...] = ()
    tenant: str = ""
    project: str | None = None
    learned: str = "30d"


class Placement(msgspec.Struct, frozen=True):
    """Nodes on which a request fits, best first. `lives_by`: the kinds that say how good a node
    is."""

    strategy: str
    lives_by: tuple[str, ...]
    nodes: list[Score]
    reach: Reach


class SensitivityRow(msgspec.Struct, frozen=True):
    """What one kind is to one workload (a project of a tenant). `wait_share` is of the tenant's
    leases; None: nobody saw."""

    tenant: str
    project: str
    kind: str
    cost_share: Decimal
    wait_share: Decimal | None
    level: str


class SensitivityReport(msgspec.Struct, frozen=True):
    """Of every workload, every kind."""

    rows: list[SensitivityRow]
    reach: Reach


def placement(accounts: Accounts, request: Request, samples: Store | None = None) -> Placement:
    """Score every node that takes leases for a request. Raises InvalidParameter."""
    total: dict[str, dict[str, int]] = {}
    used: dict[str, dict[str, int]] = {}
    own: dict[str, dict[str, int]] = {}
    draining = accounts.source.draining()
    for one in accounts.held():
        name = one.kind.name.lower()
        theirs = one.pool is Pool.TENANT and one.tenant == request.tenant
        for counts, row in (
            (one.pool is Pool.PROVISIONED, total),
            (one.pool is not Pool.PROVISIONED, used),
            (theirs, own),
        ):
            if counts:
                kinds = row.setdefault(one.node_id, {})
                kinds[name] = kinds.get(name, 0) + one.capacity
    now_ns = accounts.now_ns()
    hot = {} if samples is None else heat(samples, now_ns // NS_PER_S)
    sites = [
        Site(
            node,
            has,
            used.get(node, {}),
            near_pm=_near(node, request, own),
            heat_pm=hot[node].heat_pm if node in hot else 0,
        )
        for node, has in total.items()
        if node not in draining
    ]
    lives_by = _lives_by(accounts, request, samples)
    ranked = rank(sites, request.asked, request.strategy, lives_by)
    return Placement(request.strategy.value, lives_by, ranked, accounts.reach_now())


def _near(node: str, request: Request, own: Mapping[str, Mapping[str, int]]) -> int:
    """How near a node is to what the workload wants to be near to: it is one of those named, or has
    so much of what the tenant has of any kind."""
    if request.near:
        return WHOLE_PM if node in request.near else 0
    shares = [
        amount * WHOLE_PM // sum(kinds.get(kind, 0) for kinds in own.values())
        for kind, amount in own.get(node, {}).items()
        if amount
    ]
    return max(shares, default=0)


def _lives_by(accounts: Accounts, request: Request, samples: Store | None) -> tuple[str, ...]:
    levels: dict[str, Sensitivity] = {}
    if request.project is not None:
        report = sensitivities(accounts, accounts.last(request.learned), samples)
        for row in report.rows:
            if (row.tenant, row.project) == (request.tenant, request.project):
                levels[row.kind] = Sensitivity(row.level)
    return binding(request.asked, levels)


def sensitivities(
    accounts: Accounts, window: Window, samples: Store | None = None
) -> SensitivityReport:
    """What every workload lives by."""
    waited: Mapping[tuple[str, ResourceKind], int] = {}
    if samples is not None:
        waited = waits(samples, window.from_ns // NS_PER_S, window.to_ns // NS_PER_S)
    costs: dict[tuple[str, str], dict[ResourceKind, Fraction]] = {}
    for key, amount in accounts.priced_sums(window, tags=True):
        if key.pool is not Pool.TENANT or key.priority is None or is_probe(key.tag):
            continue
        card = accounts.terms.card_of(key.bucket)
        cost = card.cost(amount, key.kind, key.tier, key.priority)
        kinds = costs.setdefault((key.tenant, key.tag.project if key.tag else ""), {})
        kinds[key.kind] = kinds.get(key.kind, Fraction(0)) + cost
    rows = [
        row
        for (tenant, project), kinds in sorted(costs.items())
        for row in _levels(tenant, project, kinds, waited)
    ]
    return SensitivityReport(rows, accounts.reach(window))


def _levels(
    tenant: str,
    project: str,
    kinds: Mapping[ResourceKind, Fraction],
    waited: Mapping[tuple[str, ResourceKind], int],
) -> Iterator[SensitivityRow]:
    total = sum(kinds.values(), Fraction(0))
    for kind in ResourceKind:
        share = Fraction(kinds.get(kind, Fraction(0)), total) if total else Fraction(0)
        wait_pm = waited.get((tenant, kind))
        # Rounded up: whatever is above a border is, by however little.
        cost_pm = math.ceil(share * WHOLE_PM)
        level: Sensitivity = sensitivity(cost_pm, wait_pm or 0, used=kind in kinds)
        yield SensitivityRow(
            tenant,
            project,
            kind.name.lower(),
            cut(share, 2),
            None if wait_pm is None else Decimal(wait_pm).scaleb(-3),
            level.value,
        )
