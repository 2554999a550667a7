# SPDX-License-Identifier: Apache-2.0
"""Pace: how many requests a caller may make.

Rule: a bucket per caller that holds `burst` and fills at `per_s`; a request that finds it empty is
refused with the time until it is not. A clock that is set back fills them all. Buckets that are
full again are forgotten, so that the table has no more rows than there were callers lately.

Does not read a clock.
"""

from __future__ import annotations

from typing import Final

from leased.terms.moment import NS_PER_S

ROWS_MAX: Final = 10_000


class Pace:
    """All callers' buckets, each as the instant at which it is full again."""

    def __init__(self, per_s: int, burst: int) -> None:
        self._cost_ns = NS_PER_S // per_s
        self._room_ns = burst * self._cost_ns
        self._full_at: dict[str, int] = {}

    def take(self, caller: str, now_ns: int) -> int:
        """Count a request; 0, or in how many ns one would be let through."""
        latest = now_ns + self._room_ns
        known = self._full_at.get(caller, now_ns)
        # What is later than `latest` is from before the clock was set back.
        full_at = (known if now_ns < known <= latest else now_ns) + self._cost_ns
        if full_at > latest:
            return full_at - latest
        if len(self._full_at) >= ROWS_MAX and caller not in self._full_at:
            rows = self._full_at.items()
            self._full_at = {name: at for name, at in rows if now_ns < at <= latest}
            if len(self._full_at) >= ROWS_MAX:
                return self._cost_ns
        self._full_at[caller] = full_at
        return 0
