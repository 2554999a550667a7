# SPDX-License-Identifier: Apache-2.0
"""The census: who uses the hardware now, with a lease or without.

Rule: asked of workers, so that a process whose memory lock hangs costs an answer and nothing else.

Does not know leases (`service.occupancy` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from leased.hardware.calls import Pool
from leased.hardware.crew import Crew
from leased.hardware.fittings import Fittings
from leased.hardware.usage.carrying import Search, User, Users
from leased.ports import Holder
from leased.terms.resource import Allotment

SCAN_BUDGET_NS: Final = 5_000_000_000
"""A pass over /proc takes 20 us per process and 2 us per descriptor; a million of them are 2 s."""


class Census:
    """Asks who is there."""

    def __init__(self, crew: Crew, fittings: Fittings) -> None:
        self._crew = crew
        self._fittings = fittings

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Who uses a resource beyond memory and cores. Raises DeviceError."""
        return await self._fittings.holders(allotment)

    async def users(
        self, memfds: Sequence[tuple[int, int, str]], pools: Sequence[Pool]
    ) -> tuple[User, ...]:
        """Who has memfds, given as (st_dev, st_ino, name), or pages of hugepage pools. Raises
        DeviceError."""
        search = Search(tuple(memfds), tuple(pools), self._crew.ours(), SCAN_BUDGET_NS)
        found = await self._crew.task(
            "usage", "usage", "find", search, Users, extra_ns=2 * SCAN_BUDGET_NS
        )
        return found.users
