# SPDX-License-Identifier: Apache-2.0
"""The counter of the log while the agent runs: advanced once in a while, so that copies of the log
do not stay good for long.

Rule: the next value is staged, anchored by whatever is sealed next, and only when both slots say it
is the counter advanced, off the path of requests. A counter that does not answer is asked again a
few times; then the agent ends, and the next one does not serve before the counter agrees.

Does not advance at a start or a stop (`durable.binding`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from leased.durable.binding import Binding
from leased.durable.log import OpenedLog
from leased.ports import AnchorSlot, Clock
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S

LOOK_NS: Final = 1 * NS_PER_S
"""How often to look whether both slots say it: seals alone write one a minute."""

AGAIN_NS: Final = (1 * NS_PER_S, 10 * NS_PER_S, 60 * NS_PER_S)
"""How long to wait before a counter that did not answer is asked again."""


class Counting:
    """Owns the wait for the next advance."""

    def __init__(
        self,
        *,
        binding: Binding,
        stage: Callable[[], int],
        anchored: Callable[[], AnchorSlot],
        clock: Clock,
        period_ns: int,
        say: Callable[[str], None],
        aside: Callable[..., Awaitable[None]] = trio.to_thread.run_sync,
    ) -> None:
        """`stage` has the next slots say one more, and returns it; `anchored` is the newest slot.
        `aside` calls what blocks where nobody waits for it."""
        self._binding = binding
        self._stage, self._anchored = stage, anchored
        self._clock, self._period_ns = clock, period_ns
        self._say, self._aside = say, aside

    async def run(self) -> None:
        """Until cancelled. Raises StateError when the counter is gone, or another's."""
        while True:
            await self._clock.sleep_until(self._clock.now().boot_ns + self._period_ns)
            value, staged = self._stage(), self._anchored().generation
            while self._anchored().generation < staged + 2:
                await self._clock.sleep_until(self._clock.now().boot_ns + LOOK_NS)
            await self._complete(value)

    async def _complete(self, value: int) -> None:
        for wait_ns in AGAIN_NS:
            try:
                return await self._aside(self._binding.complete, value)
            except StateError as error:
                self._say(f"{error}; it is asked again in {wait_ns // NS_PER_S} s")
            await self._clock.sleep_until(self._clock.now().boot_ns + wait_ns)
        await self._aside(self._binding.complete, value)


def make_counting(
    opened: OpenedLog, clock: Clock, period_ns: int, say: Callable[[str], None]
) -> Counting | None:
    """Of an opened log. None: it is bound to no counter."""
    if opened.binding is None:
        if said := opened.journal.anchored.tpm_counter:
            say(
                f"the log is bound to a TPM's counter (it says {said}) and was opened without it:"
                " [log.counter] of the configuration names none"
            )
        return None
    return Counting(
        binding=opened.binding,
        stage=opened.stage_count,
        anchored=lambda: opened.journal.anchored,
        clock=clock,
        period_ns=period_ns,
        say=say,
    )
