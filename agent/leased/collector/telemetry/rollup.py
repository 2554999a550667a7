# SPDX-License-Identifier: Apache-2.0
"""Rollups: what points come to in a window of time, and how much of it they cover.

Rule: a rollup is a sum: two of the same series and window add up, in any order, to what one fold of
all their points would have been. So what is kept is only ever added to. A gauge's total is over its
points, a counter's is how much it grew. A point that came before the last one of its series has
been counted (it was sent again). What lies between two points counts as covered unless it is longer
than a gap.

Pure. Does not keep anything on disk (`store`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from leased.collector.telemetry.decoding import FUTURE_NS_MAX, Key, Point
from leased.terms.moment import NS_PER_S
from leased.terms.series import ACTIVE_PPM_MIN, SERIES

WINDOW_S: Final = 300
GAP_NS: Final = 150 * NS_PER_S
"""Two points further apart tell nothing of what was between: 15 rounds were lost."""

SUM_MAX: Final = 2**56
"""A node may send what it likes: sums stay here, far below what the store's columns hold (64 bits),
and far above what any host is: half a petabyte in each of 100 points."""

SERIES_MAX: Final = 200_000
"""Series that are followed at once: 1 000 nodes with 200 each. More are refused, not forgotten."""

BEGUN_MAX: Final = 20_000
"""Rows that one node begins within the time of a window: 512 leases with 10 series each, and four
windows at once after we were away. What is there of others goes when there are too many rows."""


class Rollup(msgspec.Struct, frozen=True):
    """One window (its beginning in Unix seconds) of one series."""

    begin_s: int
    count: int = 0
    total: int = 0
    most: int = 0
    active: int = 0
    covered_ns: int = 0

    def __add__(self, other: Rollup) -> Rollup:
        """Both together."""
        if not self.count or not other.count:
            most = self.most if self.count else other.most
        else:
            most = max(self.most, other.most)
        return Rollup(
            min(self.begin_s, other.begin_s),
            self.count + other.count,
            min(self.total + other.total, SUM_MAX),
            most,
            self.active + other.active,
            self.covered_ns + other.covered_ns,
        )


class _Followed:
    """One series: the last point, and the window that is open."""

    __slots__ = ("at_ns", "begin_s", "open", "value")

    def __init__(self) -> None:
        self.at_ns = self.begin_s = 0
        self.value: int | None = None
        self.open: Rollup | None = None


class Folding:
    """Points in, rows out. Bounded: a series too many is refused, and so is a row too many of one
    node."""

    def __init__(self, series_max: int = SERIES_MAX, begun_max: int = BEGUN_MAX) -> None:
        self._series_max, self._begun_max = series_max, begun_max
        self._followed: dict[Key, _Followed] = {}
        self._rows: list[tuple[Key, Rollup]] = []
        self._begun: dict[str, int] = {}
        self._window = 0

    def __len__(self) -> int:
        return len(self._followed)

    def fold(self, points: Iterable[Point]) -> int:
        """Count these; how many could not be, for want of room."""
        refused = 0
        for point in points:
            followed = self._followed.get(point.key)
            if followed is not None and point.time_ns <= followed.at_ns:
                continue
            begin_s = _begin_s(point)
            if followed is None or begin_s != followed.begin_s:
                followed = self._begin(point.key, followed)
                if followed is None:
                    refused += 1
                    continue
                followed.begin_s = begin_s
            self._count(point, followed)
        return refused

    def _begin(self, key: Key, followed: _Followed | None) -> _Followed | None:
        """A row is begun; None: there is no room for it."""
        begun = self._begun.get(key.node, 0)
        if begun >= self._begun_max:
            return None
        if followed is None:
            if len(self._followed) >= self._series_max:
                return None
            followed = self._followed[key] = _Followed()
        self._begun[key.node] = begun + 1
        return followed

    def _count(self, point: Point, followed: _Followed) -> None:
        span_ns = point.time_ns - followed.at_ns
        if followed.value is None or span_ns > GAP_NS:
            span_ns = 0
        before, followed.value = followed.value, point.value
        followed.at_ns = point.time_ns
        if point.value is None:
            return
        begin_s = _begin_s(point)
        if followed.open is not None and followed.open.begin_s != begin_s:
            self._rows.append((point.key, followed.open))
            followed.open = None
        one = _one(point, begin_s, before if span_ns else None, span_ns)
        if one is not None:
            followed.open = one if followed.open is None else followed.open + one

    def take(self, now_ns: int) -> list[tuple[Key, Rollup]]:
        """The rows since the last time, open windows with what they hold so far. Series that have
        been silent for longer than a gap are not followed any more, nor those that are further
        ahead than any point may be: our own clock was, and they would be deaf until it is again."""
        rows, self._rows = self._rows, []
        window = now_ns // NS_PER_S // WINDOW_S
        if window != self._window:
            self._window, self._begun = window, {}
        for key in list(self._followed):
            followed = self._followed[key]
            if followed.open is not None:
                rows.append((key, followed.open))
                followed.open = None
            if not -FUTURE_NS_MAX <= now_ns - followed.at_ns <= GAP_NS:
                del self._followed[key]
        return rows


def _begin_s(point: Point) -> int:
    return point.time_ns // NS_PER_S // WINDOW_S * WINDOW_S


def _one(point: Point, begin_s: int, before: int | None, span_ns: int) -> Rollup | None:
    """What one point adds; None: a counter that has nothing to be compared with."""
    assert point.value is not None
    if not SERIES[point.key.name].counter:
        active = int(point.value >= ACTIVE_PPM_MIN)
        value = min(point.value, SUM_MAX)
        return Rollup(begin_s, 1, value, value, active, span_ns)
    if before is None or point.value < before:
        return None  # the first, or the counter began anew
    grown = point.value - before
    rate = min(grown * NS_PER_S // span_ns, SUM_MAX)
    return Rollup(begin_s, 1, min(grown, SUM_MAX), rate, int(grown > 0), span_ns)
