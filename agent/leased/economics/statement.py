# SPDX-License-Identifier: Apache-2.0
"""Statements: the bill of one tenant for one period, recomputable byte for byte from verified
records.

Rule: every line cites the sequences of the records that it follows from, states the exact cost and
the cost rounded once; the total is the sum of the rounded lines. Usage is clipped to the period in
label time, half-open. What is still open is in lines of its own, marked provisional. Synthetic
probes (tag flag bit 0) are metered but not billed.

Does not fold events, does not read a clock: the same intervals, period and cards give the same
bytes, always.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import msgspec

from leased.economics.amounts import exact, fixed, rounded
from leased.economics.peaks import labelled
from leased.economics.pools import UNIT, UNIT_NAME, Interval, Pool
from leased.economics.rates import RATE_DIGITS, Rate, RateCard
from leased.economics.timeline import Timeline
from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import AccountingTag, Priority, is_probe
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind, TierKind


class Span(msgspec.Struct, frozen=True):
    """What the numbers were computed from: `node_id` and the records first..last, with the hash of
    the last.
    """

    node_id: str
    first_sequence: int
    last_sequence: int
    head: str


class Line(msgspec.Struct, frozen=True):
    """One priced line. Numbers that JavaScript would lose (capacity x ns, costs) are decimal
    strings.
    """

    kind: str
    tier: str | None
    priority: str
    tag: AccountingTag | None
    provisional: bool
    rate_card: str
    unit: str
    rate: str
    multiplier_pm: int
    leases: int
    capacity_ns: str
    capacity_seconds: str
    cost_exact: str
    cost: str
    sequences: tuple[tuple[int, int], ...]

    def document(self) -> dict[str, object]:
        """As plain values; the tag as its five fields in order."""
        fields = msgspec.structs.asdict(self)
        if self.tag is not None:
            fields["tag"] = msgspec.structs.astuple(self.tag)
        return fields


class Statement(msgspec.Struct, frozen=True):
    """A bill. `complete`: all records of it are there, it ended before the watermark, and nothing
    in it is provisional."""

    version: int
    tenant: str
    from_ns: str
    to_ns: str
    watermark_ns: str
    complete: bool
    currency: str
    decimals: int
    lines: tuple[Line, ...]
    total: str
    span: Span

    def canonical(self) -> bytes:
        """The one encoding of this statement."""
        return canonical(self.document())

    def document(self) -> dict[str, object]:
        """As plain values."""
        document = msgspec.structs.asdict(self)
        document["span"] = msgspec.structs.asdict(self.span)
        document["lines"] = [line.document() for line in self.lines]
        return document

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: two parties who have the records get the same."""
        return hashlib.sha256(self.canonical()).digest()


class _Key(msgspec.Struct, frozen=True):
    kind: ResourceKind
    tier: TierKind | None
    priority: Priority
    tag: AccountingTag | None
    provisional: bool
    rate_hash: bytes

    def order(self) -> tuple[object, ...]:
        """A total order over keys, so that lines never depend on the order of arrival."""
        tag = self.tag
        tagged = (
            ()
            if tag is None
            else (tag.cost_center, tag.project, tag.request_class, tag.budget_group, tag.flags)
        )
        tier = -1 if self.tier is None else int(self.tier)
        return (int(self.kind), tier, int(self.priority), tagged, self.provisional, self.rate_hash)


class _Sum:
    __slots__ = ("capacity_ns", "leases", "sequences")

    def __init__(self) -> None:
        self.capacity_ns = 0
        self.leases: set[bytes] = set()
        self.sequences: set[int] = set()


