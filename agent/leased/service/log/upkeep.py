# SPDX-License-Identifier: Apache-2.0
"""What the log itself needs while the agent runs, put together: its epochs, its counter, its
room, and that what is old goes.

Rule: none of it is on the path of a request, and what of it cannot be done ends the agent: the next
start does it before it serves.

Does not seal (`sequencer`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from leased import __version__
from leased.durable.log import OpenedLog
from leased.ports import Clock
from leased.service.config import Log
from leased.service.log.counting import make_counting
from leased.service.log.epochs import make_epochs
from leased.service.log.pruning import Identity, Pruning
from leased.service.log.room import Room
from leased.terms.command import Command
from leased.terms.errors import StateError

if TYPE_CHECKING:
    from leased.service.agent import Agent


class Upkeep:
    """Owns the chores of an opened log."""

    def __init__(
        self,
        opened: OpenedLog,
        settings: Log,
        *,
        clock: Clock,
        submit: Callable[[Command], None],
        sign: Callable[[], str],
        say: Callable[[str], None],
        pruning: Pruning,
        room: Room,
    ) -> None:
        """`sign` signs the tree that is anchored now."""
        self._opened, self._clock, self._say = opened, clock, say
        self._epochs = make_epochs(opened, clock, submit, sign=sign, say=say)
        self._pruning, self._room = pruning, room
        self._counting = make_counting(opened, clock, settings.counter.period_ns, say)

    async def run(self) -> None:
        """Until cancelled. Raises OSError or StateError for what cannot wait for the next start."""
        async with trio.open_nursery() as nursery:
            for chore in (self._epochs, self._counting, self._pruning, self._room):
                if chore is not None:
                    nursery.start_soon(chore.run)

    def end_epoch(self) -> None:
        """A seal is anchored."""
        if self._epochs is not None:
            self._epochs.end()

    def close(self) -> None:
        """Nothing is sealed any more: leave a log of which no earlier copy is opened again."""
        try:
            self._opened.bind(self._clock.now())
        except (StateError, OSError) as error:
            self._say(f"the state that is left is not the only one that counts: {error}")
        self._opened.journal.close()


def make_upkeep(agent: Agent) -> Upkeep:
    """Hand it what it needs of the agent."""
    return Upkeep(
        agent.opened,
        agent.config.log,
        clock=agent.clock,
        submit=agent.sequencer.submit_own,
        sign=lambda: agent.vitals.head().checkpoint or "",
        say=agent.say,
        room=Room(lambda: agent.fleet.log_state(), clock=agent.clock, say=agent.journald.say),
        pruning=Pruning(
            agent.opened,
            Identity(agent.node, __version__),
            listening=lambda: agent.config.listener,
            retention_ns=agent.config.log.retention_ns,
            free_bytes_min=agent.config.log.free_bytes_min,
            clock=agent.clock,
            ask=agent.sequencer.ask_own,
            say=agent.say,
        ),
    )
