# SPDX-License-Identifier: Apache-2.0
"""The lines of a bill as the API tells them.

Rule: what the bill says, and of which time and by which contract each line is: what it says itself
(version 3), or what follows where the month had one contract, or none. Nothing is guessed.

Does not compute bills (`billing`).
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from leased.economics.bill_spans import Span, spans_of
from leased.economics.bill_text import terms_of
from leased.economics.billing import Bill, BillLine
from leased.economics.contracts import Terms
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


def line_items(bill: Bill) -> list[LineItem]:
    """The lines of a bill."""
    terms = terms_of(bill.terms)
    return [_item(line, span_of(line, bill, terms), terms) for line in bill.line_items]


def span_of(line: BillLine, bill: Bill, terms: Terms) -> Span | None:
    """Of which time a line is, and by which of the contracts in `terms`, those of the bill."""
    if line.window is not None:
        return Span(*line.window, line.contract)
    spans = spans_of(bill.tenant, (int(bill.from_ns), int(bill.to_ns)), terms)
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
