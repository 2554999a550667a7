# SPDX-License-Identifier: Apache-2.0
"""Pace: how many requests a caller may make.

Rule: a bucket per caller that holds `burst` and fills at `per_s`; a request that finds it empty is
refused with the time until it is not. Buckets that are full again are forgotten, so that the table
has no more rows than there were callers lately.

Does not read a clock.
"""

from __future__ import annotations

from typing import Final

NS_PER_S: Final = 1_000_000_000
ROWS_MAX: Final = 10_000


class Pace:
    """All callers' buckets, each as the instant at which it is full again."""

    def __init__(self, per_s: int, burst: int) -> None:
        self._cost_ns = NS_PER_S // per_s
        self._room_ns = burst * self._cost_ns
        self._full_at: dict[str, int] = {}

    def take(self, caller: str, now_ns: int) -> int:
        """Count a request; 0, or in how many ns one would be let through."""
        full_at = max(now_ns, self._full_at.get(caller, now_ns)) + self._cost_ns
        if full_at - now_ns > self._room_ns:
            return full_at - now_ns - self._room_ns
        if len(self._full_at) >= ROWS_MAX and caller not in self._full_at:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now_ns}
            if len(self._full_at) >= ROWS_MAX:
                return self._cost_ns
        self._full_at[caller] = full_at
        return 0
