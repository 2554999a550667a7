# SPDX-License-Identifier: Apache-2.0
"""Yielders: every lease that could be told to leave for a higher level, by pool, in the order in
which it would be.

Rule: the lowest level first, within a level the first to end, of those the last one granted. The
order is kept as events are applied and never made anew for a question; a renewal, which is what
happens most, costs two dictionary writes. A property test compares it with sorting the table.

Does not judge who may be told (`preemption`): young leases are here too, guaranteed ones are not.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, Level, Priority
from leased.terms.resource import capacity_id

_FINE_BITS: Final = 24
"""Deadlines within 17 ms of each other share a slot, and are sorted when they are looked at."""

_LEVEL_BITS: Final = 48
_COMPACT_MIN: Final = 64
_TAKEN_MAX: Final = 32
_MANY: Final = 256

Slot = int
"""A level and a stretch of time: slots are in the order in which their leases would leave."""


def order_of(lease: Lease) -> tuple[int, int, bytes]:
    """The place of a lease among those of its level."""
    return (lease.deadline_ns, -lease.granted_ns, lease.lease_id)


def _slot(level: Level, deadline_ns: int) -> Slot:
    return (int(level) << _LEVEL_BITS) + (deadline_ns >> _FINE_BITS)


class Row:
    """The yielders of one pool: leases by slot, the slots as a heap (it may name slots that are
    empty by now), and the capacity of each level.
    """

    __slots__ = ("_compact_at", "_heap", "capacities", "slots")

    def __init__(self) -> None:
        self.slots: dict[Slot, dict[LeaseId, int]] = {}
        self.capacities: dict[Level, int] = {}
        self._heap: list[Slot] = []
        self._compact_at = _COMPACT_MIN

    def add(self, lease_id: LeaseId, slot: Slot, capacity: int) -> None:
        """A lease that has so much has come into a slot."""
        members = self.slots.get(slot)
        if members is not None:
            members[lease_id] = capacity
            return
        self.slots[slot] = {lease_id: capacity}
        heapq.heappush(self._heap, slot)
        if len(self._heap) > self._compact_at:
            self._heap = sorted(self.slots)
            self._compact_at = max(_COMPACT_MIN, 2 * len(self._heap))

    def discard(self, lease_id: LeaseId, slot: Slot) -> None:
        """It has left the slot."""
        members = self.slots[slot]
        del members[lease_id]
        if not members:
            del self.slots[slot]

    def in_order(self, end: Slot) -> Iterator[list[Slot]]:
        """Every slot before `end` that has a lease: the first few one by one, taken from the heap;
        for whoever looks further all are sorted, and told many at a time.
        """
        heap, last = self._heap.copy(), -1
        for _ in range(min(len(heap), _TAKEN_MAX)):
            slot = heapq.heappop(heap)
            if slot >= end:
                return
            if slot != last and slot in self.slots:
                yield [slot]
            last = slot
        if heap:
            ordered = self._sorted()
            stop = bisect_left(ordered, end)
            for begin in range(bisect_right(ordered, last), stop, _MANY):
                yield ordered[begin : min(begin + _MANY, stop)]

    def _sorted(self) -> list[Slot]:
        """All slots that have a lease, in order: a sorted list is a heap, too, and stays nearly
        sorted while little is added.
        """
        self._heap.sort()
        if len(self._heap) > len(self.slots):
            self._heap = [slot for slot in dict.fromkeys(self._heap) if slot in self.slots]
        return self._heap


class Yielders:
    """The rows of all pools, by the id of the resource that counts. `lent` are those that have what
    others wait for (`backfill`).
    """

    __slots__ = ("_places", "_rows", "lent")

    def __init__(self) -> None:
        self.lent: dict[LeaseId, None] = {}
        self._rows: dict[str, Row] = {}
        self._places: dict[LeaseId, tuple[Level, Slot, tuple[tuple[Row, int], ...]]] = {}

    def enter(self, lease: Lease, level: Level) -> None:
        """A lease begins at `level`."""
        subject = lease.subject
        if subject.priority is Priority.GUARANTEED:
            return
        shares: dict[str, int] = {}
        for allotment in subject.allotments:
            resource_id = capacity_id(allotment.resource_id)
            shares[resource_id] = shares.get(resource_id, 0) + allotment.capacity
        slot = _slot(level, lease.deadline_ns)
        lease_id, rows = lease.lease_id, []
        for resource_id, capacity in shares.items():
            row = self._rows.get(resource_id)
            if row is None:
                row = self._rows[resource_id] = Row()
            row.add(lease_id, slot, capacity)
            row.capacities[level] = row.capacities.get(level, 0) + capacity
            rows.append((row, capacity))
        self._places[lease_id] = (level, slot, tuple(rows))

    def move(self, lease_id: LeaseId, deadline_ns: int) -> None:
        """A lease was renewed."""
        place = self._places.get(lease_id)
        if place is None:
            return
        level, before, rows = place
        slot = _slot(level, deadline_ns)
        if slot == before:
            return
        for row, capacity in rows:
            row.discard(lease_id, before)
            row.add(lease_id, slot, capacity)
        self._places[lease_id] = (level, slot, rows)

    def leave(self, lease_id: LeaseId) -> None:
        """A lease was told to leave, or has ended."""
        self.lent.pop(lease_id, None)
        place = self._places.pop(lease_id, None)
        if place is None:
            return
        level, slot, rows = place
        for row, capacity in rows:
            row.discard(lease_id, slot)
            row.capacities[level] -= capacity

    def below(
        self, level: Level, pools: Iterable[str], leases: Mapping[LeaseId, Lease]
    ) -> Iterator[Lease]:
        """Those below `level` that have something of any of `pools`, in order."""
        end = _slot(level, 0)
        rows = [row for row in map(self._rows.get, pools) if row is not None]
        several = len(rows) > 1
        slots: Iterable[Slot] = heapq.merge(
            *(chain.from_iterable(row.in_order(end)) for row in rows)
        )
        last = -1
        for slot in slots:
            if slot == last:
                continue
            last = slot
            members: dict[LeaseId, int] = {}
            for row in rows:
                found = row.slots.get(slot)
                if found is not None:
                    members = members | found if several else found
            if len(members) == 1:
                yield from (leases[lease_id] for lease_id in members)
            else:
                here = [leases[lease_id] for lease_id in members]
                here.sort(key=order_of)
                yield from here

    def of_one(
        self, level: Level, resource_id: str, leases: Mapping[LeaseId, Lease]
    ) -> Iterator[list[tuple[Lease, int]]]:
        """Those below `level` that have something of one pool, in order, and how much: some at a
        time.
        """
        row = self._rows.get(resource_id)
        if row is None:
            return
        slots = row.slots
        for some in row.in_order(_slot(level, 0)):
            here: list[tuple[Lease, int]] = []
            for slot in some:
                members: Iterable[tuple[LeaseId, int]] = slots[slot].items()
                if len(slots[slot]) > 1:
                    members = sorted(members, key=lambda one: order_of(leases[one[0]]))
                for lease_id, capacity in members:
                    here.append((leases[lease_id], capacity))
            yield here

    def capacity_below(self, level: Level, resource_id: str) -> int:
        """What those below `level` have of one pool together."""
        row = self._rows.get(resource_id)
        if row is None:
            return 0
        return sum(capacity for at, capacity in row.capacities.items() if at < level)
