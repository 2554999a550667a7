# SPDX-License-Identifier: Apache-2.0
"""The RDMA backend when its workers fail: an agent starts all the same, and a kind that cannot be
seen is said to be absent, with the reason.
"""

from __future__ import annotations

import errno
from typing import Any, Never

from leased.hardware.calls import CgroupFacts, Found, Founded
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.rdma.backend import RdmaBackend
from leased.hardware.rdma.config import RdmaConfig
from leased.terms.errors import DeviceError
from leased.terms.resource import Allotment, ResourceKind, TierKind
from tests.doubles.leases import lease

REGION = Allotment("mem:rdma-f028d8fffeb44dab:node0:4096", ResourceKind.MEM, TierKind.REMOTE, 4096)


class DeadCrew(Crew):
    """Workers that are asked and do not answer."""

    def __init__(self) -> None:
        super().__init__(HardwareConfig())
        self.asked: list[str] = []

    async def one(self, name: str, call: object, *rest: object, **more: object) -> Founded:
        assert isinstance(call, Found)
        return Founded(CgroupFacts("/sys/fs/cgroup/nowhere", ("rdma",), ()))

    async def task(self, name: str, backend: str, verb: str, *rest: Any, **more: Any) -> Never:
        self.asked.append(verb)
        raise DeviceError("worker_answer", errno.ETIMEDOUT, f"worker {name} did not answer")


async def test_an_agent_starts_without_having_seen_its_owners() -> None:
    crew = DeadCrew()
    backend = RdmaBackend(crew, HardwareConfig())
    await backend.adopt([lease(REGION, pid=0)])
    assert crew.asked == ["sweep"], "and nothing is settled: every orphan may be the lease's"


async def test_where_it_is_not_offered_and_not_leased_nobody_is_asked() -> None:
    crew = DeadCrew()
    config = HardwareConfig(rdma=RdmaConfig(offer=False))
    backend = RdmaBackend(crew, config)
    await backend.adopt([lease(pid=0)])
    [absence] = (await backend.survey()).absences
    assert "offer = false" in absence.why and not crew.asked
