# SPDX-License-Identifier: Apache-2.0
"""The books: what answers are computed from, kept up to date beside the server.

Rule: reading happens in a thread, on a connection of its own, which a stop does not wait for (what
it writes stands any crash); answers are made from what was last read whole, several at a time, and
a source is kept open for as long as somebody asks it. How often it is read anew follows from how
long that takes, so that a large fleet costs a share of one core and no more.

Does not answer (`reports`, `views`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.clocks import notice
from leased.collector.accounts.invoices import Invoices
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifests import is_there
from leased.collector.fleet import Fleet
from leased.collector.metering.engine import EngineGone, MakeEngine
from leased.collector.metering.sources import Source
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.economics.contracts import Terms
from leased.terms.errors import LeasedError

LOOK_S: Final = 0.5
"""How late a record that was pulled is shown, at most, on a fleet that is read quickly."""

SHARE: Final = 4
"""Bringing the store up to date takes one part in so many of the time."""

RECORDS_MAX: Final = 20_000
"""In one go, so that a thread is never long away."""

T = TypeVar("T")


class Books:
    """The fleet and its accounts. `changed` is set, and replaced, when there is something new."""

    def __init__(
        self,
        state: Path,
        terms: Callable[[], Terms],
        say: Callable[[str], None],
        *,
        make_engine: MakeEngine | None = None,
    ) -> None:
        self._state, self._terms, self._say = state, terms, say
        self._make_engine = make_engine
        self._archive: ArchiveReader | None = None
        self._source: StoreSource | None = None
        self._accounts: Accounts | None = None
        self._turning = threading.Lock()
        self._asking: dict[int, int] = {}
        self._old: list[StoreSource] = []
        self._heads: tuple[object, ...] = ()
        self._next_s = 0.0
        self._said = ""
        self._ahead: set[str] = set()
        self._aside: set[str] = set()
        self.fleet = Fleet()
        self.changed = trio.Event()

    @property
    def is_read(self) -> bool:
        """Whether everything that was there has been read once."""
        return self._accounts is not None

    def ask(self, question: Callable[[Accounts], T]) -> T | None:
        """What the accounts answer; None: nothing has been read yet. Blocks, and nobody else: a
        source is let go of when it is another's turn and nobody asks it any more."""
        with self._turning:
            accounts = self._accounts
            if accounts is None:
                return None
            self._asking[id(accounts.source)] = self._asking.get(id(accounts.source), 0) + 1
        try:
            return question(accounts)
        finally:
            self._leave(accounts.source)

    def _leave(self, source: Source) -> None:
        with self._turning:
            self._asking[id(source)] -= 1
            if not self._asking[id(source)]:
                del self._asking[id(source)]
            self._close_old()

    def _close_old(self) -> None:
        """Let go of the sources of before that nobody asks."""
        for old in [one for one in self._old if id(one) not in self._asking]:
            self._old.remove(old)
            old.close()

    async def run(self) -> None:
        """Follow the archive until cancelled."""
        while True:
            more = False
            try:
                before = self.fleet.changes
                more = await trio.to_thread.run_sync(self._follow, abandon_on_cancel=True)
                self._tell_aside()
                if self.fleet.changes != before or more:
                    self._tell()
                if not more:
                    await trio.to_thread.run_sync(self._refresh, abandon_on_cancel=True)
            except LeasedError as error:
                self._tell_once(f"the archive cannot be read: {error}")
            await trio.sleep(0 if more else LOOK_S)

    def _tell_aside(self) -> None:
        """Of each log once that nothing is kept of it any more."""
        for view in self.fleet.logs.values():
            if view.aside and view.log_id not in self._aside:
                self._aside.add(view.log_id)
                why = f"{view.aside}; its records are kept, and billed"
                self._say(f"{view.name} is set aside: {why}")

    def _tell(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _follow(self) -> bool:
        if self._archive is None:
            if not is_there(self._state):
                return False
            self._archive = ArchiveReader(self._state)
        return self.fleet.follow(self._archive, RECORDS_MAX)

    def _refresh(self) -> None:
        heads: tuple[Any, ...] = tuple(
            (entry.log_id, entry.head) for entry in self.fleet.entries.values()
        )
        began = time.monotonic()
        if self._archive is None or heads == self._heads or began < self._next_s:
            return
        first = not self._heads
        terms = self._terms()
        store = Store(self._state, make_engine=self._make_engine)
        if first and store.rollups.is_foreign():
            self._say("the store is of another release: it is made again from the raw segments")
        try:
            store.refresh(self._archive, retired=terms.retired_nodes)
            self._open(store, terms)
        except EngineGone as error:
            # What was read last is answered from, and says by its watermark how old it is.
            if self._source is None and store.rollups.listing().nodes:
                self._open(store, terms)
            self._tell_once(f"usage is not up to date: {error}")
            return
        finally:
            self._next_s = time.monotonic() + SHARE * (time.monotonic() - began)
        self._heads = heads
        if first or self._said:
            self._said = ""
            self._say(f"usage is up to date, after {time.monotonic() - began:.1f} s")

    def _open(self, store: Store, terms: Terms) -> None:
        source = StoreSource(store.rollups)
        with self._turning:
            if self._source is not None:
                self._old.append(self._source)
            self._source = source
            self._accounts = accounts = Accounts(
                source, terms, Invoices(self._state), clock_ns=time.time_ns()
            )
            self.fleet.retired = frozenset(terms.retired_nodes)
            self._close_old()
        for node in accounts.ahead():
            if node.log_id not in self._ahead:
                self._ahead.add(node.log_id)
                self._say(notice(node))

    def _tell_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)
