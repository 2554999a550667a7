# SPDX-License-Identifier: Apache-2.0
"""How what there is is divided: what each tenant has, what it wants, what it should have.

Rule: a tenant wants what it has, and the largest of what it was refused in the last minute for want
of room and has not been given since; what waits in a node's queue is known when its wait is over.
What is less than is wanted is never guessed. Shares add up to one.

Does not decide who should have how much (`governance.fairness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from leased.collector.accounts.answers import cut
from leased.collector.accounts.reaching import reach_of_fleet
from leased.collector.api.fleet_answers import AllocationsSeen, TenantShare
from leased.collector.api.quota_answers import quantities
from leased.collector.fleet import Fleet
from leased.collector.governance.dimensions import BY_KIND
from leased.collector.governance.fairness import entitled, evenness
from leased.collector.governance.strategies import plans_of
from leased.economics.amounts import split
from leased.terms.moment import MINUTE_NS
from leased.terms.policy import Allocation, Policy, Strategy
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind

WANTED_NS: Final = MINUTE_NS
_PARTS: Final = 10_000
_CPU: Final = ResourceKind.CPU
_Amounts = dict[ResourceKind, int]
_Shown = dict[str, Any]


def seen_of(fleet: Fleet, ground: Policy, now_ns: int) -> AllocationsSeen:
    """As things are."""
    standing, unmet = fleet.standing(), fleet.unmet(now_ns - WANTED_NS, now_ns)
    totals, held, borrowed = standing.totals, standing.held_by, standing.borrowed_by
    wanted = {
        tenant: found
        for tenant in sorted(held.keys() | unmet.keys())
        if (found := _together(held.get(tenant, {}), unmet.get(tenant, {})))
    }
    plans = plans_of(ground.allocations)
    goals: dict[str, dict[str, int]] = {tenant: {} for tenant in wanted}
    fairness = {}
    for kind, total in totals.items():
        key = BY_KIND[kind].key
        demand = {tenant: row[kind] for tenant, row in wanted.items() if kind in row}
        allocated = {tenant: held.get(tenant, {}).get(kind, 0) for tenant in demand}
        due = entitled(plans.get(kind, Allocation(kind)), total, allocated, demand)
        for tenant, amount in due.items():
            goals[tenant][key] = amount
        if demand:
            fairness[key] = evenness(allocated, demand, due)
    strategies = {BY_KIND[kind].key: plan.strategy for kind, plan in plans.items()}
    # Where kinds are divided by different weights, those of processors are told.
    ranked = sorted(plans.values(), key=lambda plan: plan.kind is _CPU)
    named = {str(tenant): pm for plan in ranked for tenant, pm in plan.weights_pm}
    weights = [named.get(tenant, 1000) for tenant in wanted]
    shares = split(_PARTS, weights)
    return AllocationsSeen(
        strategy=strategies.get(BY_KIND[_CPU].key, Strategy.PRIORITY),
        strategies=strategies,
        capacity=_named(totals),
        tenants=[
            TenantShare(
                tenant=tenant,
                weight=Decimal(weight).scaleb(-3).normalize() + 0,
                share=Decimal(share).scaleb(-4),
                entitled=quantities(goals[tenant]),
                allocated=_named(held.get(tenant, {})),
                demand=_named(wanted[tenant]),
                borrowed=_named(borrowed.get(tenant, {})),
                **_dominant(held.get(tenant, {}), totals),
            )
            for tenant, weight, share in zip(wanted, weights, shares, strict=True)
        ],
        fairness=fairness,
        fairness_index=min(fairness.values(), default=Decimal(1)),
        as_of=print_instant(now_ns),
        reach=reach_of_fleet(fleet, now_ns),
    )


def _together(held: Mapping[ResourceKind, int], more: Mapping[ResourceKind, int]) -> _Amounts:
    found = {kind: held.get(kind, 0) + more.get(kind, 0) for kind in sorted({*held, *more})}
    return {kind: amount for kind, amount in found.items() if amount}


def _named(amounts: Mapping[ResourceKind, int]) -> dict[str, Decimal]:
    return quantities({BY_KIND[kind].key: amount for kind, amount in amounts.items()})


def _dominant(held: Mapping[ResourceKind, int], totals: Mapping[ResourceKind, int]) -> _Shown:
    """The largest share that a tenant has of anything, cut to two digits, and of what."""
    shares = {kind: Fraction(held[kind], total) for kind, total in totals.items() if kind in held}
    if not shares:
        return {"dominant_share": Decimal(0), "dominant_resource": None}
    most = max(shares, key=lambda kind: shares[kind])
    return {"dominant_share": cut(shares[most], 2), "dominant_resource": BY_KIND[most].key}
