# SPDX-License-Identifier: Apache-2.0
"""Usage text: how a verb is declared, so that help, man page and completion are all made from one
place.

Rule: every verb has a line that says what it does and an example that runs; every verb whose answer
is a list or a value has --json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, Final

from leased.ctl.console import plain

Verbs = Any
"""argparse's sub-parsers, whose class has no public name."""


FAMILIAR: Final = {
    **dict.fromkeys(("list", "ps", "queue", "squeue"), "ls"),
    **dict.fromkeys(("cancel", "scancel", "stop", "kill", "free"), "release"),
    **dict.fromkeys(("submit", "start", "srun", "sbatch"), "run"),
    **dict.fromkeys(("nodes", "sinfo", "resources"), "devices"),
    **dict.fromkeys(("logs", "history", "sacct"), "audit log"),
    "salloc": "alloc",
    "inspect": "show",
    "events": "watch",
    "limits": "quota show",
    "apply": "policy apply",
    "status": "show, top or admin status",
}
"""Verbs of other programs, and what they are called here."""


class Parser(argparse.ArgumentParser):
    """argparse, ending with EX_USAGE (64) as the other sysexits do."""

    ahead = ""
    """An option that stands before the verb, and is none of this parser's."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; the first word is kept, for whoever finds it wrong."""
        first = next(iter(sys.argv[1:] if args is None else args), "")
        self.ahead = ""
        if first.startswith("--") and first not in self._option_string_actions:
            self.ahead = "" if self._get_option_tuples(first) else first
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        """Print what is wrong and how it is meant."""
        if self.ahead and self._subparsers is not None:
            message = f"{self.ahead}: a verb's options stand behind it; see {self.prog} --help"
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {plain(message)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A wrong verb is not answered by all thirty, but by the one that may be meant."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            if value == "help":
                self.print_help()
                self.exit()
            meant = _meant(value, action.choices)
            asked = f"is it {meant}? " if meant else ""
            why = f'no verb "{value}"; {asked}see {self.prog} --help'
            raise argparse.ArgumentError(action, why)
        super()._check_value(action, value)


def _meant(word: str, verbs: Collection[str]) -> str:
    """The verb that somebody may have meant; "" where that is not clear."""
    familiar = FAMILIAR.get(word, "")
    if familiar.partition(" ")[0].rstrip(",") in verbs:
        return familiar
    return next(iter(get_close_matches(word, verbs, 1)), "")


def verb(
    verbs: Verbs, name: str, summary: str, example: str, *, json: bool = True, csv: bool = False
) -> argparse.ArgumentParser:
    """Declare a verb. What it answers is printed in one form: --json beside --csv is refused."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if json:
        forms = parser.add_mutually_exclusive_group()
        forms.add_argument("--json", action="store_true", help="print JSON, version 1")
        if csv:
            forms.add_argument("--csv", action="store_true", help="print the rows as CSV")
    return parser
