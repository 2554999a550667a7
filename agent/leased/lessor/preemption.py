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

    __slots__ = ("_pools", "_safe_scavenger_ns", "_safe_standard_ns", "_table", "level", "young")

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
        self._table, self.level, self._pools = table, level, pools

    def of_one(self, resource_id: str) -> Iterator[Some]:
        """Those who have something of one pool, and how much; some at a time."""
        yielders, leases = self._table.yielders, self._table.leases
        scavenger_ns, standard_ns = self._safe_scavenger_ns, self._safe_standard_ns
        earliest_ns, scavenger = self.old_ns, Priority.SCAVENGER
        for some in yielders.of_one(self.level, resource_id, leases):
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

    @property
    def old_ns(self) -> int:
        """Whatever was granted by then has run long enough."""
        return min(self._safe_scavenger_ns, self._safe_standard_ns)

    def may_go(self, lease: Lease) -> bool:
        """Whether one that stands lower has run long enough."""
        scavenger = lease.subject.priority is Priority.SCAVENGER
        safe_ns = self._safe_scavenger_ns if scavenger else self._safe_standard_ns
        if lease.granted_ns <= safe_ns:
            return True
        self.young = True
        return False

    def __iter__(self) -> Iterator[Lease]:
        below = self._table.yielders.below(self.level, self._pools, self._table.leases)
        return filter(self.may_go, below)


Room = Callable[[Left], "Left | None"]
"""What is free of each pool with so much left out, once the request is placed; None: it has no
room."""


def choose_victims(ordered: Iterable[Lease], room: Room, left: Left) -> tuple[Lease, ...] | None:
    """As few of `ordered` as make room beside what `left` says, front first; None if all of them
    together do not.
    """
    if room(left) is not None:
        return ()
    found = shortest(ordered, room, left)
    if found is None:
        return None
    chosen, gone, spare = found
    fewer = dict(gone)
    return tuple(confirmed(needed_of(chosen, spare, fewer), fewer, lambda: chosen, gone, room))


def shortest(
    ordered: Iterable[Lease], room: Room, left: Left, fits: Callable[[Left], bool] | None = None
) -> tuple[Sequence[Lease], Left, Left] | None:
    """The first of `ordered` that together make room, what is left when they have gone, and what
    is free then beside the request. `fits`, if handed in, says without placing it whether there is
    `room`.
    """
    if fits is None:

        def fits(gone: Left) -> bool:
            return room(gone) is not None

    taken: list[Lease] = []
    few, enough = dict(left), 1  # `few`: what is left when the first half of them goes
    gone = dict(left)
    for lease in ordered:
        taken.append(lease)
        take(gone, lease.subject.allotments, -1)
        if len(taken) == enough:
            if fits(gone):
                break
            few = dict(gone)
            enough *= 2
    else:
        if not fits(gone):
            return None
    low, high = enough // 2, len(taken)  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        half = dict(few)
        for lease in taken[low:middle]:
            take(half, lease.subject.allotments, -1)
        if fits(half):
            high, gone = middle, half
        else:
            low, few = middle, half
    spare = room(gone)
    assert spare is not None, "it fits"
    return taken[:high], gone, spare


def needed_of(chosen: Sequence[Lease], spare: Left, fewer: Left) -> list[Lease]:
    """Those that are needed, the last ones let off first. `spare` is what there is more than that
    of each pool that matters, `fewer` what is left when all go; both are kept up.
    """
    kept = []
    for lease in reversed(chosen):
        allotments = lease.subject.allotments
        if _is_spare(allotments, spare):
            take(fewer, allotments, 1)
        else:
            kept.append(lease)
    kept.reverse()
    return kept


def _is_spare(allotments: Sequence[Allotment], spare: Left) -> bool:
    """Whether there is as much to spare; then it is spared."""
    for one in allotments:
        resource_id = capacity_id(one.resource_id)
        if spare.get(resource_id, one.capacity) < one.capacity:
            return False
    after: Left = {}
    for one in allotments:
        resource_id = capacity_id(one.resource_id)
        if resource_id in spare:
            after[resource_id] = after.get(resource_id, spare[resource_id]) - one.capacity
    if min(after.values(), default=0) < 0:  # two shares of one pool
        return False
    spare.update(after)
    return True


def confirmed(
    kept: Sequence[Lease],
    fewer: Left,
    chosen: Callable[[], Sequence[Lease]],
    gone: Left,
    room: Room,
) -> Sequence[Lease]:
    """`kept` of `chosen`, if that makes room indeed, else all of them; of few, without any that
    need not go.
    """
    # Placement takes what looks best, one ask after the other: with less to choose from it may go
    # elsewhere, and there it may not fit.
    if fewer != gone and room(fewer) is None:
        kept, fewer = chosen(), dict(gone)
    if len(kept) > EXACT_MAX:
        return kept
    for lease in reversed(kept[:]):
        without = dict(fewer)
        take(without, lease.subject.allotments, 1)
        if room(without) is not None:
            kept = [other for other in kept if other is not lease]
            fewer = without
    return kept


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
