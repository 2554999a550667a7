# SPDX-License-Identifier: Apache-2.0
"""A host that is too busy to be seen is not an empty one, and is given more time."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from leased.hardware.calls import CgroupFacts, Surveyed
from leased.hardware.config import HardwareConfig
from leased.hardware.sighting import HostSight
from leased.hardware.starting import STARTING_NS
from leased.terms.errors import DeviceError

FACTS = CgroupFacts("", (), ())
SEEN = Surveyed((), (), ("there it is",))


class Crew:
    """Answers when it is given long enough."""

    def __init__(self) -> None:
        self.needs_ns = 0
        self.given: list[int] = []
        self.dismissed = 0

    async def one(self, name: str, call: Any, *, extra_ns: int) -> Surveyed:
        assert name == "survey" and call.cgroup == FACTS
        self.given.append(extra_ns // STARTING_NS)
        if extra_ns < self.needs_ns:
            raise DeviceError("worker_answer", errno.ETIMEDOUT)
        return SEEN

    def defer(self, name: str) -> None:
        assert name == "survey"

    def dismiss(self, name: str) -> None:
        self.dismissed += 1


async def test_what_was_seen_last_stands_and_each_failure_doubles_the_patience() -> None:
    crew = Crew()
    sight = HostSight(crew, HardwareConfig())  # type: ignore[arg-type]
    crew.needs_ns = 2 * STARTING_NS
    with pytest.raises(DeviceError):
        await sight.look(FACTS)
    assert await sight.look(FACTS) == SEEN
    crew.needs_ns = 1 << 62
    for _ in range(5):
        assert await sight.look(FACTS) is SEEN
    assert crew.given == [1, 2, 1, 2, 4, 8, 8]
    crew.needs_ns = 0
    assert await sight.look(FACTS) == await sight.look(FACTS)
    assert crew.given[-2:] == [8, 1] and crew.dismissed == len(crew.given)
