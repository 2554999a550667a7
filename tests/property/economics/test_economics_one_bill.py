# SPDX-License-Identifier: Apache-2.0
"""One bill, wherever it is asked for: the statement of each node, the collector's bill and its
issue, usage by the hour, the day and in all, costs and the FOCUS export say the same of the same
weeks, and what a clerk with a pencil says who knows nothing of records.

The clerk writes down who has what from when to when, on the boot clock, as it happens to the
leases: cut by the reaper and sealed later, released, preempted, fenced, renewed on other terms,
voided, lost in a reboot, still open. It prices that by hand. Clocks step both ways.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.periods import Window
from leased.collector.metering.reference import Chain, ReferenceSource
from leased.economics.contracts import CardVersion, Terms
from leased.economics.hourly import Hourly
from leased.economics.rates import DEFAULT_CARD, Rate, RateCard
from leased.economics.statement import Span, Statement, state
from leased.terms.identity import TenantId
from leased.terms.lease import AccountingTag, Priority, Subject
from leased.terms.moment import HOUR_NS
from leased.terms.resource import Allotment, ResourceKind, TierKind
from tests.doubles.economics_history import History, memory, subject

DAY_NS, GIB = 24 * HOUR_NS, 1 << 30
YEAR_NS = 1_704_067_200 * 10**9
"""2024-01-01T00:00:00Z."""

ZONES = (("acme", "America/New_York"), ("beta", "Australia/Brisbane"))
TENANTS = ("acme", "beta", "gamma")
TAGS = (
    None,
    AccountingTag("cc-1", "p"),
    AccountingTag("cc-1", "q", "batch"),
    AccountingTag("cc-2", flags=1),
)
HBM = TierKind.HBM
THINGS = (
    Allotment("gpu:GPU-1", ResourceKind.GPU, None, 1_000),
    Allotment("gpu:MIG-1", ResourceKind.GPU, None, 143),
    Allotment("cpu:0", ResourceKind.CPU, None, 1_000),
    memory(4096),
    memory((1 << 42) + 4096),
    Allotment("mem:node4:4096", ResourceKind.MEM, HBM, 3 * GIB + 4096),
    Allotment("nvme:1", ResourceKind.BLOCK, None, 3_840_755_982_336),
    Allotment("net:0", ResourceKind.NET, None, 1),
)
PRICE = {
    (ResourceKind.GPU, None): Fraction("0.01"),
    (ResourceKind.CPU, None): Fraction("0.002"),
    (ResourceKind.MEM, TierKind.DRAM): Fraction("0.001"),
    (ResourceKind.MEM, HBM): Fraction("0.000000008753"),
    (ResourceKind.BLOCK, None): Fraction("0.0005"),
    (ResourceKind.NET, None): Fraction("0.0003"),
}
UNIT = {
    ResourceKind.GPU: 1_000,
    ResourceKind.CPU: 1_000,
    ResourceKind.MEM: GIB,
    ResourceKind.BLOCK: GIB,
    ResourceKind.NET: 10**9,
}
PAYS = {
    Priority.GUARANTEED: Fraction(3, 2),
    Priority.STANDARD: Fraction(1),
    Priority.SCAVENGER: Fraction(333, 1000),
}
CARD = RateCard(
    (*DEFAULT_CARD.rates, Rate(ResourceKind.MEM, 8, HBM, pico=753)),
    "USD",
    2,
    ((Priority.GUARANTEED, 1500), (Priority.SCAVENGER, 333)),
)
TWICE = RateCard(
    tuple(
        Rate(rate.kind, 2 * rate.exact // 1_000, rate.tier, pico=2 * rate.exact % 1_000)
        for rate in CARD.rates
    ),
    "USD",
    2,
    CARD.multipliers_pm,
)
CARDS = {card.digest(): card for card in (CARD, TWICE)}
TIMES = {CARD.digest(): 1, TWICE.digest(): 2}
What = tuple[ResourceKind, TierKind | None, Priority, AccountingTag | None]


class Held:
    """What a lease held on one set of terms, in stretches of the calendar."""

    def __init__(self, whose: Subject) -> None:
        self.whose = whose
        self.stretches: list[tuple[int, int]] = []
        self.is_open = True


class Lease:
    """As the clerk knows it: paid for up to `paid_ns`."""

    def __init__(self, held: Held, paid_ns: int, deadline_ns: int) -> None:
        self.held, self.paid_ns, self.deadline_ns = held, paid_ns, deadline_ns


class Folded(ReferenceSource):
    """Asked ten times of each month."""

    def __init__(self, chains: list[Chain]) -> None:
        super().__init__(chains)
        self._known: dict[tuple[int, int], Hourly] = {}

    def _hourly(self, window: tuple[int, int]) -> Hourly:
        if window not in self._known:
            self._known[window] = super()._hourly(window)
        return self._known[window]

    def leases(self, window: Any, tenant: str, bucket_hours: int) -> dict[Any, Any]:
        return {}


class Node:
    """Seals a node's weeks, and keeps the clerk's book beside them."""

    chain: Chain

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.history = History(wall_offset_ns=YEAR_NS - dice.randrange(DAY_NS))
        self.history.boot_ns = dice.randrange(HOUR_NS)
        self.live: dict[int, Lease] = {}
        self.ended: list[int] = []
        self.fenced: list[int] = []
        self.book: list[Held] = []
        self.count = 0
        self.era = (self.history.boot_ns, 0)
        self.sealed_ns = 0
        self.begin_era()
        self.history.start()

    # ---- the calendar -------------------------------------------------------------------------

    def label(self, boot_ns: int) -> int:
        """What the calendar says of a moment of this era: it never goes back."""
        return self.era[1] + boot_ns - self.era[0]

    def begin_era(self) -> None:
        """Now, by the wall clock, unless the calendar is further."""
        h = self.history
        self.era = (h.boot_ns, max(h.boot_ns + h.wall_offset_ns, self.label(h.boot_ns)))

    def pay(self, until_ns: int) -> None:
        """Whoever holds something pays for it."""
        for lease in self.live.values():
            end_ns = min(until_ns, lease.deadline_ns)
            if end_ns > lease.paid_ns:
                stretch = (self.label(lease.paid_ns), self.label(end_ns))
                lease.held.stretches.append(stretch)
                lease.paid_ns = end_ns

    # ---- what happens -------------------------------------------------------------------------

    def step(self) -> None:
        h = self.history
        self.sealed_ns = h.boot_ns
        h.boot_ns += self.dice.choice((0, 1, 7 * 10**9, HOUR_NS, 31 * HOUR_NS, 6 * DAY_NS + 5))
        self.pay(h.boot_ns)
        what = self.dice.choice(OPERATIONS)
        if what not in ("grant", "clock", "reboot", "restart") and not self.live:
            what = "grant"
        getattr(self, what)()

    def terms(self) -> Subject:
        things = self.dice.sample(THINGS, self.dice.choice((1, 1, 2, 3)))
        return subject(
            *things,
            tenant=self.dice.choice(TENANTS),
            priority=self.dice.choice(tuple(Priority)),
            tag=self.dice.choice(TAGS),
            rate_hash=self.dice.choice(tuple(CARDS)),
        )

    def deadline(self) -> int:
        length = self.dice.choice((1, HOUR_NS - 1, DAY_NS, 20 * DAY_NS, 40 * DAY_NS))
        return self.history.boot_ns + length

    def hold(self, whose: Subject) -> Held:
        self.book.append(Held(whose))
        return self.book[-1]

    def running(self) -> int | None:
        """A lease before its deadline."""
        now_ns = self.history.boot_ns
        found = [number for number, one in self.live.items() if one.deadline_ns > now_ns]
        return self.dice.choice(found) if found else None

    def grant(self) -> None:
        self.count += 1
        whose, deadline_ns = self.terms(), self.deadline()
        self.history.allocate(self.count, whose, deadline_ns)
        self.live[self.count] = Lease(self.hold(whose), self.history.boot_ns, deadline_ns)

    def void(self) -> None:
        """A grant that was never answered, found at once."""
        self.count += 1
        whose = self.terms()
        self.history.void(self.history.allocate(self.count, whose, self.deadline()))
        self.history.boot_ns += 10**9
        self.pay(self.history.boot_ns)
        self.history.end(self.count)
        self.ended.append(self.count)

    def renew(self) -> None:
        number = self.running()
        if number is not None:
            self.live[number].deadline_ns = self.deadline()
            self.history.renew(number, self.live[number].deadline_ns)

    def renew_otherwise(self) -> None:
        number = self.running()
        if number is not None:
            lease, whose = self.live[number], self.terms()
            lease.held.is_open = False
            lease.held, lease.deadline_ns = self.hold(whose), self.deadline()
            self.history.renew(number, lease.deadline_ns, whose)

    def preempt(self) -> None:
        """Told to go; it goes, or is cut, later."""
        number = self.running()
        if number is not None:
            lease = self.live[number]
            lease.deadline_ns = min(lease.deadline_ns, self.history.boot_ns + 30 * 10**9)
            self.history.drain(number, lease.deadline_ns)

    def close(self, number: int) -> None:
        self.live.pop(number).held.is_open = False
        self.ended.append(number)

    def give_back(self) -> None:
        number = self.running()
        if number is not None:
            self.history.release(number)
            self.history.begin_teardown(number)
            self.close(number)

    def cut(self) -> None:
        """The reaper cut it at its deadline, whenever that was sealed."""
        now_ns = self.history.boot_ns
        for number, lease in list(self.live.items()):
            if lease.deadline_ns <= now_ns:
                self.history.end(number, lease.deadline_ns)
                self.close(number)
                return

    def prove(self) -> None:
        if self.ended:
            self.history.reclaim(self.ended.pop(0))
        elif self.fenced:
            self.history.unfence(self.fenced.pop(0))

    def fence(self) -> None:
        if self.ended:
            number = self.ended.pop()
            self.history.fence(number, *self.history.subjects[number].allotments[:1])
            self.fenced.append(number)

    def clock(self) -> None:
        back = self.dice.choice((-3 * DAY_NS, -HOUR_NS, -1, 1, 2 * HOUR_NS + 7, 5 * DAY_NS))
        self.history.step_clock(back)
        self.begin_era()

    def restart(self) -> None:
        self.begin_era()
        self.history.start()

    def reboot(self) -> None:
        """Nothing is known of what was after the last record."""
        h = self.history
        h.touch()
        lost_ns = self.dice.choice((0, HOUR_NS))
        for number in list(self.live):
            self.close(number)
        label_ns = self.label(h.boot_ns)
        wall_ns = h.boot_ns + lost_ns + h.wall_offset_ns
        h.boot_number += 1
        h.boot_ns = self.dice.choice((0, 17, HOUR_NS))
        h.wall_offset_ns = wall_ns - h.boot_ns
        self.era = (h.boot_ns, label_ns)
        self.begin_era()
        h.start()


OPERATIONS = (
    *("grant",) * 5,
    *("renew", "renew_otherwise", "preempt", "give_back", "give_back", "cut", "cut", "cut"),
    *("prove", "prove", "fence", "void", "clock", "clock", "restart", "reboot"),
)


# ---- what the clerk reckons ---------------------------------------------------------------------


def held_in(nodes: list[Node], window: tuple[int, int], tenant: str) -> Counter[tuple[Any, ...]]:
    """Capacity x ns of what is billed, by what it is, whether it is over, and price agreed."""
    found = Counter[tuple[Any, ...]]()
    for held in (one for node in nodes for one in node.book if one.whose.tenant == tenant):
        whose = held.whose
        if whose.tag is not None and whose.tag.flags:
            continue
        for begin_ns, end_ns in held.stretches:
            length_ns = min(end_ns, window[1]) - max(begin_ns, window[0])
            for one in whose.allotments if length_ns > 0 else ():
                what = (one.kind, one.tier, whose.priority, whose.tag)
                found[what, held.is_open, whose.rate_hash] += one.capacity * length_ns
    return found


def cost_of(kind: ResourceKind, tier: TierKind | None, priority: Priority, amount: int) -> Fraction:
    return PRICE[kind, tier] * PAYS[priority] * Fraction(amount, UNIT[kind] * 10**9)


def cents(amount: Fraction) -> Decimal:
    """Half to even, once."""
    return Decimal(round(amount * 100)).scaleb(-2)


# ---- what is told -------------------------------------------------------------------------------


def statement(node: Node, tenant: str, window: tuple[int, int]) -> Statement:
    return state(
        node.chain.fold.intervals(),
        node.chain.fold.ledger.timeline,
        tenant=TenantId(tenant),
        from_ns=window[0],
        to_ns=window[1],
        watermark_ns=node.label(node.history.boot_ns),
        cards=CARDS,
        span=Span("", 0, 0, ""),
    )


def check_statement(node: Node, tenant: str, window: tuple[int, int]) -> None:
    """Line by line."""
    expected = {what: n for what, n in held_in([node], window, tenant).items() if n}
    told, total = statement(node, tenant, window), Decimal(0)
    for line in told.lines:
        kind, priority = ResourceKind[line.kind.upper()], Priority[line.priority.upper()]
        tier = None if line.tier is None else TierKind[line.tier.upper()]
        card = bytes.fromhex(line.rate_card)
        amount = expected.pop(((kind, tier, priority, line.tag), line.provisional, card))
        cost = cost_of(kind, tier, priority, amount) * TIMES[card]
        assert int(line.capacity_ns) == amount
        assert Fraction(line.cost_exact) == cost and Decimal(line.cost) == cents(cost)
        assert Fraction(line.capacity_seconds) == Fraction(amount, UNIT[kind] * 10**9)
        total += Decimal(line.cost)
    assert not expected and Decimal(told.total) == total


def check_bill(accounts: Accounts, nodes: list[Node], tenant: str, month: str) -> Counter[Any]:
    """A month, everywhere that it is told; what was billed of each thing."""
    bill = accounts.bill(tenant, month)
    window = int(bill.from_ns), int(bill.to_ns)
    since_ns = accounts.terms.cards[1].since_ns
    middle = min(max(since_ns, window[0]), window[1])
    amounts, exact, by_tag = Counter[Any](), Fraction(0), Counter[Any]()
    for card, part in enumerate(((window[0], middle), (middle, window[1]))):
        for ((kind, tier, priority, tag), _, _), amount in held_in(nodes, part, tenant).items():
            amounts[kind, tier, priority, card] += amount
            by_tag[tag_text(tag)] += Fraction(amount, UNIT[kind])
            exact += cost_of(kind, tier, priority, amount) * (1 + card)
    amounts, total = +amounts, Decimal(0)
    for line in bill.line_items:
        kind, priority = ResourceKind[line.kind.upper()], Priority[line.priority.upper()]
        tier = None if line.tier is None else TierKind[line.tier.upper()]
        amount = amounts[kind, tier, priority, line.card]
        cost = cost_of(kind, tier, priority, amount) * (1 + line.card)
        assert Fraction(line.cost_exact) == cost and Decimal(line.total) == cents(cost)
        total += Decimal(line.total)
    assert len(bill.line_items) == len(amounts)
    assert total == Decimal(bill.total) == accounts.summary(tenant, month).total
    check_export(accounts.focus_rows(tenant, month, "1.2"), total, by_tag)
    for granularity in ("hour", "day", "total"):
        report = accounts.usage(tenant, Window(*window), granularity)
        assert report.total_cost == cents(exact)
        assert sum(Fraction(row.cost_exact) for row in report.rows) == exact
    # What the nodes say of the same time, whatever they were told that it costs.
    stated = Counter[Any]()
    for line in (line for node in nodes for line in statement(node, tenant, window).lines):
        stated[line.kind, line.tier, line.priority] += int(line.capacity_ns)
    billed = Counter[Any]()
    for (kind, tier, priority, _), amount in amounts.items():
        name = None if tier is None else tier.name.lower()
        billed[kind.name.lower(), name, priority.name.lower()] += amount
    assert stated == billed
    return billed


def tag_text(tag: AccountingTag | None) -> str:
    if tag is None:
        return "{}"
    fields = ("cost_center", "project", "request_class", "budget_group")
    return json.dumps({f: getattr(tag, f) for f in fields if getattr(tag, f)}, sort_keys=True)


def check_export(rows: list[dict[str, str]], total: Decimal, by_tag: Counter[Any]) -> None:
    assert sum((Decimal(row["BilledCost"]) for row in rows), Decimal(0)) == total
    found = Counter[Any]()
    for row in rows:
        found[row["Tags"]] += Fraction(row["ConsumedQuantity"]) * 10**9
    assert found == +by_tag


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(5, 40), st.integers(1, 3))
def test_one_bill_wherever_it_is_asked_for(seed: int, steps: int, count: int) -> None:
    dice = random.Random(seed)
    nodes = [Node(dice) for _ in range(count)]
    for node in nodes:
        for _ in range(steps):
            node.step()
        node.restart()
    end_ns = max(node.label(node.history.boot_ns) for node in nodes)
    for at, node in enumerate(nodes):
        node.chain = Chain(f"{at:02x}" * 16, f"{at + 9:02x}" * 16)
        node.chain.read(node.history.records, "ab" * 32)
        for tenant in TENANTS:
            a, b = sorted(dice.randrange(YEAR_NS - DAY_NS, end_ns + 2) for _ in range(2))
            check_statement(node, tenant, (a, b))
    since_ns = YEAR_NS + dice.randrange(60 * 24) * HOUR_NS
    terms = Terms((CardVersion(0, CARD), CardVersion(since_ns, TWICE)), time_zones=ZONES)
    accounts = Accounts(Folded([node.chain for node in nodes]), terms)
    for tenant in frozenset(TENANTS).intersection(accounts.source.tenants()):
        year, window = Counter[Any](), [1 << 62, 0]
        for month in ("2023-12", *(f"2024-{number:02}" for number in range(1, 13))):
            try:
                period = accounts.month(month, tenant)
            except NoData:
                continue
            window = [min(window[0], period.from_ns), max(window[1], period.to_ns)]
            year += check_bill(accounts, nodes, tenant, month)
        whole = Counter[Any]()
        for ((kind, tier, priority, _), _, _), n in held_in(nodes, (0, 1 << 62), tenant).items():
            name = None if tier is None else tier.name.lower()
            whole[kind.name.lower(), name, priority.name.lower()] += n
        assert year == +whole
