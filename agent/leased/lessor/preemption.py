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

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from leased.lessor.table import LeaseTable
from leased.terms.lease import Lease, LeaseState, Level, Priority
from leased.terms.policy import Preemption
from leased.terms.resource import capacity_id

STAYING = (LeaseState.GRANTED, LeaseState.ACTIVE)
EXACT_MAX = 64
"""Up to so many victims every single one is shown to be needed; of more, only that none can be let
off without placing the request elsewhere."""


class Candidates:
    """Who could make way for a request of `level` on `pools`, in the order they would. `young`:
    somebody else could, but has not run long enough.
    """

    __slots__ = ("_heap", "young")

    def __init__(
        self,
        table: LeaseTable,
        terms: Preemption,
        *,
        level: Level,
        pools: Iterable[str],
        now_ns: int,
    ) -> None:
        safe_ns = (
            now_ns - terms.runtime_ns_min_scavenger,
            now_ns - terms.runtime_ns_min_standard,
        )
        self.young = False
        heap = []
        for lease_id in holders_of(table, pools):
            lease = table.leases.get(lease_id)
            if lease is None or lease.state not in STAYING:
                continue
            priority = lease.subject.priority
            if priority is Priority.GUARANTEED:
                continue
            own = table.level(lease)
            if own >= level:
                continue
            if lease.granted_ns > safe_ns[priority]:
                self.young = True
                continue
            heap.append((int(own), lease.deadline_ns, -lease.granted_ns, lease_id, lease))
        heapq.heapify(heap)
        self._heap = heap

    def __iter__(self) -> Iterator[Lease]:
        heap = list(self._heap)
        while heap:
            yield heapq.heappop(heap)[-1]


def holders_of(table: LeaseTable, pools: Iterable[str]) -> dict[bytes, None]:
    """Every lease that has something of any of `pools`."""
    found: dict[bytes, None] = {}
    for resource_id in pools:
        pool = table.pools.by_id.get(resource_id)
        if pool is not None:
            found.update(pool.counted.holders)
    return found


Room = Callable[[Sequence[Lease]], "dict[str, int] | None"]
"""What is left of each pool if these leases go and the request is placed; None: it has no room."""


def choose_victims(ordered: Iterable[Lease], room: Room) -> tuple[Lease, ...] | None:
    """As few of `ordered` as make room, front first; None if all of them together do not."""
    if room(()) is not None:
        return ()
    taken: list[Lease] = []
    enough = 1
    for lease in ordered:
        taken.append(lease)
        if len(taken) == enough:
            if room(taken) is not None:
                break
            enough *= 2
    else:
        if room(taken) is None:
            return None
    low, high = enough // 2, len(taken)  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        if room(taken[:middle]) is None:
            low = middle
        else:
            high = middle
    return tuple(_spared(taken[:high], room))


def _spared(chosen: list[Lease], room: Room) -> list[Lease]:
    """Without those that are not needed."""
    left = room(chosen)
    assert left is not None
    kept = []
    for lease in reversed(chosen):
        shares = [(capacity_id(one.resource_id), one.capacity) for one in lease.subject.allotments]
        if all(left.get(resource_id, 0) >= capacity for resource_id, capacity in shares):
            for resource_id, capacity in shares:
                left[resource_id] -= capacity
        else:
            kept.append(lease)
    kept.reverse()
    # Placement takes what looks best, one ask after the other: with less to choose from it may go
    # elsewhere, and there it may not fit.
    if room(kept) is None:
        kept = chosen
    if len(kept) > EXACT_MAX:
        return kept
    for lease in reversed(kept[:]):
        fewer = [other for other in kept if other is not lease]
        if room(fewer) is not None:
            kept = fewer
    return kept
