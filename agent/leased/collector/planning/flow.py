# SPDX-License-Identifier: Apache-2.0
"""Flow: how many leases begin, how long they last, and how many there are at once, day by day.

Rule: a function of the records; lengths are kept in classes of an eighth of a power of two, so that
a year of a fleet takes little room and a quantile is right to an eighth.

Does not know what follows from it (`latency_cost`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from leased.terms.moment import DAY_NS

DAYS_KEPT: Final = 35
_EIGHTHS: Final = 3
_FIRST_BITS: Final = 1 + _EIGHTHS


class Day:
    """What happened in one day (UTC). Two add up."""

    def __init__(self) -> None:
        self.begun = self.ended = self.total_ns = 0
        self.classes: dict[int, int] = {}

    def end(self, length_ns: int) -> None:
        """A lease has ended after so long."""
        self.ended += 1
        self.total_ns += length_ns
        found = class_of(length_ns)
        self.classes[found] = self.classes.get(found, 0) + 1

    def add(self, other: Day) -> None:
        """Take another in."""
        self.begun += other.begun
        self.ended += other.ended
        self.total_ns += other.total_ns
        for found, count in list(other.classes.items()):
            self.classes[found] = self.classes.get(found, 0) + count

    def quantile_ns(self, share_pm: int) -> int:
        """How long `share_pm` of 1000 leases were at most."""
        wanted, seen = -(-self.ended * share_pm // 1000), 0
        for found in sorted(self.classes):
            seen += self.classes[found]
            if seen >= wanted:
                return ceiling_ns(found)
        return 0


class Flow:
    """Of one log. `most` is how many leases were held at once."""

    def __init__(self) -> None:
        self.days: dict[int, Day] = {}
        self.most = 0

    def begin(self, wall_ns: int, now_held: int) -> None:
        """A lease was granted."""
        self._day(wall_ns).begun += 1
        self.most = max(self.most, now_held)

    def end(self, wall_ns: int, length_ns: int) -> None:
        """A lease has ended."""
        self._day(wall_ns).end(max(0, length_ns))

    def between(self, from_ns: int, until_ns: int) -> Day:
        """Everything from the day of an instant to that of another."""
        days = range(from_ns // DAY_NS, until_ns // DAY_NS + 1)
        return summed(day for number, day in list(self.days.items()) if number in days)

    def _day(self, wall_ns: int) -> Day:
        number = wall_ns // DAY_NS
        found = self.days.get(number)
        if found is None:
            found = self.days[number] = Day()
            forget_oldest(self.days, DAYS_KEPT)
        return found


def forget_oldest(kept: dict[int, Any], most: int) -> None:
    """Keep so many. By how many there are and not by their age: one record of a time to come makes
    nothing old."""
    for old in sorted(kept)[:-most]:
        del kept[old]


def day_start_ns(since_ns: int, now_ns: int) -> int:
    """The beginning of the first day that is counted from `since_ns` on, as far as days are kept:
    how long what is counted took is from there to `now_ns`."""
    kept = now_ns // DAY_NS - DAYS_KEPT + 1
    return max(kept, since_ns // DAY_NS) * DAY_NS


def summed(days: Iterable[Day]) -> Day:
    """All of them."""
    found = Day()
    for one in days:
        found.add(one)
    return found


def class_of(length_ns: int) -> int:
    """The class of a length: eight for each power of two."""
    bits = max(0, length_ns.bit_length() - 1 - _EIGHTHS)
    return bits << _FIRST_BITS | length_ns >> bits


def ceiling_ns(found: int) -> int:
    """The longest of a class."""
    bits, first = found >> _FIRST_BITS, found & ((1 << _FIRST_BITS) - 1)
    return ((first + 1) << bits) - 1
