# SPDX-License-Identifier: Apache-2.0
"""Whether the log has room for more than the ends of the leases that live. Without it the log is in
state "drain", and whoever reads the system journal is told.

Rule: admission goes by the same answer. Leases begin and end faster than a spare segment is made,
so a change is told only when two looks in a row have found it.

Does not refuse anything (`sequencer`) and makes no room.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from leased.durable.log import OpenedLog
from leased.ports import Clock
from leased.service.telling.narration import CRITICAL, NOTICE
from leased.terms.moment import NS_PER_S

HEALTHY: Final = "healthy"
DRAIN: Final = "drain"
LOOK_NS: Final = 2 * NS_PER_S
MIB: Final = 1 << 20


def state_of(opened: OpenedLog, live_leases: int) -> tuple[str, str]:
    """How a log that serves is, and why."""
    journal = opened.journal
    if journal.reserve_ok(live_leases):
        return HEALTHY, ""
    error = journal.spares.error
    if error is None:
        cause = "the next segment is not made yet"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        need_mib = -(-opened.identity.segment_bytes // MIB)
        cause = f"{error.strerror}; free {need_mib} MiB where {opened.directory} lies"
    else:
        cause = f"{error.strerror}; see to the disk of {opened.directory}"
    return DRAIN, f"the log has room for the ends of {live_leases} leases and no more: {cause}"


class Room:
    """Looks once in a while, and tells of each change."""

    def __init__(
        self,
        state: Callable[[], tuple[str, str]],
        *,
        clock: Clock,
        say: Callable[..., None],
    ) -> None:
        """`say` takes a line, its priority and fields."""
        self._state, self._clock, self._say = state, clock, say
        self._told = self._seen = HEALTHY

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep_until(self._clock.now().boot_ns + LOOK_NS)
            self.look()

    def look(self) -> None:
        """Once."""
        state, why = self._state()
        lasts, self._seen = state == self._seen, state
        if state == self._told or not lasts:
            return
        self._told = state
        if state == DRAIN:
            line = f"{why}. Nothing is granted or renewed until there is; leases end as they should"
        else:
            line = "the log has room again: grants and renewals go on"
        priority = CRITICAL if state == DRAIN else NOTICE
        self._say(line, priority=priority, LEASED_LOG_STATE=state)
