# SPDX-License-Identifier: Apache-2.0
"""Yielders: every lease that could be told to leave for a higher level, by pool, in the order in
which it would be.

Rule: the lowest level first, within a level the first to end, of those the last one granted. The
order is kept as events are applied and never made anew for a question; a renewal, which is what
happens most, costs a few dictionary writes. What is kept of a lease is a number: the collector of
cycles goes through whatever is more. A property test compares it with sorting the table.

Does not judge who may be told (`preemption`): young leases are here too, guaranteed ones are not.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, overload

from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, Level, Priority
from leased.terms.resource import capacity_id

_FINE_BITS: Final = 24
"""Deadlines within 17 ms of each other share a slot, and are sorted when they are looked at."""

_WIDE_BITS: Final = 10
"""So many slots, one after the other, are a stretch: 17 s. A stretch that leaves as a whole is
taken by its sum; few of them are counted sooner, and only one is looked at lease by lease."""

_LEVEL_BITS: Final = 48
_COMPACT_MIN: Final = 64
_TAKEN_MAX: Final = 32
_MANY: Final = 256
_NONE: Final = 1 << 62

Slot = int
"""A level and an instant: slots are in the order in which their leases would leave."""

Wide = int
"""A level and a stretch of time."""


def order_of(lease: Lease) -> tuple[int, int, bytes]:
    """The place of a lease among those of its level."""
    return (lease.deadline_ns, -lease.granted_ns, lease.lease_id)


def _slot(level: Level, deadline_ns: int) -> Slot:
    return (int(level) << _LEVEL_BITS) + (deadline_ns >> _FINE_BITS)


def first_of(level: Level) -> Wide:
    """The first stretch of a level."""
    return _slot(level, 0) >> _WIDE_BITS


class Named(Sequence[Lease]):
    """Leases by their ids, looked up when somebody asks for them: thousands of victims are counted
    long before, and often without, anybody telling them.
    """

    __slots__ = ("_ids", "_leases")

    def __init__(self, ids: list[LeaseId], leases: Mapping[LeaseId, Lease]) -> None:
        self._ids, self._leases = ids, leases

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> Lease: ...

    @overload
    def __getitem__(self, at: slice) -> list[Lease]: ...

    def __getitem__(self, at: int | slice) -> Lease | list[Lease]:
        if isinstance(at, slice):
            return list(map(self._leases.__getitem__, self._ids[at]))
        return self._leases[self._ids[at]]

    def __iter__(self) -> Iterator[Lease]:
        return map(self._leases.__getitem__, self._ids)


class Some:
    """Leases in order with what each has of one pool. `capacity` is what they have together,
    `least` no more than what any of them has, and none was granted after `newest_ns`.
    """

    __slots__ = ("_each", "capacity", "least", "newest_ns")

    def __init__(self, each: list[tuple[Lease, int]]) -> None:
        self._each = each
        self.capacity = sum([capacity for _, capacity in each])
        self.least = min([capacity for _, capacity in each], default=_NONE)
        self.newest_ns = max([lease.granted_ns for lease, _ in each], default=0)

    def each(self) -> list[tuple[Lease, int]]:
        """One by one."""
        return self._each

    def leases(self) -> list[Lease]:
        """Who they are, in any order."""
        return [lease for lease, _ in self._each]


class Stretch(Some):
    """The yielders of one stretch of time, looked up when somebody asks who they are."""

    __slots__ = ("_ids", "_leases", "_slots")

    def __init__(
        self,
        slots: list[dict[LeaseId, int]],
        known: Sums,
        capacity: int,
        leases: Mapping[LeaseId, Lease],
    ) -> None:
        self._slots, self._ids, self._leases = slots, known.ids, leases
        self.capacity, self.least, self.newest_ns = capacity, known.least, known.newest_ns

    def each(self) -> list[tuple[Lease, int]]:
        """One by one."""
        return list(chain.from_iterable(_pairs(slot, self._leases) for slot in self._slots))

    def leases(self) -> list[Lease]:
        """Who they are, in any order."""
        return list(map(self._leases.__getitem__, self._ids))


def _pairs(
    members: Mapping[LeaseId, int], leases: Mapping[LeaseId, Lease]
) -> list[tuple[Lease, int]]:
    """The leases of one slot in order, and what each has."""
    pairs = [(leases[lease_id], capacity) for lease_id, capacity in members.items()]
    if len(pairs) > 1:
        pairs.sort(key=lambda one: order_of(one[0]))
    return pairs


class Sums:
    """Who is in a stretch; the least that one of them has had, and when the last of them was
    granted, as long as anybody is there.
    """

    __slots__ = ("ids", "least", "newest_ns")

    def __init__(self) -> None:
        self.ids: dict[LeaseId, None] = {}
        self.newest_ns = 0
        self.least = _NONE


class Row:
    """The yielders of one pool: leases by slot, the slots as a heap (it may name slots that are
    empty by now), who is in each stretch and what they have together, and the capacity of each
    level.
    """

    __slots__ = ("_compact_at", "_heap", "amounts", "capacities", "slots", "sums")

    def __init__(self) -> None:
        self.slots: dict[Slot, dict[LeaseId, int]] = {}
        self.capacities: dict[int, int] = {}
        self.sums: dict[Wide, Sums] = {}
        self.amounts: dict[Wide, int] = {}
        self._heap: list[Slot] = []
        self._compact_at = _COMPACT_MIN

    def add(self, lease_id: LeaseId, slot: Slot, capacity: int, granted_ns: int) -> None:
        """A lease has so much (more) in a slot."""
        wide = slot >> _WIDE_BITS
        sums = self.sums.get(wide)
        if sums is None:
            sums = self.sums[wide] = Sums()
            self.amounts[wide] = 0
        self.amounts[wide] += capacity
        sums.ids[lease_id] = None
        if capacity < sums.least:
            sums.least = capacity
        if granted_ns > sums.newest_ns:
            sums.newest_ns = granted_ns
        members = self.slots.get(slot)
        if members is not None:
            members[lease_id] = members.get(lease_id, 0) + capacity
            return
        self.slots[slot] = {lease_id: capacity}
        heapq.heappush(self._heap, slot)
        if len(self._heap) > self._compact_at:
            self._heap = sorted(self.slots)
            self._compact_at = max(_COMPACT_MIN, 2 * len(self._heap))

    def discard(self, lease_id: LeaseId, slot: Slot) -> None:
        """It has left the slot, with all that it has. Idempotent."""
        members = self.slots.get(slot)
        if members is None or lease_id not in members:
            return
        wide = slot >> _WIDE_BITS
        sums = self.sums[wide]
        self.amounts[wide] -= members.pop(lease_id)
        del sums.ids[lease_id]
        if not sums.ids:
            del self.sums[wide], self.amounts[wide]
        if not members:
            del self.slots[slot]

    def in_order(self, end: Slot) -> Iterator[list[Slot]]:
        """Every slot before `end` that has a lease: the first few one by one, for whoever looks
        further many at a time.
        """
        last = -1
        for slot in self._first(end):
            yield [slot]
            last = slot
        rest = self._after(last, end)
        for begin in range(0, len(rest), _MANY):
            yield rest[begin : begin + _MANY]

    def stretches(self, end: Slot, leases: Mapping[LeaseId, Lease]) -> Iterator[Some]:
        """Who is in those slots: slot by slot first, then a stretch at a time."""
        slots, last = self.slots, -1
        for slot in self._first(end):
            yield Some(_pairs(slots[slot], leases))
            last = slot
        rest, at = self._after(last, end), 0
        while at < len(rest):
            wide = rest[at] >> _WIDE_BITS
            upto = bisect_left(rest, (wide + 1) << _WIDE_BITS, at)
            members = list(map(slots.__getitem__, rest[at:upto]))
            if wide == last >> _WIDE_BITS:  # those before them were told one by one
                for one in members:
                    yield Some(_pairs(one, leases))
            else:
                yield Stretch(members, self.sums[wide], self.amounts[wide], leases)
            at = upto

    def _first(self, end: Slot) -> Iterator[Slot]:
        """The first few slots before `end` that have a lease, taken from the heap."""
        heap, last = self._heap.copy(), -1
        for _ in range(min(len(heap), _TAKEN_MAX)):
            slot = heapq.heappop(heap)
            if slot >= end:
                return
            if slot != last and slot in self.slots:
                yield slot
            last = slot

    def _after(self, last: Slot, end: Slot) -> list[Slot]:
        """Those after `last`."""
        ordered = self._sorted()
        return ordered[bisect_right(ordered, last) : bisect_left(ordered, end)]

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
    others wait for (`backfill`), `counts` says how many are in each stretch.
    """

    __slots__ = ("_rows", "_slots", "counts", "lent")

    def __init__(self) -> None:
        self.lent: dict[LeaseId, None] = {}
        self.counts: dict[Wide, int] = {}
        self._rows: dict[str, Row] = {}
        self._slots: dict[LeaseId, Slot] = {}

    def enter(self, lease: Lease, level: Level) -> None:
        """A lease begins at `level`."""
        subject = lease.subject
        if subject.priority is Priority.GUARANTEED:
            return
        slot = self._slots[lease.lease_id] = _slot(level, lease.deadline_ns)
        self._count(slot >> _WIDE_BITS, 1)
        for allotment in subject.allotments:
            resource_id = capacity_id(allotment.resource_id)
            row = self._rows.get(resource_id)
            if row is None:
                row = self._rows[resource_id] = Row()
            row.add(lease.lease_id, slot, allotment.capacity, lease.granted_ns)
            row.capacities[level] = row.capacities.get(level, 0) + allotment.capacity

    def move(self, lease: Lease, deadline_ns: int) -> None:
        """A lease was renewed."""
        lease_id = lease.lease_id
        before = self._slots.get(lease_id)
        if before is None:
            return
        slot = (before >> _LEVEL_BITS << _LEVEL_BITS) + (deadline_ns >> _FINE_BITS)
        if slot == before:
            return
        self._slots[lease_id] = slot
        if slot >> _WIDE_BITS != before >> _WIDE_BITS:
            self._count(before >> _WIDE_BITS, -1)
            self._count(slot >> _WIDE_BITS, 1)
        # Left everywhere before it comes anywhere: two allotments may be of one row.
        rows = [
            (self._rows[capacity_id(allotment.resource_id)], allotment.capacity)
            for allotment in lease.subject.allotments
        ]
        for row, _ in rows:
            row.discard(lease_id, before)
        for row, capacity in rows:
            row.add(lease_id, slot, capacity, lease.granted_ns)

    def leave(self, lease: Lease) -> None:
        """A lease was told to leave, or has ended."""
        lease_id = lease.lease_id
        self.lent.pop(lease_id, None)
        slot = self._slots.pop(lease_id, None)
        if slot is None:
            return
        self._count(slot >> _WIDE_BITS, -1)
        for allotment in lease.subject.allotments:
            row = self._rows[capacity_id(allotment.resource_id)]
            row.discard(lease_id, slot)
            row.capacities[slot >> _LEVEL_BITS] -= allotment.capacity

    def _count(self, wide: Wide, more: int) -> None:
        count = self.counts.get(wide, 0) + more
        if count:
            self.counts[wide] = count
        else:
            del self.counts[wide]

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
    ) -> Iterator[Some]:
        """Those below `level` that have something of one pool, in order, and how much: some at a
        time.
        """
        row = self._rows.get(resource_id)
        return iter(()) if row is None else row.stretches(_slot(level, 0), leases)

    def rows(self, pools: Iterable[str]) -> dict[str, Row]:
        """The rows of those pools that anybody has something of."""
        return {name: self._rows[name] for name in pools if name in self._rows}

    def newest(self) -> Iterator[tuple[LeaseId, Wide]]:
        """Everybody and their stretches, the last one granted first."""
        for lease_id, slot in reversed(self._slots.items()):
            yield lease_id, slot >> _WIDE_BITS

    def wide_of(self, lease_id: LeaseId) -> Wide | None:
        """The stretch that a lease is in."""
        slot = self._slots.get(lease_id)
        return None if slot is None else slot >> _WIDE_BITS

    def capacity_below(self, level: Level, resource_id: str) -> int:
        """What those below `level` have of one pool together."""
        row = self._rows.get(resource_id)
        if row is None:
            return 0
        return sum(capacity for at, capacity in row.capacities.items() if at < level)
