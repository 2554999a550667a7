# SPDX-License-Identifier: Apache-2.0
"""Several: who has to leave for a request that takes of several pools at once.

Rule: the same victims as by looking at one lease after the other (`preemption.choose_victims`): the
shortest row that makes enough room, without those that are not needed after all. Whole stretches of
time are counted by their sums; only a stretch in which the room becomes enough, or somebody may be
let off, is gone through lease by lease. More room can be worse than less, where an ask that is then
placed elsewhere leaves too little for the next one: whoever is chosen suffices even so.

Does not know who may be told to leave, or in which order (`preemption`, `yielders`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, repeat
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
from leased.lessor.yielders import Named, Wide, first_of, order_of
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import Ask, capacity_id

TIGHT_MAX: Final = 4
"""Pools, those with the least to spare, by which a stretch may be known to be needed whole."""

_DENSE: Final = 8
"""A pool that every eighth stretch has something of is counted at each of them."""


class Enough:
    """Whether there could be enough for every ask by itself, of the pools named. Where there is
    not, there is no need to place them; if it is `exact`, nor where there is.
    """

    __slots__ = ("_needs", "exact")

    def __init__(self, asks: Sequence[Ask], pools: Pools, names: Mapping[str, None]) -> None:
        self.exact = _is_exact(asks, pools)
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


def _is_exact(asks: Sequence[Ask], pools: Pools) -> bool:
    """Whether the asks can be placed if there is enough for each by itself: none takes anything
    whole, or of a pool that another may take of, or what a pool does not give in such amounts.
    """
    seen: dict[str, None] = {}
    for ask in asks:
        usable = pools.usable(ask)
        names = dict.fromkeys(pool.counted.resource_id for pool in usable)
        if ask.exclusive or wholes_of(ask) is not None or not seen.keys().isdisjoint(names):
            return False
        if len(names) < len(usable) or any(ask.capacity % pool.granule for pool in usable):
            return False
        seen |= names
    return True


class Stretches:
    """Who may be told to leave some pools, by stretches of time. `others` are not among them."""

    __slots__ = ("_counts", "_dense", "_leases", "_not_told", "_rows", "_sparse", "_wides")

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
        self._wides = wides = sorted([wide for wide in self._counts if wide < end])
        self._dense: dict[str, list[int]] = {}  # what has gone after so many stretches
        self._sparse: dict[str, tuple[list[Wide], list[int]]] = {}  # or after those it has
        for name, row in self._rows.items():
            stays, amounts = less.get(name, {}), row.amounts
            if stays:
                amounts = {**amounts, **{at: amounts[at] - stays[at] for at in stays}}
            if _DENSE * len(amounts) >= len(wides):
                at_each = map(amounts.get, wides, repeat(0))
                self._dense[name] = list(accumulate(at_each, initial=0))
            else:
                some = sorted(amounts)
                at_each = map(amounts.__getitem__, some)
                self._sparse[name] = (some, list(accumulate(at_each, initial=0)))

    def __len__(self) -> int:
        return len(self._wides)

    def has(self, name: str) -> bool:
        """Whether anybody has something of a pool."""
        return name in self._rows

    def left_after(self, count: int, left: Left) -> Left:
        """What is left, beside `left`, when the first `count` stretches have gone."""
        gone = dict(left)
        for name, upto in self._dense.items():
            gone[name] = gone.get(name, 0) - upto[count]
        last = self._wides[count - 1] if count else -1
        for name, (some, upto) in self._sparse.items():
            gone[name] = gone.get(name, 0) - upto[bisect_right(some, last)]
        return gone

    def leases(self, at: int) -> list[Lease]:
        """Who may be told in a stretch, in order."""
        ids: dict[LeaseId, None] = {}
        wide = self._wides[at]
        for row in self._rows.values():
            sums = row.sums.get(wide)
            if sums is not None:
                ids |= sums.ids
        return sorted(self.named(self._told(wide, ids)), key=order_of)

    def needed(self, at: int, spare: Left, fewer: Left, tight: Sequence[str]) -> list[LeaseId]:
        """As `needed_of`, for a stretch, and in any order. All of it is needed if everybody in it
        has more of one pool than there is to spare.
        """
        wide = self._wides[at]
        for name in tight:
            sums = self._rows[name].sums.get(wide)
            if sums is None or sums.least <= spare[name]:
                continue
            if len(sums.ids) == self._counts[wide]:
                return self._told(wide, sums.ids)
        return [lease.lease_id for lease in needed_of(self.leases(at), spare, fewer)]

    def named(self, ids: list[LeaseId]) -> Named:
        """The leases of those ids."""
        return Named(ids, self._leases)

    def _told(self, wide: Wide, ids: Iterable[LeaseId]) -> list[LeaseId]:
        """Those of `ids` that may be told."""
        not_told = self._not_told.get(wide)
        return [one for one in ids if one not in not_told] if not_told else list(ids)


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
    called: Sequence[Lease],
    stretches: Callable[[], Stretches],
    room: Room,
    left: Left,
    fits: Callable[[Left], bool],
) -> Sequence[Lease] | None:
    """As `choose_victims` of those that are called back and then those of `stretches`. `fits` says
    whether there is `room`.
    """
    if fits(left):
        return ()
    beside = dict(left)
    for lease in called:
        take(beside, lease.subject.allotments, -1)
    if called and fits(beside):
        return choose_victims(called, room, left)
    among = stretches()
    count = _first_enough(among, fits, beside)
    if count is None:
        return None
    part = shortest(among.leases(count - 1), room, among.left_after(count - 1, beside), fits)
    assert part is not None, "all of the stretch make room"
    last, gone, spare = part
    fewer = dict(gone)
    tight = sorted(filter(among.has, spare), key=spare.__getitem__)[:TIGHT_MAX]
    kept = [[lease.lease_id for lease in needed_of(last, spare, fewer)]]
    kept += [among.needed(at, spare, fewer, tight) for at in reversed(range(count - 1))]
    kept.append([lease.lease_id for lease in needed_of(called, spare, fewer)])

    def everybody() -> Sequence[Lease]:
        return [*called, *chain.from_iterable(map(among.leases, range(count - 1))), *last]

    needed = among.named(list(chain.from_iterable(reversed(kept))))
    return confirmed(needed, fewer, everybody, gone, room)


def _first_enough(among: Stretches, fits: Callable[[Left], bool], left: Left) -> int | None:
    """How many stretches, front first, make room; None: all of them do not."""
    low, high = 0, 1  # too few, perhaps enough
    while not fits(among.left_after(min(high, len(among)), left)):
        if high >= len(among):
            return None
        low, high = high, 4 * high
    high = min(high, len(among))
    while high - low > 1:
        middle = (low + high) // 2
        if fits(among.left_after(middle, left)):
            high = middle
        else:
            low = middle
    return high
