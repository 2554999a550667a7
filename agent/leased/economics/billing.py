# SPDX-License-Identifier: Apache-2.0
"""Bills: hourly usage of one tenant and one month, priced by its contracts, with the audit block
from which anybody with the chains computes the same bytes again.

Rule: a line is exact until it is rounded, once; the total is the sum of the rounded lines and the
credits. The bill carries its terms and, per chain, the records that it follows from. The same
usage, terms and chains give the same canonical bytes, whoever computes them. Synthetic probes are
metered and not billed. A contract's minimum is held against its own lines. A bill with credits, or
with a minimum beside another contract, is of the version in which credits do not end with the bill
and one contract's lines are not counted towards another's minimum; one with lines that are not of
the whole month is of the version in which each line says of which time it is, and by which
contract.

Does not fold events (`hourly`) and does not read a clock: `as_of` is the fleet's watermark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import msgspec

from leased.economics.amounts import decimal, exact, fixed, rounded
from leased.economics.bill_spans import Span, spans_of
from leased.economics.contracts import Contract, Terms
from leased.economics.credits import give, named
from leased.economics.hourly import NodeSpan
from leased.economics.meter import UsageKey
from leased.economics.model_lines import Item, Metered, model_items
from leased.economics.pools import Pool
from leased.economics.rates import NANO, RATE_DIGITS
from leased.economics.statement import canonical
from leased.terms.lease import is_probe
from leased.terms.moment import HOUR_NS

VERSION: Final = 1
APART: Final = 2
DATED: Final = 3
VERSIONS: Final = (VERSION, APART, DATED)


class BillLine(msgspec.Struct, frozen=True):
    """One line. Quantities and money are decimal strings; `cost_exact` has every digit, or is n/d.
    `kind`, `tier` and `priority` are None where the line is not of one. Of version 3 a line has its
    time and the number of its contract in the terms, and what is None of these is not written."""

    description: str
    quantity: str
    unit: str
    unit_price: str
    cost_exact: str
    total: str
    kind: str | None = None
    tier: str | None = None
    priority: str | None = None
    multiplier_pm: int = 1000
    card: int | None = None
    from_ns: str | None = None
    to_ns: str | None = None
    contract: int | None = None

    def document(self) -> dict[str, Any]:
        """As plain values."""
        fields = msgspec.structs.asdict(self)
        for name in ("from_ns", "to_ns", "contract"):
            if fields[name] is None:
                del fields[name]
        return fields

    @property
    def window(self) -> tuple[int, int] | None:
        """Its time, if it says."""
        if self.from_ns is None or self.to_ns is None:
            return None
        return int(self.from_ns), int(self.to_ns)


class Bill(msgspec.Struct, frozen=True):
    """A bill of one tenant for one month. `final`: it was computed after the month had closed on
    every node."""

    version: int
    invoice_id: str
    tenant: str
    period: str
    from_ns: str
    to_ns: str
    as_of_ns: str
    final: bool
    currency: str
    decimals: int
    line_items: tuple[BillLine, ...]
    subtotal: str
    credits: tuple[tuple[str, str], ...]
    credits_total: str
    total: str
    corrections: tuple[tuple[str, str], ...]
    audit: tuple[NodeSpan, ...]
    terms: dict[str, Any]

    @property
    def pair(self) -> tuple[int, int]:
        """Its time, as the pure rooms take it."""
        return int(self.from_ns), int(self.to_ns)

    def canonical(self) -> bytes:
        """The one encoding of this bill."""
        return canonical(self.document())

    def document(self) -> dict[str, Any]:
        """As plain values."""
        document = msgspec.structs.asdict(self)
        document["line_items"] = [line.document() for line in self.line_items]
        document["audit"] = [msgspec.structs.asdict(span) for span in self.audit]
        document["credits"] = [list(credit) for credit in self.credits]
        document["corrections"] = [list(correction) for correction in self.corrections]
        return document

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.canonical()).digest()


class Month(msgspec.Struct, frozen=True):
    """A billing month: its name and its instants, both on a full hour."""

    name: str
    from_ns: int
    to_ns: int

    @property
    def pair(self) -> tuple[int, int]:
        """The same, as the pure rooms take it."""
        return self.from_ns, self.to_ns


def make_bill(
    tenant: str,
    month: Month,
    usage: Mapping[UsageKey, int],
    tasks: Mapping[tuple[str, int], int],
    terms: Terms,
    nodes: Sequence[NodeSpan],
    *,
    fleet_watermark_ns: int,
    corrections: Sequence[tuple[str, int]] = (),
    version: int | None = None,
) -> Bill:
    """The bill of `tenant` for `month` from the cells of a fleet. `nodes` are the chains that the
    cells follow from; nobody's records after `fleet_watermark_ns` are settled; `corrections`
    (description, 10**-decimals units) are those of issued bills; `version` is that of one that is
    computed again.
    """
    terms = terms.of_tenant(tenant, month.name)
    charges = list(_charges(tenant, month, usage, tasks, terms))
    if version is None:
        version = _version(charges, month, terms)
    lines, subtotal = _charged(charges, terms, version)
    for description, amount in corrections:
        lines.append(_plain(description, amount, terms.decimals))
        subtotal += amount
    told = give(
        terms.credits,
        subtotal,
        terms.decimals,
        allow_negative=terms.allow_negative,
        version=version,
    )
    credits = [(named(one.credit, month.name), one.amount) for one in told if one.amount]
    return Bill(
        version=version,
        invoice_id=f"INV-{month.name}-{tenant}",
        tenant=tenant,
        period=month.name,
        from_ns=str(month.from_ns),
        to_ns=str(month.to_ns),
        as_of_ns=str(fleet_watermark_ns),
        final=month.to_ns <= fleet_watermark_ns,
        currency=terms.currency,
        decimals=terms.decimals,
        line_items=tuple(lines),
        subtotal=fixed(subtotal, terms.decimals),
        credits=tuple((reason, fixed(-amount, terms.decimals)) for reason, amount in credits),
        credits_total=fixed(-sum(amount for _, amount in credits), terms.decimals),
        total=fixed(subtotal - sum(amount for _, amount in credits), terms.decimals),
        corrections=tuple((text, fixed(n, terms.decimals)) for text, n in corrections),
        audit=tuple(sorted(nodes, key=lambda node: (node.node_id, node.log_id))),
        terms=document_of(terms),
    )


class _Charge(msgspec.Struct, frozen=True):
    """What a contract makes lines of, what they come to at least, and for which time."""

    items: list[Item]
    minimum: Fraction
    span: Span


def _charges(
    tenant: str,
    month: Month,
    usage: Mapping[UsageKey, int],
    tasks: Mapping[tuple[str, int], int],
    terms: Terms,
) -> Iterator[_Charge]:
    month_ns = month.to_ns - month.from_ns
    for contract, span in spans_of(tenant, month.pair, terms):
        part = Fraction(span.to_ns - span.from_ns, month_ns)
        hours = (span.from_ns // HOUR_NS, span.to_ns // HOUR_NS)
        metered = collect(tenant, usage, tasks, hours, terms)
        minimum = part * Fraction(contract.monthly_minimum_nano, NANO)
        yield _Charge(model_items(contract, terms, metered, part, month_ns), minimum, span)


def _version(charges: Sequence[_Charge], month: Month, terms: Terms) -> int:
    """The first version that can say it: a bill that an earlier release can read, it is to."""
    for charge in charges:
        spans = [charge.span.of_card(item.card, terms) for item in charge.items]
        if any((span.from_ns, span.to_ns) != month.pair for span in (charge.span, *spans)):
            return DATED
    return APART if terms.credits else VERSION


def _charged(charges: Sequence[_Charge], terms: Terms, version: int) -> tuple[list[BillLine], int]:
    """The lines, and what they come to."""
    if version == VERSION:  # in which all lines are held against the sum of all minimums
        items = [item for charge in charges for item in charge.items]
        least = sum((charge.minimum for charge in charges), Fraction(0))
        charges = [_Charge(items, least, charges[0].span)]
    lines: list[BillLine] = []
    subtotal = 0
    for charge in charges:
        found: list[tuple[BillLine, int | None]] = [
            (_line(item, terms.decimals), item.card)
            for item in charge.items
            if item.amount or item.always
        ]
        paid = sum(rounded(item.amount, terms.decimals) for item in charge.items)
        short = max(0, rounded(charge.minimum, terms.decimals) - paid)
        if short:
            found.append((_plain("Minimum commitment adjustment", short, terms.decimals), None))
        if version == DATED:
            lines += [_dated(line, charge.span.of_card(card, terms)) for line, card in found]
        else:
            lines += [line for line, _ in found]
        subtotal += paid + short
    return lines, subtotal


def _dated(line: BillLine, span: Span) -> BillLine:
    return msgspec.structs.replace(
        line, from_ns=str(span.from_ns), to_ns=str(span.to_ns), contract=span.contract
    )


def collect(
    tenant: str,
    usage: Mapping[UsageKey, int],
    tasks: Mapping[tuple[str, int], int],
    hours: tuple[int, int],
    terms: Terms,
) -> Metered:
    """What `tenant` is charged for in hours [first, last)."""
    metered = Metered()
    for key, amount in usage.items():
        mine = key.pool is Pool.TENANT and key.tenant == tenant and not is_probe(key.tag)
        if mine and hours[0] <= key.bucket < hours[1]:
            metered.add(key, amount, terms.card_number(key.bucket))
    for (whose, hour), count in tasks.items():
        if whose == tenant and hours[0] <= hour < hours[1]:
            metered.tasks += count
    return metered


def _line(item: Item, decimals: int) -> BillLine:
    return BillLine(
        description=item.description,
        quantity=decimal(item.quantity),
        unit=item.unit,
        unit_price=decimal(item.price, RATE_DIGITS),
        cost_exact=exact(item.amount),
        total=fixed(rounded(item.amount, decimals), decimals),
        kind=item.kind,
        tier=item.tier,
        priority=item.priority,
        multiplier_pm=item.multiplier_pm,
        card=item.card,
    )


def _plain(description: str, amount: int, decimals: int) -> BillLine:
    text = fixed(amount, decimals)
    return BillLine(description, "1", "", text, text, text)


def document_of(terms: Terms) -> dict[str, Any]:
    """`terms` as plain values, all numbers integers, in the order in which they are listed."""
    return {
        "cards": [[v.since_ns, v.card.document()] for v in terms.cards],
        "infrastructure": terms.infrastructure.document(),
        "plans": [msgspec.structs.asdict(plan) for plan in terms.plans],
        "contracts": [_contract_document(contract) for contract in terms.contracts],
        "credits": [credit.document() for credit in terms.credits],
        "time_zones": [list(zone) for zone in terms.time_zones],
        "allow_negative": terms.allow_negative,
    }


def _contract_document(contract: Contract) -> dict[str, Any]:
    document = msgspec.structs.asdict(contract)
    document["model"] = contract.model.value
    document["tier_mode"] = contract.tier_mode.value
    document["rates"] = msgspec.structs.asdict(contract.rates)
    document["tiers"] = [list(msgspec.structs.astuple(tier)) for tier in contract.tiers]
    return document
