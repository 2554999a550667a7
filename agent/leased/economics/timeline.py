# SPDX-License-Identifier: Apache-2.0
"""The timeline: which calendar label each nanosecond of boot time carries.

Rule: durations are boot-clock durations, always; the wall clock only labels them. A label is
anchored at each NodeStarted (and re-anchored where a ClockStepped was sealed) and counted from
there on the boot clock. Labels never go back: a wall clock that stepped backwards keeps the label
running on; one that stepped forwards leaves a gap that no interval covers. So every nanosecond has
exactly one label, and no label is used twice.

Does not read a clock and does not know what a lease is.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import msgspec

from leased.terms.identity import BootId
from leased.terms.moment import Moment

BOOT_NS_MAX: Final = 1 << 60
"""Some 36 years, longer than any kernel counts. What a record says beyond it is taken as this: it
was made up, and it is to bend the figures of its own node, not to end those of the fleet."""

LABEL_NS_MAX: Final = 1 << 62
"""The year 2116, from which on no era begins: the last may yet last as long as a boot can, and is
within 63 bits."""


class Era(msgspec.Struct, frozen=True):
    """From `start_ns` of `boot_id` on, boot time t is labelled `label_ns + (t - start_ns)`."""

    boot_id: BootId
    start_ns: int
    label_ns: int


class Piece(msgspec.Struct, frozen=True):
    """A half-open stretch [start_ns, end_ns) of label time, as long as the boot time that it
    labels.
    """

    start_ns: int
    end_ns: int


class Timeline:
    """The eras of one chain, oldest first."""

    def __init__(self) -> None:
        self._eras: list[Era] = []
        self._starts: dict[BootId, tuple[list[int], list[Era]]] = {}

    @property
    def eras(self) -> tuple[Era, ...]:
        """Every era so far."""
        return tuple(self._eras)

    def anchor(self, moment: Moment, previous_end_ns: int) -> None:
        """Open an era at `moment`. `previous_end_ns` is where, on its own boot's clock, the era
        before ended.
        """
        label_ns = moment.wall_ns
        if self._eras:
            last = self._eras[-1]
            label_ns = max(label_ns, last.label_ns + max(0, previous_end_ns - last.start_ns))
        era = Era(moment.boot_id, moment.boot_ns, min(label_ns, LABEL_NS_MAX))
        self._eras.append(era)
        starts, eras = self._starts.setdefault(moment.boot_id, ([], []))
        starts.append(moment.boot_ns)
        eras.append(era)

    def label(self, boot_id: BootId, boot_ns: int) -> int:
        """The label of one instant: the end of a stretch takes the label of the stretch that it
        ends.
        """
        starts, eras = self._starts[boot_id]
        era = eras[max(0, bisect_right(starts, boot_ns) - 1)]
        return era.label_ns + (boot_ns - era.start_ns)

    def pieces(self, boot_id: BootId, start_ns: int, end_ns: int) -> list[Piece]:
        """[start_ns, end_ns) of boot time as labelled pieces, in order; their lengths add up to
        end_ns - start_ns.
        """
        starts, eras = self._starts[boot_id]
        index = max(0, bisect_right(starts, start_ns) - 1)
        found: list[Piece] = []
        at = start_ns
        while at < end_ns:
            era = eras[index]
            until = min(end_ns, starts[index + 1]) if index + 1 < len(starts) else end_ns
            label_ns = era.label_ns + (at - era.start_ns)
            found.append(Piece(label_ns, label_ns + (until - at)))
            at = until
            index += 1
        return found
