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


class Pace:
    """When each of many may go on, by key. The instant is kept times `count`, so nothing is ever
    rounded.
    """

    __slots__ = ("_next", "_rate")

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._rate: dict[str, Rate] = {}

    def take(self, key: str, rate: Rate, now_ns: int) -> int | None:
        """Count one. None if it may be done now, else when it may; then nothing was counted."""
        count = rate.count
        now = now_ns * count
        if self._rate.get(key) != rate:
            self._rate[key] = rate
            self._next.pop(key, None)
            if len(self._rate) > KEPT_MAX:
                self._forget(now_ns)
        due = self._next.get(key, now)
        if due < now:
            due = now
        # The n-th at once is due (n - 1) intervals from now; n of them fit into a second.
        burst = max(rate.per_ns, NS_PER_S * count)
        early = due - now - (burst - rate.per_ns)
        if early > 0:
            return now_ns + -(-early // count)
        self._next[key] = due + rate.per_ns
        return None

    def _forget(self, now_ns: int) -> None:
        """Drop whoever has caught up; if nobody has, everybody starts anew."""
        late = {
            key: rate
            for key, rate in self._rate.items()
            if self._next.get(key, 0) > now_ns * rate.count
        }
        self._rate = late if len(late) <= KEPT_MAX else {}
        self._next = {key: due for key, due in self._next.items() if key in self._rate}
