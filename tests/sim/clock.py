# SPDX-License-Identifier: Apache-2.0
"""The simulated clock: boottime that a reboot sets back and that leaps over a suspend, wall time
that jumps, all driven by trio's MockClock.

Rule: `true_ns` never goes back and is what the auditor compares; the agent sees only `now`. Virtual
time moves only when every task waits, so a run takes as long as its work, not as long as its story.
"""

from __future__ import annotations

import trio

from leased.terms.identity import BootId
from leased.terms.moment import NS_PER_S, Moment

EPOCH_NS = 1_790_000_000 * NS_PER_S
BOOT_TAKES_NS = 20 * NS_PER_S


class SimClock:
    """`ports.Clock` over virtual time."""

    def __init__(self) -> None:
        self._boots = 0
        self._wall_skew_ns = 0
        self._booted_true_ns = -BOOT_TAKES_NS
        self.boot_id = _boot_id(0)
        self._leapt = trio.Event()

    def true_ns(self) -> int:
        """Virtual time since the simulation began."""
        return round(trio.current_time() * NS_PER_S)

    def now(self) -> Moment:
        true_ns = self.true_ns()
        wall_ns = EPOCH_NS + true_ns + self._wall_skew_ns
        return Moment(self.boot_id, true_ns - self._booted_true_ns, wall_ns)

    def boot_ns(self) -> int:
        return self.now().boot_ns

    async def sleep_until(self, boot_ns: int) -> None:
        boot_id = self.boot_id
        while self.boot_id == boot_id and self.now().boot_ns < boot_ns:
            with trio.move_on_at((boot_ns + self._booted_true_ns) / NS_PER_S):
                await self._leapt.wait()

    def true_of(self, boot_ns: int) -> int:
        """`boot_ns` of the present boot in true time."""
        return boot_ns + self._booted_true_ns

    def reboot(self) -> None:
        """A new boot: boottime begins again, nothing of the old boot may be compared with it."""
        self._boots += 1
        self.boot_id = _boot_id(self._boots)
        self._booted_true_ns = self.true_ns() - BOOT_TAKES_NS

    def suspend(self, asleep_ns: int) -> None:
        """The host slept: for whoever runs on it no time has passed but on this clock."""
        self._booted_true_ns -= asleep_ns
        leapt, self._leapt = self._leapt, trio.Event()
        leapt.set()

    def step_wall(self, delta_ns: int) -> None:
        """Someone set the wall clock."""
        self._wall_skew_ns += delta_ns


def _boot_id(number: int) -> BootId:
    return BootId(b"boot" + number.to_bytes(12, "big"))
