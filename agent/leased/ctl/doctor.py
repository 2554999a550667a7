# SPDX-License-Identifier: Apache-2.0
"""The verb doctor: what of this host the agent needs, what is missing, and what to do about it.

Rule: every finding says what was read and what follows from it. Only what the promises need is
required; the exit status is 69 if any of that is missing. Nothing is changed and nothing is loaded
into the kernel.

Does not ask the agent for its own opinion, except whether it answers and what it keeps fenced.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from leased.ctl import fleet_checks, host_checks, log_checks, privilege_checks, service_checks
from leased.ctl.agent import socket_path
from leased.ctl.console import Console
from leased.ctl.findings import Finding, Grade
from leased.ctl.render import table
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_UNAVAILABLE

Check = Callable[[Path], Iterator[Finding]]
CHECKS: Final[tuple[Check, ...]] = (
    host_checks.kernel,
    host_checks.cgroups,
    host_checks.births,
    host_checks.numa,
    host_checks.hugepages,
    host_checks.page_hygiene,
    host_checks.nvidia,
    host_checks.clock,
    service_checks.state_directory,
    log_checks.counter,
    service_checks.registry,
    service_checks.journal,
    service_checks.compiled_parts,
    privilege_checks.libraries,
    service_checks.units,
    service_checks.configuration,
    service_checks.timing,
    service_checks.subordinates,
    fleet_checks.certificates,
)
_MARKS: Final = {Grade.OK: "ok", Grade.NOTE: "note", Grade.WARN: "WARN", Grade.FAIL: "FAIL"}


def register(verbs: Verbs) -> None:
    """Add the verb."""
    one = verb(verbs, "doctor", "check this host and this installation", "leasectl doctor")
    one.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    one.set_defaults(act=doctor)


def doctor(options: argparse.Namespace, console: Console) -> int:
    """Check everything."""
    sockets = [socket_path(options, admin=admin) for admin in (False, True)]
    found = [finding for check in CHECKS for finding in check(options.root)]
    found += service_checks.sockets(options.root, *sockets)
    missing = [one for one in found if one.grade is Grade.FAIL]
    if options.json:
        console.document(
            {
                "healthy": not missing,
                "host": os.uname().nodename,
                "findings": [one.document() for one in found],
            }
        )
    else:
        rows = [(_MARKS[one.grade], one.topic, one.text) for one in found]
        console.say(*table(("", "CHECK", "FOUND"), rows))
        for one in found:
            if one.advice:
                console.say(f"{_MARKS[one.grade]} {one.topic}: {one.advice}")
    return EX_UNAVAILABLE if missing else 0
