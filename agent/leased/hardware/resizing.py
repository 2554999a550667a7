# SPDX-License-Identifier: Apache-2.0
"""Resizing: hugepage pools that an admin makes larger or smaller, of which the kernel sends no
notice.

Rule: how large the pools are is read every few seconds, and a difference is a reason to look again,
never the truth itself. Surplus pages, which come and go with whoever uses them, are none. What a
pool could not give is told in its numbers; if it is not as large as it was seen last, somebody
looks at once.

Does not count what is leased (`pools`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from leased.hardware.calls import Counted, Pool
from leased.hardware.instant import now_ns
from leased.hardware.sysfs import list_names, read_int
from leased.terms.errors import DeviceError, Shortage
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, Resource, capacity_id

POOLS: Final = "sys/kernel/mm/hugepages"
EVERY_NS: Final = 5 * NS_PER_S
LOOK_NS: Final = 3 * NS_PER_S
"""About so long after a notice the inventory is what it should be."""


class Resizing:
    """Whether pools are as large as they were seen last."""

    def __init__(self, resources: Mapping[str, Resource], root: Path = Path("/")) -> None:
        """`resources` is what was seen last, by id."""
        self._resources = resources
        self._pools = root / POOLS
        self._noticed: Callable[[], None] = lambda: None

    async def watch(self, noticed: Callable[[], None]) -> None:
        """Run until cancelled; `noticed` whenever pools are of another size."""
        self._noticed = noticed
        before = self._read()
        while True:
            await trio.sleep(EVERY_NS / NS_PER_S)
            now = self._read()
            if now != before:
                before = now
                noticed()

    def explain(self, allotment: Allotment, pool: Pool, counted: Counted) -> Shortage | None:
        """Why the pool could not give this, counted since; None: it is not for want of pages."""
        limit = counted.total_pages * pool.page_bytes
        used = limit - counted.free_pages * pool.page_bytes
        if limit - used >= allotment.capacity:
            return None
        known = self._resources.get(capacity_id(allotment.resource_id))
        is_news = known is not None and known.capacity != limit
        if is_news:
            self._noticed()
        again_ns = now_ns() + LOOK_NS if is_news else None
        return Shortage(allotment.resource_id, limit, used, allotment.capacity, again_ns)

    def _read(self) -> dict[str, int]:
        """How many pages of each size the host's operator wants there to be."""
        return {
            name: (read_int(self._pools / name / "nr_hugepages") or 0)
            - (read_int(self._pools / name / "surplus_hugepages") or 0)
            for name in list_names(self._pools)
        }


def may_be_short(error: DeviceError | None) -> bool:
    """Whether memory could not be made, which may be for want of pages: of those of one node the
    kernel says EFAULT, of all ENOMEM."""
    return error is not None and error.verb == "mem_create"
