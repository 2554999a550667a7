# SPDX-License-Identifier: Apache-2.0
"""Verbs on cost: usage, statement, rates.

Rule: they compute from the sealed log alone, after verifying all of it, and need no agent: the same
log gives the same bytes on any machine. What is still open is counted and marked provisional.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from leased.ctl import render
from leased.ctl.audit import add_log
from leased.ctl.console import Console, parse_instant, timestamp
from leased.ctl.rate_file import CONFIG_FILE, load_cards
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.whole_file import write_whole
from leased.durable.reader import read_log
from leased.economics.amounts import exact
from leased.economics.intervals import Ledger, fold
from leased.economics.meter import Sums, UsageKey, measure
from leased.economics.peaks import Peak, peaks
from leased.economics.pools import UNIT, UNIT_NAME, Interval, Pool
from leased.economics.rates import RateCard
from leased.economics.statement import Span, Statement, rate_text, state
from leased.terms.errors import EX_IOERR, EX_NOINPUT, CallerError, InvalidParameter
from leased.terms.identity import TenantId, parse_tenant
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind

BUCKETS: Final = {"total": 0, "hour": 3_600 * NS_PER_S, "day": 86_400 * NS_PER_S}


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "usage",
        "who held how much for how long",
        "leasectl usage --tenant research --since 2026-01-01 --by day",
    )
    add_log(one)
    _add_period(one)
    one.add_argument("--tenant", help="only this one")
    one.add_argument("--by", choices=tuple(BUCKETS), default="total", help="default: total")
    one.add_argument(
        "--resources", action="store_true", help="by resource: every unit accounted for"
    )
    one.set_defaults(act=usage)
    one = verb(
        verbs,
        "statement",
        "the bill of a tenant, citing its records",
        "leasectl statement research --since 2026-01-01 --until 2026-02-01",
    )
    add_log(one)
    one.add_argument("tenant", help="whose")
    _add_period(one)
    _add_rates(one)
    one.add_argument("--out", type=Path, metavar="FILE", help="write the canonical bytes there")
    one.set_defaults(act=statement)
    one = verb(verbs, "rates", "print rate cards and their hashes", "leasectl rates")
    _add_rates(one)
    one.set_defaults(act=show_rates)


def _add_period(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="TIME", help='"2026-01-31" or "2026-01-31T12:00:00Z"')
    parser.add_argument("--until", metavar="TIME", help="without it (default: the last record)")


def _add_rates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rates",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"a file with a [rates] table; may be repeated (default: {CONFIG_FILE})",
    )


class UnknownTenant(CallerError):
    """No lease of this tenant is on record."""

    exit_status = EX_NOINPUT


class Books:
    """A verified log, folded: what every verb here begins with."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        console.progress(f"verifying and folding {options.log}")
        self.ledger: Ledger
        self.intervals: list[Interval]
        with closing(read_log(options.log)) as opened:
            self.ledger, self.intervals = fold(opened.events())
            self.head = opened.head
        if self.ledger.boot_id is None:
            raise InvalidParameter("log", f"{options.log}: there is no record in it yet")
        timeline = self.ledger.timeline
        self.watermark_ns = timeline.label(self.ledger.boot_id, self.ledger.watermark_ns)
        self.first_ns = timeline.eras[0].label_ns
        self.window = self._window(options)
        for told in self.ledger.disagreements:
            lease = render.short(told.lease_id.hex())
            console.note(
                f"record {told.sequence}: the usage sealed for {lease} is not what is folded"
            )
        if self.ledger.orphans:
            console.note(
                f"{self.ledger.orphans} records are of what began before the log, or never did"
            )
        if self.window[0] < self.ledger.known_from_ns:
            since = timestamp(self.ledger.known_from_ns)
            console.note(f"the log was pruned: of what was before {since} not all is told")

    def _window(self, options: argparse.Namespace) -> tuple[int, int]:
        try:
            since = self.first_ns if options.since is None else parse_instant(options.since)
            until = self.watermark_ns if options.until is None else parse_instant(options.until)
        except ValueError as error:
            raise InvalidParameter("period", str(error)) from error
        if until < since:
            raise InvalidParameter("until", "the period ends before it begins")
        return since, until

    def known(self, tenant: TenantId) -> TenantId:
        """`tenant`, if it ever had a lease here: a name that is misspelt has no empty bill. Raises
        UnknownTenant."""
        if not any(one.subject and one.subject.tenant == tenant for one in self.intervals):
            raise UnknownTenant(f"tenant: no lease of {tenant!r} is on record in this log")
        return tenant

    def span(self) -> Span:
        """What the numbers are computed from."""
        ledger = self.ledger
        return Span(
            ledger.node_id.hex(), ledger.first_sequence, ledger.last_sequence, self.head.hash.hex()
        )

    def period(self) -> dict[str, Any]:
        """The period and the watermark, for JSON."""
        return {
            "since": timestamp(self.window[0]),
            "until": timestamp(self.window[1]),
            "watermark": timestamp(self.watermark_ns),
            "head": self.head.hash.hex(),
        }


