# SPDX-License-Identifier: Apache-2.0
"""Waste: what a lease that holds more than it uses is called.

Rule: one class per lease, the first that fits, in this order: idle, premium waste, overprovisioned,
fragmented, healthy. Limits are strict: what is used to exactly a quarter is not overprovisioned. A
lease of which too little was seen is *unknown*, whatever it looks like: nobody is called wasteful
for what was not measured. Nothing is billed from this.

Pure. Does not know where utilization comes from.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from leased.economics.rates import RateCard
from leased.terms.resource import ResourceKind, TierKind
from leased.terms.teardown import Utilization


class Waste(enum.StrEnum):
    """The classes."""

    UNKNOWN = "unknown"
    IDLE = "idle"
    PREMIUM = "premium_waste"
    OVERPROVISIONED = "overprovisioned"
    FRAGMENTED = "fragmented"
    HEALTHY = "healthy"


class Limits(msgspec.Struct, frozen=True):
    """From where on something is waste, in per mille.

    `active_pm`: idle below it; `used_pm`: overprovisioned (or premium waste) below it. A lease
    needs `samples_min` looks that cover `coverage_pm` of its time to be judged at all. Fragmented
    are `leases_min` or more of one tenant and kind on one node, of less than `mean_pm` of the node
    each. Premium is what costs at least as much as `premium_pm` of all rates."""

    active_pm: int = 100
    used_pm: int = 250
    samples_min: int = 6
    coverage_pm: int = 500
    leases_min: int = 16
    mean_pm: int = 50
    premium_pm: int = 750


LIMITS: Final = Limits()


class Held(msgspec.Struct, frozen=True):
    """A lease as it is judged: one kind of what it holds. `node_capacity` None: not known."""

    lease: str
    tenant: str
    node: str
    kind: ResourceKind
    capacity: int
    utilization: Utilization
    tier: TierKind | None = None
    node_capacity: int | None = None


class Judged(msgspec.Struct, frozen=True):
    """A lease and its class; `unused_pm` of what it holds is not used, None where that is not
    known."""

    held: Held
    waste: Waste
    unused_pm: int | None


def is_known(seen: Utilization, limits: Limits = LIMITS) -> bool:
    """Whether enough was seen to say anything."""
    return (
        seen.mean_pm is not None
        and seen.active_share_pm is not None
        and seen.sample_count >= limits.samples_min
        and seen.coverage_pm >= limits.coverage_pm
    )


def classify(held: Held, *, premium: bool, fragmented: bool, limits: Limits = LIMITS) -> Waste:
    """The class of one lease; `premium`: what it holds is expensive, `fragmented`: it is one of
    many small ones."""
    seen = held.utilization
    if not is_known(seen, limits):
        return Waste.UNKNOWN
    assert seen.mean_pm is not None and seen.active_share_pm is not None
    if seen.active_share_pm < limits.active_pm:
        return Waste.IDLE
    if seen.mean_pm < limits.used_pm:
        return Waste.PREMIUM if premium else Waste.OVERPROVISIONED
    return Waste.FRAGMENTED if fragmented else Waste.HEALTHY


def judge(leases: Sequence[Held], card: RateCard, limits: Limits = LIMITS) -> list[Judged]:
    """Every lease's class, in the order given."""
    expensive = frozenset(premium_kinds(card, limits))
    priced = frozenset((rate.kind, rate.tier) for rate in card.rates if rate.priority is None)
    groups = crowded(leases, limits)
    judged: list[Judged] = []
    for held in leases:
        # As it is priced: a tier by its own rate, where it has one.
        own = (held.kind, held.tier)
        waste = classify(
            held,
            premium=(own if own in priced else (held.kind, None)) in expensive,
            fragmented=groups[_group(held)],
            limits=limits,
        )
        mean_pm = held.utilization.mean_pm
        known = waste is not Waste.UNKNOWN
        unused = max(0, 1000 - mean_pm) if known and mean_pm is not None else None
        judged.append(Judged(held, waste, unused))
    return judged


def premium_kinds(
    card: RateCard, limits: Limits = LIMITS
) -> tuple[tuple[ResourceKind, TierKind | None], ...]:
    """What is expensive: GPUs, and whatever has a rate in the top quartile of the card's."""
    found: dict[tuple[ResourceKind, TierKind | None], None] = {(ResourceKind.GPU, None): None}
    rates = [rate for rate in card.rates if rate.priority is None]
    prices = sorted(rate.exact for rate in rates)
    if prices:
        # The lowest price of which `premium_pm` of all prices are at most as high.
        at = min(len(prices) - 1, -(-len(prices) * limits.premium_pm // 1000))
        found.update({(rate.kind, rate.tier): None for rate in rates if rate.exact >= prices[at]})
    return tuple(found)


def crowded(
    leases: Iterable[Held], limits: Limits = LIMITS
) -> Mapping[tuple[str, str, ResourceKind], bool]:
    """For each (node, tenant, kind): whether they are many small leases. Where the node's capacity
    is not known, nothing is called small."""
    groups: dict[tuple[str, str, ResourceKind], list[Held]] = {}
    for held in leases:
        groups.setdefault(_group(held), []).append(held)
    return {group: _is_crowded(members, limits) for group, members in groups.items()}


def _is_crowded(members: Sequence[Held], limits: Limits) -> bool:
    whole = members[0].node_capacity
    if whole is None or len(members) < limits.leases_min:
        return False
    held = sum(one.capacity for one in members)
    # mean < mean_pm of the node, without dividing
    return held * 1000 < limits.mean_pm * whole * len(members)


def _group(held: Held) -> tuple[str, str, ResourceKind]:
    return held.node, held.tenant, held.kind
