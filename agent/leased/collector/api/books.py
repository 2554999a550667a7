# SPDX-License-Identifier: Apache-2.0
"""The books: what answers are computed from, kept up to date beside the server.

Rule: reading happens in a thread, on a connection of its own; answers are made from what was last
read whole. How often it is read anew follows from how long that takes, so that a large fleet costs
a share of one core and no more.

Does not answer (`reports`, `views`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from leased.collector.accounts import Accounts
from leased.collector.archive import ArchiveReader
from leased.collector.fleet import Fleet
from leased.collector.manifest import DATABASE
from leased.collector.reference import read_archive
from leased.economics.contracts import Terms
from leased.terms.errors import LeasedError

LOOK_S: Final = 0.5
"""How late a record that was pulled is shown, at most, on a fleet that is read quickly."""

SHARE: Final = 4
"""Reading everything anew takes one part in so many of the time."""

RECORDS_MAX: Final = 20_000
"""In one go, so that a thread is never long away."""


class Books:
    """The fleet and its accounts. `changed` is set, and replaced, when there is something new."""

    def __init__(self, state: Path, terms: Callable[[], Terms], say: Callable[[str], None]) -> None:
        self._state, self._terms, self._say = state, terms, say
        self._archive: ArchiveReader | None = None
        self._heads: tuple[object, ...] = ()
        self._next_s = 0.0
        self._said = ""
        self.fleet = Fleet()
        self.accounts: Accounts | None = None
        self.changed = trio.Event()

    async def run(self) -> None:
        """Follow the archive until cancelled."""
        while True:
            more = False
            try:
                before = self.fleet.changes
                more = await trio.to_thread.run_sync(self._follow)
                if self.fleet.changes != before or more:
                    self._tell()
                self._said = ""
            except LeasedError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    self._say(f"the archive cannot be read: {error}")
            await trio.sleep(0 if more else LOOK_S)

    def _tell(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _follow(self) -> bool:
        if self._archive is None:
            if not (self._state / DATABASE).exists():
                return False
            self._archive = ArchiveReader(self._state)
        more = self.fleet.follow(self._archive, RECORDS_MAX)
        heads = tuple((entry.log_id, entry.head) for entry in self.fleet.entries.values())
        if not more and heads != self._heads and time.monotonic() >= self._next_s:
            began = time.monotonic()
            self.accounts = Accounts(read_archive(self._archive), self._terms())
            self._heads = heads
            self._next_s = time.monotonic() + SHARE * (time.monotonic() - began)
        return more

    def close(self) -> None:
        """Idempotent."""
        if self._archive is not None:
            self._archive.close()
