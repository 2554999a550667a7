# SPDX-License-Identifier: Apache-2.0
"""Capacity: what there is and who has it now, what stood idle, what is worth reserving.

Rule: shares are cut, never rounded up: utilization is not overstated. Idle stretches shorter than
an hour are not listed. Money is exact until it is told.

Does not scale anything: it recommends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import (
    Advice,
    Amount,
    Capacity,
    CurrentCapacity,
    Headroom,
    Idle,
    IdleResource,
    Utilization,
    Workers,
    cut,
    to_decimals,
)
from leased.collector.accounts.clocks import AHEAD_NS
from leased.collector.accounts.periods import Window
from leased.collector.metering.sources import Held, Quiet
from leased.collector.planning.thresholds import Load, Thresholds, alerts, scaling
from leased.economics.amounts import exact
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, Pool
from leased.economics.rates import RateCard
from leased.terms.moment import HOUR_NS, MINUTE_NS
from leased.terms.policy import Policy
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind, TierKind

WEEK: Final = "7d"
MONTH_H: Final = 730
KINDS: Final = {
    "cpu": ResourceKind.CPU,
    "memory": ResourceKind.MEM,
    "gpu": ResourceKind.GPU,
    "block": ResourceKind.BLOCK,
    "net": ResourceKind.NET,
}
"""What is scaled by, as it is called there."""


class Soft(msgspec.Struct, frozen=True):
    """How far, and how long, a tenant may be beyond its limit."""

    overage_percent: int = 20
    overage_minutes: int = 15


def soft_of(ground: Policy) -> Soft:
    """As a policy has it."""
    return Soft(ground.overage_pm // 10, ground.overage_ns // MINUTE_NS)


def capacity(
    accounts: Accounts,
    soft: Soft | None = None,
    marks: Thresholds | None = None,
    turned_ns: Sequence[int] = (),
    queue_depth: int | None = None,
) -> Capacity:
    """What there is and who has it, at the last record of each node. `turned_ns`: when each worker
    came or went last, by its clock, which may be ahead of everybody's; `queue_depth`: how many
    requests wait, where telemetry says it."""
    marks = marks or Thresholds()
    held = accounts.held()
    soft = soft or Soft()
    amounts = {kind.name.lower(): _amount(held, kind) for kind in ResourceKind}
    cpu, memory = _share(held, ResourceKind.CPU), _share(held, ResourceKind.MEM)
    known = [share for share in (cpu, memory) if share is not None]
    overall = sum(known, Fraction(0)) / Fraction(len(known)) if known else None
    loads = {name: Load(*_sums(held, KINDS[name])) for name in ("cpu", "memory")}
    workers = _workers(accounts, held)
    now_ns = accounts.now_ns()
    changed_ns = max((at_ns for at_ns in turned_ns if at_ns <= now_ns + AHEAD_NS), default=0)
    when = {"changed_ns": changed_ns, "now_ns": now_ns}
    return Capacity(
        CurrentCapacity(amounts["cpu"], amounts["mem"], workers, amounts),
        Utilization(*(None if one is None else cut(one, 2) for one in (cpu, memory, overall))),
        Headroom(soft.overage_percent, soft.overage_minutes),
        alerts(loads, marks, queue_depth),
        _advice(accounts, held, workers, marks, **when),
        accounts.reach_now(),
        queue_depth,
    )


def _advice(
    accounts: Accounts, held: Iterable[Held], workers: Workers, marks: Thresholds, **when: int
) -> list[Advice]:
    """Whether to have more or fewer of the workers that stay: by whatever kind is fullest. What
    drains is no room, and what tenants have there will need some."""
    draining = accounts.source.draining()
    there = [
        one for one in held if one.node_id not in draining or one.pool is Pool.TENANT
    ]
    loads = {name: Load(*_sums(there, kind)) for name, kind in KINDS.items()}
    staying = workers.total - workers.draining
    return scaling(loads, staying, marks, draining=workers.draining, **when)


def _amount(held: Iterable[Held], kind: ResourceKind) -> Amount:
    total, used = _sums(held, kind)
    unit = UNIT[kind]
    return Amount(_units(total, unit), _units(used, unit), _units(max(0, total - used), unit))


def _sums(held: Iterable[Held], kind: ResourceKind) -> tuple[int, int]:
    """(there is, is not free)."""
    total = used = 0
    for one in held:
        if one.kind is kind and one.pool is Pool.PROVISIONED:
            total += one.capacity
        elif one.kind is kind:
            used += one.capacity
    return total, used


def _share(held: Iterable[Held], kind: ResourceKind) -> Fraction | None:
    total, used = _sums(held, kind)
    return Fraction(used, total) if total else None


def _units(amount: int, unit: int) -> Decimal:
    return Decimal(exact(Fraction(amount, unit)))


def _workers(accounts: Accounts, held: Iterable[Held]) -> Workers:
    nodes = sorted(accounts.watermarks())
    busy = frozenset(one.node_id for one in held if one.pool is Pool.TENANT)
    draining = accounts.source.draining()
    idle = sum(node not in busy and node not in draining for node in nodes)
    going = sum(node in draining for node in nodes)
    return Workers(len(nodes), len(nodes) - idle - going, going, idle)


def idle(accounts: Accounts) -> Idle:
    """The nodes on which nobody has anything now, and what all that stood idle cost in 7 days."""
    now_ns = accounts.now_ns()
    window = Window(max(0, now_ns - periods.duration(WEEK)), now_ns)
    prices = node_prices(accounts, accounts.source.held())
    lately_ns: dict[str, int] = {}
    listed: list[IdleResource] = []
    ends = accounts.watermarks()
    decimals = accounts.infrastructure().decimals
    for stretch in accounts.source.quiet((0, now_ns)):
        node, length_ns = stretch.node_id, stretch.to_ns - stretch.from_ns
        if length_ns < HOUR_NS:
            continue
        if stretch.to_ns > window.from_ns:
            since_ns = max(stretch.from_ns, window.from_ns)
            lately_ns[node] = lately_ns.get(node, 0) + stretch.to_ns - since_ns
        if stretch.to_ns >= ends.get(node, now_ns + 1):
            # Since when it is idle, however long that is.
            cost = prices.get(node, Fraction(0)) * Fraction(length_ns, HOUR_NS)
            listed.append(_idle_row(stretch, cost, decimals))
    idle_hours = ((node, Fraction(lately, HOUR_NS)) for node, lately in lately_ns.items())
    waste = sum((prices.get(node, Fraction(0)) * hours for node, hours in idle_hours), Fraction(0))
    return Idle(
        listed,
        to_decimals(waste, decimals),
        accounts.infrastructure().currency,
        accounts.reach(Window(window.from_ns, min(ends.values(), default=now_ns))),
    )


def _idle_row(stretch: Quiet, cost: Fraction, decimals: int) -> IdleResource:
    return IdleResource(
        stretch.node_id,
        print_instant(stretch.from_ns),
        (stretch.to_ns - stretch.from_ns) // HOUR_NS,
        to_decimals(cost, decimals),
        "Scale down or terminate",
    )


def node_prices(accounts: Accounts, held: Iterable[Held]) -> dict[str, Fraction]:
    """What an hour of each node costs, by what it has."""
    # Whole numbers first: a node has a hundred cores, and one price of a core.
    amounts: dict[tuple[str, ResourceKind, TierKind | None], int] = {}
    for one in held:
        if one.pool is Pool.PROVISIONED:
            what = (one.node_id, one.kind, one.tier)
            amounts[what] = amounts.get(what, 0) + one.capacity
    card = accounts.infrastructure()
    hours = {what[1:]: list_price(card, *what[1:]) for what in amounts}
    prices: dict[str, Fraction] = {}
    for (node, kind, tier), capacity in amounts.items():
        cost = hours[kind, tier] * Fraction(capacity, UNIT[kind])
        prices[node] = prices.get(node, Fraction(0)) + cost
    return prices


def mean(prices: Mapping[str, Fraction]) -> Fraction:
    """What an hour of a node costs, on average."""
    return sum(prices.values(), Fraction(0)) / max(1, len(prices))


def infrastructure_cost(
    accounts: Accounts, kind: ResourceKind, tier: TierKind | None, amount: int
) -> Fraction:
    """What having so much capacity x ns cost, whoever held it."""
    return accounts.infrastructure().cost(amount, kind, tier, None)


def list_cost(accounts: Accounts, key: UsageKey, amount: int) -> Fraction:
    """What having so much capacity x ns costs by the list of its hour, whatever its priority."""
    return accounts.terms.card_of(key.bucket).cost(amount, key.kind, key.tier, None)


def list_price(card: RateCard, kind: ResourceKind, tier: TierKind | None) -> Fraction:
    """Of one unit for an hour, whatever the priority."""
    return card.cost(UNIT[kind] * HOUR_NS, kind, tier, None)
