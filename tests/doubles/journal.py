# SPDX-License-Identifier: Apache-2.0
"""A committer that carries the real journal onto any disk, without the C thread.

Does not fail by itself: the disk does (`disk`).
"""

from __future__ import annotations

import trio

from leased.durable.files import Disk
from leased.durable.writer import Writes


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
