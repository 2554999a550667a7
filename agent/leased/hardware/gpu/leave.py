# SPDX-License-Identifier: Apache-2.0
"""Leave: the agent away from the GPU driver, for as long as that is being replaced.

Rule: a look that is under way ends first, the listener ends at once, and whoever of ours is still
seen in the driver then is named like everybody else: one that hangs in it holds it.

Does not ask whether anything is leased: `service.detachment` did.
"""

from __future__ import annotations

from typing import Final

import trio

from leased.hardware.gpu import calls
from leased.hardware.gpu.desk import Desk
from leased.hardware.gpu.ear import Ear
from leased.ports import Holder

LOOKS_MAX: Final = 20
AGAIN_S: Final = 0.05


class Leave:
    """Taken, or not. `looking` is held by whoever looks at the GPUs."""

    def __init__(self, desk: Desk, ear: Ear) -> None:
        self._desk = desk
        self._ear = ear
        self.looking = trio.Lock()
        self.taken = False

    async def begin(self) -> tuple[Holder, ...]:
        """Have nothing of the driver open from here on; who else has. Raises DeviceError."""
        self.taken = True
        self._ear.stop()
        self._desk.stop_gauging()
        async with self.looking:
            self._ear.stop()  # a look that had begun has told it whom to listen to
            found = await self.anybody()
            for _ in range(LOOKS_MAX):
                ours = [pid for pid, _ in self._desk.ours()]
                if not any(one.pid in ours for one in found):
                    break
                self._desk.stop_gauging()  # a round that had begun may have asked again
                await trio.sleep(AGAIN_S)  # a worker that was ended is not gone yet
                found = await self.anybody()
            return found

    def end(self) -> None:
        """The driver may be used again."""
        self.taken = False

    async def anybody(self) -> tuple[Holder, ...]:
        """Everybody who has any node of the driver, each process once a way. Raises DeviceError."""
        budget_ns = self._desk.config.scan_budget_ns
        call = calls.Anybody(self._desk.config.root, budget_ns)
        present = await self._desk.ask(
            "gpu anybody", "anybody", call, calls.Present, extra_ns=budget_ns
        )
        holders = (Holder(one.pid, one.uid, one.name, one.via) for one in present.openers)
        return tuple(dict.fromkeys(holders))
