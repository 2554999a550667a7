# SPDX-License-Identifier: Apache-2.0
"""Fitting: whether a host can keep what a policy promises.

Rule: a policy is refused whole if it reserves more than there is. Hardware that is lost later makes
no policy invalid: what is reserved is then short, and says so when it is asked for.

Does not look for contradictions within a policy (`terms.policy_check`).
"""

from __future__ import annotations

from leased.lessor.accounts import ANY, covers
from leased.lessor.pool import Pools
from leased.terms.policy import Policy, Strategy


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
            return (
                f"policy.allocation.{name}.reservations = {reserved}: over-committed, with the "
                f"opportunistic pool {promised} where this host has {capacity}"
            )
    return None
