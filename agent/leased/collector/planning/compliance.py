# SPDX-License-Identifier: Apache-2.0
"""Compliance: how many of what tenants asked for was within their quota.

Rule: a request counts once, when it is decided, by its record: granted within the quota, granted
above it (soft, in a burst, or borrowed), refused because of it, refused for another reason. Of what
comes too fast one in half a minute is on record. By the hour of the node's wall clock, and no
longer than is told.

Does not know limits: nodes have judged, and sealed what they found.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from typing import Final

import msgspec

from leased.collector.planning.flow import forget_oldest
from leased.terms.moment import HOUR_NS
from leased.terms.reply import RefusalReason

HOURS: Final = 24
BY_QUOTA: Final = frozenset(
    (
        RefusalReason.TENANT_LEASES,
        RefusalReason.TENANT_CAPACITY,
        RefusalReason.LEVEL,
        RefusalReason.DURATION,
        RefusalReason.BUDGET,
        RefusalReason.SUBMIT_RATE,
        RefusalReason.API_RATE,
        RefusalReason.THROTTLED,
        RefusalReason.BURST_ENDED,
    )
)


class Tally(msgspec.Struct):
    """Requests: all of them, those granted above a quota, those refused because of one."""

    requests: int = 0
    over: int = 0
    refused: int = 0

    def add(self, other: Tally) -> None:
        """Take another one in."""
        self.requests += other.requests
        self.over += other.over
        self.refused += other.refused

    @property
    def share(self) -> Fraction:
        """Within quota, of all; nobody asked: all of them."""
        if not self.requests:
            return Fraction(1)
        return 1 - Fraction(self.over + self.refused, self.requests)


class Compliance:
    """One node's, by hour and tenant."""

    def __init__(self) -> None:
        self._hours: dict[int, dict[str, Tally]] = {}

    @property
    def names(self) -> Iterable[str]:
        """Of each tally, whose it is."""
        return chain.from_iterable(self._hours.values())

    def admit(self, tenant: str, wall_ns: int, *, over: bool) -> None:
        """A request was granted."""
        tally = self._at(tenant, wall_ns)
        tally.requests += 1
        tally.over += over

    def exceed(self, tenant: str, wall_ns: int) -> None:
        """What was granted last went above the quota."""
        self._at(tenant, wall_ns).over += 1

    def refuse(self, tenant: str, wall_ns: int, reason: int) -> None:
        """A request was refused."""
        tally = self._at(tenant, wall_ns)
        tally.requests += 1
        tally.refused += reason in BY_QUOTA

    def between(self, from_ns: int, until_ns: int) -> dict[str, Tally]:
        """By tenant, from the hour of an instant to that of another."""
        found: dict[str, Tally] = {}
        for hour, tenants in list(self._hours.items()):
            if from_ns // HOUR_NS <= hour <= until_ns // HOUR_NS:
                for tenant, tally in list(tenants.items()):
                    found.setdefault(tenant, Tally()).add(tally)
        return found

    def _at(self, tenant: str, wall_ns: int) -> Tally:
        hour = wall_ns // HOUR_NS
        if hour not in self._hours:
            self._hours[hour] = {}
            forget_oldest(self._hours, HOURS + 1)
        return self._hours[hour].setdefault(tenant, Tally())


def together(nodes: Iterable[dict[str, Tally]]) -> dict[str, Tally]:
    """Of all nodes, by tenant."""
    found: dict[str, Tally] = {}
    for tenants in nodes:
        for tenant, tally in tenants.items():
            found.setdefault(tenant, Tally()).add(tally)
    return found
