# SPDX-License-Identifier: Apache-2.0
"""Auditors' verbs that show the records themselves: audit log, audit export.

Rule: as `audit`: the log is verified first. A file that is written is there whole or not at all: a
log that does not hold, a full disk, an interrupt leave what was there before. Nothing is written
into the log's own directory.

Does not judge a log (`audit`).
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from leased.chain.canonical import Unknown
from leased.ctl.agent import ID_CHARS
from leased.ctl.console import Console
from leased.ctl.events import NAMES, event_document, event_line, event_name
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.whole_file import put_whole
from leased.durable.copied import copy_log
from leased.durable.files import DirectoryDisk
from leased.durable.reader import ReadLog, read_log
from leased.terms.errors import EX_IOERR, EX_NOINPUT, CallerError, InvalidParameter
from leased.terms.event import Event, LeaseEvent
from leased.terms.moment import Moment

_DIGITS: Final = frozenset("0123456789abcdef")


def register(below: Verbs, add_log: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the verbs to those of `audit`."""
    one = verb(below, "log", "print events", "leasectl audit log --kind Revoked --last 20")
    add_log(one)
    _add_choice(one)
    one.set_defaults(act=log)
    one = verb(
        below,
        "export",
        "copy verified records out",
        "leasectl audit export --format jsonl records.jsonl",
        json=False,
    )
    add_log(one)
    one.add_argument("file", help='where to ("-": standard output); a new directory for log')
    one.add_argument(
        "--format",
        choices=("jsonl", "frames", "log"),
        default="jsonl",
        help="JSON lines; frames: the sealed bytes as they are stored, for `leased-collector "
        "import`; log: a log without its keys, for `leasectl verify` (default: jsonl)",
    )
    _add_choice(one)
    one.set_defaults(act=export)


class NoSuchRecord(CallerError):
    """No record is of the lease or the tenant: a name that is misspelt has no empty history."""

    exit_status = EX_NOINPUT

    def __init__(self, options: argparse.Namespace) -> None:
        told = (options.lease and f"lease {options.lease}", options.tenant)
        super().__init__(f"no record of {' of '.join(filter(None, told))} is in this log")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="SEQUENCE")
    parser.add_argument("--lease", metavar="ID", help="only this lease (or its beginning)")
    parser.add_argument("--tenant", help="only this tenant's leases")
    parser.add_argument("--kind", choices=tuple(NAMES), metavar="KIND", help="such as Revoked")
    parser.add_argument("--last", type=int, metavar="N", help="only the last so many")


def log(options: argparse.Namespace, console: Console) -> int:
    """Print events."""
    for sequence, event, moment in _chosen(options):
        if options.json:
            console.line(event_document(sequence, event, moment))
        else:
            console.say(event_line(sequence, event, moment))
    return 0


def export(options: argparse.Namespace, console: Console) -> int:
    """Copy records out."""
    if options.file != "-":
        _refuse_within(options.log, options.file)
    try:
        if options.format == "log":
            count = _copy(options)
        elif options.file == "-":
            count = _write(options, sys.stdout.buffer)
        else:
            with put_whole(Path(options.file)) as file:
                count = _write(options, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        console.note(f"{options.file}: {error.strerror}")
        return EX_IOERR
    console.note(f"{count} {'records' if options.format == 'jsonl' else 'bytes'} written")
    return 0


def _copy(options: argparse.Namespace) -> int:
    """A log that anybody may have, verified."""
    _refuse_choice(options)
    if options.first or options.file == "-":
        raise InvalidParameter("format", "a log is copied whole, into a directory")
    with closing(read_log(options.log)) as opened, closing(DirectoryDisk(options.log)) as disk:
        return copy_log(disk, opened.facts, Path(options.file))


def _refuse_within(log: Path, file: str) -> None:
    place = Path(file).resolve()
    if log.resolve() in (place, *place.parents):
        raise InvalidParameter("file", f"{file} is within the log itself")


def _refuse_choice(options: argparse.Namespace) -> None:
    if options.lease or options.tenant or options.kind or options.last:
        raise InvalidParameter("format", "sealed bytes are exported whole: only --from may choose")


def _refuse_negative(options: argparse.Namespace) -> None:
    if options.first < 0:
        raise InvalidParameter("from", f"{options.first}: records are counted from 0")
    if options.last is not None and options.last < 0:
        raise InvalidParameter("last", f"{options.last}: how many, from 0")


def _write(options: argparse.Namespace, file: BinaryIO) -> int:
    if options.format == "jsonl":
        count = 0
        for sequence, event, moment in _chosen(options):
            document = {"version": 1, **event_document(sequence, event, moment)}
            file.write(msgspec.json.encode(document) + b"\n")
            count += 1
        return count
    _refuse_choice(options)
    _refuse_negative(options)
    with closing(read_log(options.log)) as opened:
        return sum(file.write(chunk) for chunk in opened.frames(options.first))


def _chosen(options: argparse.Namespace) -> Iterator[tuple[int, Event | Unknown, Moment]]:
    _refuse_negative(options)
    lease = options.lease or ""
    if len(lease) > ID_CHARS or not set(lease) <= _DIGITS:
        raise InvalidParameter("lease", f"{lease}: an id has {ID_CHARS} lower-case hex digits")
    is_known = False

    def chosen(opened: ReadLog) -> Iterator[tuple[int, Event | Unknown, Moment]]:
        nonlocal is_known
        for one in opened.events():
            if _is_of(options, one[1]):
                is_known = True
                if one[0] >= options.first and options.kind in (None, event_name(one[1])):
                    yield one

    with closing(read_log(options.log)) as opened:
        if options.last is None:
            yield from chosen(opened)
        else:
            yield from deque(chosen(opened), options.last)
    if not is_known and (options.lease or options.tenant):
        raise NoSuchRecord(options)


def _is_of(options: argparse.Namespace, event: Event | Unknown) -> bool:
    """Whether it is of the lease and the tenant that are asked for."""
    if options.lease is None and options.tenant is None:
        return True
    if not isinstance(event, LeaseEvent):
        return options.lease is None and getattr(event, "tenant", None) == options.tenant
    if options.lease is not None and not event.lease_id.hex().startswith(options.lease):
        return False
    return options.tenant is None or event.subject.tenant == options.tenant
