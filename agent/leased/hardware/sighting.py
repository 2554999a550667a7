# SPDX-License-Identifier: Apache-2.0
"""Sighting: the host's own memory and cores, looked at by a worker of their own.

Rule: a survey that failed is not an empty host: what was seen last stands, and where nothing was
ever seen that is said. Each failure doubles the next one's patience, up to eight times: a worker
that has to start on a host that is that busy is slow, and nobody waits for it.

Does not look at what backends serve, and remembers nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from leased.hardware.calls import CgroupFacts, Survey, Surveyed
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.starting import STARTING_NS
from leased.terms.errors import DeviceError
from leased.terms.resource import Resource, ResourceKind, Shape, shape_of

WORKER: Final = "survey"
DOUBLINGS_MAX: Final = 3


class HostSight:
    """What is seen of the host, and was seen last."""

    def __init__(self, crew: Crew, config: HardwareConfig) -> None:
        self._crew = crew
        self._config = config
        self._last: Surveyed | None = None
        self._sealed: tuple[Resource, ...] = ()
        self._failures = 0
        crew.defer(WORKER)

    def remember(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run of the agent has seen, before this one looks."""
        self._sealed = tuple(one for one in sealed if _is_hosts(one))

    async def look(self, facts: CgroupFacts) -> Surveyed:
        """One part of the inventory. Raises DeviceError while it has never been seen."""
        extra_ns = STARTING_NS << min(self._failures, DOUBLINGS_MAX)
        try:
            seen = await self._crew.one(WORKER, Survey(self._config, facts), extra_ns=extra_ns)
        except DeviceError:
            self._failures += 1
            if self._last is None:
                raise
            return self._last
        finally:
            self._crew.dismiss(WORKER)  # so that no driver stays open
        assert isinstance(seen, Surveyed)
        if seen.failed:
            # A file that could not be read is no memory that has gone, and ends nobody's lease.
            stand = tuple(one for one in self._sealed if one.kind in seen.failed)
            seen = msgspec.structs.replace(seen, resources=(*seen.resources, *stand), failed=())
        self._failures, self._last, self._sealed = 0, seen, seen.resources
        return seen


def _is_hosts(one: Resource) -> bool:
    in_memory = shape_of(one.resource_id) in (Shape.MEMFD, Shape.BUDGET)
    return in_memory or one.kind is ResourceKind.CPU
