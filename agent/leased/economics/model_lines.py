# SPDX-License-Identifier: Apache-2.0
"""The four billing models: what each makes lines of.

Rule: overage is the integral over hours of what was held beyond the plan, not its peak. A GiB-month
is a GiB held for all seconds of that month. Kinds that a contract does not price are charged by the
rate card, unless the contract includes them.

Does not round (`billing`) and does not choose the contract (`contracts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import msgspec

from leased.economics.contracts import COVERED, Contract, Model, Plan, TaskTier, Terms, TierMode
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, UNIT_NAME
from leased.economics.rates import NANO, PICO
from leased.terms.lease import Priority
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.quantity import WHOLE_PM
from leased.terms.resource import ResourceKind, TierKind

Row = tuple[ResourceKind, TierKind | None, Priority, int]
TITLE: Final = {
    ResourceKind.GPU: "GPU",
    ResourceKind.CPU: "CPU",
    ResourceKind.MEM: "Memory",
    ResourceKind.BLOCK: "Storage",
    ResourceKind.NET: "Network",
}


class Item(msgspec.Struct, frozen=True):
    """A line before it is rounded. `always`: shown even if it costs nothing."""

    description: str
    quantity: Fraction
    unit: str
    price: Fraction
    amount: Fraction
    kind: str | None = None
    tier: str | None = None
    priority: str | None = None
    multiplier_pm: int = WHOLE_PM
    card: int | None = None
    always: bool = False


class Metered:
    """Capacity x ns by (kind, tier, priority, card version) and by (kind, hour); and tasks."""

    def __init__(self) -> None:
        self.rows: dict[Row, int] = {}
        self.hours: dict[tuple[ResourceKind, int], int] = {}
        self.tasks = 0

    def add(self, key: UsageKey, amount: int, card: int) -> None:
        """Count one cell."""
        assert key.priority is not None, "what a tenant holds has a priority"
        row = (key.kind, key.tier, key.priority, card)
        self.rows[row] = self.rows.get(row, 0) + amount
        hour = (key.kind, key.bucket)
        self.hours[hour] = self.hours.get(hour, 0) + amount

    def total(self, kind: ResourceKind) -> int:
        """Capacity x ns of a kind."""
        return sum(amount for (found, _), amount in self.hours.items() if found is kind)

    def beyond(self, kind: ResourceKind, capacity: int) -> int:
        """Capacity x ns held beyond `capacity`, hour by hour."""
        plan = capacity * HOUR_NS
        return sum(
            max(0, amount - plan) for (found, _), amount in self.hours.items() if found is kind
        )


def model_items(
    contract: Contract, terms: Terms, metered: Metered, part: Fraction, month_ns: int
) -> list[Item]:
    """The lines of one contract over its `part` of a month of `month_ns`."""
    items: list[Item] = []
    if contract.plan is not None:
        items.extend(_plan_items(terms.plan(contract.plan), metered, part))
    if contract.tiers:
        items.extend(_tier_items(contract.tiers, contract.tier_mode, metered.tasks))
    items.extend(_rate_items(contract, metered, month_ns))
    items.extend(card_items(terms, metered, card_kinds(contract)))
    return items


def card_kinds(contract: Contract) -> list[ResourceKind]:
    """What the rate card prices beside a contract."""
    if contract.model is not Model.RATE_CARD and not contract.rest_by_card:
        return []
    rates = contract.rates
    own = {
        ResourceKind.CPU: rates.cpu_core_hour_nano,
        ResourceKind.MEM: rates.memory_gib_hour_nano,
        ResourceKind.BLOCK: rates.storage_gib_month_nano,
    }
    priced = {*COVERED[contract.model], *(kind for kind in own if own[kind] is not None)}
    return [kind for kind in ResourceKind if kind not in priced]


def card_items(terms: Terms, metered: Metered, kinds: Sequence[ResourceKind]) -> Iterator[Item]:
    """By the rate card: one line per kind, tier, priority and version of it."""
    for kind, tier, priority, number in sorted(metered.rows, key=_row_order):
        if kind not in kinds:
            continue
        amount = metered.rows[(kind, tier, priority, number)]
        card = terms.cards[number].card
        words = [TITLE[kind]]
        if tier is not None:
            words.append(tier.name.lower())
        yield Item(
            f"{' '.join(words)} ({priority.name.lower()})",
            Fraction(amount, UNIT[kind] * NS_PER_S),
            f"{UNIT_NAME[kind]}-second",
            Fraction(card.rate(kind, tier, priority).exact, PICO),
            card.cost(amount, kind, tier, priority),
            kind.name.lower(),
            None if tier is None else tier.name.lower(),
            priority.name.lower(),
            card.multiplier_pm(priority),
            number,
        )


def _row_order(row: Row) -> tuple[int, int, int, int]:
    kind, tier, priority, number = row
    return (int(kind), -1 if tier is None else int(tier), int(priority), number)


def _plan_items(plan: Plan, metered: Metered, part: Fraction) -> Iterator[Item]:
    """The fee for its part of the month, and what was held beyond the plan."""
    fee = part * Fraction(plan.monthly_nano, NANO)
    title = f"Reserved Capacity ({plan.name.title()})"
    yield Item(title, part, "month", Fraction(plan.monthly_nano, NANO), fee, always=True)
    for kind, capacity, nano, title, unit in (
        (ResourceKind.CPU, plan.cpu_milli, plan.overage_cpu_hour_nano, "CPU", "core-hour"),
        (ResourceKind.MEM, plan.mem_bytes, plan.overage_gib_hour_nano, "Memory", "GiB-hour"),
    ):
        if nano:
            hours = Fraction(metered.beyond(kind, capacity), UNIT[kind] * HOUR_NS)
            yield _item(f"{title} Overage (hours)", hours, unit, nano, kind)


def _rate_items(contract: Contract, metered: Metered, month_ns: int) -> Iterator[Item]:
    """What a contract prices by rates of its own."""
    rates = contract.rates
    cpu, mem, block = ResourceKind.CPU, ResourceKind.MEM, ResourceKind.BLOCK
    if rates.cpu_core_hour_nano is not None:
        hours = Fraction(metered.total(cpu), UNIT[cpu] * HOUR_NS)
        yield _item("CPU (core-hours)", hours, "core-hour", rates.cpu_core_hour_nano, cpu)
    if rates.memory_gib_hour_nano is not None:
        hours = Fraction(metered.total(mem), UNIT[mem] * HOUR_NS)
        yield _item("Memory (GB-hours)", hours, "GiB-hour", rates.memory_gib_hour_nano, mem)
    if rates.storage_gib_month_nano is not None:
        months = Fraction(metered.total(block), UNIT[block] * month_ns)
        nano = rates.storage_gib_month_nano
        yield _item("Storage (GB-months)", months, "GiB-month", nano, block)
    if rates.task_nano is not None:
        yield _item("Tasks", Fraction(metered.tasks), "task", rates.task_nano, None)


def _tier_items(tiers: Sequence[TaskTier], mode: TierMode, tasks: int) -> Iterator[Item]:
    """Tasks by tier: [low, next low) at its own rate, or all at the rate of the last one's."""
    lows = [tier.low for tier in tiers]
    ends: list[int | None] = [*lows[1:], None]
    if mode is TierMode.VOLUME:
        # Ranges are half-open: so many tasks as a tier begins with are in that tier.
        chosen = [tier for tier in tiers if tier.low <= tasks][-1]
        yield _item("Tasks", Fraction(tasks), "task", chosen.task_nano, None)
        return
    for tier, end in zip(tiers, ends, strict=True):
        top = tasks if end is None else min(tasks, end)
        if top > tier.low:
            title = f"Tasks {tier.low} to {'more' if end is None else end}"
            yield _item(title, Fraction(top - tier.low), "task", tier.task_nano, None)


def _item(title: str, quantity: Fraction, unit: str, nano: int, kind: ResourceKind | None) -> Item:
    name = None if kind is None else kind.name.lower()
    price = Fraction(nano, NANO)
    return Item(title, quantity, unit, price, quantity * price, name)
