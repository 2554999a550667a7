# SPDX-License-Identifier: Apache-2.0
"""A process whose system calls fail: `python -m tests.crash.living DIRECTORY RUN` has a log through
all that is ever done to one, and prints each acknowledged head.

It opens (and makes or recovers) the log, commits on the spot and by the C thread, over segment
ends and epochs, shows signed notes, prunes, rotates the key, and closes. The same directory gives
the same calls in the same order, every time; RUN counts the runs over it. An error ends it, with
the reason on stderr.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from leased.chain.sealer import SealedBatch
from leased.chain.signing import Signer, rotation_message
from leased.durable.files import Disk
from leased.durable.log import OpenedLog, open_log
from leased.terms import event as e
from leased.terms.moment import Moment
from tests.doubles.logs import (
    BOOT,
    MACHINE,
    ORIGIN,
    CountedEntropy,
    acknowledged,
    lease_life,
    started,
)

SEGMENT_BYTES = 16 * 1024
STEP_NS = 25 * 10**9
"""Between batches: an epoch ends at every third."""
LIVES = 10
ID = e.EventId(bytes(16))


class Life:
    """One run over a log."""

    def __init__(
        self,
        directory: Path,
        run: int,
        tell: Callable[[str], object] = lambda _: None,
        *,
        disk: Disk | None = None,
    ) -> None:
        self._tell = tell
        self._disk = disk
        self.count = self.number = run * 1_000  # after all that any earlier run has sealed
        self.log = self._open(directory)
        self.sealer = self.log.sealer()

    def now(self) -> Moment:
        """Later each time."""
        self.count += 1
        wall_ns = 1_790_000_000 * 10**9 + self.count * STEP_NS
        return Moment(BOOT, 10**12 + self.count * STEP_NS, wall_ns)

    def _open(self, directory: Path) -> OpenedLog:
        return open_log(
            directory,
            moment=self.now(),
            entropy=CountedEntropy(str(self.count).encode()),
            machine_id=MACHINE,
            origin=ORIGIN,
            best_effort=True,
            segment_bytes=SEGMENT_BYTES,
            background=False,
            disk=self._disk,
        )

    def seal(self, events: list[e.Event], moment: Moment) -> SealedBatch:
        """A batch that is not on the disk yet."""
        return self.sealer.seal([(event, moment) for event in events], moment=moment)

    def settle(self, batch: SealedBatch) -> None:
        """It is anchored: acknowledge it, and do what follows from it."""
        self._tell(batch.new_head.text())
        if batch.ends_epoch:
            self.log.forget_epoch()
            self.log.publish("a note\n")

    def commit(self, events: list[e.Event]) -> None:
        """On the spot."""
        moment = self.now()
        batch = self.seal(events, moment)
        self.log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment)
        self.settle(batch)

    async def commit_apart(self, events: list[e.Event]) -> None:
        """By the C thread, as the agent does."""
        moment = self.now()
        batch = self.seal(events, moment)
        await self.log.journal.commit(batch.frames, batch.count, batch.head, moment)
        self.settle(batch)

    def prune(self) -> None:
        """Let go what may go."""
        size = self.sealer.head.size
        removal = self.log.removal(acked_size=size, older_than_wall_ns=2**62, pressed=True)
        if removal is not None:
            self.log.stage(removal)
            fields = (removal.min_seq, removal.head, len(removal.names), size, removal.key_changes)
            self.commit([started(), acknowledged(self.log, size), e.Pruned(ID, *fields)])
            self.log.remove(removal)

    def rotate(self) -> None:
        """Go on under another key."""
        old = self.log.signer
        signer = Signer(hashlib.sha256(b"%d" % self.sealer.head.size).digest())
        self.log.stage_key(signer)
        moment = self.now()
        message = rotation_message(self.log.log_id, old.public_key, signer.public_key)
        rotated = e.KeyRotated(ID, signer.public_key, old.sign(message), signer.sign(message))
        self.sealer.successor = signer
        batch = self.seal([rotated], moment)
        self.log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment)
        self.log.signer = signer
        self.settle(batch)
        self.log.adopt_key()

    def lives(self, count: int) -> list[e.Event]:
        """So many leases from beginning to end, that there have not been."""
        self.number += count
        return [one for each in range(count) for one in lease_life(self.number + each)]

    def fill(self) -> None:
        """Several segments, and no more."""
        self.commit([started()])
        for _ in range(2 * LIVES):
            self.commit(self.lives(1))

    async def run(self) -> None:
        """All of it."""
        self.commit([started()])
        for _ in range(LIVES):
            await self.commit_apart(self.lives(1))
            self.commit(self.lives(1))
        self.prune()
        self.rotate()
        self.commit(self.lives(1))
        self.log.close()


if __name__ == "__main__":
    aloud = partial(print, flush=True)
    trio.run(Life(Path(sys.argv[1]), int(sys.argv[2]), aloud).run)
