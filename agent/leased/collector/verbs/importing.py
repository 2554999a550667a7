# SPDX-License-Identifier: Apache-2.0
"""The verb import: records that a node does not serve any more, from a copy.

Rule: the collector does not pull meanwhile, the node is enrolled before, and nothing is wrong with
its log but that records of it are gone.

Does not verify (`collector.importing` does).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from leased.collector.archive.archive import Archive
from leased.collector.archive.manifests import is_shared
from leased.collector.importing import import_copy
from leased.collector.reconcile import Verdict
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import CallerError


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "import",
        "take in records that a node has pruned, from another collector's copy",
        "leased-collector import alpha /backup/west",
    )
    one.add_argument("name", help="the node, enrolled before")
    one.add_argument(
        "source",
        type=Path,
        help="a state directory or a backup of any collector, or a file of "
        "`leasectl audit export --format frames`",
    )
    one.set_defaults(act=bring)


def bring(options: argparse.Namespace, console: Console) -> int:
    """Take a copy in."""
    if is_shared(options.state):
        how = "restore a backup of it elsewhere, import there, and share that"
        raise CallerError(f"{options.state}: several collectors share it; {how}")
    archive = Archive(options.state)
    try:
        logs = {name: log_id for name, _, log_id in archive.manifest.nodes()}
        entry = archive.log(logs.get(options.name, ""))
        if entry is None:
            raise CallerError(f"{options.name}: no such node; see `leased-collector nodes`")
        verdict = Verdict(entry.verdict)
        if verdict.sticky and verdict is not Verdict.GAP:
            why = "what a node did is cleared up before more of it is taken"
            raise CallerError(f"{options.name} is {verdict}: {why} (`leased-collector verdict`)")
        console.progress(f"verifying {options.source}")
        try:
            done = import_copy(archive, entry, options.source, console.wall_ns())
        finally:
            console.end_progress()
    finally:
        archive.close()
    if options.json:
        console.document({"first_sequence": done.first_seq, "next_sequence": done.next_seq})
        return 0
    if done.next_seq > done.first_seq:
        which = f"records {done.first_seq} to {done.next_seq - 1}"
        console.say(f"{options.name}: {which} hold, signed by the node, and are here now")
    if done.unsigned:
        console.note(f"{done.unsigned} more are below no checkpoint: the node is to serve those")
    if Verdict(entry.verdict).sticky:
        console.note(f"{options.name} is {entry.verdict} until `leased-collector resolve`")
    return 0
