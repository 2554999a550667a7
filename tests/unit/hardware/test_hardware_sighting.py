# SPDX-License-Identifier: Apache-2.0
"""A host that is too busy to be seen is not an empty one, and is given more time."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from leased.hardware.calls import CgroupFacts, Surveyed
from leased.hardware.config import HardwareConfig
from leased.hardware.sighting import HostSight
from leased.hardware.starting import STARTING_NS
from leased.terms.errors import DeviceError
from leased.terms.resource import Absence, Resource, ResourceKind, TierKind

FACTS = CgroupFacts("", (), ())
SEEN = Surveyed((), (), ("there it is",))


class Crew:
    """Answers when it is given long enough."""

    def __init__(self) -> None:
        self.needs_ns = 0
        self.given: list[int] = []
        self.dismissed = 0
        self.seen = SEEN

    async def one(self, name: str, call: Any, *, extra_ns: int) -> Surveyed:
        assert name == "survey" and call.cgroup == FACTS
        self.given.append(extra_ns // STARTING_NS)
        if extra_ns < self.needs_ns:
            raise DeviceError("worker_answer", errno.ETIMEDOUT)
        return self.seen

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


async def test_a_kind_that_could_not_be_read_is_as_it_was_and_the_others_are_as_seen() -> None:
    """A node that goes between two files of it fails all of memory; nobody's lease on another node
    may end by that."""
    crew, new = Crew(), Crew()
    sight = HostSight(crew, HardwareConfig())  # type: ignore[arg-type]
    memory = Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, 1 << 30, 4096)
    core, another = (Resource(f"cpu:{n}", ResourceKind.CPU, None, 1000, 1) for n in (1, 2))
    crew.seen = Surveyed((memory, core), (), ())
    await sight.look(FACTS)
    why = Absence(ResourceKind.MEM, "sysfs_read: no MemTotal")
    crew.seen = Surveyed((another,), (why,), (), (ResourceKind.MEM,))
    for _ in range(2):
        seen = await sight.look(FACTS)
        assert seen.resources == (another, memory) and seen.absences == (why,)
    new.seen = crew.seen
    restarted = HostSight(new, HardwareConfig())  # type: ignore[arg-type]
    restarted.remember((memory, core, msgspec.structs.replace(memory, resource_id="mem:dax-1")))
    assert (await restarted.look(FACTS)).resources == (another, memory)
    crew.seen = Surveyed((another,), (), ())
    assert (await sight.look(FACTS)).resources == (another,), "it was seen that there is none"
