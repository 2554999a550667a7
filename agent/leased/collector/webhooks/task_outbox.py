# SPDX-License-Identifier: Apache-2.0
"""The outbox as a task of the server has it: a connection of its own, used by one thread at a time.

Rule: what is asked is asked in a thread; what is written is one transaction, durable when it
returns. A stop waits for what is being written and for nothing else.

Does not know what is asked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from leased.collector.governance.register import Register
from leased.collector.webhooks.outbox import Outbox
from leased.terms.errors import StateError

T = TypeVar("T")
SYSTEM: Final = "collector"


class TaskOutbox:
    """One connection to the register, for the webhooks' tasks."""

    def __init__(self, directory: Path, make: Callable[[sqlite3.Connection], Outbox]) -> None:
        """`directory` is the register's. Raises StateError."""
        self._register = Register(directory)
        self._outbox = make(self._register.connection)
        self._limiter = trio.CapacityLimiter(1)

    async def ask(self, ask: Callable[[Outbox], T], *, writes: bool = False) -> T:
        """What `ask` finds. Raises StateError where the database cannot be had."""
        return await trio.to_thread.run_sync(self._carry_out, ask, writes, limiter=self._limiter)

    def _carry_out(self, ask: Callable[[Outbox], T], writes: bool) -> T:
        try:
            if not writes:
                return ask(self._outbox)
            with self._register.transaction():
                return ask(self._outbox)
        except sqlite3.Error as error:
            raise StateError(f"the register: {error}") from error

    def disable(self, outbox: Outbox, webhook_id: str, why: str, now_ns: int) -> None:
        """Send nothing more to a receiver, in the transaction that is under way; sealed as every
        change is."""
        webhook = outbox.webhook(webhook_id)
        if webhook is None or webhook.disabled:
            return
        outbox.put_webhook(msgspec.structs.replace(webhook, disabled=why))
        self._register.record(
            id=webhook_id,
            wall_ns=now_ns,
            actor=SYSTEM,
            action="webhook.disable",
            tenant="",
            reason=why,
            left=None,
        )

    def close(self) -> None:
        """Idempotent."""
        self._register.close()
