# SPDX-License-Identifier: Apache-2.0
"""Attribution: what a fleet's hours cost, by tenant, type of resource and cost centre, nothing left
over.

Rule: two bases, never mixed. `rate_card`: what tenants are charged by the price list; what nobody
held, or was cleaned or fenced, is priced by the same list without a priority and told apart, and
synthetic probes cost nothing, as on bills.
`infrastructure`: what capacity costs the operator, held or not; then tenants + idle + teardown +
fenced = provisioned, to the last digit. Idle is never clamped: a negative one says that more was
held than there was.

Does not round (`amounts`) and does not choose a window.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Final

import msgspec

from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey
from leased.economics.pools import Pool
from leased.economics.rates import RateCard
from leased.terms.lease import SYNTHETIC, Priority
from leased.terms.resource import ResourceKind, TierKind

TYPE_OF: Final = {
    ResourceKind.GPU: "compute",
    ResourceKind.CPU: "compute",
    ResourceKind.MEM: "compute",
    ResourceKind.BLOCK: "storage",
    ResourceKind.NET: "network",
}
"""The types of the cost dashboards."""

SHARED: Final = "CC-SHARED"
"""The cost centre of what has no tag and of what nobody held."""


class Basis(enum.StrEnum):
    """What a cost is a share of."""

    RATE_CARD = "rate_card"
    INFRASTRUCTURE = "infrastructure"


class Spread(enum.StrEnum):
    """What happens to shared cost: it stays, or is spread over the others, evenly or by their
    cost."""

    NONE = "none"
    EVEN = "even"
    PROPORTIONAL = "proportional"


class Attributed(msgspec.Struct):
    """Exact costs. `pools` are idle, teardown and fenced; `by_type` is of everything."""

    by_tenant: dict[str, Fraction]
    by_center: dict[str, Fraction]
    by_type: dict[str, Fraction]
    pools: dict[str, Fraction]

    @property
    def tenants_total(self) -> Fraction:
        """What tenants had."""
        return sum(self.by_tenant.values(), Fraction(0))

    @property
    def total(self) -> Fraction:
        """All of it."""
        return self.tenants_total + sum(self.pools.values(), Fraction(0))


def attribute(cells: Iterable[tuple[UsageKey, int]], terms: Terms, basis: Basis) -> Attributed:
    """Price `cells`, those of every pool."""
    nothing = Fraction(0)
    found = Attributed({}, {}, {}, {"idle": nothing, "teardown": nothing, "fenced": nothing})
    for key, amount in cells:
        if basis is Basis.INFRASTRUCTURE:
            cost = plain_cost(terms.infrastructure, key.kind, key.tier, amount)
        else:
            card = terms.cards[terms.card_number(key.bucket)].card
            cost = _listed_cost(card, key, amount)
        if key.pool is Pool.PROVISIONED:
            _count(found.pools, "idle", cost)
            _count(found.by_type, TYPE_OF[key.kind], cost)
            continue
        # What is held, cleaned or fenced is not idle: at list price without its priority.
        idle = plain_cost(_card(terms, basis, key), key.kind, key.tier, amount)
        _count(found.pools, "idle", -idle)
        _count(found.by_type, TYPE_OF[key.kind], cost - idle)
        if key.pool is Pool.TENANT:
            _count(found.by_tenant, key.tenant, cost)
            # A tag may name a project and no cost centre.
            center = "" if key.tag is None else key.tag.cost_center
            _count(found.by_center, center or SHARED, cost)
        else:
            _count(found.pools, key.pool.name.lower(), cost)
    for name in ("idle", "teardown", "fenced"):
        _count(found.by_center, SHARED, found.pools[name])
    return found


def spread_shared(by_center: Mapping[str, Fraction], spread: Spread) -> dict[str, Fraction]:
    """`by_center` with the shared cost spread over the others; unchanged where there are none."""
    others = {name: cost for name, cost in by_center.items() if name != SHARED}
    shared = by_center.get(SHARED, Fraction(0))
    total = sum(others.values(), Fraction(0))
    if spread is Spread.NONE or not others:
        return dict(by_center)
    if spread is Spread.EVEN or not total:
        return {name: cost + Fraction(shared, len(others)) for name, cost in others.items()}
    return {name: cost + Fraction(shared * cost, total) for name, cost in others.items()}


def _card(terms: Terms, basis: Basis, key: UsageKey) -> RateCard:
    if basis is Basis.INFRASTRUCTURE:
        return terms.infrastructure
    return terms.cards[terms.card_number(key.bucket)].card


def _listed_cost(card: RateCard, key: UsageKey, amount: int) -> Fraction:
    if key.pool is not Pool.TENANT or key.priority is None:
        return plain_cost(card, key.kind, key.tier, amount)
    if key.tag is not None and key.tag.flags & SYNTHETIC:
        return Fraction(0)
    cost = card.cost(amount, key.kind, key.tier, key.priority)
    return Fraction(cost.numerator, cost.denominator)


def plain_cost(
    card: RateCard, kind: ResourceKind, tier: TierKind | None, amount: int
) -> Fraction:
    """Of so much capacity x ns at the list price of the kind and tier, no priority."""
    bare = RateCard(
        tuple(rate for rate in card.rates if rate.priority is None), card.currency, card.decimals
    )
    cost = bare.cost(amount, kind, tier, Priority.STANDARD)
    return Fraction(cost.numerator, cost.denominator)


def _count(into: dict[str, Fraction], name: str, cost: Fraction) -> None:
    into[name] = into.get(name, Fraction(0)) + cost
