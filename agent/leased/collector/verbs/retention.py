# SPDX-License-Identifier: Apache-2.0
"""The verb retention: what the configured rule lets go, and why the rest stays.

Rule: it shows, and changes nothing, unless it is told to; beside a running `pull`, which has the
archive and carries the rule out itself every hour, it only shows.

Does not choose (`retention`).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from leased.collector.accounts.terms_file import load_terms_for
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.config import CONFIG
from leased.collector.retention import Plan, carry_out, plan
from leased.collector.retention_rule import load_rule
from leased.collector.witness import os_entropy
from leased.ctl import render
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_TEMPFAIL

_TITLES: Final = ("NODE", "LOG", "UP TO RECORD", "SEGMENTS", "BYTES")


def register(verbs: Verbs) -> None:
    """Add the verb."""
    one = verb(
        verbs,
        "retention",
        "what may go by [retention], and why the rest stays",
        "leased-collector retention --apply",
    )
    one.add_argument("--apply", action="store_true", help="remove it; without a running `pull`")
    one.add_argument(
        "--config", type=Path, default=CONFIG, metavar="FILE", help=f"default: {CONFIG}"
    )
    one.set_defaults(act=retention)


def retention(options: argparse.Namespace, console: Console) -> int:
    """Show, or remove; 75 if something has to happen first."""
    rule = load_rule(options.config)
    terms, now_ns = load_terms_for(options.config), console.wall_ns()
    if options.apply:
        with closing(Archive(options.state)) as archive:
            change_id = os_entropy().hex()
            found = carry_out(
                *(archive, rule, terms), config=options.config, now_ns=now_ns, change_id=change_id
            )
    else:
        ArchiveReader(options.state).close()  # there is one
        found = plan(options.state, rule, terms, now_ns)
    _tell(options, console, found)
    return EX_TEMPFAIL if found.waits and rule.raw_months is not None else 0


def _tell(options: argparse.Namespace, console: Console, found: Plan) -> None:
    if options.json:
        console.document({"removed": options.apply, **msgspec.to_builtins(found)})
        return
    done = "went" if options.apply else "may go"
    if found.waits:
        console.say(f"nothing {done}: {found.waits}")
        return
    if found.cuts:
        console.say(f"what ended before {found.floor} {done}:")
    else:
        console.say(f"nothing {done}, of what ended before {found.floor}:")
    rows = [
        (cut.name, render.short(cut.log_id), str(cut.records), str(cut.segments), str(cut.bytes))
        for cut in found.cuts
    ]
    console.say(*(render.table(_TITLES, rows) if rows else ()))
    console.say(*(f"{name} keeps all: {why}" for name, why in sorted(found.held.items())))
