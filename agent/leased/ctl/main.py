# SPDX-License-Identifier: Apache-2.0
"""leasectl: the tree of verbs, and how an error becomes an exit status.

Rule: exit statuses are sysexits and are listed in the help. An interrupted command says nothing
more, nor does one whose reader went away.

Does not carry out verbs: each family has its module.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from leased import __version__
from leased.client.session import TIMEOUT_S
from leased.ctl.console import Console
from leased.ctl.outcome import ENDED_BY_OTHERS, carry_out
from leased.ctl.usage_text import Parser

FAMILIES: Final = {
    "leased.ctl.run": ("run", "alloc", "shell", "exec"),
    "leased.ctl.leases": (
        *("ls", "show", "wait", "why", "plan"),
        *("renew", "release", "extend", "done"),
    ),
    "leased.ctl.devices": ("devices", "holders"),
    "leased.ctl.top": ("top", "health"),
    "leased.ctl.watch": ("watch",),
    "leased.ctl.usage": ("usage", "statement", "rates"),
    "leased.ctl.policy": ("policy", "quota"),
    "leased.ctl.audit": ("verify", "audit"),
    "leased.ctl.evidence": ("evidence",),
    "leased.ctl.adopt": ("adopt",),
    "leased.ctl.drain": ("drain", "resume"),
    "leased.ctl.admin": ("admin",),
    "leased.ctl.doctor": ("doctor",),
    "leased.ctl.pki": ("pki",),
    "leased.ctl.collector": ("collector",),
    "leased.ctl.raw": ("call", "introspect"),
    "leased.ctl.completion": ("completion",),
}
"""The verbs of each family's module, in the order of the help."""

EXIT_STATUSES: Final = (
    (0, "done"),
    (64, "the command line cannot be meant"),
    (65, "the request cannot be meant, or the evidence does not hold"),
    (
        66,
        "no such lease, tenant, webhook or file, or not yours; verify: what is there holds, but is"
        " not proven to be all: the log's beginning was removed and no --policy or --head speaks"
        " for that, or the agent that has the log open has stopped sealing epochs",
    ),
    (
        69,
        "no agent or no collector, or it grants nothing now; doctor, health, admin status:"
        " something is missing or not well",
    ),
    (70, "a fault of ours; policy apply: another policy followed at once"),
    (71, "the hardware or the kernel failed"),
    (74, "a file, or the output, could not be written"),
    (75, "no capacity, a limit is reached, or the wait is over: try again"),
    (76, "not the protocol"),
    (77, "not allowed"),
    (78, "a configuration or a state directory was refused"),
    (79, "the lease was lost"),
    (126, "run, exec: the command cannot be executed"),
    (127, "run, exec: the command was not found"),
    (128, "plus n: run, exec: the command ended by signal n"),
    *ENDED_BY_OTHERS,
)


class _Unclear(Exception):
    """What the whole tree has to say."""


class _Glance(argparse.ArgumentParser):
    """Finds the verb, and leaves it to the whole tree to say what is wrong."""

    def error(self, message: str) -> Any:
        raise _Unclear(message)


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole tree; or of the command line `words` no more than it needs: reading all verbs'
    modules takes longer than most verbs do."""
    parser = Parser(
        prog="leasectl",
        description="Leases on this host's hardware: get them, use them, see them, check them.",
        epilog="exit status:\n"
        + "\n".join(f"  {status:>3}  {meaning}" for status, meaning in EXIT_STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser)
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=Parser, title="verbs"
    )
    for family in _families(words):
        import_module(family).register(verbs)
    return parser


def _families(words: Sequence[str]) -> Sequence[str]:
    """The one that has the verb, else all."""
    glance = _Glance(add_help=False)
    _add_options(glance)
    glance.add_argument("verb")
    glance.add_argument("rest", nargs=argparse.REMAINDER)
    try:
        found, unknown = glance.parse_known_args(words)
    except _Unclear:
        return tuple(FAMILIES)
    # What is unknown stands before the verb: help, or a mistake.
    asked = "" if unknown else found.verb
    return [family for family, verbs in FAMILIES.items() if asked in verbs] or tuple(FAMILIES)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"leasectl {__version__}")
    parser.add_argument("--socket", metavar="PATH", help="the agent's socket ($LEASE_SOCKET)")
    parser.add_argument(
        "--admin", action="store_true", help="ask as an operator, through the admin socket"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long one call may take (default: {TIMEOUT_S:g})",
    )


def seconds(text: str) -> float:
    """A time to wait. Raises ValueError."""
    found = float(text)
    if not found >= 0:
        raise ValueError
    return found


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run one command; returns its exit status."""
    console = console or Console()
    words = sys.argv[1:] if argv is None else argv
    return carry_out(build_parser(words), words, console)


if __name__ == "__main__":
    sys.exit(main())
