# SPDX-License-Identifier: Apache-2.0
"""The ticker: sleeps until the next thing that time itself brings about, and says so with a `Tick`.

Rule: it sleeps on CLOCK_BOOTTIME and never longer than BACKSTOP_NS, so that a wake-up lost to a
bug costs half a second and not a lease. The reaper has its own clock; this one is for the table's
sake. So at a lease's deadline it lets the reaper go first, and those who die: the processors are
theirs until the reaper says that it has cut (`note_cut`), or for `late_ns`.

Does not know what is due: the lessor does.
"""

from __future__ import annotations

import trio

from leased.lessor.lessor import Lessor
from leased.ports import Clock, Submit
from leased.service.evidence import NO_COMMAND
from leased.terms.command import Tick
from leased.terms.identity import LeaseId
from leased.terms.moment import NS_PER_MS

BACKSTOP_NS = 500 * NS_PER_MS
LATE_NS = 30 * NS_PER_MS
"""A cut takes a millisecond, in an emulated machine ten."""


class Ticker:
    """Submits a Tick whenever the lessor's next deadline has come. `late_ns` is for a reaper that
    does not say that it has cut."""

    def __init__(self, *, lessor: Lessor, clock: Clock, submit: Submit, late_ns: int = 0) -> None:
        self._lessor = lessor
        self._clock = clock
        self._submit = submit
        self._late_ns = late_ns
        self._cut = False
        self._wake: trio.CancelScope | None = None
        self._sleeping_until = 0

    def is_due(self, lease_id: LeaseId) -> bool:
        """Whether the lease's time is over: the next Tick ends it."""
        at_ns = self._lessor.table.deadlines.current.get(lease_id)
        return at_ns is not None and at_ns <= self._clock.now().boot_ns

    def look_again(self) -> None:
        """A batch was committed: if something is due sooner than the present sleep ends, wake
        up."""
        due = self._due_ns()
        if self._wake is not None and due is not None and due < self._sleeping_until:
            self._wake.cancel()

    def note_cut(self) -> None:
        """The reaper has cut a lease at its deadline: the table is to know."""
        self._cut = True
        if self._wake is not None:
            self._wake.cancel()

    def _due_ns(self) -> int | None:
        return self._lessor.next_deadline_ns(0 if self._cut else self._late_ns)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            now = self._clock.now().boot_ns
            due = self._due_ns()
            until = now + BACKSTOP_NS if due is None else min(due, now + BACKSTOP_NS)
            if until > now:
                self._sleeping_until = until
                with trio.CancelScope() as self._wake:
                    await self._clock.sleep_until(until)
                self._wake = None
            due, self._cut = self._due_ns(), False
            if due is not None and due <= self._clock.now().boot_ns:
                ticked = trio.Event()
                self._submit(Tick(NO_COMMAND), lambda _reply, ticked=ticked: ticked.set())
                # The next look at the heap must see what this tick did; a full channel answers at
                # once as well.
                await ticked.wait()
            else:
                await trio.lowlevel.checkpoint()
