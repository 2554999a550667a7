# SPDX-License-Identifier: Apache-2.0
"""leased-collector: the tree of its verbs.

Rule: as leasectl: every verb has an example, answers go to standard output, exit statuses are
sysexits and are listed in the help.

Does not carry out verbs: each family has its module.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import leased
from leased.collector.api import verbs as http
from leased.collector.archive.owner import hand_over
from leased.collector.telemetry import verbs as telemetry
from leased.collector.verbs import advice, backup, importing, invites, money, retention, store
from leased.collector.verbs import pull as pull_verbs
from leased.collector.verbs import status as records
from leased.collector.webhooks import verbs as webhooks
from leased.ctl import completion
from leased.ctl.console import Console
from leased.ctl.outcome import ENDED_BY_OTHERS, carry_out
from leased.ctl.usage_text import Parser

STATE_DIRECTORY: Final = Path("/var/lib/leased-collector")
DEMO_FLEET: Final = "--demo-fleet"
EXIT_STATUSES: Final = (
    (0, "done, and everything holds"),
    (64, "the command line cannot be meant"),
    (65, "the request cannot be meant, or the evidence does not hold"),
    (66, "no such log, node, tenant, invite, receiver, key or file"),
    (69, "a node, or the database of a manifest that is shared, could not be reached"),
    (70, "a fault of ours"),
    (74, "a file, or the output, could not be written"),
    (75, "somebody else was faster, or something has to happen first: try again"),
    (78, "a configuration or a state directory was refused"),
    *ENDED_BY_OTHERS,
)
_FAMILIES: Final = (
    *(pull_verbs, importing, invites, records, store, money, advice, telemetry, http),
    *(webhooks, retention, backup),
)


def build_parser() -> argparse.ArgumentParser:
    """The whole tree, in the order of the help."""
    parser = Parser(
        prog="leased-collector",
        description="Every node's sealed log: pulled, verified, kept, countersigned.",
        epilog="exit status:\n"
        + "\n".join(f"  {status:>3}  {meaning}" for status, meaning in EXIT_STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = getattr(leased, "__version__", "unknown")
    parser.add_argument("--version", action="version", version=f"leased-collector {version}")
    parser.add_argument(
        "--state",
        type=Path,
        default=STATE_DIRECTORY,
        metavar="DIR",
        help=f"the collector's state directory (default: {STATE_DIRECTORY})",
    )
    parser.add_argument(
        DEMO_FLEET, metavar="N", help="make a fleet of N hosts that never were, and serve it (demo)"
    )
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=Parser, title="verbs"
    )
    for family in _FAMILIES:
        family.register(verbs)
    completion.add(verbs, parser.prog, build_parser)
    return parser


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run one command; returns its exit status."""
    console = console or Console(program="leased-collector")
    words = spelled(sys.argv[1:] if argv is None else argv)
    return carry_out(build_parser(), words, console, lambda options: hand_over(options.state))


def spelled(words: Sequence[str]) -> list[str]:
    """`--demo-fleet N` in full: a verb is wanted, and that is which."""
    given: list[str] = []
    for word in words:
        given += word.split("=", 1) if word.startswith((f"{DEMO_FLEET}=", "--state=")) else [word]
    if DEMO_FLEET not in given[:-1]:
        return list(words)
    at = given.index(DEMO_FLEET)
    rest = [*given[:at], *given[at + 2 :]]
    split = rest.index("--state") + 2 if "--state" in rest else 0
    demo = ["demo", "--nodes", given[at + 1], "--serve"]
    return [*rest[:split], *demo, *rest[split:]]


if __name__ == "__main__":
    sys.exit(main())
