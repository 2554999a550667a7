# SPDX-License-Identifier: Apache-2.0
"""What a policy means, for one pool of memory, as a person with a notebook would work it out.

Rule: every question is answered by going through all the leases; nothing is kept that follows from
them, and nothing of the lessor is used. Written from the documentation of the policy language. It
follows what is sealed, event by event, and each event is judged before it is written down.

Does not place, does not order the queue, and knows one pool only.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, NamedTuple

from leased.terms import event as events
from leased.terms.lease import Level, OverageCause, Priority, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.reply import RefusalReason
from tests.doubles.desk import PAGE

POOL = 24
STAYING = ("granted", "active")
HELD = ("granted", "active", "draining")
CEILINGS_S = {Priority.SCAVENGER: 60, Priority.STANDARD: 300, Priority.GUARANTEED: 300}


COMMON = "@common"
"""What is reserved for nobody."""


class Paper(NamedTuple):
    """A policy. Pages by tenant: `hard`; `soft` (limit, ceiling, borne s); `burst` (limit, ceiling,
    s). Whoever is not named has `other`, and of what they are not named for, what eve has. `group`
    is (members, pages, leases) together.
    """

    hard: dict[str, int]
    soft: dict[str, tuple[int, int, int]]
    burst: dict[str, tuple[int, int, int]]
    other: int
    leases: dict[str, int]
    concurrent: dict[str, int]
    group: tuple[tuple[str, ...], int, int] | None = None
    borrow_pm: int = 0
    share_pm: int = 0
    reserved: tuple[tuple[str, int], ...] = ()
    night: tuple[tuple[str, int], ...] = ()
    cut_grace_s: int = 5
    reclaim_grace_s: int = 10
    runtime_s: int = 10
    preempts: bool = True


class Ask(NamedTuple):
    """A request: who, how many pages, how important, how long, and where it came in."""

    who: str
    pages: int
    level: Level
    grace_s: int
    arrival: int


class PolicyNotebook:
    """All leases, all overages, the paper in force and whether the night window is open."""

    def __init__(self, paper: Paper) -> None:
        self.paper, self.night, self.generation = paper, False, 1
        self.leases: dict[bytes, dict[str, Any]] = {}
        self.overages: dict[tuple[str, str], events.OverageBegan] = {}
        self.past: dict[str, tuple[int, int]] = {}
        self.waiting: dict[bytes, Ask] = {}

    # ---- sums ------------------------------------------------------------------------------------

    def mine(self, who: str, *states: str) -> list[dict[str, Any]]:
        """Leases of somebody (or of a group), in `states` or not closed."""
        names = (who,)
        if who.startswith("@"):
            assert self.paper.group is not None
            names = self.paper.group[0]
        return [
            one
            for one in self.leases.values()
            if one["who"] in names
            and (one["state"] in states if states else one["state"] not in ("closed", "fenced"))
        ]

    def used(self, who: str) -> int:
        """Pages that somebody has, from the grant to the proof."""
        return sum(one["pages"] for one in self.mine(who))

    def free(self) -> int:
        """Pages that nobody has."""
        return POOL - sum(one["pages"] for one in self.leases.values() if one["state"] != "closed")

    def leaving(self) -> int:
        """Pages that are going to be free without anybody being told."""
        states = ("draining", "teardown")
        return sum(one["pages"] for one in self.leases.values() if one["state"] in states)

    def limit(self, who: str) -> tuple[int, int, str]:
        """(limit, ceiling, mode) of somebody now."""
        paper = self.paper
        if who in paper.soft:
            return (*paper.soft[who][:2], "soft")
        if who in paper.burst:
            return (*paper.burst[who][:2], "burst")
        limit = paper.hard.get(who, paper.other)
        if self.night:
            limit = dict(paper.night).get(who, limit)
        return limit, limit, "hard"

    def tenants(self) -> list[str]:
        """Everybody who has something, or is named."""
        paper = self.paper
        named = [*paper.hard, *paper.soft, *paper.burst]
        return sorted({*named, *(one["who"] for one in self.leases.values())})

    # ---- may somebody have more? -----------------------------------------------------------------

    def may_borrow(self, who: str, pages: int) -> bool:
        """Whether others leave enough of their quota idle, and it is no more than borrowers may."""
        paper = self.paper
        if not paper.borrow_pm or who not in paper.hard:
            return False
        line = self.limit(who)[0]
        if self.used(who) + pages > line + line * paper.borrow_pm // 1000:
            return False
        idle = over = 0
        for name in paper.hard:
            has = self.used(name) + (pages if name == who else 0)
            idle += max(0, self.limit(name)[0] - has)
            over += max(0, has - self.limit(name)[0])
        return over <= idle

    def most_borrowed(self, who: str) -> int:
        """What somebody could have if nobody else had anything."""
        paper, line = self.paper, self.limit(who)[0]
        if not paper.borrow_pm or who not in paper.hard:
            return line
        idle = sum(self.limit(name)[0] for name in paper.hard if name != who)
        return line + min(line * paper.borrow_pm // 1000, idle)

    def verdict(self, ask: Ask, now_ns: int) -> tuple[str, RefusalReason | None]:
        """What somebody is told who asks with nobody before them: grant, never, or wait; and why
        not.
        """
        return self.answer(ask, now_ns)[:2]

    def answer(self, ask: Ask, now_ns: int) -> tuple[str, RefusalReason | None, str]:
        """The same, and whose limit it is, if it is somebody's."""
        paper, who, pages = self.paper, ask.who, ask.pages
        wait = "wait"
        if len(self.mine(who)) >= paper.leases.get(who, paper.leases["eve"]):
            return wait, RefusalReason.TENANT_LEASES, who
        if len(self.mine(who, *HELD)) >= paper.concurrent.get(who, paper.concurrent["eve"]):
            return wait, RefusalReason.TENANT_LEASES, who
        group = paper.group
        if group is not None and who in group[0] and len(self.mine("@crew")) >= group[2]:
            return wait, RefusalReason.TENANT_LEASES, "@crew"
        limit, ceiling, mode = self.limit(who)
        more = self.used(who) + pages
        if more > ceiling and not (mode == "hard" and self.may_borrow(who, pages)):
            most = self.most_borrowed(who) if mode == "hard" else ceiling
            return (wait if pages <= most else "never"), RefusalReason.TENANT_CAPACITY, who
        if group is not None and who in group[0] and self.used("@crew") + pages > group[1]:
            return (wait if pages <= group[1] else "never"), RefusalReason.TENANT_CAPACITY, "@crew"
        if mode == "soft" and more > limit and self.borne_until_ns(who, now_ns) is None:
            return wait, RefusalReason.TENANT_CAPACITY, who
        if paper.share_pm:
            most = POOL * paper.share_pm // 1000
            if more > most:
                return (wait if pages <= most else "never"), RefusalReason.SHARE, who
        if paper.reserved and not self.leaves_reserves(who, pages):
            own = dict(paper.reserved).get(who, 0)
            common = POOL - sum(dict(paper.reserved).values())
            return (wait if pages <= common + own else "never"), RefusalReason.RESERVED, COMMON
        if pages > self.free():
            return wait, RefusalReason.NO_CAPACITY, ""
        return "grant", None, ""

    def leaves_reserves(self, who: str, pages: int) -> bool:
        """Whether what is not reserved suffices for what everybody has above their reservation."""
        lines = dict(self.paper.reserved)
        names = {who, *self.tenants()}
        over = before = 0
        for name in names:
            has, line = self.used(name), lines.get(name, 0)
            before += max(0, has - line)
            over += max(0, has + (pages if name == who else 0) - line)
        return over <= before or over <= POOL - sum(lines.values())

    def borne_until_ns(self, who: str, now_ns: int) -> int | None:
        """Until when somebody may be above a soft limit from now on."""
        borne_ns = self.paper.soft[who][2] * NS_PER_S
        known = self.overages.get((who, "mem"))
        if known is not None:
            cut = known.cause == OverageCause.CUT
            until_ns = None if cut else known.until_ns
        else:
            until_ns = now_ns + borne_ns
            if who in self.past:
                ended_ns, before_ns = self.past[who]
                if now_ns - ended_ns < borne_ns:
                    until_ns = min(until_ns, before_ns)
        return until_ns if until_ns is not None and until_ns > now_ns else None

    def earliest_ns(self, ask: Ask, now_ns: int) -> int | None:
        """When somebody could have it at the earliest, if all leases end on time, what is being
        cleaned is clean at once, and nobody else waits: tried instant by instant.
        """
        later = copy.deepcopy(self)
        for lease in later.leases.values():
            if lease["state"] == "teardown":
                lease["state"] = "closed"
        ends = {now_ns, *(later.end_of(one) for one in later.leases.values() if later.lives(one))}
        again = {at_ns for at_ns in ends if at_ns >= now_ns}
        if ask.who in self.paper.soft:
            borne_ns = self.paper.soft[ask.who][2] * NS_PER_S
            past = {ended_ns for ended_ns, _ in self.past.values()}
            again |= {at_ns + borne_ns for at_ns in again | past}
        for at_ns in sorted(one for one in again if one >= now_ns):
            for lease in later.leases.values():
                if later.lives(lease) and later.end_of(lease) <= at_ns:
                    lease["state"] = "closed"
            for (holder, rule), known in tuple(later.overages.items()):
                mine = (holder, rule) == (ask.who, "mem")
                if mine and later.used(holder) <= later.limit(holder)[0]:
                    del later.overages[holder, rule]
                    later.past[holder] = (at_ns, known.until_ns)
            if later.verdict(ask, at_ns)[0] == "grant":
                return at_ns
        return None

    def lives(self, lease: dict[str, Any]) -> bool:
        """Whether a lease has not ended."""
        return lease["state"] in HELD

    # ---- who would have to leave -----------------------------------------------------------------

    def before(self, ask: Ask) -> list[Ask]:
        """Who waits ahead of somebody."""
        rank = (-ask.level, ask.arrival)
        ahead = [one for one in self.waiting.values() if (-one.level, one.arrival) < rank]
        return sorted(ahead, key=lambda one: (-one.level, one.arrival))

    def waits_for_room(self, ask: Ask, now_ns: int) -> bool:
        """Whether somebody who waits lacks nothing but free capacity, and stands behind nobody who
        waits for a limit that both share.
        """
        if self.verdict(ask, now_ns)[1] not in (None, RefusalReason.NO_CAPACITY):
            return False
        mine = {ask.who}
        if self.paper.group is not None and ask.who in self.paper.group[0]:
            mine.add("@crew")
        if self.used(ask.who) + ask.pages > dict(self.paper.reserved).get(ask.who, 0):
            mine.add(COMMON)
        return not any(self.answer(other, now_ns)[2] in mine for other in self.before(ask))

    def victims(self, ask: Ask, now_ns: int) -> dict[bytes, RevocationReason] | None:
        """The leases that have to be told to leave for somebody who waits for room; None: it does
        not help, or nobody may be told.
        """
        room = self.free() + self.leaving()
        for other in self.before(ask):
            if self.waits_for_room(other, now_ns):
                if other.pages > room:
                    return {}  # whatever else becomes free is for that one
                room -= other.pages
        if room >= ask.pages:
            return {}
        order = self.borrowers(ask) | self.lesser(ask, now_ns)
        chosen: list[bytes] = []
        for lease_id in order:
            chosen.append(lease_id)
            if room + self.pages(chosen) >= ask.pages:
                break
        else:
            return None
        for lease_id in reversed(chosen[:]):
            fewer = [one for one in chosen if one != lease_id]
            if room + self.pages(fewer) >= ask.pages:
                chosen = fewer
        return {lease_id: order[lease_id] for lease_id in chosen}

    def pages(self, some: list[bytes]) -> int:
        """Pages of some leases."""
        return sum(self.leases[one]["pages"] for one in some)

    def borrowers(self, ask: Ask) -> dict[bytes, RevocationReason]:
        """What others have borrowed, if all that is asked for is the asker's own."""
        paper = self.paper
        if paper.borrow_pm and ask.who in paper.hard:
            line = {name: self.limit(name)[0] for name in paper.hard}
        elif paper.reserved and ask.who in dict(paper.reserved):
            line = dict(paper.reserved)
            line |= {name: 0 for name in self.tenants() if name not in line}
        else:
            return {}
        if self.used(ask.who) + ask.pages > line[ask.who]:
            return {}
        over = {name: self.used(name) - line[name] for name in line}
        for name in over:
            gone = [one for one in self.mine(name) if one["state"] not in STAYING]
            over[name] -= sum(one["pages"] for one in gone)
        rows = [one for one in self.leases.values() if one["state"] in STAYING]
        rows.sort(key=lambda one: (one["level"], -one["granted_ns"], one["id"]))
        found = {}
        for one in rows:
            if over.get(one["who"], 0) > 0:
                over[one["who"]] -= one["pages"]
                found[one["id"]] = RevocationReason.QUOTA_RECLAIM
        return found

    def lesser(self, ask: Ask, now_ns: int) -> dict[bytes, RevocationReason]:
        """Who is strictly less important, not guaranteed, and has run long enough, in order."""
        if not self.paper.preempts:
            return {}
        rows = [
            one
            for one in self.leases.values()
            if one["state"] in STAYING
            and one["level"] < ask.level
            and one["level"] < Level.HIGH
            and (
                one["level"] < Level.NORMAL
                or now_ns - one["granted_ns"] >= self.paper.runtime_s * NS_PER_S
            )
        ]
        rows.sort(key=lambda o: (o["level"], o["deadline_ns"], -o["granted_ns"], o["id"]))
        return {one["id"]: RevocationReason.PRIORITY_PREEMPTION for one in rows}

    def count_limit(self, who: str, rule: str) -> int | None:
        """How many leases somebody (or a group) may have, or use, by the paper."""
        if who.startswith("@"):
            group = self.paper.group
            return None if group is None or rule != "leases_max" else group[2]
        counts = self.paper.leases if rule == "leases_max" else self.paper.concurrent
        return counts.get(who, counts["eve"])

    def too_many(
        self, who: str, limit: int, among: Collection[bytes], *, each: bool = False
    ) -> list[dict[str, Any]]:
        """Which leases of some make somebody exceed a limit (on their number, with `each`): the
        lowest level and the newest first.
        """
        rows = [one for one in self.mine(who, *HELD) if one["id"] in among]
        over = sum(1 if each else one["pages"] for one in rows) - limit
        rows.sort(key=lambda one: (one["level"], -one["granted_ns"], one["id"]))
        chosen = []
        for one in rows:
            if over > 0:
                over -= 1 if each else one["pages"]
                chosen.append(one)
        return chosen

    # ---- writing down ----------------------------------------------------------------------------

    def granted(self, event: events.Allocated, level: Level) -> None:
        """A lease."""
        [share] = event.subject.allotments
        self.leases[event.lease_id] = {
            "id": event.lease_id,
            "who": str(event.subject.tenant),
            "pages": share.capacity // PAGE,
            "level": level,
            "state": "granted",
            "granted_ns": event.effective_ns,
            "deadline_ns": event.deadline_ns,
            "grace_ns": event.grace_ns,
            "told_ns": None,
            "drain_ns": None,
            "burst_ns": 0,
        }

    def end_of(self, lease: dict[str, Any]) -> int:
        """When a lease ends by time."""
        ends = (lease["deadline_ns"], lease["drain_ns"])
        return min(end_ns for end_ns in ends if end_ns is not None)

    def grace_ns(self, lease: dict[str, Any], reason: RevocationReason) -> int:
        """How long somebody has who is told to leave for that reason."""
        if reason is RevocationReason.QUOTA_RECLAIM:
            return self.paper.reclaim_grace_s * NS_PER_S
        ceiling_s = CEILINGS_S[Level(lease["level"]).priority]
        return min(int(lease["grace_ns"]), ceiling_s * NS_PER_S)
