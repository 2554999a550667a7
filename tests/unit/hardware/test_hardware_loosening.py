# SPDX-License-Identifier: Apache-2.0
"""Who keeps the killed of many leases is looked for by one worker, which goes when it has done."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from leased.hardware.adopting import Adoptions
from leased.hardware.adoption.servers import Loosen, Loosened
from leased.hardware.calls import CgroupFacts
from tests.doubles.leases import lease as make_lease


class Crew:
    """Keeps whoever asks waiting until all have asked."""

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.dismissed: list[tuple[str, int]] = []
        self.let_on = trio.Event()

    async def task(
        self, worker: str, backend: str, verb: str, asked: Loosen, *_: Any, **__: Any
    ) -> Loosened:
        """An answer, when it is time."""
        assert (backend, verb) == ("adoption", "loosen")
        self.workers.append(worker)
        await self.let_on.wait()
        return Loosened(((40, 1000, asked.pid),))

    def dismiss(self, worker: str) -> None:
        """Noted, with how many had asked."""
        self.dismissed.append((worker, len(self.workers)))


async def test_a_thousand_leases_whose_holders_do_not_die_cost_one_worker() -> None:
    crew = Crew()
    told: list[tuple[str, ...]] = []

    async def facts() -> CgroupFacts:
        return CgroupFacts("/sys/fs/cgroup/leased", (), (), ())

    adoptions = Adoptions(crew, facts)  # type: ignore[arg-type]

    async def one() -> None:
        told.append(await adoptions.loosen(make_lease()))

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        crew.let_on.set()
    assert set(crew.workers) == {"loosen"} and crew.dismissed == [("loosen", 1000)]
    assert len(told) == 1000 and "FUSE connection 40 of uid 1000" in told[0][0]
