# SPDX-License-Identifier: Apache-2.0
"""What happens to GPUs while somebody looks at them: a grant, a let-go, the end of a MIG device."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from leased.hardware.config import HardwareConfig
from leased.hardware.gpu.backend import GpuBackend
from leased.hardware.gpu.calls import Examined, Gauge, Guarded, Listed, Listing, Present
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.describing import still_there
from leased.hardware.gpu.desk import Desk
from leased.hardware.gpu.ear import Ear
from leased.hardware.gpu.facts import Instance
from leased.hardware.gpu.fleet import Fleet
from leased.hardware.gpu.idle import Idle
from leased.hardware.gpu.leave import Leave
from leased.hardware.gpu.reclaiming import Reclaimer
from leased.hardware.gpu.survey import Seen, describe
from leased.hardware.observing import Observer
from leased.terms.errors import DeviceError
from leased.terms.resource import Health, Resource, ResourceKind
from leased.terms.sample import Readings
from tests.doubles.gpu import GpuCrew, gpu, hung, instance, listed
from tests.doubles.leases import lease

PLACE = "1g.10gb@0"


class Faster(Desk):
    """Somebody else has had the turn, and the device is his."""

    @asynccontextmanager
    async def turn(self, resource_id: str) -> AsyncIterator[None]:
        async with super().turn(resource_id):
            self.occupy(resource_id, None, lease())
            yield


@pytest.mark.parametrize("placed", [False, True])
async def test_what_is_leased_before_its_turn_is_neither_closed_nor_destroyed(placed: bool) -> None:
    """Whoever looks has seen it free, and open; since then a grant has opened it."""
    plain = gpu(0, compute_mode=0)
    parts = (instance(0, start=0),)
    divided = gpu(0, mig_enabled=True, mig_pending=True, slices=7, instances=parts)
    one = divided if placed else plain
    crew = GpuCrew(
        list=Listing("570.86.15", True, (listed(one),)),
        examine=Examined((one,), ()),
        guard=Guarded(0, 2),
    )
    hardware = HardwareConfig(gpu=GpuConfig(mig_layout=(PLACE,) if placed else ()))
    desk = Faster(crew, hardware, lambda: 0)  # type: ignore[arg-type]
    fleet = Fleet(crew, hardware.gpu, lambda: True)  # type: ignore[arg-type]
    idle = Idle(desk, fleet, Reclaimer(desk, fleet, Ear(crew)))  # type: ignore[arg-type]
    await fleet.look()
    await idle.close()
    assert crew.verbs() == ["list", "examine"]


async def test_a_look_that_had_begun_does_not_listen_to_a_driver_that_is_let_go() -> None:
    crew = GpuCrew(anybody=Present((), ()))
    ear = Ear(crew)  # type: ignore[arg-type]
    leave = Leave(Desk(crew, HardwareConfig(), lambda: 0), ear)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        async with leave.looking:
            nursery.start_soon(leave.begin)
            await trio.testing.wait_all_tasks_blocked()
            ear.hear([listed(gpu(0))])
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await trio.testing.wait_all_tasks_blocked()
        assert crew.verbs() == ["anybody"], "our own listener would keep the driver"
        nursery.cancel_scope.cancel()


class Backend(GpuBackend):
    """One with a GPU that telemetry may look at, until the driver is let go of."""

    listens = True  # type: ignore[assignment]

    def __init__(self, crew: GpuCrew) -> None:
        super().__init__(crew, HardwareConfig())  # type: ignore[arg-type]
        self.taken = False

    def gauges(self) -> tuple[Gauge, ...]:
        one = Gauge("gpu:1", "0000:10:00.0", "GPU-1", False, ())
        return () if self.taken else (one, one)


class Gauging(GpuCrew):
    """Telemetry's workers."""

    def defer(self, name: str) -> None:
        """Nobody's hurry."""


async def test_a_round_of_telemetry_ends_when_the_driver_is_let_go() -> None:
    """Or a worker of ours would have it open again, for as long as it is let go."""
    backend = Backend(GpuCrew())

    def gauge(name: str, argument: Any) -> Readings:
        backend.taken = True
        return Readings(1, ())

    crew = Gauging(gauge=gauge)
    await Observer(crew, [backend], tuple).gpus()  # type: ignore[arg-type]
    assert crew.verbs() == ["gauge"]


