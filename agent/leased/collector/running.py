# SPDX-License-Identifier: Apache-2.0
"""What all pullers of a run share: where what they pull goes, and the places that there are.

Rule: how many connections there are, how many pages are in memory, and how many are being checked
at once is bounded here, for the whole fleet.

Does not pull (`puller`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from leased.collector.archive.storing import Storer
from leased.collector.case import Case
from leased.collector.config import PullConfig
from leased.collector.heads import Heads, SharedHeads
from leased.collector.own_clock import OwnClock, Skews
from leased.collector.transport import Credentials
from leased.collector.witness import Witness

ROOM_S: Final = 10
"""4 MiB in it are 3.4 Mbit/s; a slower node has its time when nobody else waits."""


class Outage:
    """Whether what all of them need can be had: told when that changes, once for all."""

    def __init__(
        self,
        name: str,
        tell: Callable[[str, str], None],
        *,
        alarm: Callable[[str, str], None] | None = None,
        again: str = "can be reached again",
    ) -> None:
        """`alarm` is who is told where it begins, `tell` that it is over."""
        self._name, self._tell, self._again = name, tell, again
        self._alarm = alarm or tell
        self._lacking: set[str] = set()
        self._on = False

    def begin(self, why: str, who: str = "") -> None:
        """Somebody did not have it."""
        self._lacking.add(who)
        if not self._on:
            self._on = True
            self._alarm(self._name, why)

    def end(self, who: str = "") -> None:
        """Somebody has had it: it is over when nobody lacks it any more."""
        self.leave(who)
        if self._on and not self._lacking:
            self._on = False
            self._tell(self._name, self._again)

    def leave(self, who: str) -> None:
        """Somebody does not ask for it now."""
        self._lacking.discard(who)


class Rooms:
    """Places for pages in memory. Where somebody waits for one, whoever has read for longest gives
    his up once he has had it for `ROOM_S`: a node that sends a byte a second keeps nobody waiting
    for longer."""

    def __init__(self, most: int) -> None:
        self._places = trio.CapacityLimiter(most)
        self._held: set[trio.CancelScope] = set()
        self._reading: dict[trio.CancelScope, float] = {}

    async def take(self, reading: trio.CancelScope) -> None:
        """Wait for one. `reading` ends where it is to be given up."""
        if not self._places.available_tokens and self._reading:
            oldest = next(iter(self._reading))
            oldest.deadline = self._reading.pop(oldest) + ROOM_S
        await self._places.acquire_on_behalf_of(reading)
        self._held.add(reading)
        self._reading[reading] = trio.current_time()

    def read(self, reading: trio.CancelScope) -> None:
        """All is there: it is kept until `leave`."""
        self._reading.pop(reading, None)

    def leave(self, reading: trio.CancelScope) -> None:
        """It is free, if it was taken."""
        self.read(reading)
        if reading in self._held:
            self._held.remove(reading)
            self._places.release_on_behalf_of(reading)


class Run:
    """What all pullers of a run share."""

    def __init__(
        self,
        config: PullConfig,
        storer: Storer,
        witness: Witness,
        case: Case,
        credentials: Credentials,
        *,
        fleet: str,
        nodes: int,
        heads: Heads | SharedHeads,
        clock: OwnClock,
        jitter: Callable[[], float],
        tell: Callable[[str, str], None],
        room: Outage,
    ) -> None:
        """`fleet` is a name; `jitter` gives 0 to 1; `tell` takes a node's name and a sentence;
        `room` is that of the disk."""
        self.config = config
        self.storer = storer
        self.witness = witness
        self.case = case
        self.credentials = credentials
        self.fleet = fleet
        self.heads = heads
        self.collectors = {witness.log.log_id}
        """The own logs of collectors: this one's, and those that are followed."""
        self.standing = nodes <= config.connections_max
        self.places = trio.CapacityLimiter(config.connections_max)
        self.rooms = Rooms(config.pages_max)
        self.workers = trio.CapacityLimiter(config.workers)
        self.clock, self.wall_ns = clock, clock.wall_ns
        self.jitter = jitter
        self.tell = tell
        self.skews = Skews(tell)
        self.archive = Outage("archive", tell)
        self.room = room
