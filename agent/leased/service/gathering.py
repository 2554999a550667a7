# SPDX-License-Identifier: Apache-2.0
"""A gathering point: producers leave items without waiting, a task takes all that is there.

Rule: it is the same natural group commit as the sequencer's, for work after the commit: whatever
arrived while the last batch was under way is the next batch, so the cost of a hand-over is shared
exactly when there is load.

Bounded by its producers: one item per live lease at most. Does not order, retry or time anything.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Gathering(Generic[T]):
    """Items left by `put`, taken together by `take`."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._takers = trio.lowlevel.ParkingLot()
        self._woken = False

    def put(self, item: T) -> None:
        """Leave one item. Never blocks."""
        self._items.append(item)
        self._wake()

    async def take(self, most: int) -> list[T]:
        """Wait until something is there; take up to `most`, oldest first."""
        while not self._items:
            await self._takers.park()
            self._woken = False
        taken, self._items = self._items[:most], self._items[most:]
        if self._items:
            self._wake()
        return taken

    def _wake(self) -> None:
        """One taker is enough for all that is there before its turn comes."""
        if not self._woken and self._takers:
            self._woken = True
            self._takers.unpark()
