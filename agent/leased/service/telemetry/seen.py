# SPDX-License-Identifier: Apache-2.0
"""What was seen of a lease: how much of what it holds it used, by kind, and how much of its life
that covers.

Rule: a share is of what was leased, over a span between two looks. A kind of which nothing can be
seen (memory handed out as a descriptor) has no share, and a lease of nothing else is unknown. What
a record says is the share of the scarcest kind that was seen, never a sum over kinds.

Pure. Does not read anything.
"""

from __future__ import annotations

from typing import Final

import msgspec

from leased.terms.resource import ResourceKind
from leased.terms.series import ACTIVE_PPM_MIN
from leased.terms.teardown import Utilization

PPM: Final = 1_000_000
SPOKEN_FOR: Final = (
    ResourceKind.GPU,
    ResourceKind.CPU,
    ResourceKind.MEM,
    ResourceKind.BLOCK,
    ResourceKind.NET,
)
"""The scarcest first."""


class Share(msgspec.Struct):
    """What was seen of one kind so far."""

    counted: int = 0
    active: int = 0
    covered_ns: int = 0
    used_ppm_ns: int = 0
    max_ppm: int = 0

    def note(self, share_ppm: int, span_ns: int) -> None:
        """One look."""
        self.counted += 1
        self.active += share_ppm >= ACTIVE_PPM_MIN
        self.covered_ns += span_ns
        self.used_ppm_ns += share_ppm * span_ns
        self.max_ppm = max(self.max_ppm, share_ppm)

    def utilization(self, held_ns: int) -> Utilization:
        """In per mille; of `held_ns` that the lease was held."""
        return Utilization(
            mean_pm=self.used_ppm_ns // (self.covered_ns * 1000),
            max_pm=self.max_ppm // 1000,
            active_share_pm=self.active * 1000 // self.counted,
            sample_count=self.counted,
            coverage_pm=min(1000, self.covered_ns * 1000 // max(1, held_ns)),
        )


class Seen(msgspec.Struct):
    """One lease: its shares, and the counters at the last look, each with its time."""

    shares: dict[ResourceKind, Share] = {}
    counters: dict[str, tuple[int, int]] = {}

    def note(self, kind: ResourceKind, share_ppm: int, span_ns: int) -> None:
        """One look at a kind."""
        self.shares.setdefault(kind, Share()).note(share_ppm, span_ns)

    def advance(self, counter: str, value: int, read_ns: int) -> tuple[int, int] | None:
        """(how much it grew, in how long) since the last look; None at the first, and after it went
        back."""
        before, self.counters[counter] = self.counters.get(counter), (value, read_ns)
        if before is None or read_ns <= before[1] or value < before[0]:
            return None
        return value - before[0], read_ns - before[1]

    def utilization(self, held_ns: int) -> Utilization:
        """Of the scarcest kind that was seen."""
        for kind in SPOKEN_FOR:
            share = self.shares.get(kind)
            if share is not None and share.covered_ns:
                return share.utilization(held_ns)
        return Utilization()
