# SPDX-License-Identifier: Apache-2.0
"""The door to the collector's own log: other collectors pull and cosign it, as they do a node's.

Rule: the same protocol by the same code as a node's door (PULL.md), with this collector's
certificate: a log is a log. Who has cosigned is sealed in the own log, in the storer's thread like
everything there.

Does not follow other collectors (`puller`) and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from leased.collector.archive.storing import Storer
from leased.collector.transport import Watched
from leased.collector.witness import Witness
from leased.ports import Clock
from leased.service.fleet import config as door
from leased.service.fleet.config import Listening
from leased.service.fleet.countersigning import Countersigning
from leased.service.fleet.listener import NodeListener, open_sockets
from leased.service.fleet.pulling import PulledLog
from leased.service.fleet.routes import AuditRoutes, refuse
from leased.service.fleet.tls import Credentials, load
from leased.terms.command import Command, NoteCountersigned
from leased.terms.errors import ConfigError
from leased.terms.event import Event
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.reading import fields
from leased.terms.reply import Done, Reply

GATHER_NS = 100_000_000


def read_listening(table: Mapping[str, Any], files: tuple[str, str, str]) -> Listening:
    """The `[own_log]` table, with the collector's certificate, key and CA. Off where it has no
    address. Raises ConfigError."""
    keys = {name: door.KEYS[name] for name in ("address", "port", "quorum", "collectors")}
    found = fields(dict(table), keys, "own_log.")
    if not found.get("address"):
        if found.get("collectors"):
            raise ConfigError("own_log.address: where do these collectors come to?")
        return Listening()
    certificate, key, ca = files
    return door.check(Listening(certificate=certificate, key=key, ca=ca, **found))


class HostClock:
    """`ports.Clock` over the clock that the witness has."""

    def __init__(self, now: Callable[[], Moment]) -> None:
        self.now = now

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME alone."""
        return self.now().boot_ns

    async def sleep_until(self, boot_ns: int) -> None:
        """Return at or after `boot_ns`."""
        while (left_ns := boot_ns - self.now().boot_ns) > 0:
            await trio.sleep(left_ns / NS_PER_S)


class OwnDoor:
    """Serves the own log until cancelled."""

    def __init__(
        self, witness: Witness, storer: Storer, listening: Listening, clock: Clock, name: str
    ) -> None:
        """`name` is that of the certificate. Raises ConfigError, StateError."""
        self._witness, self._storer = witness, storer
        self._log = PulledLog(witness.log, latest=lambda: witness.tree, gather_ns=GATHER_NS)
        self._acks = Countersigning(
            self._log,
            collectors=lambda: listening.collectors,
            policy=lambda: listening.policy,
            apart_ns=lambda: listening.ack_apart_ns,
            ask=self._ask,
            clock=clock,
        )
        self._watched = Watched(listening.certificate, listening.key, listening.ca)
        self._refused = ""
        self._load: Callable[[bool], Credentials] = lambda replacing: load(
            listening,
            node_id=witness.node_id,
            wall_ns=clock.now().wall_ns,
            collector=name,
            replacing=replacing,
        )
        routes = AuditRoutes(
            self._log,
            self._acks,
            node_id=witness.node_id,
            clock=clock,
            metrics=str,
            state=lambda: ("healthy", ""),
        )
        self._listener = NodeListener(
            sockets=open_sockets(listening, {}),
            credentials=self._load(False),
            limits=listening,
            attend=routes.attend,
            refuse=refuse,
            clock=clock,
        )

    @property
    def ports(self) -> list[int]:
        """Where it listens."""
        return self._listener.ports

    def look_again(self) -> str:
        """Take a certificate that was renewed for the connections that come; what to tell. One that
        is refused is tried again: what is wrong may be the clock."""
        if not self._watched.changed() and not self._refused:
            return ""
        try:
            self._listener.credentials, self._refused = self._load(True), ""
        except ConfigError as error:
            before, self._refused = self._refused, str(error)
            told = f"{error}; those of before stay in force"
            return "" if self._refused == before else told
        return "certificate, key and CA were read anew"

    async def run(self) -> None:
        """Serve until cancelled."""
        for _ in self._witness.log.history():
            pass  # what had been acknowledged before this start
        self._acks.restore()
        self._witness.told = self._tell
        await self._listener.run()

    async def _ask(self, command: Command) -> Reply:
        assert isinstance(command, NoteCountersigned)
        await self._storer.call(lambda: self._witness.countersign(command))
        return Done()

    def _tell(self, events: Sequence[Event], sequences: Sequence[int]) -> None:
        """From the storer's thread."""
        trio.from_thread.run_sync(self._told, events, sequences)

    def _told(self, events: Sequence[Event], sequences: Sequence[int]) -> None:
        self._acks.tell(events, sequences)
        self._log.wake()
