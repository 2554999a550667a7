# SPDX-License-Identifier: Apache-2.0
"""Epochs in time: has each sealed when it ends, its key forgotten when the seal is anchored, and
the signed head left on disk.

Rule: an epoch in which nothing happened is sealed all the same. The key file is overwritten off the
path of requests, but nothing else may hold it up: a key that cannot be overwritten ends the agent,
and the next start overwrites it before it serves.

Does not seal (`chain.sealer` does, at the head of the next batch) and does not know keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from leased.chain.epochs import Ratchet
from leased.durable.log import OpenedLog
from leased.ports import Clock
from leased.service.evidence import NO_COMMAND
from leased.terms.command import Command, Heartbeat


class Epochs:
    """Owns the two waits of an epoch: for its end, and for its key to be gone."""

    def __init__(
        self,
        *,
        ratchet: Ratchet,
        clock: Clock,
        submit: Callable[[Command], None],
        forget: Callable[[], None],
        sign: Callable[[], str],
        publish: Callable[[str], None],
        say: Callable[[str], None],
        aside: Callable[..., Awaitable[None]] = trio.to_thread.run_sync,
    ) -> None:
        """`forget` overwrites the key on disk, and `publish` puts a signed note there, both
        blocking; they raise OSError. `sign` signs the tree that is anchored now;
        `aside` calls what blocks where nobody waits for it."""
        self._ratchet = ratchet
        self._clock = clock
        self._submit = submit
        self._forget = forget
        self._sign, self._publish, self._say = sign, publish, say
        self._aside = aside
        self._ended = trio.Event()

    def end(self) -> None:
        """A seal is anchored: its key is to be forgotten."""
        self._ended.set()

    async def run(self) -> None:
        """Until cancelled. Raises OSError when a key could not be overwritten."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_out)
            while True:
                await self._ended.wait()
                self._ended = trio.Event()
                await self._aside(self._forget)
                await self._show()

    async def _show(self) -> None:
        """Leave the signed head where whoever copies the directory finds it."""
        try:
            await self._aside(self._publish, self._sign())
        except OSError as error:
            # A full disk, say: the note is a courtesy, the chain has its own signatures.
            self._say(f"the signed checkpoint could not be written: {error}")

    async def _run_out(self) -> None:
        """Something to commit when the epoch is over, in case nothing else is."""
        while True:
            end_ns = self._ratchet.end_ns
            await self._clock.sleep_until(end_ns)
            if self._ratchet.end_ns == end_ns:
                self._submit(Heartbeat(NO_COMMAND))
            while self._ratchet.end_ns == end_ns:
                await self._clock.sleep_until(self._clock.now().boot_ns + RETRY_NS)


RETRY_NS = 100_000_000
"""How soon after the end to look whether the seal is on its way: a batch takes milliseconds."""


def make_epochs(
    opened: OpenedLog,
    clock: Clock,
    submit: Callable[[Command], None],
    *,
    sign: Callable[[], str],
    say: Callable[[str], None],
) -> Epochs | None:
    """Of an opened log. None: it was made without seals."""
    if opened.ratchet is None:
        return None
    return Epochs(
        ratchet=opened.ratchet,
        clock=clock,
        submit=submit,
        forget=opened.forget_epoch,
        sign=sign,
        publish=opened.publish,
        say=say,
    )
