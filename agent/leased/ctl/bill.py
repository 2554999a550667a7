# SPDX-License-Identifier: Apache-2.0
"""verify --bill: a bill of the collector, computed again from the pulled chains alone.

Rule: nothing is taken from the collector but raw segments, each chain checked from its first record
to the head that the bill names; the bill is right if the same bytes come out. Of the bill itself
come what was agreed (prices, plans, credits, corrections of bills before) and how far everybody's
records reached: they are named, so that whoever agreed to them can compare.

Does not ask the collector, and does not read its database.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from leased.chain.canonical import Unknown, decode
from leased.chain.verifier import Verifier
from leased.ctl.console import Console, timestamp
from leased.economics.amounts import units
from leased.economics.bill_text import parse_bill, terms_of
from leased.economics.billing import Bill, Month, make_bill
from leased.economics.hourly import Hourly, NodeFold, NodeSpan
from leased.terms.errors import EX_DATAERR, ChainError, InvalidParameter
from leased.terms.event import EpochSealed, Event, NodeStarted
from leased.terms.identity import BootId, parse_id
from leased.terms.moment import Moment

STATE: Final = Path("/var/lib/leased-collector")
_SEGMENT: Final = re.compile(r"([0-9]{20})-([0-9]{20})-[0-9a-f]{8}\.seg\Z")


def add_bill(parser: argparse.ArgumentParser) -> None:
    """The options of verify that are about a bill."""
    parser.add_argument("--bill", type=Path, metavar="FILE", help="compute this bill again")
    parser.add_argument(
        "--archive",
        type=Path,
        default=STATE,
        metavar="DIR",
        help=f"where the pulled chains are, below segments/ (default: {STATE})",
    )


def verify_bill(options: argparse.Namespace, console: Console) -> int:
    """Check a bill; 65 if it is not what the chains say."""
    try:
        raw = options.bill.read_bytes()
    except OSError as error:
        raise InvalidParameter("bill", f"{options.bill}: {error.strerror}") from error
    try:
        bill = parse_bill(raw)
    except ValueError as error:
        raise InvalidParameter("bill", f"{options.bill}: not a bill: {error}") from error
    window = (int(bill.from_ns), int(bill.to_ns))
    hourly = Hourly(window)
    records = 0
    try:
        for span in bill.audit:
            console.progress(f"verifying {span.node_id}, log {span.log_id}")
            fold = fold_chain(options.archive, span)
            records += span.last_sequence - span.first_sequence + 1
            hourly.add(fold)
    finally:
        console.end_progress()
    again = make_bill(
        bill.tenant,
        Month(bill.period, *window),
        hourly.usage,
        hourly.tasks,
        terms_of(bill.terms),
        bill.audit,
        fleet_watermark_ns=int(bill.as_of_ns),
        corrections=[(text, units(amount, bill.decimals)) for text, amount in bill.corrections],
    )
    same = again.canonical() == raw
    wrong = [] if same else list(differences(bill, again)) or ["the bytes are not the canonical"]
    _tell(options, console, bill, records, wrong)
    return EX_DATAERR if wrong else 0


def fold_chain(archive: Path, span: NodeSpan) -> NodeFold:
    """Verify one chain from its segments up to the head that the bill names, and fold it. Raises
    ChainError."""
    log_id = parse_id(span.log_id, "log_id")
    parse_id(span.node_id, "node_id")
    fold = NodeFold()
    head = b""
    for sequence, event, moment, digest in _events(archive, span, log_id):
        if sequence > span.last_sequence:
            break
        fold.observe(sequence, event, moment)
        head = digest
    if fold.ledger.last_sequence != span.last_sequence or head.hex() != span.head:
        raise ChainError(
            "FORK_OR_ROLLBACK",
            f"log {span.log_id} does not have the head {span.head} that the bill names",
            sequence=fold.ledger.last_sequence,
        )
    return fold


def _events(
    archive: Path, span: NodeSpan, log_id: bytes
) -> Iterator[tuple[int, Event | Unknown, Moment, bytes]]:
    """Every event of a log, each record verified, from the segments of its node."""
    verifier = Verifier(log_id)
    boot_id, boot_ns = BootId(bytes(16)), 0
    while True:
        size = verifier.verified().head.size
        if size > span.last_sequence:
            return
        walk = _next_segment(archive, span, verifier, size)
        for index in range(len(walk.offsets)):
            record = walk.record(index)
            event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
            if isinstance(event, NodeStarted):
                boot_id = event.boot_id
            if not isinstance(event, EpochSealed):
                # A seal may have been written by the boot that the next NodeStarted names.
                boot_ns = record.boot_ns
            yield record.sequence, event, Moment(boot_id, boot_ns, record.wall_ns), record.hash


def _next_segment(archive: Path, span: NodeSpan, verifier: Verifier, size: int) -> Any:
    """Feed the segment that begins with record `size`. A node that has had two logs has files of
    both: the one that does not follow is the other's. Raises ChainError."""
    directory = archive / "segments" / f"node={span.node_id}"
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise InvalidParameter("archive", f"{directory}: {error.strerror}") from error
    found = [
        (int(match[2]), name)
        for name in names
        if (match := _SEGMENT.match(name)) is not None and int(match[1]) == size
    ]
    why: ChainError | None = None
    for _, name in sorted(found, reverse=True):
        try:
            verifier.file = name
            return verifier.feed((directory / name).read_bytes())
        except ChainError as error:
            why = error
    raise why or ChainError(
        "GAP", f"no segment of log {span.log_id} begins with record {size}", sequence=size
    )


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
                "tenant": bill.tenant,
                "period": bill.period,
                "total": bill.total,
                "currency": bill.currency,
                "final": bill.final,
                "chains": len(bill.audit),
                "records": records,
                "sha256": bill.digest().hex(),
                "differences": wrong,
            }
        )
        return
    what = f"{bill.tenant} {bill.period}: {bill.total} {bill.currency}"
    if wrong:
        console.say(f"BILL_WRONG {what}")
        for difference in wrong:
            console.say(f"  {difference}")
        return
    console.say(f"ok {what}, {'final' if bill.final else 'draft'}, sha256 {bill.digest().hex()}")
    console.say(f"computed again from {records} records of {len(bill.audit)} chains, byte for byte")
    agreed = f"{len(bill.credits)} credits, {len(bill.corrections)} corrections"
    reach = timestamp(int(bill.as_of_ns))
    console.say(f"taken from the bill: its prices and contracts, {agreed}, records up to {reach}")
