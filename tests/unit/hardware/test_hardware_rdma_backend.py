# SPDX-License-Identifier: Apache-2.0
"""The RDMA backend when its workers fail or hang: an agent starts all the same, a kind that cannot
be seen is said to be absent, with the reason, and a device costs no other.
"""

from __future__ import annotations

import errno
from typing import Any, Never

import pytest
import trio

from leased.hardware.calls import CgroupFacts, Found, Founded
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.rdma import calls
from leased.hardware.rdma.backend import RdmaBackend
from leased.hardware.rdma.config import RdmaConfig
from leased.hardware.rdma.desk import WORKERS_MAX, Desk
from leased.terms.errors import DeviceError
from leased.terms.resource import Allotment, ResourceKind, TierKind
from tests.doubles.leases import lease

GUID = "f028d8fffeb44dab"


def region_on(guid: str) -> Allotment:
    """A page reached through that device."""
    return Allotment(f"mem:rdma-{guid}:node0:4096", ResourceKind.MEM, TierKind.REMOTE, 4096)


REGION, OTHER = region_on(GUID), region_on("2" * 16)


class DeadCrew(Crew):
    """Workers that are asked and do not answer."""

    def __init__(self) -> None:
        super().__init__(HardwareConfig())
        self.asked: list[str] = []

    async def one(self, name: str, call: object, *rest: object, **more: object) -> Founded:
        assert isinstance(call, Found)
        return Founded(CgroupFacts("/sys/fs/cgroup/nowhere", ("rdma",), ()))

    async def stand_ready(self, name: str, backend: str) -> None:
        raise DeviceError("worker_start", errno.EAGAIN, name)

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


class LivelyCrew(Crew):
    """Workers that answer one call after the other, as theirs do; `hung` never ends the owners of
    one device, `killed` names a verb whose worker is killed in the middle, once."""

    def __init__(self, config: HardwareConfig, hung: str = "", killed: str = "") -> None:
        super().__init__(config)
        self.hung = hung
        self.late = ""
        self.killed = killed
        self.asked: list[tuple[str, str]] = []
        self.begun = trio.Event()
        self._lines: dict[str, trio.Lock] = {}

    async def one(self, name: str, call: object, *rest: object, **more: object) -> Founded:
        return Founded(CgroupFacts("/sys/fs/cgroup/nowhere", ("rdma",), ()))

    async def task(
        self, name: str, backend: str, verb: str, asked: Any, returns: type, **more: Any
    ) -> Any:
        async with self._lines.setdefault(name, trio.Lock()):
            self.asked.append((verb, asked.guid))
            if verb == self.killed:
                self.killed = ""
                raise DeviceError("worker_answer", errno.EPIPE, f"worker {name} ended")
            if verb == self.late and asked.guid == GUID:
                await trio.sleep(1)
                raise DeviceError("worker_answer", errno.ETIMEDOUT, f"worker {name}")
            if self.late:
                await trio.sleep(1)
            if verb == "end" and asked.guid == self.hung:
                self.begun.set()
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
        answers: dict[type, Any] = {
            calls.Steps: calls.Steps(()),
            calls.Listed: calls.Listed(True, ()),
            calls.Probed: calls.Probed(False),
            calls.Nothing: calls.Nothing(),
        }
        return answers[returns]


@pytest.mark.autojump
async def test_a_device_that_hangs_does_not_hold_up_the_teardown_of_others() -> None:
    hung, well = REGION, OTHER
    config = HardwareConfig()
    crew = LivelyCrew(config, hung=GUID)
    backend = RdmaBackend(crew, config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.scrub, lease(hung), [hung])
        await crew.begun.wait()
        with trio.fail_after(1):
            assert (await backend.scrub(lease(well), [well])).clean
            assert not (await backend.prove(lease(well), [well])).unproven
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("verb", ["end", "witness", "probe"])
@pytest.mark.autojump
async def test_the_devices_of_a_lease_are_taken_back_at_the_same_time_and_fenced_one_by_one(
    verb: str,
) -> None:
    """What one of them does not answer keeps no other from being asked."""
    config = HardwareConfig(rdma=RdmaConfig(prober="rxe9"))
    crew, held = LivelyCrew(config), lease(REGION, OTHER)
    crew.late = verb
    backend = RdmaBackend(crew, config)
    with trio.fail_after(10):
        wiped = await backend.scrub(held, [REGION, OTHER])
        verdict = await backend.prove(held, [REGION, OTHER])
    assert wiped.clean is (verb != "end")
    assert verdict.unproven == ({} if verb == "end" else {REGION: 4096})
    asked = [guid for asked, guid in crew.asked if asked == verb]
    assert set(asked) == {GUID, "2" * 16}


class SpeechlessCrew(LivelyCrew):
    """Workers whose every call fails, and with no number."""

    async def task(self, name: str, backend: str, verb: str, *rest: Any, **more: Any) -> Never:
        raise DeviceError(verb, 0, "nobody said why")


async def test_a_failure_that_says_no_number_is_one_all_the_same() -> None:
    """A step whose errno is 0 would be proof."""
    config = HardwareConfig(rdma=RdmaConfig(prober="rxe9"), settle_budget_ns=0)
    backend, held = RdmaBackend(SpeechlessCrew(config), config), lease(REGION)
    assert not (await backend.scrub(held, [REGION])).clean
    assert (await backend.prove(held, [REGION])).unproven == {REGION: 4096}


async def test_there_are_only_so_many_workers_for_however_many_devices() -> None:
    desk = Desk(LivelyCrew(HardwareConfig()), HardwareConfig())
    assert len({desk.worker(f"{number:016x}") for number in range(100)}) == WORKERS_MAX


async def test_a_prober_that_ended_with_its_worker_is_no_reason_to_fence() -> None:
    """It proves nothing either way, and the kernel's list says that nothing is left."""
    config = HardwareConfig(rdma=RdmaConfig(prober="rxe9"))
    for verb in ("probe", "unwatch"):
        crew = LivelyCrew(config, killed=verb)
        backend = RdmaBackend(crew, config)
        held = lease(REGION, OTHER)
        await backend.abandon(held, [REGION, OTHER])
        assert [guid for asked, guid in crew.asked if asked == "end"] == [GUID, "2" * 16]
        assert not (await backend.prove(held, [REGION, OTHER])).unproven
