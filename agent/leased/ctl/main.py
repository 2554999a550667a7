# SPDX-License-Identifier: Apache-2.0
"""leasectl: the tree of verbs, and how an error becomes an exit status.

Rule: exit statuses are sysexits and are listed in the help. An interrupted command says nothing
more; a reader that went away is no error.

Does not carry out verbs: each family has its module.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Final

import leased
from leased.client.session import TIMEOUT_S
from leased.ctl import (
    admin,
    adopt,
    audit,
    collector,
    completion,
    devices,
    doctor,
    drain,
    evidence,
    leases,
    pki,
    policy,
    raw,
    run,
    top,
    usage,
    watch,
)
from leased.ctl.console import Console
from leased.ctl.outcome import carry_out
from leased.ctl.usage_text import Parser

EXIT_STATUSES: Final = (
    (0, "done"),
    (64, "the command line cannot be meant"),
    (65, "the request cannot be meant, or the evidence does not hold"),
    (
        66,
        "no such lease, tenant or webhook, or not yours; verify: all that is here holds, and"
        " nobody was named who proves what was pruned (--policy, --head)",
    ),
    (69, "no agent or no collector, or it grants nothing now"),
    (71, "the hardware or the kernel failed"),
    (75, "no capacity, a limit is reached, or the wait is over: try again"),
    (76, "not the protocol"),
    (77, "not allowed"),
    (78, "a configuration or a state directory was refused"),
    (79, "the lease was lost"),
    (126, "run, exec: the command cannot be executed"),
    (127, "run, exec: the command was not found"),
    (128, "plus n: run, exec: the command ended by signal n"),
)


def version() -> str:
    """This program's version."""
    try:
        return metadata.version("leased")
    except metadata.PackageNotFoundError:
        return str(getattr(leased, "__version__", "unknown"))


_FAMILIES = (
    *(run, leases, devices, top, watch, usage, policy, audit, evidence),
    *(adopt, drain, admin, doctor, pki, collector, raw, completion),
)


def build_parser() -> argparse.ArgumentParser:
    """The whole tree, in the order of the help."""
    parser = Parser(
        prog="leasectl",
        description="Leases on this host's hardware: get them, use them, see them, check them.",
        epilog="exit status:\n"
        + "\n".join(f"  {status:>3}  {meaning}" for status, meaning in EXIT_STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"leasectl {version()}")
    parser.add_argument("--socket", metavar="PATH", help="the agent's socket ($LEASE_SOCKET)")
    parser.add_argument(
        "--admin", action="store_true", help="ask as an operator, through the admin socket"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long one call may take (default: {TIMEOUT_S:g})",
    )
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=Parser, title="verbs"
    )
    for family in _FAMILIES:
        family.register(verbs)
    return parser


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run one command; returns its exit status."""
    console = console or Console()
    return carry_out(build_parser().parse_args(argv), console)


if __name__ == "__main__":
    sys.exit(main())
