# SPDX-License-Identifier: Apache-2.0
"""A process to kill: `python -m tests.crash.committing DIRECTORY SEED` commits for ever and prints
each acknowledged head.

Real directory, real C thread. Does not end by itself. `commit_to` is the same for a process that
was forked (`test_kill`).
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import trio

from leased.durable.log import open_log
from leased.terms.moment import Moment
from tests.doubles.logs import BOOT, MACHINE, ORIGIN, renewal, started


async def commit_for_ever(directory: Path, random: Random) -> None:
    """Batches of 1 to 40 records, so that segments of 64 KiB end every few batches."""
    now = Moment(BOOT, time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
    log = open_log(
        directory,
        moment=now,
        entropy=lambda: os.urandom(16),
        machine_id=MACHINE,
        origin=ORIGIN,
        best_effort=True,
        segment_bytes=64 * 1024,
    )
    sealer, number = log.sealer(), 0
    items = [(started(), now)]
    while True:
        for _ in range(random.randrange(1, 40)):
            items.append((renewal(number), now))
            number += 1
        batch = sealer.seal(items)
        await log.journal.commit(batch.frames, batch.count, batch.head, now)
        print(batch.new_head.text(), flush=True)
        items = []


def commit_to(directory: Path, seed: int, out: Connection, wrong: Connection | None = None) -> None:
    """Commit for ever, and tell each acknowledged head to `out`; what ends it goes to `wrong`."""
    os.dup2(out.fileno(), 1)
    if wrong is not None:
        os.dup2(wrong.fileno(), 2)
    trio.run(commit_for_ever, directory, Random(seed))


if __name__ == "__main__":
    trio.run(commit_for_ever, Path(sys.argv[1]), Random(int(sys.argv[2])))
