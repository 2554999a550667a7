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
from collections.abc import Callable, Hashable, Iterable, Mapping
from fractions import Fraction
from math import lcm
from typing import Final, TypeVar

import msgspec

from leased.economics.contracts import Terms, number_of
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, Pool
from leased.economics.rates import PICO
from leased.terms.lease import is_probe
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import WHOLE_PM
from leased.terms.resource import ResourceKind

Name = TypeVar("Name", bound=Hashable)
PARTS: Final = lcm(*UNIT.values()) * NS_PER_S * PICO * WHOLE_PM
"""No price of a raw unit x ns has a finer part of a unit of currency."""

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
    prices = _Prices(terms, basis)
    tenants: dict[str, int] = {}
    centers: dict[str, int] = {}
    types: dict[str, int] = {}
    pools = {"idle": 0, "teardown": 0, "fenced": 0}
    for key, amount in cells:
        charged, plain = prices.of(key)
        cost = amount * charged
        if key.pool is Pool.PROVISIONED:
            _count(pools, "idle", cost)
            _count(types, TYPE_OF[key.kind], cost)
            continue
        # What is held, cleaned or fenced is not idle: at list price without its priority.
        idle = amount * plain
        _count(pools, "idle", -idle)
        _count(types, TYPE_OF[key.kind], cost - idle)
        if key.pool is Pool.TENANT:
            _count(tenants, key.tenant, cost)
            # A tag may name a project and no cost centre.
            center = "" if key.tag is None else key.tag.cost_center
            _count(centers, center or SHARED, cost)
        else:
            _count(pools, key.pool.name.lower(), cost)
    for cost in pools.values():
        _count(centers, SHARED, cost)
    return Attributed(_told(tenants), _told(centers), _told(types), _told(pools))


def by_name(
    cells: Iterable[tuple[UsageKey, int]],
    terms: Terms,
    basis: Basis,
    name: Callable[[UsageKey], Name],
) -> dict[Name, Fraction]:
    """What tenants' cells cost, by whatever `name` says of each."""
    prices = _Prices(terms, basis)
    found: dict[Name, int] = {}
    for key, amount in cells:
        if key.pool is Pool.TENANT:
            _count(found, name(key), amount * prices.of(key)[0])
    return _told(found)


def spread_shared(by_center: Mapping[str, Fraction], spread: Spread) -> dict[str, Fraction]:
    """`by_center` with the shared cost spread over the others; unchanged where there are none."""
    others = {name: cost for name, cost in by_center.items() if name != SHARED}
    shared = by_center.get(SHARED, Fraction(0))
    total = sum(others.values(), Fraction(0))
    if spread is Spread.NONE or not others:
        return dict(by_center)
    if spread is Spread.EVEN or not total:
        return {name: cost + Fraction(shared, len(others)) for name, cost in others.items()}
    grown = 1 + Fraction(shared, total)
    return {name: cost * grown for name, cost in others.items()}


class _Prices:
    """What a raw unit x ns costs, in whole numbers of one part in `PARTS` of a unit of currency:
    cells are many, and of few prices."""

    def __init__(self, terms: Terms, basis: Basis) -> None:
        self._basis = basis
        self._versions = terms.cards if basis is Basis.RATE_CARD else terms.costs
        self._known: dict[tuple[object, ...], tuple[int, int]] = {}

    def of(self, key: UsageKey) -> tuple[int, int]:
        """As it is charged, and at the plain list price."""
        by_card = self._basis is Basis.RATE_CARD
        number = number_of(self._versions, key.bucket)
        priority = key.priority if by_card and key.pool is Pool.TENANT else None
        free = priority is not None and is_probe(key.tag)
        what = (number, key.kind, key.tier, priority, free)
        found = self._known.get(what)
        if found is None:
            card = self._versions[number].card
            charged = Fraction(0) if free else card.cost(1, key.kind, key.tier, priority)
            plain = card.cost(1, key.kind, key.tier, None)
            found = self._known[what] = (_whole(charged), _whole(plain))
        return found


def _whole(price: Fraction) -> int:
    assert PARTS % price.denominator == 0
    return price.numerator * (PARTS // price.denominator)


def _told(costs: Mapping[Name, int]) -> dict[Name, Fraction]:
    return {name: Fraction(cost, PARTS) for name, cost in costs.items()}


def _count(into: dict[Name, int], name: Name, cost: int) -> None:
    into[name] = into.get(name, 0) + cost
