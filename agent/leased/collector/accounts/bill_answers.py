# SPDX-License-Identifier: Apache-2.0
"""Bills as the API tells them.

Rule: what the bill says, and of which time and by which contract each line is: what it says itself
(version 3), or what follows where the month had one contract, or none. Nothing is guessed.

Does not compute bills (`billing`).
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from leased.collector.accounts.answers import Interval, Reach, interval_of, money
from leased.collector.accounts.crediting import given_of
from leased.collector.accounts.periods import Window
from leased.economics.bill_spans import Span, spans_of
from leased.economics.bill_text import terms_of
from leased.economics.billing import Bill, BillLine
from leased.economics.contracts import Terms
from leased.economics.credits import Given
from leased.economics.hourly import NodeSpan
from leased.terms.quantity import print_instant


class LineItem(msgspec.Struct, frozen=True):
    """One line of a bill: quantity x unit_price x multiplier (what its priority pays) is
    its cost. It is of the time from `start` to `end`, null: of another month (a correction), or
    nothing says it. `contract` is the model of that and since when it holds; null: none."""

    description: str
    quantity: Decimal
    unit_price: Decimal
    multiplier: Decimal
    total: Decimal
    unit: str
    cost_exact: str
    kind: str | None
    tier: str | None
    priority: str | None
    start: str | None
    end: str | None
    contract: str | None


class CreditItem(msgspec.Struct, frozen=True):
    """What a bill gives of a credit of `month`; what it cannot give is `left` for the next one."""

    reason: str
    month: str
    amount: Decimal
    left: Decimal


class Summary(msgspec.Struct, frozen=True):
    """A bill. `sha256` is that of the bytes that `leasectl verify --bill` recomputes."""

    tenant: str
    period: str
    line_items: list[LineItem]
    subtotal: Decimal
    credits: Decimal
    total: Decimal
    currency: str
    status: str
    invoice_id: str
    interval: Interval
    audit: list[NodeSpan]
    sha256: str
    reach: Reach
    credit_items: list[CreditItem]


def summary_of(bill: Bill, reach: Reach) -> Summary:
    """A bill as the API tells it."""
    return Summary(
        bill.tenant,
        bill.period,
        line_items(bill),
        Decimal(bill.subtotal),
        Decimal(bill.credits_total),
        Decimal(bill.total),
        bill.currency,
        "final" if bill.final else "draft",
        bill.invoice_id,
        interval_of(Window(*bill.pair)),
        list(bill.audit),
        bill.digest().hex(),
        reach,
        [_credit_item(one, bill.decimals) for one in given_of(bill)],
    )


def _credit_item(one: Given, decimals: int) -> CreditItem:
    amount, left = (money(units, decimals) for units in (-one.amount, one.left))
    return CreditItem(one.credit.reason, one.credit.month, amount, left)


def line_items(bill: Bill) -> list[LineItem]:
    """The lines of a bill."""
    terms = terms_of(bill.terms)
    return [_item(line, span_of(line, bill, terms), terms) for line in bill.line_items]


def span_of(line: BillLine, bill: Bill, terms: Terms) -> Span | None:
    """Of which time a line is, and by which of the contracts in `terms`, those of the bill."""
    if line.window is not None:
        return Span(*line.window, line.contract)
    spans = spans_of(bill.tenant, bill.pair, terms)
    if len(spans) > 1 or line.description in [text for text, _ in bill.corrections]:
        return None
    return spans[0][1].of_card(line.card, terms)


def _item(line: BillLine, span: Span | None, terms: Terms) -> LineItem:
    return LineItem(
        line.description,
        Decimal(line.quantity),
        Decimal(line.unit_price),
        Decimal(line.multiplier_pm) / 1000,
        Decimal(line.total),
        line.unit,
        line.cost_exact,
        line.kind,
        line.tier,
        line.priority,
        None if span is None else print_instant(span.from_ns),
        None if span is None else print_instant(span.to_ns),
        None if span is None or span.contract is None else _contract(span.contract, terms),
    )


def _contract(number: int, terms: Terms) -> str:
    contract = terms.contracts[number]
    since = f" since {print_instant(contract.since_ns)}" if contract.since_ns else ""
    return f"{contract.model.value}{since}"
