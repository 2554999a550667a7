# SPDX-License-Identifier: Apache-2.0
"""Several: who has to leave for a request that takes of several pools at once.

Rule: the same victims as by looking at one lease after the other (`preemption.choose_victims`): the
shortest row that makes enough room, without those that are not needed after all. Whole stretches of
time are counted by their sums, and only those in which it becomes enough, or somebody may be let
off, lease by lease. Where an ask that is placed elsewhere
leaves too little for the next one, more room may be worse than less: then, too, whoever is chosen
suffices.

Does not know who may be told to leave, or in which order (`preemption`, `yielders`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Final

from leased.lessor.placement import spans
from leased.lessor.pool import Pools
from leased.lessor.preemption import (
    Candidates,
    Left,
    Room,
    choose_victims,
    confirmed,
    needed_of,
    shortest,
    take,
)
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import wholes_of
from leased.lessor.yielders import Wide, first_of, order_of
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import Ask, capacity_id

TIGHT_MAX: Final = 4
"""Pools, those with the least to spare, by which a stretch may be known to be needed whole."""


class Enough:
    """Whether there could be enough for every ask by itself, of the pools named. Where there is
    not, there is no need to place them.
    """

    __slots__ = ("_needs",)

    def __init__(self, asks: Sequence[Ask], pools: Pools, names: Mapping[str, None]) -> None:
        self._needs = [
            (
                ask,
                wholes_of(ask),
                {
                    one.counted.resource_id: one.counted.capacity
                    for one in pools.usable(ask)
                    if one.counted.resource_id in names
                },
            )
            for ask in asks
        ]

    def holds(self, free: Mapping[str, int]) -> bool:
        """If so much were free of each."""
        for ask, wanted, sizes in self._needs:
            if wanted is not None:
                whole = [1 for name, size in sizes.items() if free[name] >= size >= wanted.least]
                if len(whole) < wanted.count:
                    return False
            elif not spans(ask):
                if max(map(free.__getitem__, sizes), default=0) < ask.capacity:
                    return False
            elif ask.exclusive:
                if sum([size for name, size in sizes.items() if free[name] >= size]) < ask.capacity:
                    return False
            elif sum([room for room in map(free.__getitem__, sizes) if room > 0]) < ask.capacity:
                return False
        return True


class Stretches:
    """Who may be told to leave some pools, by stretches of time. `others` are not among them."""

    __slots__ = ("_counts", "_leases", "_not_told", "_rows", "_upto", "_wides")

    def __init__(
        self,
        table: LeaseTable,
        candidates: Candidates,
        pools: Iterable[str],
        others: Iterable[LeaseId],
    ) -> None:
        yielders, end = table.yielders, first_of(candidates.level)
        self._rows = yielders.rows(pools)
        self._counts, self._leases = yielders.counts, table.leases
        self._not_told: dict[Wide, dict[LeaseId, None]] = {}
        less: dict[str, dict[Wide, int]] = {}
        for lease_id, wide in _not_told(table, candidates, others, end):
            self._not_told.setdefault(wide, {})[lease_id] = None
            for one in table.leases[lease_id].subject.allotments:
                stays = less.setdefault(capacity_id(one.resource_id), {})
                stays[wide] = stays.get(wide, 0) + one.capacity
        self._upto: dict[str, tuple[list[Wide], list[int]]] = {}
        for name, row in self._rows.items():
            stays = less.get(name, {})
            amounts = {**row.amounts, **{at: row.amounts[at] - stays[at] for at in stays}}
            wides = sorted(amounts)
            upto = list(accumulate(map(amounts.__getitem__, wides)))
            self._upto[name] = (wides, upto)
        self._wides = sorted([wide for wide in self._counts if wide < end])

    def __len__(self) -> int:
        return len(self._wides)

    def has(self, name: str) -> bool:
        """Whether anybody has something of a pool."""
        return name in self._rows

    def left_after(self, count: int, left: Left) -> Left:
        """What is left, beside `left`, when the first `count` stretches have gone."""
        gone = dict(left)
        last = self._wides[count - 1] if count else -1
        for name, (wides, upto) in self._upto.items():
            at = bisect_right(wides, last)
            if at:
                gone[name] = gone.get(name, 0) - upto[at - 1]
        return gone

    def leases(self, at: int) -> list[Lease]:
        """Who may be told in a stretch, in order."""
        ids: dict[LeaseId, None] = {}
        wide = self._wides[at]
        for row in self._rows.values():
            sums = row.sums.get(wide)
            if sums is not None:
                ids |= sums.ids
        return sorted(self._among(wide, ids), key=order_of)

    def needed(self, at: int, spare: Left, fewer: Left, tight: Sequence[str]) -> Sequence[Lease]:
        """As `needed_of`, for a stretch, and in any order. All of it is needed if everybody in it
        has more of one pool than there is to spare.
        """
        wide = self._wides[at]
        for name in tight:
            sums = self._rows[name].sums.get(wide)
            if sums is None or sums.least <= spare[name]:
                continue
            if len(sums.ids) == self._counts[wide]:
                return self._among(wide, sums.ids)
        return needed_of(self.leases(at), spare, fewer)

    def _among(self, wide: Wide, ids: Iterable[LeaseId]) -> list[Lease]:
        """Those of `ids` that may be told."""
        not_told = self._not_told.get(wide)
        if not_told:
            ids = [one for one in ids if one not in not_told]
        return list(map(self._leases.__getitem__, ids))


def _not_told(
    table: LeaseTable, candidates: Candidates, others: Iterable[LeaseId], end: Wide
) -> Iterator[tuple[LeaseId, Wide]]:
    """Who before `end` is not to be told: `others`, and those who have not run long enough."""
    yielders = table.yielders
    told = dict.fromkeys(others)
    for lease_id in told:
        wide = yielders.wide_of(lease_id)
        if wide is not None and wide < end:
            yield lease_id, wide
    for lease_id, wide in yielders.newest():
        lease = table.leases[lease_id]
        if lease.granted_ns <= candidates.old_ns:
            break
        if wide < end and lease_id not in told and not candidates.may_go(lease):
            yield lease_id, wide


def choose_in_several(
    called: Sequence[Lease], stretches: Callable[[], Stretches], room: Room, left: Left
) -> Sequence[Lease] | None:
    """As `choose_victims` of those that are called back and then those of `stretches`."""
    if room(left) is not None:
        return ()
    beside = dict(left)
    for lease in called:
        take(beside, lease.subject.allotments, -1)
    if called and room(beside) is not None:
        return choose_victims(called, room, left)
    among = stretches()
    count = _first_enough(among, room, beside)
    if count is None:
        return None
    part = shortest(among.leases(count - 1), room, among.left_after(count - 1, beside))
    assert part is not None, "all of the stretch make room"
    last, gone, spare = part
    fewer = dict(gone)
    tight = sorted(filter(among.has, spare), key=spare.__getitem__)[:TIGHT_MAX]
    kept = [needed_of(last, spare, fewer)]
    kept += [among.needed(at, spare, fewer, tight) for at in reversed(range(count - 1))]
    kept.append(needed_of(called, spare, fewer))

    def everybody() -> Sequence[Lease]:
        return [*called, *chain.from_iterable(map(among.leases, range(count - 1))), *last]

    return confirmed(list(chain.from_iterable(reversed(kept))), fewer, everybody, gone, room)


def _first_enough(among: Stretches, room: Room, left: Left) -> int | None:
    """How many stretches, front first, make room; None: all of them do not."""
    low, high = 0, 1  # too few, perhaps enough
    while room(among.left_after(min(high, len(among)), left)) is None:
        if high >= len(among):
            return None
        low, high = high, 4 * high
    high = min(high, len(among))
    while high - low > 1:
        middle = (low + high) // 2
        if room(among.left_after(middle, left)) is None:
            low = middle
        else:
            high = middle
    return high
