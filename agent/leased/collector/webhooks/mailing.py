# SPDX-License-Identifier: Apache-2.0
"""Webhooks put together for the server: who watches, who delivers, and who changes receivers.

Rule: what the settings say is judged before anything runs.

Does not speak HTTP as a server (`api.webhooks`).
"""

from __future__ import annotations

import sqlite3
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from leased import __version__
from leased.collector.governance.directory import GovernanceDirectory
from leased.collector.governance.register import Sealed
from leased.collector.webhooks.choosing import Chosen
from leased.collector.webhooks.courier import Courier
from leased.collector.webhooks.outbox import Outbox
from leased.collector.webhooks.receivers import Receivers, change_fact
from leased.collector.webhooks.signing import load_keys, public_text
from leased.collector.webhooks.task_outbox import TaskOutbox
from leased.collector.webhooks.watcher import Look, Watcher
from leased.collector.witness import os_entropy
from leased.terms.errors import ConfigError

OUTCOMES: Final = ("delivered", "failed", "dead", "disabled")


class Mailing:
    """Everything about webhooks of one run. Call `close` at the end."""

    def __init__(
        self,
        chosen: Chosen,
        governance: GovernanceDirectory,
        state: Path,
        directory: Path,
        *,
        source: str,
        wall_ns: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """Raises ConfigError, StateError."""
        self._chosen, self._state, self._wall_ns, self._say = chosen, state, wall_ns, say

        def make(connection: sqlite3.Connection) -> Outbox:
            return Outbox(connection, source)

        self.readers, self.writers = (
            Receivers(
                register,
                make(register.connection),
                allowed=chosen.private_networks,
                entropy=os_entropy,
                overlap_ns=chosen.overlap_ns,
            )
            for register in (governance.register, governance.writer)
        )
        context = trust(chosen.ca, directory)
        keys = load_keys(chosen.signing_keys, directory)
        self.public_keys = tuple(map(public_text, keys))
        self._outbox, self._watched = (TaskOutbox(governance.directory, make) for _ in range(2))
        self._courier = Courier(
            self._outbox,
            allowed=chosen.private_networks,
            context=context,
            timeout_ns=chosen.timeout_ns,
            concurrency=chosen.concurrency,
            wall_ns=wall_ns,
            entropy=os_entropy,
            agent=f"leased-collector/{__version__}",
            keys=keys,
            say=say,
        )

    @property
    def outcomes(self) -> Counter[str]:
        """What came of attempts since the start."""
        return self._courier.outcomes

    def count(self, state: str) -> int:
        """How many deliveries are in a state."""
        return self.readers.outbox.count(state)

    def tell(self, sealed: Sealed) -> bool:
        """A quota was changed, in the transaction that is under way."""
        return self.writers.outbox.put(change_fact(sealed))

    def look_again(self) -> None:
        """Something was written."""
        self._courier.look_again()

    async def run(self, look: Look) -> None:
        """Watch and deliver until cancelled."""
        watcher = Watcher(
            self._watched,
            self._state,
            look,
            thresholds_pm=self._chosen.thresholds_pm,
            idle_ns=self._chosen.idle_ns,
            keep_ns=self._chosen.keep_ns,
            keep_dead_ns=self._chosen.keep_dead_ns,
            wall_ns=self._wall_ns,
            put=self._courier.look_again,
            say=self._say,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watcher.run)
                nursery.start_soon(self._courier.run)
        finally:
            watcher.close()

    def close(self) -> None:
        """Idempotent."""
        self._outbox.close()
        self._watched.close()


def trust(ca: str, directory: Path) -> ssl.SSLContext:
    """How receivers are known. Raises ConfigError."""
    context = ssl.create_default_context()
    if ca:
        try:
            context.load_verify_locations(directory / ca)
        except OSError as error:  # an SSLError is one
            raise ConfigError(f"webhooks.ca: {directory / ca}: {error}") from error
    return context
