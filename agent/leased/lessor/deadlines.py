# SPDX-License-Identifier: Apache-2.0
"""Deadlines: which key is due next, kept in a heap that is corrected lazily.

Rule: moving an instant later costs one dictionary write; the heap finds out when the old entry
comes to the top. Moving it earlier pushes. A key never leaves `due` twice for one `set`, and stale
entries never outnumber live ones for long.

`Endings` asks the other question of the same instants: by when will enough of some leases have
ended?

Does not know what a lease is, nor the time: `now_ns` is handed in.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
_COMPACT_MIN = 64


class Deadlines(Generic[K]):
    """Instants by key. `current` is the truth; the heap is an index over it with at least one entry
    per key.
    """

    __slots__ = ("_compact_at", "_heap", "_scheduled", "current")

    def __init__(self) -> None:
        self.current: dict[K, int] = {}
        self._scheduled: dict[K, int] = {}
        self._heap: list[tuple[int, K]] = []
        self._compact_at = _COMPACT_MIN

    def __len__(self) -> int:
        return len(self.current)

    def set(self, key: K, at_ns: int) -> None:
        """Let `key` be due at `at_ns`, whatever it was before."""
        self.current[key] = at_ns
        scheduled = self._scheduled.get(key)
        if scheduled is None or at_ns < scheduled:
            self._scheduled[key] = at_ns
            heapq.heappush(self._heap, (at_ns, key))
            if len(self._heap) > self._compact_at:
                self._compact()

    def discard(self, key: K) -> None:
        """Forget `key`; unknown keys are fine."""
        self.current.pop(key, None)
        self._scheduled.pop(key, None)

    def next_ns(self) -> int | None:
        """The earliest instant, or None."""
        heap = self._heap
        while heap:
            at_ns, key = heap[0]
            if self._scheduled.get(key) != at_ns:
                heapq.heappop(heap)
                continue
            current = self.current[key]
            if current == at_ns:
                return at_ns
            self._scheduled[key] = current
            heapq.heapreplace(heap, (current, key))
        return None

    def due(self, now_ns: int, limit: int) -> list[K]:
        """At most `limit` keys whose instant is `now_ns` or before, earliest first; they are
        forgotten.
        """
        keys: list[K] = []
        while len(keys) < limit:
            at_ns = self.next_ns()
            if at_ns is None or at_ns > now_ns:
                break
            _, key = heapq.heappop(self._heap)
            del self.current[key], self._scheduled[key]
            keys.append(key)
        return keys

    def _compact(self) -> None:
        self._scheduled = dict(self.current)
        self._heap = [(at_ns, key) for key, at_ns in self.current.items()]
        heapq.heapify(self._heap)
        self._compact_at = max(_COMPACT_MIN, 2 * len(self._heap))


class Endings(Generic[K]):
    """Some keys of a `Deadlines`, ordered by their instants there. Keys gone from there are dropped
    when met. Asking is rare and adding is not, so the order is made when it is asked for.
    """

    __slots__ = ("_compact_at", "_current", "_fresh", "_heap")

    def __init__(self, deadlines: Deadlines[K]) -> None:
        self._current = deadlines.current
        self._heap: list[tuple[int, K]] = []
        self._fresh: dict[K, int] = {}
        self._compact_at = _COMPACT_MIN

    def add(self, key: K, at_ns: int) -> None:
        """Count `key` in, or tell that its instant moved earlier. Later moves need not be told."""
        self._fresh[key] = at_ns
        if len(self._fresh) > self._compact_at:
            self._compact()

    def first(self, limit: int) -> list[tuple[int, K]]:
        """(instant, key) of the at most `limit` keys that end first, in that order."""
        met: list[tuple[int, K]] = []
        self._walk(lambda key: len(met) >= limit, met)
        return met

    def covering_ns(self, need: int, weigh: Callable[[K], int], limit: int) -> int | None:
        """The instant by which the keys that end until then weigh `need` together.

        None if all of them do not. If it takes more than `limit` keys, the instant at which the
        last of so many ends: it cannot be earlier than that.
        """
        met: list[tuple[int, K]] = []
        left = need

        def enough(key: K) -> bool:
            nonlocal left
            left -= weigh(key)
            return left <= 0 or len(met) >= limit

        return met[-1][0] if self._walk(enough, met) else None

    def _walk(self, enough: Callable[[K], bool], met: list[tuple[int, K]]) -> bool:
        """Meet keys in the order of their instants until `enough` says so; False if they run
        out.
        """
        heap, current = self._heap, self._current
        for key, at_ns in self._fresh.items():
            heapq.heappush(heap, (at_ns, key))
        self._fresh.clear()
        seen: dict[K, None] = {}
        reached = False
        while heap and not reached:
            at_ns, key = heapq.heappop(heap)
            now_at = current.get(key)
            if now_at is None or key in seen or now_at < at_ns:
                continue
            if now_at > at_ns:
                heapq.heappush(heap, (now_at, key))
                continue
            seen[key] = None
            met.append((at_ns, key))
            reached = enough(key)
        for entry in met:
            heapq.heappush(heap, entry)
        return reached

    def _compact(self) -> None:
        """Drop keys that are gone; what is fresh is put in order when somebody asks."""
        current = self._current
        keys = dict.fromkeys([key for _, key in self._heap if key in current])
        self._heap = [(current[key], key) for key in keys]
        heapq.heapify(self._heap)
        self._fresh = {key: at_ns for key, at_ns in self._fresh.items() if key in current}
        self._compact_at = max(_COMPACT_MIN, 2 * len(self._fresh), len(self._heap))
