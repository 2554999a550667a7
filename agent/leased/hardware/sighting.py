# SPDX-License-Identifier: Apache-2.0
"""Sighting: the host's own memory and cores, looked at by a worker of their own.

Rule: a survey that failed is not an empty host: what was seen last stands, and where nothing was
ever seen that is said. Each failure doubles the next one's patience, up to eight times: a worker
that has to start on a host that is that busy is slow, and nobody waits for it.

Does not look at what backends serve.
"""

from __future__ import annotations

from typing import Final

import msgspec

from leased.hardware.calls import CgroupFacts, Survey, Surveyed
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.starting import STARTING_NS
from leased.terms.errors import DeviceError

WORKER: Final = "survey"
DOUBLINGS_MAX: Final = 3


class HostSight:
    """What is seen of the host, and was seen last."""

    def __init__(self, crew: Crew, config: HardwareConfig) -> None:
        self._crew = crew
        self._config = config
        self._last: Surveyed | None = None
        self._failures = 0
        crew.defer(WORKER)

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
        if seen.failed and self._last is not None:
            seen = _completed(seen, self._last)
        self._failures, self._last = 0, seen
        return seen


def _completed(seen: Surveyed, last: Surveyed) -> Surveyed:
    """With what was seen last of the kinds that could not be seen now: a file that could not be
    read is no memory that has gone, and ends nobody's lease."""
    stand = tuple(one for one in last.resources if one.kind in seen.failed)
    return msgspec.structs.replace(seen, resources=(*seen.resources, *stand), failed=())
