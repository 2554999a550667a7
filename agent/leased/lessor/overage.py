# SPDX-License-Identifier: Apache-2.0
"""Overages: who has more than its limit, and until when that is borne.

Rule: an overage begins and ends by a sealed event, so that it is known after a restart as it was
before. What is above a soft limit is borne for so long in all, until its holder has been below the
limit for as long; then, and when what is above a lowered limit has had its grace, the leases that
are too many are told that they are not renewed, the lowest level and the newest first.

Does not judge requests (`quota`) and does not tell leases (`lessor.cuts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from leased.lessor.accounts import Account, weigh
from leased.lessor.deadlines import Deadlines
from leased.lessor.quota import Row
from leased.terms import event as events
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, OverageCause

Key = tuple[str, str]
"""Holder and rule."""


Levels = Callable[[Lease], int]


class Overage(msgspec.Struct):
    """One holder above one limit: until when it may, and since when it is not any more."""

    cause: OverageCause
    limit: int
    until_ns: int
    ended_ns: int | None = None


class Overages:
    """Every overage that still matters."""

    __slots__ = ("_known", "ends")

    def __init__(self) -> None:
        self._known: dict[Key, Overage] = {}
        self.ends: Deadlines[Key] = Deadlines()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key) -> Overage | None:
        """The overage of a holder on a rule."""
        return self._known.get(key)

    def items(self) -> Iterator[tuple[Key, Overage]]:
        """All of them."""
        return iter(tuple(self._known.items()))

    def began(self, event: events.OverageBegan) -> None:
        """A holder has more than it may in the long run."""
        key = (event.holder, event.rule)
        self._known[key] = Overage(OverageCause(event.cause), event.limit, event.until_ns)
        self.ends.set(key, event.until_ns)

    def ended(self, event: events.OverageEnded, now_ns: int) -> None:
        """It has no more than that any more."""
        key = (event.holder, event.rule)
        overage = self._known.get(key)
        if overage is not None:
            overage.ended_ns = now_ns
        self.ends.discard(key)

    def forget(self) -> None:
        """Another boot: nobody has anything, and its clock is another."""
        self._known.clear()
        self.ends = Deadlines()

    def borne_until_ns(self, holder: str, row: Row, now_ns: int) -> int | None:
        """Until when `holder` may be above the soft limit of `row`, if it goes above it now (or is
        already); None: not now.
        """
        overage = self._known.get((holder, row.name))
        until_ns = now_ns + row.overage_ns
        if overage is None:
            return until_ns
        if overage.ended_ns is None:
            if overage.cause is OverageCause.CUT:
                return None
            until_ns = overage.until_ns
        elif now_ns - overage.ended_ns < row.overage_ns:
            until_ns = min(until_ns, overage.until_ns)
        return until_ns if until_ns > now_ns else None

    def bearable_ns(
        self, holder: str, row: Row, at_ns: int, below_ns: int | None, now_ns: int
    ) -> int | None:
        """The first instant from `at_ns` on at which `holder` may go above the soft limit of `row`,
        if it is below the limit from `below_ns` on; None: it may not.
        """
        overage = self._known.get((holder, row.name))
        if overage is None:
            return at_ns
        ended_ns = below_ns if overage.ended_ns is None else overage.ended_ns
        cut = overage.ended_ns is None and overage.cause is OverageCause.CUT
        begins_ns = ended_ns if cut else now_ns
        if begins_ns is not None and max(at_ns, begins_ns) < overage.until_ns:
            return max(at_ns, begins_ns)
        return None if ended_ns is None else max(at_ns, ended_ns + row.overage_ns)

    def open(self, holder: str, row: Row) -> bool:
        """Whether it is on record that `holder` is above the limit of `row`."""
        overage = self._known.get((holder, row.name))
        return overage is not None and overage.ended_ns is None


def too_many(
    account: Account, row: Row, limit: int, leases: Mapping[LeaseId, Lease], level: Levels
) -> list[Lease]:
    """Which leases of an account make it exceed `limit`, as few as will do in their order: the
    lowest level first, then the newest. What is being cleaned leaves anyway.
    """
    over, each = -limit, row.kind < 0  # a number of leases
    candidates: list[tuple[int, int, LeaseId, int]] = []
    for lease_id, charge in account.charges.items():
        lease = leases.get(lease_id)
        capacity = 1 if each else weigh(charge, row.kind, row.tier, row.node)
        if lease is None or lease.ended is not None or not capacity:
            continue
        over += capacity
        candidates.append((level(lease), -lease.granted_ns, lease_id, capacity))
    chosen: list[Lease] = []
    for _, _, lease_id, capacity in sorted(candidates):
        if over <= 0:
            break
        over -= capacity
        chosen.append(leases[lease_id])
    return chosen