async def test_who_was_seen_while_his_lease_ended_is_nobody_without_a_lease() -> None:
    used, held = gpu(0, processes=1), lease()
    resource_id = f"gpu:{used.uuid}"
    crew = GpuCrew(list=Listing("570.86.15", True, (listed(used),)))
    backend = GpuBackend(crew, HardwareConfig())  # type: ignore[arg-type]

    def examine(name: str, argument: Any) -> Examined:
        backend._desk.vacate(resource_id, held)
        return Examined((used,), ())

    crew.answers["examine"] = examine
    await backend.survey()
    await backend.adopt(())
    backend._desk.occupy(resource_id, None, held)
    [seen] = (await backend.survey()).resources
    assert seen.health is Health.OK
    [seen] = (await backend.survey()).resources
    assert seen.health is Health.BUSY, "the next look has seen somebody else"


async def test_a_gpu_that_does_not_answer_a_new_agent_is_sick_as_it_was_to_the_old_one() -> None:
    """Its lease goes on, and must not end because nobody has seen its GPU since the start."""
    well, silent, pulled = gpu(0), gpu(1), gpu(2)
    lost = Listed("", pulled.uuid, errno.ENODEV, "GPU is lost")
    crew = GpuCrew(
        list=hung(),
        bus=hung(),
        examine=lambda _, call: hung() if listed(silent) in call.gpus else Examined((well,), ()),
    )
    backend = GpuBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    sealed = [
        Resource(f"gpu:{one.uuid}", ResourceKind.GPU, None, 1000, 1000)
        for one in (well, silent, pulled)
    ]
    backend.remember(sealed)
    for crew.stuck in (set(), {"gpu survey"}):
        found = await backend.survey()
        assert [one.resource_id for one in found.resources] == [one.resource_id for one in sealed]
        assert {one.health for one in found.resources} == {Health.SICK}
    crew.stuck = set()
    crew.answers["list"] = Listing("570.86.15", True, (listed(well), listed(silent), lost))
    health = {one.resource_id: one.health for one in (await backend.survey()).resources}
    assert health == {sealed[0].resource_id: Health.OK, sealed[1].resource_id: Health.SICK}
    crew.answers["list"] = Listing("570.86.15", True, (listed(well),))
    [seen] = (await backend.survey()).resources
    assert seen.resource_id == sealed[0].resource_id, "what the driver does not count is not there"


@pytest.mark.parametrize("at", ["address", "nowhere", "init"])
async def test_a_gpu_that_fails_without_a_name_is_not_gone_to_a_new_agent(at: str) -> None:
    """The lease of an earlier run ended, and its work was killed, for one call that failed."""
    well, failing = gpu(0), gpu(1)
    fault = Listed(failing.pci if at == "address" else "", "", errno.EIO, "Unknown Error")
    crew = GpuCrew(
        list=Listing("570.86.15", True, (listed(well), fault)), examine=Examined((well,), ())
    )
    if at == "init":
        crew.answers["list"] = DeviceError("nvml_init", errno.EIO, "Unknown Error")
    backend = GpuBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    sealed = describe(Seen((well, failing)), GpuConfig(), {}).resources
    backend.remember(sealed)
    found = {one.resource_id: one for one in (await backend.survey()).resources}
    assert list(found) == [one.resource_id for one in sealed]
    assert found[f"gpu:{failing.uuid}"].health is Health.SICK
    assert "Unknown Error" in found[f"gpu:{failing.uuid}"].limits[0]
    crew.answers["list"] = Listing("570.86.15", True, (listed(well),))
    [left] = (await backend.survey()).resources
    assert left.health is Health.OK, "and what the driver does not count is not there"


async def test_what_the_driver_says_is_not_there_is_not_remembered() -> None:
    """A driver that was unloaded has no GPU any more, whether the next look hears of it or not."""
    crew = GpuCrew(list=DeviceError("gpu_list", errno.ENODEV, "no driver"), bus=hung())
    backend = GpuBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    backend.remember([Resource(f"gpu:{gpu(0).uuid}", ResourceKind.GPU, None, 1000, 1000)])
    assert not (await backend.survey()).resources
    crew.answers["list"] = hung()
    assert not (await backend.survey()).resources


def those_left(number: int) -> tuple[str, ...]:
    """The UUIDs of two MIG devices, the first of which answers with `number`."""

    def told(handle: int) -> Instance:
        if handle == 0:
            raise DeviceError("nvml_mig_device", number, "Not Found")
        return instance(handle)

    return tuple(one.uuid for one in still_there((0, 1), told))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL])
def test_a_mig_device_that_ends_while_it_is_described_takes_no_other_along(number: int) -> None:
    """ENOENT of a whole GPU is a GPU that is gone, and ends the leases of all its MIG devices."""
    assert those_left(number) == (instance(1).uuid,)


def test_a_lost_gpu_is_not_taken_for_a_mig_device_that_has_ended() -> None:
    with pytest.raises(DeviceError):
        those_left(errno.ENODEV)
