# SPDX-License-Identifier: Apache-2.0
"""The clock of the collector's own host: how far it was set while this runs, and whose clock it is
that differs where a node's and this one do.

Rule: what lasts is measured on the boot clock; what is remembered by the wall clock moves with it
where that is set. A node is told to be off unless most nodes say the same: then it is this host.

Does not set clocks, and judges no log (`reconcile`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from leased.terms.moment import NS_PER_S, Moment

SET_NS: Final = 1 * NS_PER_S
"""Less than that is a clock that is kept, not one that was set."""

SKEW_NS_MAX: Final = 60 * NS_PER_S
"""Of a wall clock that NTP keeps, with a page that was long on its way."""

MOST_OF: Final = 3
"""Of fewer nodes most are none."""


class OwnClock:
    """The wall clock, held against the boot clock."""

    def __init__(self, now: Callable[[], Moment]) -> None:
        self._now = now
        self._begun_ns = self._apart_ns()
        self._told_ns = 0

    def wall_ns(self) -> int:
        """What it says now."""
        return self._now().wall_ns

    def set_ns(self) -> int:
        """How far it was set forward since the run began."""
        return self._apart_ns() - self._begun_ns

    def look_again(self) -> str:
        """What to tell, if it was set since it was asked last."""
        by_ns = self.set_ns() - self._told_ns
        if abs(by_ns) < SET_NS:
            return ""
        self._told_ns += by_ns
        way = "forward" if by_ns > 0 else "back"
        return f"this host's clock was set {abs(by_ns) // NS_PER_S} s {way}"

    def _apart_ns(self) -> int:
        now = self._now()
        return now.wall_ns - now.boot_ns


class Skews:
    """Which of the clocks that are heard of differ from this host's."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        """`tell` takes a name and a sentence."""
        self._tell = tell
        self._ways: dict[str, int] = {}
        self._count = {-1: 0, 0: 0, 1: 0}
        self._told: set[str] = set()
        self._own = 0

    def note(self, name: str, ahead_ns: int) -> None:
        """A node's clock is so far ahead of this host's. Tells when that begins to matter, and when
        it does no more."""
        way = 0 if abs(ahead_ns) <= SKEW_NS_MAX else 1 if ahead_ns > 0 else -1
        if name in self._ways:
            self._count[self._ways[name]] -= 1
        self._ways[name] = way
        self._count[way] += 1
        self._note_own(abs(ahead_ns) // NS_PER_S)
        if way and way != self._own and name not in self._told:
            self._told.add(name)
            off = f"its clock is {abs(ahead_ns) // NS_PER_S} s {_WORDS[way]} this host's"
            self._tell(name, f"{off}: what it seals is dated so")
        elif not way and name in self._told:
            self._told.discard(name)
            self._tell(name, "its clock agrees with this host's again")

    def _note_own(self, off_s: int) -> None:
        heard = len(self._ways)
        most = [way for way in (-1, 1) if 2 * self._count[way] > heard >= MOST_OF]
        own = most[0] if most else 0
        if own == self._own:
            return
        self._own = own
        if own:
            count = f"{self._count[own]} of {heard} nodes"
            off = f"this host's clock is {off_s} s {_WORDS[-own]} that of {count}"
            self._tell("clock", f"{off}: what is cosigned and shown here is dated so")
        else:
            self._tell("clock", "this host's clock agrees with those of the nodes again")


_WORDS: Final = {1: "ahead of", -1: "behind"}
