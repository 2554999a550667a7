# SPDX-License-Identifier: Apache-2.0
"""Notices: being told to leave, and how long before the end we stop by ourselves.

Rule: a notice stays until the lease itself says otherwise (`Holding`): a notice that comes late, by
another way, cannot give time back. We stop a margin before the end of the lease, or of the grace,
so that the work has stopped before the agent acts.

Does not listen for notices and does not act on them (`holding`).
"""

from __future__ import annotations

import trio

from leased.terms.moment import NS_PER_S
from leased.wire import objects


def surrender_margin_ns(ttl_ns: int) -> int:
    """How long before the deadline we stop: max(2 s, TTL/10), but at most a quarter of the TTL."""
    return min(max(2 * NS_PER_S, ttl_ns // 10), ttl_ns // 4)


class NoticeBoard:
    """Whether we were told to leave: `value` is the notice, `wait` waits for it."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self.value: objects.Notice | None = None

    def is_set(self) -> bool:
        """Whether a notice has come."""
        return self.value is not None

    async def wait(self) -> objects.Notice:
        """Return the notice when it comes."""
        await self._event.wait()
        assert self.value is not None
        return self.value

    def post(self, notice: objects.Notice) -> None:
        """Make a notice known. The first one stays."""
        if self.value is None:
            self.replace(notice)

    def replace(self, notice: objects.Notice) -> None:
        """The lease has to go at another moment now."""
        self.value = notice
        self._event.set()
