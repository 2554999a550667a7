# SPDX-License-Identifier: Apache-2.0
"""The verb import: records that a node does not serve any more, from a copy.

Rule: no collector of this state directory pulls meanwhile, the node is enrolled before, and nothing
is wrong with its log but that records of it are gone. Where several share the directory it is done
as one of them, who has every part of the fleet for so long.

Does not verify (`collector.importing` does).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from leased.collector import config as configuration
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifests import is_shared
from leased.collector.archive.sharing import Sharing
from leased.collector.importing import import_copy
from leased.collector.pulling import name_of
from leased.collector.reconcile import Verdict
from leased.collector.verbs.pull import NoSuchNode, add_config
from leased.collector.witness import os_entropy
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
    add_config(one)
    one.set_defaults(act=bring)


def bring(options: argparse.Namespace, console: Console) -> int:
    """Take a copy in."""
    # One that is alone has no need to know.
    name = name_of(configuration.load(options.config)) if is_shared(options.state) else ""
    archive = Archive(options.state, name=name)
    sharing = Sharing(archive, name, os_entropy())
    try:
        sharing.beat_alone()
        logs = {name: log_id for name, _, log_id in archive.manifest.nodes()}
        entry = archive.log(logs.get(options.name, ""))
        if entry is None:
            raise NoSuchNode(options.name)
        verdict = Verdict(entry.verdict)
        if verdict.sticky and verdict is not Verdict.GAP:
            why = "what a node did is cleared up before more of it is taken"
            raise CallerError(f"{options.name} is {verdict}: {why} (`leased-collector verdict`)")
        console.progress(f"verifying {options.source}")
        now_ns = console.wall_ns()
        done = import_copy(archive, entry, options.source, now_ns, beat=sharing.beat_alone)
    finally:
        sharing.leave()
        archive.close()
    if options.json:
        console.document({"first_sequence": done.first_seq, "next_sequence": done.next_seq})
        return 0
    if done.next_seq > done.first_seq:
        which = f"records {done.first_seq} to {done.next_seq - 1}"
        console.say(f"{options.name}: {which} hold, signed by the node, and are here now")
    if done.unsigned:
        console.note(
            f"{done.unsigned} more are in the copy, below no checkpoint of the node in it, and were"
            " not taken in: they come with the next pull, or, where the node has them no more, with"
            f" {_what_has_more(options.source)}"
        )
    if Verdict(entry.verdict).sticky:
        console.note(f"{options.name} is {entry.verdict} until `leased-collector resolve`")
    return 0


def _what_has_more(source: Path) -> str:
    """Which copy has the node's last note, too."""
    if is_shared(source):
        # Where that is, the copy says: nobody here connects to what it names.
        return (
            "what `leased-collector backup` makes there: the node's last note is in the PostgreSQL "
            "of who shares that directory, which is not asked"
        )
    return "a copy that was made later, or with a collector's whole state directory"
