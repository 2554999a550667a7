# SPDX-License-Identifier: Apache-2.0
"""Fitting: whether a host can keep what a policy promises.

Rule: a policy is refused whole if it reserves more than there is. Hardware that is lost later makes
no policy invalid: what is reserved is then short, and says so when it is asked for.

Does not look for contradictions within a policy (`terms.policy_check`).
"""

from __future__ import annotations

from collections.abc import Callable

from leased.lessor.accounts import ANY, covers
from leased.lessor.pool import Pools
from leased.terms.policy import Policy, Strategy
from leased.terms.quantity import print_size
from leased.terms.resource import ResourceKind


def capacity_of(pools: Pools, kind: int, tier: int) -> int:
    """What the node has of a kind, or of one tier of it."""
    return sum(
        pool.capacity
        for pool in pools.by_id.values()
        if pool.counted is pool and covers(kind, tier, ANY, pool.cell)
    )


def misfit(policy: Policy, pools: Pools) -> str | None:
    """The first promise that this host cannot keep: key, value and why."""
    for allocation in policy.allocations:
        if allocation.strategy is not Strategy.RESERVATION:
            continue
        tier = ANY if allocation.tier is None else int(allocation.tier)
        capacity = capacity_of(pools, int(allocation.kind), tier)
        reserved = sum(amount for _, amount in allocation.reservations)
        promised = reserved + (allocation.opportunistic or 0)
        if promised > capacity:
            name = allocation.kind.name.lower() + (
                "" if allocation.tier is None else f".{allocation.tier.name.lower()}"
            )
            shown = _shown(allocation.kind)
            return (
                f"policy.allocation.{name}.reservations = {shown(reserved)}: over-committed, with "
                f"the opportunistic pool {shown(promised)} where this host has {shown(capacity)}"
            )
    return None


def _shown(kind: ResourceKind) -> Callable[[int], str]:
    """How a policy document writes amounts of a kind, where it has units."""
    return print_size if kind in (ResourceKind.MEM, ResourceKind.BLOCK) else str