def state(
    intervals: Iterable[Interval],
    timeline: Timeline,
    *,
    tenant: TenantId,
    from_ns: int,
    to_ns: int,
    watermark_ns: int,
    cards: Mapping[bytes, RateCard],
    span: Span,
    known_from_ns: int = 0,
) -> Statement:
    """The statement of `tenant` for [from_ns, to_ns) of label time.

    `watermark_ns` is the label of the last record folded, `known_from_ns` that from which on all
    are; `cards` are looked up by the hash that each lease names. Raises ConfigError if a card is
    missing or two cards disagree on the currency.
    """
    sums = _collect(intervals, timeline, tenant, (from_ns, to_ns))
    keys = sorted(sums, key=_Key.order)
    priced_by = [_card(cards, key.rate_hash) for key in keys]
    currency, decimals = _currency(priced_by)
    lines: list[Line] = []
    total = 0
    for key, card in zip(keys, priced_by, strict=True):
        line, cost = _line(key, sums[key], card)
        lines.append(line)
        total += cost
    return Statement(
        version=1,
        tenant=tenant,
        from_ns=str(from_ns),
        to_ns=str(to_ns),
        watermark_ns=str(watermark_ns),
        complete=known_from_ns <= from_ns
        and to_ns <= watermark_ns
        and not any(key.provisional for key in keys),
        currency=currency,
        decimals=decimals,
        lines=tuple(lines),
        total=fixed(total, decimals),
        span=span,
    )


def canonical(document: dict[str, Any]) -> bytes:
    """The one encoding of a document: JSON, keys sorted, no floats, no spaces."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def _collect(
    intervals: Iterable[Interval], timeline: Timeline, tenant: TenantId, window: tuple[int, int]
) -> dict[_Key, _Sum]:
    sums: dict[_Key, _Sum] = {}
    for interval in intervals:
        subject = interval.subject
        if subject is None or interval.pool is not Pool.TENANT or subject.tenant != tenant:
            continue
        if is_probe(subject.tag):
            continue
        amount = sum(
            capacity * (end_ns - start_ns)
            for start_ns, end_ns, capacity in labelled(interval, timeline, window)
        )
        if not amount:
            continue
        key = _Key(
            interval.allotment.kind,
            interval.allotment.tier,
            subject.priority,
            subject.tag,
            interval.provisional,
            subject.rate_hash,
        )
        found = sums.setdefault(key, _Sum())
        found.capacity_ns += amount
        found.leases.add(interval.lease_id or b"")
        found.sequences.add(interval.opened_by)
        found.sequences.add(interval.closed_by)
    return sums


def _line(key: _Key, found: _Sum, card: RateCard) -> tuple[Line, int]:
    cost = card.cost(found.capacity_ns, key.kind, key.tier, key.priority)
    told = rounded(cost, card.decimals)
    line = Line(
        kind=key.kind.name.lower(),
        tier=None if key.tier is None else key.tier.name.lower(),
        priority=key.priority.name.lower(),
        tag=key.tag,
        provisional=key.provisional,
        rate_card=key.rate_hash.hex(),
        unit=f"{UNIT_NAME[key.kind]}-second",
        rate=rate_text(card.rate(key.kind, key.tier, key.priority)),
        multiplier_pm=card.multiplier_pm(key.priority),
        leases=len(found.leases),
        capacity_ns=str(found.capacity_ns),
        capacity_seconds=exact(Fraction(found.capacity_ns, UNIT[key.kind] * NS_PER_S)),
        cost_exact=exact(cost),
        cost=fixed(told, card.decimals),
        sequences=runs(found.sequences),
    )
    return line, told


def rate_text(rate: Rate) -> str:
    """A rate as a decimal: nine digits, or twelve where it takes so many."""
    return fixed(rate.exact, RATE_DIGITS) if rate.pico else fixed(rate.nano, 9)


def runs(sequences: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sequences as inclusive (first, last) runs, ascending."""
    found: list[tuple[int, int]] = []
    for sequence in sorted(sequences):
        if found and sequence == found[-1][1] + 1:
            found[-1] = (found[-1][0], sequence)
        elif not found or sequence > found[-1][1]:
            found.append((sequence, sequence))
    return tuple(found)


def _card(cards: Mapping[bytes, RateCard], rate_hash: bytes) -> RateCard:
    card = cards.get(rate_hash)
    if card is None:
        raise ConfigError(
            f"rates: no rate card with hash {rate_hash.hex()} is at hand, but a lease was granted"
            " under it"
        )
    return card


def _currency(cards: list[RateCard]) -> tuple[str, int]:
    if not cards:
        return "credits", 6
    first = cards[0]
    for card in cards:
        if (card.currency, card.decimals) != (first.currency, first.decimals):
            raise ConfigError(
                "rates: the cards of this period disagree on currency or decimals; bill them apart"
            )
    return first.currency, first.decimals
