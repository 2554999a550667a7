# SPDX-License-Identifier: Apache-2.0
"""Usage text: how a verb is declared, so that help, man page and completion are all made from one
place.

Rule: every verb has a line that says what it does and an example that runs; every verb whose answer
is a list or a value has --json.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from leased.ctl.console import plain

Verbs = Any
"""argparse's sub-parsers, whose class has no public name."""


class Parser(argparse.ArgumentParser):
    """argparse, ending with EX_USAGE (64) as the other sysexits do."""

    def error(self, message: str) -> Any:
        """Print what is wrong and how it is meant."""
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {plain(message)}\n")


def verb(
    verbs: Verbs, name: str, summary: str, example: str, *, json: bool = True
) -> argparse.ArgumentParser:
    """Declare a verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON, version 1")
    return parser
