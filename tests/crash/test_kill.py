# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at a random instant, again and again, on one log (T4 of chain.md section 11).

What the killed process had acknowledged on its pipe is the ledger. `LEASED_KILLS=500` is the long
form; the seed is printed and `LEASED_CRASH_SEED` changes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from leased.chain.head import parse_head
from tests.doubles.logs import open_in

KILLS = int(os.environ.get("LEASED_KILLS", "8"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))


def test_no_kill_costs_an_acknowledged_record(tmp_path: Path) -> None:
    pytest.importorskip("leased._native", reason="the compiled part is not built")
    directory, random = tmp_path / "audit", Random(SEED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    kept = 0
    for kill in range(KILLS):
        command = [sys.executable, "-m", "tests.crash.committing", str(directory), str(SEED + kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
            assert child.stdout is not None
            heard = [child.stdout.readline() for _ in range(random.randrange(1, 60))]
            child.send_signal(signal.SIGKILL)
            heard += child.stdout.readlines()
        whole = [line for line in heard if line.endswith("\n")]
        assert whole, f"kill {kill}, seed {SEED}: the process ended by itself"
        acked = parse_head(whole[-1].strip())
        log = open_in(directory)
        assert log.head.size >= acked.size, f"kill {kill}, seed {SEED}"
        frames = b"".join(log.journal.frames(acked.size - 1))
        length = int.from_bytes(frames[:4], "little")
        assert frames[length - 32 : length] == acked.hash, f"kill {kill}, seed {SEED}"
        kept += log.recovered is not None
        log.close()
    print(f"seed {SEED}: {KILLS} kills, {kept} with something to recover")
