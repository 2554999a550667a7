# SPDX-License-Identifier: Apache-2.0
"""What a newcomer sees: the tour behind `packaging/try`, whole, on this host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.doubles.host import not_proven

TOP = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0


def test_the_tour_ends_with_a_bill_that_the_node_signed() -> None:
    if os.geteuid() != 0 or not (TOP / ".venv/bin/leasectl").exists():
        not_proven("the tour of packaging/try", "wants root and the programs of the tree's .venv")
    done = subprocess.run(
        [sys.executable, str(TOP / "packaging/tour.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    told = done.stdout
    for said in (
        "access cut, by the reaper",
        "proven clean by another source, capacity free again",
        "status: draft",
        "byte for byte",
        "every record of the period is below a checkpoint that its node signed",
        "Done: everything that was started has ended.",
    ):
        assert said in told, told
    # The bill names what it follows from: the node, the records, and the hash of the last.
    audit = told[told.index("NODE ID") :].splitlines()[1].split()
    head = audit[4]
    assert audit[2] == "0" and int(audit[3]) > 0 and len(bytes.fromhex(head)) == 32
    assert not list(Path("/var/tmp").glob("leased-try-*"))
    assert not list(Path("/run").glob("leased-try-*"))
