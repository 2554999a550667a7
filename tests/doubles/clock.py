# SPDX-License-Identifier: Apache-2.0
"""A fake Clock on trio's MockClock: boot time is trio's time, and the wall may be stepped at will.

Rule: like the real one, `boot_ns` never goes back and a step of the wall changes nothing but
`wall_ns`. Stepping trio's clock is the test's business (`MockClock.jump`, or autojump).
"""

from __future__ import annotations

import trio

from leased.terms.identity import BootId
from leased.terms.moment import NS_PER_S, Moment

_BEGIN_NS = 1_000 * NS_PER_S
_REBOOT_NS = 5 * NS_PER_S
_WALL_NS = 1_800_000_000 * NS_PER_S


class FakeClock:
    """`ports.Clock` inside a trio run."""

    def __init__(self) -> None:
        self.boot_id = BootId((1).to_bytes(16, "big"))
        self._wall_offset_ns = _WALL_NS
        self._latest_ns = 0
        self._begin_ns = _BEGIN_NS

    def now(self) -> Moment:
        """Both clocks and the boot id."""
        boot_ns = self._begin_ns + round(trio.current_time() * NS_PER_S)
        # Float seconds may round either way between two readings; a boot clock may not.
        self._latest_ns = max(self._latest_ns, boot_ns)
        return Moment(self.boot_id, self._latest_ns, self._latest_ns + self._wall_offset_ns)

    def boot_ns(self) -> int:
        """The boot clock alone."""
        return self.now().boot_ns

    async def sleep_until(self, boot_ns: int) -> None:
        """Return at or after `boot_ns`."""
        await trio.lowlevel.checkpoint()
        while self.now().boot_ns < boot_ns:
            await trio.sleep((boot_ns - self.now().boot_ns) / NS_PER_S)

    def reboot(self, boot_number: int) -> None:
        """Another boot: its id is new, and its clock begins again."""
        self.boot_id = BootId(boot_number.to_bytes(16, "big"))
        self._wall_offset_ns += self._latest_ns
        self._begin_ns, self._latest_ns = _REBOOT_NS - round(trio.current_time() * NS_PER_S), 0
        self._wall_offset_ns -= _REBOOT_NS

    def step(self, delta_ns: int) -> None:
        """Somebody set the wall clock."""
        self._wall_offset_ns += delta_ns
