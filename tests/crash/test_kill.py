# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at a random instant, again and again, on one log after another (T4 of chain.md section
11).

What the killed process had acknowledged on its pipe is the ledger. `LEASED_KILLS=20000` is the long
form; the seed is printed and `LEASED_CRASH_SEED` changes it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from random import Random

import pytest

from leased.chain.head import parse_head
from tests.crash.committing import commit_to
from tests.doubles.logs import open_in

KILLS = int(os.environ.get("LEASED_KILLS", "40"))
KILLS_EACH = 25
"""Of one log: each opening reads all of it."""

SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
SAID = 1 << 20


def killed(directory: Path, seed: int, acks: int) -> bytes:
    """What a writer told until it was killed, right after `acks` of its answers."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.crash.committing"])
    heard, told = forking.Pipe(duplex=False)
    process = forking.Process(target=commit_to, args=(directory, seed, told), daemon=True)
    process.start()
    told.close()
    said = b""
    with heard:
        while said.count(b"\n") < acks and (piece := os.read(heard.fileno(), SAID)):
            said += piece
        process.kill()
        while piece := os.read(heard.fileno(), SAID):
            said += piece
    process.join()
    process.close()
    return said


def test_no_kill_costs_an_acknowledged_record(tmp_path: Path) -> None:
    pytest.importorskip("leased._native", reason="the compiled part is not built")
    random, recovered = Random(SEED), 0
    for kill in range(KILLS):
        directory = tmp_path / f"audit{kill // KILLS_EACH}"
        if kill % KILLS_EACH == 0 and kill > KILLS_EACH:
            shutil.rmtree(tmp_path / f"audit{kill // KILLS_EACH - 2}")
        whole = killed(directory, SEED + kill, random.randrange(1, 60)).split(b"\n")[:-1]
        assert whole, f"kill {kill}, seed {SEED}: the process ended by itself"
        acked = parse_head(whole[-1].decode())
        log = open_in(directory)
        assert log.head.size >= acked.size, f"kill {kill}, seed {SEED}"
        frames = b"".join(log.journal.frames(acked.size - 1))
        length = int.from_bytes(frames[:4], "little")
        assert frames[length - 32 : length] == acked.hash, f"kill {kill}, seed {SEED}"
        recovered += log.recovered is not None
        log.close()
    print(f"seed {SEED}: {KILLS} kills, {recovered} with something to recover")
