# SPDX-License-Identifier: Apache-2.0
"""Preemption: in which order leases have to make room for a more important request, and how few
suffice.

Rule: a victim's level is strictly lower than the request's, and never a guaranteed one, so no two
leases can ever preempt each other in turn. The lowest level goes first; within a level the one with
the shortest remaining TTL, then the most recently granted. A lease is safe until it has run for the
minimum of its priority. Of the shortest row of victims that makes enough room, those that are not
needed after all are let off, the last ones first.

Does not preempt (`yielding`): it orders and chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from leased.lessor.table import LeaseTable
from leased.lessor.yielders import Some
from leased.terms.lease import Lease, Level, Priority
from leased.terms.policy import Preemption
from leased.terms.resource import Allotment, capacity_id

EXACT_MAX = 64
"""Up to so many victims every single one is shown to be needed; of more, only that none can be let
off without placing the request elsewhere."""

Left = dict[str, int]
"""Capacity to leave out of a placement by resource, negative where it is going to be free."""


def take(left: Left, allotments: Sequence[Allotment], sign: int) -> None:
    """Leave out (1) or count as free (-1) what `allotments` are."""
    for one in allotments:
        resource_id = capacity_id(one.resource_id)
        left[resource_id] = left.get(resource_id, 0) + sign * one.capacity


class Candidates:
    """Who could make way for a request of `level` on `pools`, in the order they would. `young`:
    somebody else could, but has not run long enough (known of those that were met).
    """

    __slots__ = ("_level", "_pools", "_safe_scavenger_ns", "_safe_standard_ns", "_table", "young")

    def __init__(
        self,
        table: LeaseTable,
        terms: Preemption,
        *,
        level: Level,
        pools: Iterable[str],
        now_ns: int,
    ) -> None:
        self._safe_scavenger_ns = now_ns - terms.runtime_ns_min_scavenger
        self._safe_standard_ns = now_ns - terms.runtime_ns_min_standard
        self.young = False
        self._table, self._level, self._pools = table, level, pools

    def of_one(self, resource_id: str) -> Iterator[Some]:
        """Those who have something of one pool, and how much; some at a time."""
        yielders, leases = self._table.yielders, self._table.leases
        scavenger_ns, standard_ns = self._safe_scavenger_ns, self._safe_standard_ns
        earliest_ns, scavenger = min(scavenger_ns, standard_ns), Priority.SCAVENGER
        for some in yielders.of_one(self._level, resource_id, leases):
            if some.newest_ns <= earliest_ns:
                yield some
                continue
            each = some.each()
            ready = [
                one
                for one in each
                if one[0].granted_ns
                <= (scavenger_ns if one[0].subject.priority is scavenger else standard_ns)
            ]
            self.young = self.young or len(ready) < len(each)
            yield Some(ready)

    def __iter__(self) -> Iterator[Lease]:
        safe_ns = (self._safe_scavenger_ns, self._safe_standard_ns)
        for lease in self._table.yielders.below(self._level, self._pools, self._table.leases):
            if lease.granted_ns > safe_ns[lease.subject.priority is not Priority.SCAVENGER]:
                self.young = True
            else:
                yield lease


Room = Callable[[Left], "Left | None"]
"""What is free of each pool with so much left out, once the request is placed; None: it has no
room."""


def choose_victims(ordered: Iterable[Lease], room: Room, left: Left) -> tuple[Lease, ...] | None:
    """As few of `ordered` as make room beside what `left` says, front first; None if all of them
    together do not.
    """
    if room(left) is not None:
        return ()
    taken: list[Lease] = []
    few, enough = dict(left), 1  # `few`: what is left when the first half of them goes
    gone = dict(left)
    for lease in ordered:
        taken.append(lease)
        take(gone, lease.subject.allotments, -1)
        if len(taken) == enough:
            if room(gone) is not None:
                break
            few = dict(gone)
            enough *= 2
    else:
        if room(gone) is None:
            return None
    low, high = enough // 2, len(taken)  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        half = dict(few)
        for lease in taken[low:middle]:
            take(half, lease.subject.allotments, -1)
        if room(half) is None:
            low, few = middle, half
        else:
            high, gone = middle, half
    return tuple(_spared(taken[:high], room, gone))


def choose_in_one(rows: Iterable[Some], need: int, room: int) -> list[Lease] | None:
    """As `choose_victims`, for `need` of one pool that has `room` when all has left that leaves
    anyway: there the sums are enough, lease by lease.
    """
    taken: list[Some] = []
    for some in rows:
        if room + some.capacity < need:  # all of them, and others
            taken.append(some)
            room += some.capacity
            continue
        last = []
        for one in some.each():
            last.append(one)
            room += one[1]
            if room >= need:
                return _let_off([*taken, Some(last)], room - need)
    return None


def _let_off(taken: list[Some], spare: int) -> list[Lease]:
    """Without those that are not needed, the last ones first."""
    kept: list[list[Lease]] = []
    for some in reversed(taken):
        if some.least > spare:
            kept.append(some.leases())
            continue
        needed = []
        for lease, capacity in reversed(some.each()):
            if capacity > spare:
                needed.append(lease)
            else:
                spare -= capacity
        kept.append(needed[::-1])
    return list(chain.from_iterable(reversed(kept)))


def _spared(chosen: list[Lease], room: Room, gone: Left) -> list[Lease]:
    """Without those that are not needed. `gone` is what is left when all of `chosen` go."""
    left = room(gone)
    assert left is not None
    kept, fewer = [], dict(gone)
    for lease in reversed(chosen):
        allotments = lease.subject.allotments
        for one in allotments:
            if left.get(capacity_id(one.resource_id), 0) < one.capacity:
                kept.append(lease)
                break
        else:
            take(left, allotments, -1)
            take(fewer, allotments, 1)
    kept.reverse()
    # Placement takes what looks best, one ask after the other: with less to choose from it may go
    # elsewhere, and there it may not fit.
    if room(fewer) is None:
        kept, fewer = chosen, dict(gone)
    if len(kept) > EXACT_MAX:
        return kept
    for lease in reversed(kept[:]):
        without = dict(fewer)
        take(without, lease.subject.allotments, 1)
        if room(without) is not None:
            kept = [other for other in kept if other is not lease]
            fewer = without
    return kept
