# SPDX-License-Identifier: Apache-2.0
"""Contracts of every model, beginning and ending within months, in other time zones and in money of
0, 2 and 3 digits: what all issued bills say together is what a clerk with a pencil says, also where
some nodes were away while months were issued, in whatever order.

The clerk adds up each hour by itself, and rounds each line of a contract once.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.invoices import Invoices
from leased.collector.metering.reference import Chain
from leased.economics.contracts import (
    CardVersion,
    Contract,
    Model,
    Plan,
    TaskTier,
    Terms,
    TierMode,
    UsageRates,
    check_terms,
)
from leased.economics.rates import NANO
from leased.terms.lease import Priority, Subject
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind
from tests.property.economics.test_economics_one_bill import (
    CARD,
    DAY_NS,
    GIB,
    TENANTS,
    TWICE,
    YEAR_NS,
    Folded,
    Node,
    cost_of,
)

CPU, MEM, BLOCK = ResourceKind.CPU, ResourceKind.MEM, ResourceKind.BLOCK
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "America/Havana", "America/Asuncion")
PLANS = (
    Plan("small", 1_500, 2 * GIB, 31 * NANO, NANO // 7, 3),
    Plan("big", 50_000, 1 << 42, 333 * NANO, 0, NANO // 13),
)
TIERS = (TaskTier(0, 7 * NANO // 10), TaskTier(2, NANO // 3), TaskTier(3, 0))
LATE_NS = YEAR_NS + 900 * DAY_NS
MONTHS = ["2023-12", *(f"202{4 + n // 12}-{n % 12 + 1:02}" for n in range(24))]
What = tuple[ResourceKind, TierKind | None, Priority]


class CountedNode(Node):
    """Writes down tasks, too: who was given a lease, and when it was given back."""

    def __init__(self, dice: random.Random) -> None:
        self.tasks: list[tuple[Subject, int]] = []
        self.first: dict[int, Subject] = {}
        super().__init__(dice)

    def grant(self) -> None:
        super().grant()
        self.first[self.count] = self.book[-1].whose

    def give_back(self) -> None:
        number = self.running()
        if number is not None:
            self.tasks.append((self.first[number], self.label(self.history.boot_ns)))
            self.history.release(number)
            self.history.begin_teardown(number)
            self.close(number)

    def begin_era(self) -> None:
        """No two moments are one: it would be of two hours."""
        self.history.boot_ns += 1
        self.pay(self.history.boot_ns)
        super().begin_era()


def contract(dice: random.Random, tenant: str, since: int, until: int | None) -> Contract:
    cpu, mem, block, task = (dice.choice((None, NANO // 9)) for _ in range(4))
    model = dice.choice(tuple(Model))
    if model is Model.RESERVED:
        cpu = mem = None
    if model is Model.TIERED:
        task = None
    return Contract(
        tenant,
        since * HOUR_NS,
        model,
        None if until is None else until * HOUR_NS,
        dice.choice(("small", "big")) if model is Model.RESERVED else None,
        UsageRates(cpu, mem, block, task),
        TIERS if model is Model.TIERED else (),
        dice.choice(tuple(TierMode)),
        dice.choice((0, 0, 70 * NANO + 5)),
        dice.random() < 0.6,
    )


def contracts(dice: random.Random) -> Iterator[Contract]:
    for tenant in TENANTS:
        at = YEAR_NS // HOUR_NS - 100
        for _ in range(dice.choice((0, 1, 2, 3))):
            since = at + dice.randrange(40 * 24)
            at = since + dice.randrange(1, 60 * 24)
            if dice.random() < 0.3:
                yield contract(dice, tenant, since, None)
                break
            yield contract(dice, tenant, since, at)


class Clerk:
    """Hour by hour."""

    def __init__(self, nodes: list[CountedNode], terms: Terms) -> None:
        self.terms = terms
        self.hours: dict[tuple[str, int], Counter[What]] = defaultdict(Counter)
        self.tasks = Counter[tuple[str, int]]()
        for held in (one for node in nodes for one in node.book):
            for begin_ns, end_ns in held.stretches if billed(held.whose) else ():
                for hour in range(begin_ns // HOUR_NS, -(-end_ns // HOUR_NS)):
                    length_ns = min(end_ns, (hour + 1) * HOUR_NS) - max(begin_ns, hour * HOUR_NS)
                    for one in held.whose.allotments:
                        what = (one.kind, one.tier, held.whose.priority)
                        self.hours[held.whose.tenant, hour][what] += one.capacity * length_ns
        for whose, at_ns in (one for node in nodes for one in node.tasks):
            self.tasks[whose.tenant, at_ns // HOUR_NS] += billed(whose)

    def owed(self, tenant: str, begin: int, end: int) -> Fraction:
        """For a month from one hour to another."""
        total = Fraction(0)
        at = begin
        while at < end:
            agreed, until = self.agreed(tenant, at), end
            for one in self.terms.contracts:
                for border_ns in (one.since_ns, one.until_ns or 0):
                    if one.tenant == tenant and at < border_ns // HOUR_NS < until:
                        until = border_ns // HOUR_NS
            lines = sum(map(self.rounded, self.lines(tenant, agreed, at, until, end - begin)))
            minimum = 0 if agreed is None else Fraction(agreed.monthly_minimum_nano, NANO)
            total += max(lines, self.rounded(Fraction(until - at, end - begin) * minimum))
            at = until
        return total

    def agreed(self, tenant: str, hour: int) -> Contract | None:
        for one in self.terms.contracts:
            ends = one.until_ns is None or hour * HOUR_NS < one.until_ns
            if one.tenant == tenant and one.since_ns <= hour * HOUR_NS and ends:
                return one
        return None

    def lines(
        self, tenant: str, agreed: Contract | None, begin: int, end: int, month: int
    ) -> Iterator[Fraction]:
        used = [(at, hour) for (who, at), hour in self.hours.items() if who == tenant]
        used = [(at, hour) for at, hour in used if begin <= at < end]
        tasks = sum(self.tasks[tenant, at] for at in range(begin, end))
        by_card = list(ResourceKind)
        if agreed is not None:
            for kind, line in self.own(agreed, used, tasks, Fraction(end - begin, month), month):
                yield line
                if kind in by_card:
                    by_card.remove(kind)
            if agreed.model is not Model.RATE_CARD and not agreed.rest_by_card:
                by_card = []
        since_ns = self.terms.cards[1].since_ns
        sums = Counter[tuple[What, int]]()
        for at, hour in used:
            for what, amount in hour.items():
                sums[what, 1 + (at * HOUR_NS >= since_ns)] += amount
        for (what, times), amount in sums.items():
            if what[0] in by_card:
                yield cost_of(*what, amount) * times

    def own(
        self,
        agreed: Contract,
        used: list[tuple[int, Counter[What]]],
        tasks: int,
        part: Fraction,
        month: int,
    ) -> Iterator[tuple[ResourceKind | None, Fraction]]:
        """What a contract prices itself."""

        def held(kind: ResourceKind, hour: Counter[What]) -> int:
            return sum(amount for what, amount in hour.items() if what[0] is kind)

        if agreed.plan is not None:
            plan = self.terms.plan(agreed.plan)
            yield None, part * Fraction(plan.monthly_nano, NANO)
            for kind, most, nano, unit in (
                (CPU, plan.cpu_milli, plan.overage_cpu_hour_nano, 1000),
                (MEM, plan.mem_bytes, plan.overage_gib_hour_nano, GIB),
            ):
                over = sum(max(0, held(kind, hour) - most * HOUR_NS) for _, hour in used)
                yield kind, Fraction(over, unit * HOUR_NS) * Fraction(nano, NANO)
        if agreed.tiers and agreed.tier_mode is TierMode.VOLUME:
            price = [one.task_nano for one in TIERS if one.low <= tasks][-1]
            yield None, Fraction(tasks * price, NANO)
        elif agreed.tiers:
            for low, high, price in ((0, 2, 7 * NANO // 10), (2, 3, NANO // 3)):
                yield None, Fraction(max(0, min(tasks, high) - low) * price, NANO)
        rates = agreed.rates
        for kind, nano, unit in (
            (CPU, rates.cpu_core_hour_nano, 1000),
            (MEM, rates.memory_gib_hour_nano, GIB),
            (BLOCK, rates.storage_gib_month_nano, GIB * month),
        ):
            if nano is not None:
                amount = sum(held(kind, hour) for _, hour in used)
                yield kind, Fraction(amount, unit * HOUR_NS) * Fraction(nano, NANO)
        if rates.task_nano is not None:
            yield None, Fraction(tasks * rates.task_nano, NANO)

    def rounded(self, amount: Fraction) -> Fraction:
        """Half to even."""
        units = 10**self.terms.decimals
        return Fraction(round(amount * units), units)


def billed(whose: Subject) -> bool:
    return whose.tag is None or not whose.tag.flags


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(5, 40), st.integers(1, 3))
def test_contracts_are_billed_as_a_clerk_does(seed: int, steps: int, count: int) -> None:
    dice = random.Random(seed)
    nodes = [CountedNode(dice) for _ in range(count)]
    for at, node in enumerate(nodes):
        for _ in range(steps):
            node.step()
        node.restart()
        node.chain = Chain(f"{at:02x}" * 16, f"{at + 9:02x}" * 16)
        node.chain.read(node.history.records, "ab" * 32)
    digits, since_ns = dice.choice((0, 2, 3)), YEAR_NS + dice.randrange(60 * 24) * HOUR_NS
    cards = (msgspec.structs.replace(one, decimals=digits) for one in (CARD, TWICE))
    terms = Terms(
        tuple(CardVersion(*one) for one in zip((0, since_ns), cards, strict=True)),
        plans=PLANS,
        contracts=tuple(contracts(dice)),
        time_zones=tuple((tenant, dice.choice(ZONES)) for tenant in TENANTS),
        retired_nodes=tuple(f"{at:02x}" * 16 for at in range(count)),
    )
    check_terms(terms)
    with TemporaryDirectory() as directory:
        invoices = Invoices(Path(directory))
        first, whole = (
            Accounts(Folded([node.chain for node in there]), terms, invoices, clock_ns=LATE_NS)
            for there in (nodes[:1], nodes)
        )
        early = MONTHS[: dice.randrange(len(MONTHS))]
        late = [month for month in MONTHS[:-1] if month not in early]
        for accounts, months in ((first, early), (whole, late), (whole, MONTHS[-1:])):
            for month in dice.sample(months, len(months)):
                try:
                    bills = accounts.issue(month)
                except NoData:
                    continue
                for bill in bills:
                    rows = accounts.focus_rows(bill.tenant, month, "1.2")
                    for column in ("BilledCost", "EffectiveCost"):
                        told = sum((Decimal(row[column]) for row in rows), Decimal(0))
                        assert told == Decimal(bill.total)
        clerk = Clerk(nodes, terms)
        for tenant in invoices.tenants():
            bills = invoices.of_tenant(tenant)
            ends = [(int(bill.from_ns), int(bill.to_ns)) for bill in bills]
            assert all(one[1] == other[0] for one, other in zip(ends, ends[1:], strict=False))
            owed = sum(clerk.owed(tenant, a // HOUR_NS, b // HOUR_NS) for a, b in ends)
            told = sum(Fraction(bill.total) for bill in bills)
            # What the last months of all are short of would be on bills to come.
            told += sum(Fraction(n, 10**digits) for _, n in whole.corrections(tenant, "9999-12"))
            assert told == owed
