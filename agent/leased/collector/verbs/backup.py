# SPDX-License-Identifier: Apache-2.0
"""The verbs backup and restore.

Rule: a backup may be made beside a running collector; a restore wants a state directory with
nothing in it, and ends with all that was restored read and with what is derived made again.

Does not copy (`backup`).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import msgspec

from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.backup import back_up, restore
from leased.collector.archive.manifests import COLLECTORS
from leased.collector.metering.store import Store
from leased.collector.verbs.store import add_terms, terms_by
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "backup",
        "copy the state directory as it is at one moment, beside a running collector",
        "leased-collector backup /backup/collector-2026-01-31",
    )
    one.add_argument("directory", type=Path, help="a new one")
    one.add_argument(
        "--before", type=Path, metavar="DIR", help="an earlier backup: link what is there already"
    )
    one.add_argument("--no-telemetry", action="store_true", help="leave out what bills nothing")
    one.set_defaults(act=_back_up)
    one = verb(
        verbs,
        "restore",
        "put a backup into an empty state directory, and check all of it",
        "leased-collector --state /var/lib/leased-collector restore /backup/collector-2026-01-31",
    )
    one.add_argument("directory", type=Path, help="a backup")
    add_terms(one)
    one.set_defaults(act=_restore)


def _back_up(options: argparse.Namespace, console: Console) -> int:
    listing = back_up(
        options.state,
        options.directory,
        now_ns=console.wall_ns(),
        before=options.before,
        telemetry=not options.no_telemetry,
        progress=console.progress,
    )
    octets = sum(one.bytes for one in listing.files.values())
    if options.json:
        console.document({"files": len(listing.files), "bytes": octets})
    else:
        console.say(f"{len(listing.files)} files, {octets} bytes")
        console.note("keys are among them: keep it where the collector's own disk is kept")
    return 0


def _restore(options: argparse.Namespace, console: Console) -> int:
    terms = terms_by(options)
    checked = restore(options.directory, options.state, console.progress)
    with closing(ArchiveReader(options.state)) as archive:
        store = Store(options.state)
        store.refresh(archive, retired=terms.retired_nodes, progress=console.progress)
    if options.json:
        console.document(msgspec.to_builtins(checked))
        return 0
    console.say(
        f"{checked.files} files, {checked.bytes} bytes: {checked.segments} segments, "
        f"{checked.changes} sealed changes and {checked.bills} issued bills hold"
    )
    console.note("nodes go on from where it was; the collector begins a new log of its own")
    if (options.state / COLLECTORS).exists():
        console.note("several shared it: for several, `leased-collector share` with a new database")
    return 0
