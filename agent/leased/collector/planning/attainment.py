# SPDX-License-Identifier: Apache-2.0
"""Attainment: of the leases of a priority, how many were what was promised, by the records alone.

Rule: a lease counts once, when it ends, in the hour of its node's wall clock. It was *available* if
it ended as its holder or its own terms had it; taken away is what the operator's side ended:
preemption, reclaim, drains, faults. It was *quick* by how long it was held, in classes of an eighth
of a power of two (`flow`). Kept for 35 days.

Does not know objectives (`slo`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from leased.collector.planning.flow import DAYS_KEPT, class_of, forget_oldest
from leased.terms.lease import Priority, RevocationReason
from leased.terms.moment import HOUR_NS

TAKEN: Final = (
    RevocationReason.PRIORITY_PREEMPTION,
    RevocationReason.QUOTA_RECLAIM,
    RevocationReason.OPERATOR_REVOKE,
    RevocationReason.OPERATOR_DRAIN,
    RevocationReason.MAINTENANCE,
    RevocationReason.DEVICE_UNHEALTHY,
    RevocationReason.NODE_REBOOT,
    RevocationReason.GRANT_FAILED,
    RevocationReason.REAPER_LOST,
)


class Ends:
    """How leases of one priority ended in an hour. Two add up."""

    __slots__ = ("classes", "ended", "taken")

    def __init__(self) -> None:
        self.ended = self.taken = 0
        self.classes: dict[int, int] = {}

    def add(self, other: Ends) -> None:
        """Take another in."""
        self.ended += other.ended
        self.taken += other.taken
        for found, count in list(other.classes.items()):
            self.classes[found] = self.classes.get(found, 0) + count

    def within(self, length_ns: int) -> int:
        """How many were held for no longer than that, to the class that it is in."""
        most = class_of(length_ns)
        return sum(count for found, count in self.classes.items() if found <= most)


class Attainment:
    """Of one log."""

    def __init__(self) -> None:
        self._hours: dict[int, dict[Priority, Ends]] = {}

    def end(
        self, priority: Priority, wall_ns: int, length_ns: int, reason: RevocationReason | None
    ) -> None:
        """A lease has ended after so long; `reason` where it was revoked."""
        hour = wall_ns // HOUR_NS
        if hour not in self._hours:
            self._hours[hour] = {}
            forget_oldest(self._hours, DAYS_KEPT * 24)
        ends = self._hours[hour].setdefault(priority, Ends())
        ends.ended += 1
        ends.taken += reason in TAKEN
        found = class_of(max(0, length_ns))
        ends.classes[found] = ends.classes.get(found, 0) + 1

    def between(self, hours: range) -> dict[tuple[int, Priority], Ends]:
        """By hour and priority."""
        return {
            (hour, priority): ends
            for hour, by_priority in list(self._hours.items())
            if hour in hours
            for priority, ends in list(by_priority.items())
        }


def together(
    nodes: Iterable[dict[tuple[int, Priority], Ends]],
) -> dict[Priority, dict[int, Ends]]:
    """Of all nodes, by priority and hour."""
    found: dict[Priority, dict[int, Ends]] = {}
    for hours in nodes:
        for (hour, priority), ends in hours.items():
            found.setdefault(priority, {}).setdefault(hour, Ends()).add(ends)
    return found
