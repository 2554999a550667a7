# SPDX-License-Identifier: Apache-2.0
"""Pace: how often somebody may do something, exactly, in integers.

Rule: at most `count` in `per_ns`, evenly, and as many at once as fit into a second of it (at least
one). Who does nothing for a while gathers nothing beyond that. What is remembered of somebody is
one number, and nothing once they have caught up.

Does not know the time (`now_ns` is handed in), and is not sealed: a restart forgives.
"""

from __future__ import annotations

from leased.terms.moment import NS_PER_S
from leased.terms.policy import Rate

KEPT_MAX = 4096


class _Kept:
    """What is remembered of one: when the next is due, times `count`, so that nothing is ever
    rounded; and how much earlier it may come.
    """

    __slots__ = ("due", "early_max", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.due = 0
        # The n-th at once is due (n - 1) intervals from now; n of them fit into a second.
        self.early_max = max(rate.per_ns, NS_PER_S * rate.count) - rate.per_ns


class Pace:
    """When each of many may go on, by key."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def take(self, key: str, rate: Rate, now_ns: int) -> int | None:
        """Count one. None if it may be done now, else when it may; then nothing was counted."""
        kept = self._kept.get(key)
        if kept is None or (kept.rate is not rate and kept.rate != rate):
            if len(self._kept) > KEPT_MAX:
                self._forget(now_ns)
            kept = self._kept[key] = _Kept(rate)
        now, due = now_ns * rate.count, kept.due
        if due <= now:
            kept.due = now + rate.per_ns
            return None
        early = due - now - kept.early_max
        if early > 0:
            return now_ns + -(-early // rate.count)
        kept.due = due + rate.per_ns
        return None

    def _forget(self, now_ns: int) -> None:
        """Drop whoever has caught up; if nobody has, everybody starts anew."""
        late = {key: one for key, one in self._kept.items() if one.due > now_ns * one.rate.count}
        self._kept = late if len(late) <= KEPT_MAX else {}
