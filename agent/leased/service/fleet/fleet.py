# SPDX-License-Identifier: Apache-2.0
"""The fleet's side of the agent, put together: the log that collectors pull, what they acknowledge,
and the door they come through.

Rule: a node serves its tenants whether its fleet can reach it or not: a certificate that cannot be
used keeps the door shut, is said aloud, and is looked at again at every reload and every
`AGAIN_S`: a host that boots with a wrong clock has it put right by itself. What is configured anew
counts for the connections that come; those that are there go on.

Does not serve by itself (`listener`) and answers nothing (`routes`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from leased.chain.proof import Proof
from leased.chain.tree import Frontier
from leased.durable.log import OpenedLog
from leased.ports import Clock
from leased.service.batch import Told
from leased.service.fleet.config import Listening
from leased.service.fleet.countersigning import Countersigning
from leased.service.fleet.listener import NodeListener, open_sockets
from leased.service.fleet.pulling import PulledLog
from leased.service.fleet.routes import AuditRoutes, refuse
from leased.service.fleet.tls import load
from leased.service.log.room import state_of
from leased.service.telling import metrics
from leased.service.telling.narration import CRITICAL
from leased.terms.command import Command
from leased.terms.errors import CallerError, ConfigError, StateError
from leased.terms.reply import Reply

if TYPE_CHECKING:
    from leased.service.agent import Agent
    from leased.service.config import Config

AGAIN_S = 10
"""A door that is shut is tried so often."""


class Fleet:
    """What of the agent its fleet gets to see."""

    def __init__(
        self,
        listening: Listening,
        *,
        opened: OpenedLog,
        ask: Callable[[Command], Awaitable[Reply]],
        latest: Callable[[], Frontier],
        node_id: bytes,
        clock: Clock,
        say: Callable[..., None],
        metrics: Callable[[], str],
        log_state: Callable[[], tuple[str, str]],
    ) -> None:
        """`ask` puts a command through the sequencer; `log_state` is how the log is, and why
        (`service.log.room`)."""
        self.log_state = log_state
        self._listening = listening
        self._clock, self._node_id, self._say = clock, node_id, say
        self.log = PulledLog(opened, latest=latest, gather_ns=listening.gather_ns)
        self.countersigning = Countersigning(
            self.log,
            collectors=lambda: self._listening.collectors,
            policy=lambda: self._listening.policy,
            apart_ns=lambda: self._listening.ack_apart_ns,
            ask=ask,
            clock=clock,
        )
        self.routes = AuditRoutes(
            self.log,
            self.countersigning,
            node_id=node_id,
            clock=clock,
            metrics=metrics,
            state=log_state,
        )
        self.listener: NodeListener | None = None
        self._handed: Mapping[str, Sequence[int]] = {}
        self._usable = trio.Event()
        self._complaint = ""

    async def prove(self, sequence: int, size: int | None) -> Proof:
        """Prove a record to whoever is here; without a size in the newest tree that the quorum has
        cosigned with the record in it, if there is one. Raises CallerError, StateError,
        ChainError."""
        slot = self.log.anchored
        if size is None:
            size = self.log.vouched_size(self._listening.policy, sequence) or slot.next_seq
        if not 0 <= sequence < size <= slot.next_seq:
            raise CallerError(
                f"sequence {sequence} in {size} records: the log has {slot.next_seq} records"
            )
        try:
            return await self.log.prove(sequence, size, slot)
        except OSError as error:
            raise StateError(f"the log cannot be read: {error}") from error

    # -- the door ----------------------------------------------------------------------------------

    def open(self, handed: Mapping[str, Sequence[int]]) -> None:
        """Open the door if one is configured; say aloud why it stays shut."""
        self._handed = handed
        self.countersigning.restore()
        if not self._listening.on:
            return
        self._try_to_let_in()

    def _try_to_let_in(self) -> None:
        try:
            self._let_in()
        except (ConfigError, StateError) as error:
            complaint = f"collectors cannot connect: {error}; tried again every {AGAIN_S} s"
            if complaint != self._complaint:
                self._say(complaint, priority=CRITICAL)
            self._complaint = complaint

    def _let_in(self) -> None:
        """Use what is configured now. Raises ConfigError, StateError."""
        listening = self._listening
        credentials = load(listening, node_id=self._node_id, wall_ns=self._clock.now().wall_ns)
        if self.listener is not None:
            self.listener.credentials, self.listener.limits = credentials, listening
            return
        self.listener = NodeListener(
            sockets=open_sockets(listening, self._handed),
            credentials=credentials,
            limits=listening,
            attend=self.routes.attend,
            refuse=refuse,
            clock=self._clock,
        )
        ports = ", ".join(map(str, self.listener.ports))
        self._say(f"collectors of the fleet {credentials.fleet} may connect to port {ports}")
        self._usable.set()

    def check(self, config: Config) -> Config:
        """A new configuration, if its door could be used. Blocks. Raises ConfigError."""
        if config.listener.on:
            now_ns, there = self._clock.now().wall_ns, self.listener is not None
            load(config.listener, node_id=self._node_id, wall_ns=now_ns, replacing=there)
        return config

    def reload(self, listening: Listening) -> None:
        """Use a new configuration, that was checked; say aloud what cannot be used all the same. A
        door is neither moved nor closed."""
        if not listening.on and self.listener is not None:
            self._say(
                "[listener] names no certificate any more; collectors may connect as before until"
                " the next start"
            )
            return
        self._listening, self._complaint = listening, ""
        if listening.on:
            self._try_to_let_in()

    async def run(self) -> None:
        """Serve until cancelled, once there is a door."""
        while self.listener is None:
            with trio.move_on_after(AGAIN_S):
                await self._usable.wait()
            if self.listener is None and self._listening.on:
                self._try_to_let_in()
        await self.listener.run()

    # -- what the sequencer tells ------------------------------------------------------------------

    def tell(self, told: Told) -> None:
        """A batch counts."""
        self.countersigning.tell(told.events, told.sequences)

    def end_epoch(self) -> None:
        """A seal counts."""
        self.countersigning.end_epoch()

    def wake(self) -> None:
        """More is anchored."""
        self.log.wake()


def make_fleet(agent: Agent) -> Fleet:
    """Hand it what it needs of the agent."""
    return Fleet(
        agent.config.listener,
        opened=agent.opened,
        ask=agent.sequencer.ask_own,
        latest=lambda: agent.vitals.tree,
        node_id=agent.node,
        clock=agent.clock,
        say=agent.journald.say,
        metrics=partial(_metrics, agent),
        log_state=lambda: state_of(agent.opened, agent.sequencer.lessor.table.live),
    )


def _metrics(agent: Agent) -> str:
    """What the agent says of itself, then every sample that is fresh."""
    lines = (*metrics.expose(agent), *agent.telemetry.expose())
    return "".join(f"{line}\n" for line in lines)
