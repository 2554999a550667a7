# SPDX-License-Identifier: Apache-2.0
"""Whatever order months are issued, credits are listed and usage is corrected in: all issued bills
together are what is owed, to the last digit, and none of them ever changes.

The clerk knows what was held and what was promised, and nothing of bills.
"""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.crediting import left
from leased.collector.accounts.invoices import Invoices
from leased.economics.amounts import units
from leased.economics.bill_text import parse_bill, terms_of
from leased.economics.billing import Month, make_bill
from leased.economics.contracts import CardVersion, Contract, Credit, Model, Terms
from leased.economics.rates import DEFAULT_CARD
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import JANUARY_NS, NODE, WrittenSource

CPU, MEM = ResourceKind.CPU, ResourceKind.MEM
LATER = msgspec.structs.replace(NODE, watermark_ns=JANUARY_NS + 400 * 24 * HOUR_NS)
FIRST = {"2024-01": 0, "2024-02": 31 * 24, "2024-03": 60 * 24, "2024-04": 91 * 24}
PRICE = {CPU: Fraction(2, 10**3 * 1000), MEM: Fraction(1, 10**3 * (1 << 30))}


class Office:
    """Bills by the accounts, and what the clerk writes down."""

    def __init__(self, dice: random.Random, directory: Path) -> None:
        self.dice, self.invoices = dice, Invoices(directory)
        self.source = WrittenSource(node=LATER)
        self.digits = dice.choice((0, 2, 3))
        self.minimum_nano = dice.choice((0, 0, 50 * 10**9))
        self.credits: list[Credit] = []
        self.open = dict(FIRST)
        self.is_negative = dice.random() < 0.5
        self.sealed: dict[Path, bytes] = {}

    def terms(self) -> Terms:
        card = msgspec.structs.replace(DEFAULT_CARD, decimals=self.digits)
        least = Contract("t", 0, Model.USAGE_BASED, monthly_minimum_nano=self.minimum_nano)
        return Terms(
            (CardVersion(0, card),),
            contracts=(least,),
            credits=tuple(self.credits),
            allow_negative=self.is_negative,
        )

    def hold(self) -> None:
        first = self.dice.choice(tuple(FIRST.values())) + self.dice.randrange(28 * 24)
        kind = self.dice.choice((CPU, MEM))
        amount = self.dice.randrange(1, 3000 if kind is CPU else 1 << 31)
        self.source.hold("t", kind, amount, range(first, first + self.dice.choice((1, 5, 9))))

    def lose(self) -> None:
        """What was thought to be held was not."""
        if len(self.source.written) > 1:
            del self.source.written[self.dice.choice(list(self.source.written))]

    def credit(self) -> None:
        nano = self.dice.choice((1, 10**7, 5 * 10**6, 25 * 10**9, 10**9 * 40 + 5 * 10**6))
        month = self.dice.choice(tuple(FIRST))
        self.credits.append(Credit("t", month, nano, self.dice.choice(("outage", "goodwill"))))
        self.dice.shuffle(self.credits)

    def turn(self) -> None:
        self.is_negative = not self.is_negative

    def issue(self, month: str = "") -> None:
        if not month:
            if not self.open:
                return
            month = self.dice.choice(tuple(self.open))
        self.open.pop(month, None)
        (bill,) = Accounts(self.source, self.terms(), self.invoices).issue(month, ["t"])
        window = (int(bill.from_ns), int(bill.to_ns))
        again = make_bill(  # as whoever has the records and the bill does
            bill.tenant,
            Month(bill.period, *window),
            self.source.cells(window, "t"),
            {},
            terms_of(bill.terms),
            bill.audit,
            fleet_watermark_ns=int(bill.as_of_ns),
            corrections=[(text, units(n, bill.decimals)) for text, n in bill.corrections],
            version=bill.version,
        )
        assert again.canonical() == bill.canonical()

    def look(self) -> None:
        """What is issued has not changed."""
        files = {path: path.read_bytes() for path in self.invoices.directory.glob("tenant=*/*")}
        assert files.items() >= self.sealed.items()
        self.sealed = files

    def owed(self) -> Decimal:
        """By a clerk: lines rounded once, at least the minimum, less the credits, rounded once."""
        total = Fraction(0)
        for month in (*FIRST, "2024-05"):
            begin = FIRST.get(month, 121 * 24)
            end = {**FIRST, "2024-05": 121 * 24, "": 152 * 24}
            until = min(hour for hour in end.values() if hour > begin)
            lines = Fraction(0)
            for kind, price in PRICE.items():
                held = sum(
                    amount
                    for key, amount in self.source.written.items()
                    if key.kind is kind
                    and begin <= key.bucket - JANUARY_NS // HOUR_NS < until
                )
                lines += self.rounded(held * price / 10**9)
            total += max(lines, self.rounded(Fraction(self.minimum_nano, 10**9)))
        for credit in self.credits:
            total -= self.rounded(Fraction(credit.nano, 10**9))
        return Decimal(int(total * 10**self.digits)).scaleb(-self.digits)

    def rounded(self, amount: Fraction) -> Fraction:
        return Fraction(round(amount * 10**self.digits), 10**self.digits)


@settings(max_examples=35, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 25))
def test_all_issued_bills_together_are_what_is_owed(seed: int, steps: int) -> None:
    with TemporaryDirectory() as directory:
        office = Office(random.Random(seed), Path(directory))
        office.hold()
        what = ("hold", "hold", "lose", "credit", "credit", "turn", "issue", "issue")
        for _ in range(steps):
            getattr(office, office.dice.choice(what))()
            office.look()
        for month in list(office.open):
            office.issue(month)
        # A large month takes whatever was left.
        office.source.hold("t", CPU, 10**6, range(121 * 24, 122 * 24))
        office.issue("2024-05")
        office.look()
        bills = [parse_bill(path.read_bytes()) for path in office.sealed if path.suffix == ".json"]
        assert sum(Decimal(bill.total) for bill in bills) == office.owed()
        assert left(office.terms(), office.invoices, "2024-05") == []
