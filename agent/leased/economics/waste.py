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


ACTIVE_PM: Final = 100
"""Idle below it."""

USED_PM: Final = 250
"""Overprovisioned, or premium waste, below it."""

SAMPLES_MIN: Final = 6
COVERAGE_PM: Final = 500
"""So many looks, over so much of its time, and a lease is judged at all."""

LEASES_MIN: Final = 16
MEAN_PM: Final = 50
"""Fragmented: so many leases of one tenant and kind on one node, of less than that of it each."""

PREMIUM_PM: Final = 750
"""Premium is what costs at least as much as that part of all rates."""


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


def is_known(seen: Utilization) -> bool:
    """Whether enough was seen to say anything."""
    return (
        seen.mean_pm is not None
        and seen.active_share_pm is not None
        and seen.sample_count >= SAMPLES_MIN
        and seen.coverage_pm >= COVERAGE_PM
    )


def classify(held: Held, *, premium: bool, fragmented: bool) -> Waste:
    """The class of one lease; `premium`: what it holds is expensive, `fragmented`: it is one of
    many small ones."""
    seen = held.utilization
    if not is_known(seen):
        return Waste.UNKNOWN
    assert seen.mean_pm is not None and seen.active_share_pm is not None
    if seen.active_share_pm < ACTIVE_PM:
        return Waste.IDLE
    if seen.mean_pm < USED_PM:
        return Waste.PREMIUM if premium else Waste.OVERPROVISIONED
    return Waste.FRAGMENTED if fragmented else Waste.HEALTHY


def judge(leases: Sequence[Held], card: RateCard) -> list[Judged]:
    """Every lease's class, in the order given."""
    expensive = frozenset(premium_kinds(card))
    priced = frozenset((rate.kind, rate.tier) for rate in card.rates if rate.priority is None)
    groups = crowded(leases)
    judged: list[Judged] = []
    for held in leases:
        # As it is priced: a tier by its own rate, where it has one.
        own = (held.kind, held.tier)
        waste = classify(
            held,
            premium=(own if own in priced else (held.kind, None)) in expensive,
            fragmented=groups[_group(held)],
        )
        mean_pm = held.utilization.mean_pm
        known = waste is not Waste.UNKNOWN
        unused = max(0, 1000 - mean_pm) if known and mean_pm is not None else None
        judged.append(Judged(held, waste, unused))
    return judged


def premium_kinds(card: RateCard) -> tuple[tuple[ResourceKind, TierKind | None], ...]:
    """What is expensive: GPUs, and whatever has a rate in the top quartile of the card's."""
    found: dict[tuple[ResourceKind, TierKind | None], None] = {(ResourceKind.GPU, None): None}
    rates = [rate for rate in card.rates if rate.priority is None]
    prices = sorted(rate.exact for rate in rates)
    if prices:
        # The lowest price of which `PREMIUM_PM` of all prices are at most as high.
        at = min(len(prices) - 1, -(-len(prices) * PREMIUM_PM // 1000))
        found.update({(rate.kind, rate.tier): None for rate in rates if rate.exact >= prices[at]})
    return tuple(found)


def crowded(leases: Iterable[Held]) -> Mapping[tuple[str, str, ResourceKind], bool]:
    """For each (node, tenant, kind): whether they are many small leases. Where the node's capacity
    is not known, nothing is called small."""
    groups: dict[tuple[str, str, ResourceKind], list[Held]] = {}
    for held in leases:
        groups.setdefault(_group(held), []).append(held)
    return {group: _is_crowded(members) for group, members in groups.items()}


def _is_crowded(members: Sequence[Held]) -> bool:
    whole = members[0].node_capacity
    if whole is None or len(members) < LEASES_MIN:
        return False
    held = sum(one.capacity for one in members)
    # mean < MEAN_PM of the node, without dividing
    return held * 1000 < MEAN_PM * whole * len(members)


def _group(held: Held) -> tuple[str, str, ResourceKind]:
    return held.node, held.tenant, held.kind
