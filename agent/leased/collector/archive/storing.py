# SPDX-License-Identifier: Apache-2.0
"""Storing: the one thread that writes the archive, and what waits for it.

Rule: whatever waits goes into one transaction (group commit), so that a thousand nodes cost as many
commits as the disk has time for. The queue is bounded by who may wait: one page of each connection.
Whoever is cancelled while waiting does not know whether its page was stored; the cursor does.

Does not decide anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import trio

from leased.chain.head import Head
from leased.collector.archive.archive import Archive, CursorMoved, LogEntry, Page
from leased.collector.archive.manifest import ManifestGone
from leased.terms.errors import StateError

BATCH_MAX: Final = 64
CONSOLIDATE_EVERY: Final = 64
T = TypeVar("T")


class Storer:
    """Owns the archive while it runs."""

    def __init__(self, archive: Archive, tell: Callable[[str], None]) -> None:
        self._archive = archive
        self._tell = tell
        self._thread = trio.CapacityLimiter(1)
        self._send, self._receive = trio.open_memory_channel[_Waiting](BATCH_MAX)
        self._stored: dict[str, int] = {}

    async def run(self) -> None:
        """Store what comes, until cancelled."""
        while True:
            batch = [await self._receive.receive()]
            while len(batch) < BATCH_MAX:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            with trio.CancelScope(shield=True):
                outcome = await self._persist([one.page for one in batch])
            for waiting, moved in zip(batch, outcome, strict=True):
                waiting.outcome = moved
                waiting.done.set()
            await self._tidy([one.page.log_id for one in batch if one.page.frames])

    async def store(self, page: Page) -> None:
        """Store a page. On return it is durable. Raises CursorMoved, StateError."""
        waiting = _Waiting(page)
        await self._send.send(waiting)
        await waiting.done.wait()
        if waiting.outcome is not None:
            raise waiting.outcome

    async def call(self, work: Callable[[], T]) -> T:
        """Do something else with the archive, in the same thread."""
        with trio.CancelScope(shield=True):
            done = await trio.to_thread.run_sync(work, limiter=self._thread)
        return done

    async def set(self, log_id: str, at: Head, fields: dict[str, Any]) -> None:
        """Set fields of a log whose cursor is `at`. Raises CursorMoved."""
        await self.call(lambda: self._archive.manifest.set(log_id, at, **fields))

    async def read(self, log_id: str) -> LogEntry | None:
        """One log as it stands."""
        return await self.call(lambda: self._archive.log(log_id))

    async def _persist(self, pages: list[Page]) -> list[CursorMoved | StateError | None]:
        try:
            return list(await self.call(lambda: self._archive.persist(pages)))
        except (OSError, StateError) as error:
            kind = ManifestGone if isinstance(error, ManifestGone) else StateError
            failed = kind(f"{self._archive.directory}: {error}; nothing was stored")
            failed.__cause__ = error
            return [failed for _ in pages]

    async def _tidy(self, log_ids: list[str]) -> None:
        """Put small files together, now and then."""
        for log_id in log_ids:
            count = self._stored[log_id] = self._stored.get(log_id, 0) + 1
            if count % CONSOLIDATE_EVERY == 0:
                try:
                    await self.call(partial(self._archive.consolidate, log_id))
                except (OSError, StateError) as error:
                    # Small files are a nuisance and no fault: what is there stays as it is.
                    self._tell(f"small segments of log {log_id} were not put together: {error}")


class _Waiting:
    """A page, and whoever waits for it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.done = trio.Event()
        self.outcome: CursorMoved | StateError | None = None
