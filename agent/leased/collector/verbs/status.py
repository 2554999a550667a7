# SPDX-License-Identifier: Apache-2.0
"""What the collector holds, for people: status, check.

Rule: they read, beside a running collector or without one, and change nothing.

Does not pull.
"""

from __future__ import annotations

import argparse
from contextlib import closing

import msgspec

from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.floor import KEPT
from leased.collector.archive.manifest import LogEntry
from leased.collector.archive.room import SHORT_BYTES, free_bytes
from leased.collector.reconcile import Verdict
from leased.ctl import render
from leased.ctl.console import Console, relative
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_DATAERR


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(verbs, "status", "how far each log has come", "leased-collector status --json")
    one.set_defaults(act=status)
    one = verb(
        verbs,
        "check",
        "read every stored segment and compare it with the manifest",
        "leased-collector --state /backup/collector check",
    )
    one.set_defaults(act=check)


def status(options: argparse.Namespace, console: Console) -> int:
    """Show every log; 65 if a verdict wants an operator: who replaced a log has seen to it."""
    with closing(ArchiveReader(options.state)) as reader:
        logs, replaced = reader.logs(), reader.manifest.replaced()
    free = free_bytes(options.state)
    if free < SHORT_BYTES:
        console.note(
            f"{options.state}: {free >> 10} KiB are free on its disk: what finds no room is not"
            " pulled, and not acknowledged to its node"
        )
    told = {"logs": [document(entry) for entry in logs], "free_bytes": free}
    names = ("NODE", "LOG", "VERDICT", "RECORDS", "COSIGNED", "SEEN")
    rows = [_row(entry, console) for entry in logs]
    console.answer(options.json, told, *render.table(names, rows))
    wrong = [entry for entry in logs if Verdict(entry.verdict).sticky]
    return EX_DATAERR if any(entry.log_id not in replaced for entry in wrong) else 0


def document(entry: LogEntry) -> dict[str, object]:
    """One log as JSON has it. What the verifier carries may hold a key and stays inside."""
    return {
        "node": entry.name,
        "node_id": entry.node,
        "log_id": entry.log_id,
        "origin": entry.origin,
        "next_sequence": entry.head.size,
        "head": entry.head.hash.hex(),
        "signed_size": entry.signed_size,
        "cosigned_size": entry.cosigned_size,
        "verdict": entry.verdict,
        "why": entry.why,
        "since_ns": entry.since_ns,
        "contact_ns": entry.contact_ns,
    }


def _row(entry: LogEntry, console: Console) -> tuple[str, ...]:
    age_ns = entry.age_ns(console.wall_ns())
    seen = relative(-age_ns) if age_ns is not None else "unknown" if entry.contact_ns else "never"
    size, cosigned = str(entry.head.size), str(entry.cosigned_size)
    return (entry.name, render.short(entry.log_id), entry.verdict, size, cosigned, seen)


def check(options: argparse.Namespace, console: Console) -> int:
    """Read everything; 65 if something is damaged."""
    count = octets = 0
    damaged: list[dict[str, object]] = []
    with closing(ArchiveReader(options.state)) as reader:
        for segment, error in reader.check():
            count, octets = count + 1, octets + segment.bytes
            if error is not None:
                damaged.append({**msgspec.to_builtins(segment), "why": str(error)})
                if not options.json:
                    console.note(str(error))
        for wrong in reader.kept.check():
            damaged.append({"path": KEPT, "why": str(wrong)})
            if not options.json:
                console.note(str(wrong))
    told = {"segments": count, "bytes": octets, "damaged": damaged}
    console.answer(options.json, told, f"{count} segments, {octets} bytes, {len(damaged)} damaged")
    return EX_DATAERR if damaged else 0