def usage(options: argparse.Namespace, console: Console) -> int:
    """Print usage."""
    if options.resources and (options.by != "total" or options.tenant is not None):
        why = "by resource it is everybody's, in all: leave --by and --tenant away"
        raise InvalidParameter("resources", why)
    only = None if options.tenant is None else parse_tenant(options.tenant)
    books = Books(options, console)
    if only is not None:
        books.known(only)
    sums = measure(books.intervals, books.ledger.timeline, BUCKETS[options.by], books.window)
    if options.resources:
        _tell_resources(options, console, books, sums)
        return 0
    highest = peaks(books.intervals, books.ledger.timeline, books.window)
    rows = [
        (key, amount)
        for key, amount in sums.usage.items()
        if key.pool is not Pool.PROVISIONED and only in (None, key.tenant)
    ]
    rows.sort(key=lambda row: _order(row[0]))
    if only is not None and not rows:
        console.note(f"nothing of {only} is on record in this time")
    if options.json:
        documents = [_usage_document(key, amount, sums.bucket_ns, highest) for key, amount in rows]
        console.document({**books.period(), "usage": documents})
        return 0
    lines = [_usage_row(key, amount, sums.bucket_ns, highest, console) for key, amount in rows]
    names = ("FROM", "POOL", "TENANT", "KIND", "TIER", "PRIORITY", "AMOUNT", "PEAK")
    console.say(*render.table(names, lines))
    return 0


def _order(key: UsageKey) -> tuple[int, int, str, int, int, int, str]:
    tier = -1 if key.tier is None else int(key.tier)
    priority = -1 if key.priority is None else int(key.priority)
    return (key.bucket, key.pool, key.tenant, key.kind, tier, priority, repr(key.tag))


def _usage_document(
    key: UsageKey, amount: int, bucket_ns: int, highest: dict[Any, Peak]
) -> dict[str, Any]:
    found = highest.get((key.tenant, key.kind, key.tier)) if key.pool is Pool.TENANT else None
    return {
        "from": timestamp(key.bucket * bucket_ns) if bucket_ns else None,
        "pool": key.pool.name.lower(),
        "tenant": key.tenant or None,
        "kind": key.kind.name.lower(),
        "tier": None if key.tier is None else key.tier.name.lower(),
        "priority": None if key.priority is None else key.priority.name.lower(),
        "tag": None if key.tag is None else render.plain(key.tag),
        "capacity_ns": str(amount),
        "capacity_seconds": seconds(key.kind, amount),
        "unit": f"{UNIT_NAME[key.kind]}-second",
        "peak_of_period": None if found is None else found.capacity,
    }


def _usage_row(
    key: UsageKey, amount: int, bucket_ns: int, highest: dict[Any, Peak], console: Console
) -> tuple[str, ...]:
    found = highest.get((key.tenant, key.kind, key.tier)) if key.pool is Pool.TENANT else None
    kind = key.kind.name.lower()
    return (
        timestamp(key.bucket * bucket_ns)[:16] + "Z" if bucket_ns else "-",
        key.pool.name.lower(),
        key.tenant or "-",
        kind,
        "-" if key.tier is None else key.tier.name.lower(),
        "-" if key.priority is None else key.priority.name.lower(),
        f"{_trimmed(seconds(key.kind, amount))} {UNIT_NAME[key.kind]}-s",
        "-" if found is None else _trimmed(seconds(key.kind, found.capacity * NS_PER_S)),
    )


