# SPDX-License-Identifier: Apache-2.0
"""verify --bill: a bill of the collector, computed again from the pulled chains alone.

Rule: nothing is taken from the collector but raw segments, each chain checked from its first record
to the head that the bill names (`bill_chains`); the bill is right if the same bytes come out. A
bill over records that are not there, or that no checkpoint of their node's covers, is NOT_PROVEN,
and they are named. Of the bill itself come what was agreed (prices, plans, credits, corrections of
bills before) and how far everybody's records reached: they are named, so that whoever agreed to
them can compare.

Does not ask the collector, and does not read its database.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.ctl.bill_chains import Chains, Missing, read_signers
from leased.ctl.console import Console, timestamp
from leased.ctl.render import one_line
from leased.durable.reading import read_file
from leased.economics.amounts import units
from leased.economics.bill_text import parse_bill, terms_of
from leased.economics.billing import Bill, Month, make_bill
from leased.economics.contracts import Terms
from leased.economics.hourly import Hourly
from leased.terms.errors import EX_DATAERR, InvalidParameter

STATE: Final = Path("/var/lib/leased-collector")
DECIMALS_MAX: Final = 30
MONTH_NS_MAX: Final = 33 * 86_400 * 10**9
"""A bill is of one month, wherever it is: where it ends may be 26 hours behind where it began."""


def add_bill(parser: argparse.ArgumentParser) -> None:
    """The options of verify that are about a bill."""
    parser.add_argument("--bill", type=Path, metavar="FILE", help="compute this bill again")
    parser.add_argument(
        "--archive",
        type=Path,
        action="append",
        metavar="DIR",
        help="where the pulled chains are, below segments/; may be repeated, as for a backup of "
        f"what has been removed since (default: {STATE})",
    )


def verify_bill(options: argparse.Namespace, console: Console) -> int:
    """Check a bill; 65 if it is not what the chains say."""
    try:
        raw = read_file(options.bill, pipe=True)
    except OSError as error:
        raise InvalidParameter("bill", f"{options.bill}: {error.strerror}") from error
    try:
        bill = parse_bill(raw)
        terms = terms_of(bill.terms)
        window = _sound(bill, terms)
    except (ValueError, msgspec.ValidationError) as error:
        raise InvalidParameter("bill", f"{options.bill}: not a bill: {error}") from error
    signers = read_signers(options.enrolment, console.wall_ns()) if options.enrolment else None
    chains = Chains(options.archive or [STATE], signers)
    hourly = Hourly(window)
    records = 0
    missing: list[Missing] = []
    for span in bill.audit:
        console.progress(f"verifying {span.node_id}, log {span.log_id}")
        fold, gaps = chains.fold(span, window[1])
        missing.extend(gaps)
        records += span.last_sequence - span.first_sequence + 1
        if not missing:
            hourly.add(fold)
    if missing:
        _tell_missing(options, console, bill, missing)
        return EX_DATAERR
    again = make_bill(
        bill.tenant,
        Month(bill.period, *window),
        hourly.usage,
        hourly.tasks,
        terms,
        bill.audit,
        fleet_watermark_ns=int(bill.as_of_ns),
        corrections=[(text, units(amount, bill.decimals)) for text, amount in bill.corrections],
        version=bill.version,
    )
    same = again.canonical() == raw
    wrong = [] if same else list(differences(bill, again)) or ["the bytes are not the canonical"]
    _tell(options, console, bill, records, wrong)
    return EX_DATAERR if wrong else 0


def _sound(bill: Bill, terms: Terms) -> tuple[int, int]:
    """The window of a bill, each value of which is of its type: whoever wrote it is not known.
    Raises ValueError, ValidationError."""
    for value, kind in ((bill, Bill), (terms, Terms)):
        msgspec.convert(msgspec.to_builtins(value), kind)
    decimals = [bill.decimals, terms.infrastructure.decimals]
    decimals += [version.card.decimals for version in terms.cards]
    if not all(0 <= one <= DECIMALS_MAX for one in decimals):
        raise ValueError(f"decimals: from 0 to {DECIMALS_MAX}")
    for _, amount in bill.corrections:
        units(amount, bill.decimals)
    begin_ns, end_ns = bill.pair
    if not 0 <= begin_ns < end_ns < 1 << 63 or end_ns - begin_ns > MONTH_NS_MAX:
        raise ValueError("from_ns and to_ns are of no month")
    if not 0 <= int(bill.as_of_ns) < 1 << 64:
        raise ValueError("as_of_ns is no time")
    return begin_ns, end_ns


def differences(told: Bill, again: Bill) -> Iterator[str]:
    """What of a bill is not what was computed."""
    one, other = told.document(), again.document()
    for name in one:
        if one[name] == other[name]:
            continue
        if name != "line_items":
            yield f"{name}: the bill says {one[name]}, the chains {other[name]}"
            continue
        for index in range(max(len(one[name]), len(other[name]))):
            said = one[name][index : index + 1]
            found = other[name][index : index + 1]
            if said != found:
                yield f"line {index + 1}: the bill says {_line(said)}, the chains {_line(found)}"


def _line(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return "nothing"
    line = lines[0]
    return f"{line['description']}: {line['quantity']} {line['unit']} for {line['total']}"


def _tell(
    options: argparse.Namespace, console: Console, bill: Bill, records: int, wrong: list[str]
) -> None:
    if options.json:
        console.document(
            {
                "verdict": "BILL_WRONG" if wrong else "ok",
                **_named(bill),
                "records": records,
                "signatures": "checked" if options.enrolment else "not checked",
                "sha256": bill.digest().hex(),
                "differences": wrong,
            }
        )
        return
    what = one_line(f"{bill.tenant} {bill.period}: {bill.total} {bill.currency}")
    if wrong:
        console.say(f"BILL_WRONG {what}")
        for difference in wrong:
            console.say(one_line(f"  {difference}"))
        return
    console.say(f"ok {what}, {'final' if bill.final else 'draft'}, sha256 {bill.digest().hex()}")
    console.say(f"computed again from {records} records of {len(bill.audit)} chains, byte for byte")
    if options.enrolment:
        console.say("every record of the period is below a checkpoint that its node signed")
    else:
        console.say("signatures of nodes were not checked: give their --enrolment")
    agreed = f"{len(bill.credits)} credits, {len(bill.corrections)} corrections"
    reach = timestamp(int(bill.as_of_ns))
    console.say(f"taken from the bill: its prices and contracts, {agreed}, records up to {reach}")


def _named(bill: Bill) -> dict[str, Any]:
    return {
        "tenant": bill.tenant,
        "period": bill.period,
        "total": bill.total,
        "currency": bill.currency,
        "final": bill.final,
        "chains": len(bill.audit),
    }


def _tell_missing(
    options: argparse.Namespace, console: Console, bill: Bill, missing: list[Missing]
) -> None:
    """What proves nothing, of which chain."""
    if options.json:
        found = msgspec.to_builtins(missing)
        console.document({"verdict": "NOT_PROVEN", **_named(bill), "missing": found})
        return
    what = one_line(f"{bill.tenant} {bill.period}: {bill.total} {bill.currency}")
    console.say(f"NOT_PROVEN {what}")
    for one in missing:
        console.say(one_line(f"  {one.text()}, log {one.log_id}"))
    if not bill.final and all(one.why == "unsigned" for one in missing):
        console.note("a draft reaches beyond its nodes' last checkpoints: pull, and ask once more")
