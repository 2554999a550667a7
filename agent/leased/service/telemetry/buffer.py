# SPDX-License-Identifier: Apache-2.0
"""The buffer between sampling and sending: so many bytes, the oldest dropped first, and counted.

Rule: `put` never waits and never fails. What is being sent stays in its place until it was taken;
it may be dropped meanwhile, and then it counts as dropped even if it should arrive: a receiver may
see more than we claim, never less.

Does not know what a batch holds.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import trio


class Batch(NamedTuple):
    """One request: how many points, and its body as it goes out."""

    points: int
    body: bytes


class Buffer:
    """One writer, one reader."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting: deque[Batch] = deque()
        self._filled = trio.Event()
        self.bytes = 0
        self.dropped_points = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, batch: Batch) -> int:
        """Have it sent; how many points were dropped for it, or with it."""
        dropped = 0
        self._waiting.append(batch)
        self.bytes += len(batch.body)
        while self.bytes > self._bytes_max:
            oldest = self._waiting.popleft()
            self.bytes -= len(oldest.body)
            dropped += oldest.points
        self.dropped_points += dropped
        self._filled.set()
        return dropped

    async def oldest(self) -> Batch:
        """What is to go next; it stays."""
        while not self._waiting:
            self._filled = trio.Event()
            await self._filled.wait()
        return self._waiting[0]

    def take(self, batch: Batch) -> bool:
        """It has gone. False if it had been dropped meanwhile."""
        if not self._waiting or self._waiting[0] is not batch:
            return False
        self._waiting.popleft()
        self.bytes -= len(batch.body)
        return True
