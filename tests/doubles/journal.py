# SPDX-License-Identifier: Apache-2.0
"""Journals that argue back: one in memory, and a committer that carries the real one onto any disk
without the C thread.

`MemoryJournal` keeps committed frames in a list. Its `fault` is asked at each step ("append",
"anchor") and may answer (apply, error): the step is applied or not, and then fails, as a disk does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from leased.chain.head import GENESIS, Head
from leased.durable.files import Disk
from leased.durable.writer import Writes
from leased.terms.errors import InvariantError, StateError
from leased.terms.moment import Moment

StepFault = Callable[[str], tuple[bool, OSError] | None]


class MemoryJournal:
    """`ports.Journal` in memory. `durable` is what a restart would find; `head` what is
    anchored."""

    def __init__(
        self, head: Head = GENESIS, *, fault: StepFault | None = None, reserve: int = 1 << 20
    ) -> None:
        self.head = head
        self.first_seq = head.size
        self.durable: list[bytes] = []
        self.batches: list[tuple[bytes, int, bytes, Moment]] = []
        self.fault = fault
        self.reserve = reserve
        self.failed = False
        self.closed = False

    async def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        if self.failed or self.closed:
            raise StateError("the journal has failed or is closed; nothing more is written")
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        self.failed = True
        found = list(_frames(frames))
        follows = int.from_bytes(found[0][8:16], "little") == self.head.size
        if len(found) != count or found[-1][-32:] != head or not follows:
            raise InvariantError(
                "frames, count and head handed to the journal do not belong together"
            )
        self._step("append", lambda: self.durable.extend(found))
        self._step("anchor", lambda: self._anchor(frames, count, head, moment))
        self.failed = False

    def frames(self, first_seq: int) -> Iterator[bytes]:
        anchored = self.durable[first_seq - self.first_seq : self.head.size - self.first_seq]
        if anchored:
            yield b"".join(anchored)

    def reserve_ok(self, live_leases: int) -> bool:
        return not self.failed and (live_leases + 1) * 2048 + 65536 <= self.reserve

    def close(self) -> None:
        self.closed = True

    def _anchor(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        self.head = Head(self.head.size + count, head)
        self.batches.append((frames, count, head, moment))

    def _step(self, name: str, apply: Callable[[], None]) -> None:
        verdict = self.fault(name) if self.fault else None
        if verdict is None or verdict[0]:
            apply()
        if verdict is not None:
            raise verdict[1]


class DiskCommitter:
    """`durable.journal.Committer` over any `Disk`, without a thread: for the real journal on a
    MemoryDisk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def write(self, asked: Writes) -> None:
        await trio.lowlevel.checkpoint()
        self.write_at_once(asked)

    def write_at_once(self, asked: Writes) -> bool:
        self._disk.write(asked.segment, asked.data, asked.offset)
        self._disk.sync(asked.segment)
        self._disk.write(asked.anchor, asked.block, asked.block_offset)
        self._disk.sync(asked.anchor)
        return True

    def close(self) -> None:
        pass


def _frames(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4], "little")
        yield data[offset : offset + length]
        offset += length
