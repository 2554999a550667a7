# SPDX-License-Identifier: Apache-2.0
"""FileJournal: the real Journal port.

Rule: `commit` returns when the batch is durable and anchored, and not before. It cannot be
cancelled half-way: what was handed to the disk is waited for. After a failure every further commit
is refused.

Does not seal and does not recover (`chain.sealer`, `log.open_log`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import trio

from leased.chain.head import Head
from leased.durable.files import Disk
from leased.durable.frames import read_frames
from leased.durable.spares import Spares
from leased.durable.writer import Writer, Writes
from leased.ports import AnchorSlot
from leased.terms.moment import Moment

TERMINAL_BYTES: Final = 2 * 1024
RESERVE_BYTES: Final = 64 * 1024


class Committer(Protocol):
    """Whatever carries one batch to the disk in the order of the rule."""

    def write_at_once(self, asked: Writes) -> bool:
        """The same without waiting for anybody else, if it is quick enough for that; raises
        OSError."""
        ...

    async def write(self, asked: Writes) -> None:
        """Write data and sync, then block and sync; raises OSError."""
        ...

    def close(self) -> None:
        """Release what it holds. Idempotent."""
        ...


class FileJournal:
    """The open log of one directory."""

    def __init__(
        self,
        disk: Disk,
        writer: Writer,
        committer: Committer,
        *,
        aside: Callable[..., Awaitable[None]] = trio.to_thread.run_sync,
    ) -> None:
        """`aside` calls what takes long where it does not hold up the loop."""
        self._aside = aside
        self._disk = disk
        self._writer = writer
        self._committer = committer
        self._under_way = False

    @property
    def anchored(self) -> AnchorSlot:
        """The slot on disk: what is durable and anchored."""
        return self._writer.slot

    @property
    def spares(self) -> Spares:
        """The segments kept ready."""
        return self._writer.spares

    @property
    def head(self) -> Head:
        """The anchored head."""
        return Head(self._writer.slot.next_seq, self._writer.slot.head)

    async def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        """As `ports.Journal.commit`."""
        writer = self._writer
        self._under_way = True
        try:
            with trio.CancelScope(shield=True):
                for part in writer.parts(frames, count, head, moment):
                    writer.begin()
                    await self._committer.write(writer.writes(part))
                    writer.settle(part)
                    if part.ends_segment:
                        # Once in some 45,000 records: a rename and two syncs that must not hold up
                        # the loop.
                        await self._aside(writer.switch, moment)
        finally:
            self._under_way = False

    def commit_at_once(self, frames: bytes, count: int, head: bytes, moment: Moment) -> bool:
        """As `commit`, without a turn of the event loop, for a small batch on a fast disk. False:
        nothing was done, and `commit` is to be asked."""
        writer = self._writer
        if not writer.fits(frames):
            return False
        [part] = writer.parts(frames, count, head, moment)
        writer.begin()
        written = self._committer.write_at_once(writer.writes(part))
        if written:
            writer.settle(part)
        else:
            writer.failed = False
        return written

    def commit_blocking(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        """The same without a running loop: for tools and at boot."""
        self._writer.commit(frames, count, head, moment)

    def frames(self, first_seq: int) -> Iterator[bytes]:
        """Anchored frames from `first_seq` on, in chunks of whole frames, up to what is anchored
        at the call."""
        slot = self._writer.slot
        yield from read_frames(self._disk, first_seq, slot)

    def reserve_ok(self, live_leases: int) -> bool:
        """Whether the terminal records of `live_leases` + 1 leases fit without allocating a
        block."""
        needed = (live_leases + 1) * TERMINAL_BYTES + RESERVE_BYTES
        self._writer.spares.want(self._writer.spares_for(needed))
        # Until it is settled a batch counts as failed, which is not to be taken for a log that has.
        sound = self._under_way or not self._writer.failed
        return sound and self._writer.free_bytes() >= needed

    def make_room(self) -> None:
        """A batch of any size fits without allocating a block when this returns: where no thread
        keeps spares ready. Nothing has failed where there is no room. Raises OSError."""
        spares, needed = self._writer.spares, self._writer.largest_bytes
        spares.try_fill()
        if spares.error is not None and self._writer.free_bytes() < needed:
            raise spares.error

    def close(self) -> None:
        """Release the lock and the files. Idempotent."""
        self._writer.spares.stop()
        self._committer.close()
        self._writer.close()
        self._disk.close()