def _tell_resources(
    options: argparse.Namespace, console: Console, books: Books, sums: Sums
) -> None:
    pools = ("provisioned", "tenant", "teardown", "fenced", "idle")
    if options.json:
        documents = [
            {"resource_id": name, "kind": totals.kind.name.lower()}
            | {f"{pool}_ns": str(getattr(totals, pool)) for pool in pools}
            for name, totals in sorted(sums.resources.items())
        ]
        console.document({**books.period(), "resources": documents})
        return
    rows = [
        (
            name,
            *(_trimmed(seconds(totals.kind, getattr(totals, pool))) for pool in pools),
            f"{UNIT_NAME[totals.kind]}-s",
        )
        for name, totals in sorted(sums.resources.items())
    ]
    console.say(*render.table(("RESOURCE", *(pool.upper() for pool in pools), "UNIT"), rows))


def statement(options: argparse.Namespace, console: Console) -> int:
    """Print a bill."""
    tenant = parse_tenant(options.tenant)
    cards = load_cards(options.rates)
    books = Books(options, console)
    bill = state(
        books.intervals,
        books.ledger.timeline,
        tenant=books.known(tenant),
        from_ns=books.window[0],
        to_ns=books.window[1],
        watermark_ns=books.watermark_ns,
        cards=cards,
        span=books.span(),
        known_from_ns=books.ledger.known_from_ns,
    )
    if options.out is not None:
        try:
            write_whole(options.out, bill.canonical())
        except OSError as error:
            console.note(f"{options.out}: {error.strerror}")
            return EX_IOERR
    if not bill.lines:
        console.note(f"nothing of {tenant} is on record in this time")
    if options.json:
        console.document({"sha256": bill.digest().hex(), "statement": bill.document()})
    else:
        _tell_bill(bill, console)
    return 0


def _tell_bill(bill: Statement, console: Console) -> None:
    console.say(f"{bill.tenant}  {timestamp(int(bill.from_ns))} to {timestamp(int(bill.to_ns))}")
    rows = [
        (
            line.kind + (f"/{line.tier}" if line.tier else ""),
            line.priority,
            line.tag.cost_center if line.tag else "-",
            f"{_trimmed(line.capacity_seconds)} {line.unit}s",
            _trimmed(line.rate),
            line.cost,
            "provisional" if line.provisional else "",
        )
        for line in bill.lines
    ]
    headings = ("ITEM", "PRIORITY", "TAG", "QUANTITY", "RATE", "COST", "")
    console.say(*render.table(headings, rows))
    console.say(
        f"total {bill.total} {bill.currency}{'' if bill.complete else ' (not complete yet)'}"
    )
    span = bill.span
    console.say(f"records {span.first_sequence} to {span.last_sequence}, head {span.head}")
    console.say(f"sha256 {bill.digest().hex()}")


def show_rates(options: argparse.Namespace, console: Console) -> int:
    """Print rate cards."""
    cards = load_cards(options.rates)
    if options.json:
        documents = [{"hash": digest.hex(), **card.document()} for digest, card in cards.items()]
        console.document({"cards": documents})
        return 0
    for digest, card in cards.items():
        console.say(f"card {digest.hex()} ({card.currency}, {card.decimals} decimals)")
        console.say(*_card_lines(card))
    return 0


def _card_lines(card: RateCard) -> list[str]:
    rows = [
        (
            rate.kind.name.lower(),
            rate.tier.name.lower() if rate.tier is not None else "any",
            rate.priority.name.lower() if rate.priority is not None else "any",
            _trimmed(rate_text(rate)),
            f"{card.currency} per {UNIT_NAME[rate.kind]}-second",
        )
        for rate in card.rates
    ]
    lines = render.table(("KIND", "TIER", "PRIORITY", "RATE", "UNIT"), rows)
    for priority, multiplier_pm in card.multipliers_pm:
        lines.append(f"{priority.name.lower()} pays {multiplier_pm} per mille of it")
    return lines


def seconds(kind: ResourceKind, capacity_ns: int) -> str:
    """Capacity x ns as rate units x seconds, exactly."""
    return exact(Fraction(capacity_ns, UNIT[kind] * NS_PER_S))


def _trimmed(text: str) -> str:
    """A decimal for a table: at most six digits after the point, cut and marked so."""
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    if len(fraction) > 6:
        return f"{whole}.{fraction[:6]}…"
    return f"{whole}.{fraction}" if fraction else whole
