# SPDX-License-Identifier: Apache-2.0
"""Division: a limit of the whole fleet as parts of its nodes.

Rule: what nodes may have in force never adds up to more than the limit. A node counts with the most
that it may still have by what it was handed (its `bound`), until its verified records say that it
has less; so capacity goes from one node to another only after the first has let go of it. Nobody is
given less than its floor, what is held and what was asked for in vain come next, the rest is spread
over all, and a part of it is kept for who asks next.

Integers alone; the same state gives the same parts. Does not know policies, times or tenants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

WHOLE_PPB: Final = 10**9
FLOORS_PPB: Final = WHOLE_PPB // 2
"""What of every limit is divided for good, evenly: a node that hears nothing has that. Half, so
that all of it fits once more while nodes come that the others have not heard of."""

RESERVE_PM: Final = 250
"""What of the rest is handed to nobody: who asks in vain has it a second later, without waiting for
another node to let go."""


class Site(msgspec.Struct, frozen=True):
    """One node, for one limit: what is held of it there, what was asked for in vain (with what was
    held), how much there is at all, the most that it may still have, what it was given last."""

    held: int = 0
    wanted: int = 0
    room: int = 2**63
    bound: int = 0
    given: int | None = None

    @property
    def need(self) -> int:
        """What it has to have."""
        return max(self.held, min(self.room, self.wanted))


def fractions(bounds: Mapping[str, int], present: list[str]) -> dict[str, int]:
    """Of every limit, what each present node has for good, in ppb. `bounds` are those that nodes
    may still have, absent ones too."""
    if not present:
        return {}
    goals = dict.fromkeys(sorted(present), FLOORS_PPB // len(present))
    return _within(WHOLE_PPB - sum(bounds.values()), goals, bounds)


def floor_of(limit: int, ppb: int, quantum: int) -> int:
    """A node's part for good of a limit: whole devices, cores or GiB."""
    return limit * ppb // WHOLE_PPB // quantum * quantum


def kept(
    limit: int, quantum: int, floors: Mapping[str, int], sites: Mapping[str, Site]
) -> dict[str, int] | None:
    """The parts as they are, with more only for who needs it: a quarter above that if there is so
    much, or who takes one after the other would ask in vain each time. None: what is needed cannot
    be had, or somebody was given nothing yet."""
    given: dict[str, int] = {}
    ample: dict[str, int] = {}
    for name, site in sites.items():
        if site.given is None:
            return None
        given[name] = ample[name] = max(site.given, site.need, floors[name])
        if site.need > site.given:
            more = -(-(site.need // 4) // quantum) * quantum
            ample[name] = max(given[name], min(site.room, site.need + more))
    for goals in (ample, given):
        if sum(goals.values()) <= limit and affordable(limit, goals, sites) == goals:
            return goals
    return None


def divided(
    limit: int, quantum: int, floors: Mapping[str, int], sites: Mapping[str, Site]
) -> dict[str, int]:
    """What each is to have: floors, needs, and what is left, most of it evenly."""
    found = dict(floors)
    left = limit - sum(found.values())
    for name in ranked(sites):
        more = min(max(0, sites[name].need - found[name]), max(0, left))
        found[name] += more
        left -= more
    if left > 0 and len(sites) == 1:
        (name,) = sites
        found[name] += left
    elif left > 0:
        _spread(left - left * RESERVE_PM // 1000, quantum, found, sites)
    return found


def _spread(left: int, quantum: int, found: dict[str, int], sites: Mapping[str, Site]) -> None:
    """Give `left` to all that have room, evenly, in quanta; what is too little for that goes to who
    has most already."""
    names = [name for name in ranked(sites) if sites[name].room >= found[name] + quantum]
    while names and left >= quantum:
        each = left // len(names) // quantum * quantum or quantum
        for name in list(names):
            more = min(each, left, (sites[name].room - found[name]) // quantum * quantum)
            more -= more % quantum
            found[name] += more
            left -= more
            if sites[name].room < found[name] + quantum:
                names.remove(name)
        if each == quantum:
            return


def ranked(sites: Mapping[str, Site]) -> list[str]:
    """Who asked in vain, who holds most, by name."""
    return sorted(sites, key=lambda name: (sites[name].wanted <= 0, -sites[name].held, name))


def affordable(
    limit: int,
    goals: Mapping[str, int],
    sites: Mapping[str, Site],
    elsewhere: int = 0,
) -> dict[str, int]:
    """`goals`, as far as they can be handed out now: less at once, more only of what nobody may
    still have. `elsewhere` is what nodes that are not asked may."""
    bounds = {name: site.bound for name, site in sites.items()}
    free = limit - elsewhere - sum(bounds.values())
    return _within(free, {name: goals[name] for name in ranked(sites)}, bounds)


def _within(free: int, goals: Mapping[str, int], bounds: Mapping[str, int]) -> dict[str, int]:
    """Each its goal, but more than its bound only while some of `free` is left; in their order."""
    found = {}
    for name, goal in goals.items():
        bound = bounds.get(name, 0)
        found[name] = goal if goal <= bound else bound + min(goal - bound, max(0, free))
        free -= max(0, found[name] - bound)
    return found
