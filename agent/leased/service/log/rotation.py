# SPDX-License-Identifier: Apache-2.0
"""The rotation of the node's signing key: one record, signed by the old key and the new.

Rule: the new key is durable before anything is signed by it, and signs from the record on that
names it; notes are signed by it once that record is anchored. A crash in between leaves both keys
on disk, and the log says which one counts (`durable.keyfile`).

Does not decide when: an operator does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

import trio

from leased.chain.note import NoteKey
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer, rotation_message
from leased.durable.log import OpenedLog
from leased.ports import Entropy, Submit
from leased.service.evidence import NO_COMMAND
from leased.terms.command import NoteRotated
from leased.terms.errors import StateError
from leased.terms.reply import Reply


class Rotation:
    """Replaces the key; one rotation at a time."""

    def __init__(
        self,
        *,
        opened: OpenedLog,
        sealer: Sealer,
        submit: Submit,
        entropy: Entropy,
        unbroken: Callable[[], AbstractContextManager[None]],
        aside: Callable[..., Awaitable[None]] = trio.to_thread.run_sync,
    ) -> None:
        """`aside` calls what blocks where nobody waits for it, `unbroken` is a scope in which
        nobody is cancelled as long as what is submitted is answered."""
        self._opened, self._sealer = opened, sealer
        self._submit, self._entropy, self._aside = submit, entropy, aside
        self._unbroken = unbroken
        self._lock = trio.Lock()

    async def rotate(self) -> tuple[NoteKey, NoteKey]:
        """Replace the key; the one before and the one in force. Raises StateError where the disk
        does not take it: then nothing has changed. Not to be cancelled: it is brought to its
        end."""
        with self._unbroken():
            async with self._lock:
                keys = await self._rotate()
        return keys

    async def _rotate(self) -> tuple[NoteKey, NoteKey]:
        opened, old = self._opened, self._opened.signer
        new = Signer(self._entropy() + self._entropy())
        try:
            await self._aside(opened.stage_key, new)
        except OSError as error:
            raise StateError(f"the new key could not be written: {error}") from error
        message = rotation_message(opened.log_id, old.public_key, new.public_key)
        anchored = trio.Event()

        def take(reply: Reply) -> None:
            """In the same breath in which the record becomes visible."""
            opened.signer = new
            anchored.set()

        self._sealer.successor = new
        command = NoteRotated(
            NO_COMMAND,
            public_key=new.public_key,
            signature_old=old.sign(message),
            signature_new=new.sign(message),
        )
        self._submit(command, take)
        await anchored.wait()
        try:
            await self._aside(opened.adopt_key)
        except OSError as error:
            raise StateError(
                f"the key is replaced, but its file is still node.key.next ({error}); the next"
                " start puts that right"
            ) from error
        return NoteKey(opened.origin, old.public_key), NoteKey(opened.origin, new.public_key)
