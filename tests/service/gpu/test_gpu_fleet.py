# SPDX-License-Identifier: Apache-2.0
"""The fleet over a crew that answers as told: hangs, losses and what is remembered of them."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from leased.hardware.gpu.calls import Bus, Examined, Listed, Listing
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.facts import Condition, Gpu
from leased.hardware.gpu.fleet import Fleet
from leased.terms.errors import DeviceError
from leased.terms.resource import Health
from tests.doubles.gpu import GpuCrew, gpu, hung, instance, listed

A, B = gpu(0), gpu(1)


class Driver:
    """What the driver would say, changed by the tests."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus)
        self.hangs: set[str] = set()
        self.faults: dict[str, Listed] = {}
        self.list_answer: Any = None

    def crew(self) -> GpuCrew:
        return GpuCrew(list=self._list, examine=self._examine)

    def _list(self, name: str, argument: Any) -> Any:
        if self.list_answer is not None:
            return self.list_answer
        counted = [self.faults.get(one.uuid, listed(one)) for one in self.gpus]
        return Listing("570.86.15", True, tuple(counted))

    def _examine(self, name: str, argument: Any) -> Any:
        if any(one.uuid in self.hangs for one in argument.gpus):
            return hung()
        wanted = [one.uuid for one in argument.gpus]
        return Examined(tuple(one for one in self.gpus if one.uuid in wanted), ())


def fleet_of(driver: Driver) -> tuple[Fleet, GpuCrew]:
    crew = driver.crew()
    return Fleet(crew, GpuConfig(), lambda: True), crew  # type: ignore[arg-type]


async def test_gpus_that_answer_are_asked_in_one_worker_that_ends() -> None:
    fleet, crew = fleet_of(Driver(A, B))
    seen = await fleet.look()
    assert seen.gpus == (A, B) and seen.findings == {} and seen.real
    assert crew.verbs() == ["list", "examine"] and crew.running == set()
    assert fleet.target(f"gpu:{A.uuid}").minor == A.minor and fleet.at(B.pci) == B.uuid


async def test_one_that_hangs_costs_only_itself_and_is_asked_alone_until_it_answers() -> None:
    driver = Driver(A, B)
    fleet, crew = fleet_of(driver)
    await fleet.look()
    driver.hangs.add(B.uuid)
    for _ in range(2):
        crew.asked.clear()
        seen = await fleet.look()
        assert seen.gpus == (A, B)
        assert seen.findings[B.uuid].health is Health.SICK
        assert A.uuid not in seen.findings
        assert crew.running == set()
    # The second time the well one was not made to wait for the other's time to be over.
    together = [argument for _, verb, argument in crew.asked if verb == "examine"]
    assert sorted(len(argument.gpus) for argument in together) == [1, 1]
    driver.hangs.clear()
    seen = await fleet.look()
    # It answers, and is suspected until somebody has probed it.
    assert seen.findings[B.uuid].health is Health.SICK and fleet.suspects == (B.uuid,)
    fleet.trust(B.uuid)
    assert (await fleet.look()).findings == {}


async def test_nobody_is_sent_where_the_last_one_still_hangs() -> None:
    driver = Driver(A, B)
    fleet, crew = fleet_of(driver)
    await fleet.look()
    driver.hangs.add(B.uuid)
    await fleet.look()
    crew.stuck.add(f"gpu look {B.pci}")
    crew.asked.clear()
    seen = await fleet.look()
    assert "still hangs" in seen.findings[B.uuid].why
    assert all(name != f"gpu look {B.pci}" for name, _, _ in crew.asked)


async def test_a_count_that_hangs_is_made_up_for_by_the_last_one() -> None:
    driver = Driver(A, B)
    fleet, _ = fleet_of(driver)
    await fleet.look()
    driver.list_answer = hung()
    assert (await fleet.look()).gpus == (A, B)


@pytest.mark.parametrize("number", [errno.EIO, errno.ELIBBAD])
async def test_an_error_that_says_nothing_is_no_empty_host(number: int) -> None:
    """"Unknown Error", or a library that was upgraded under the driver: work goes on meanwhile."""
    driver = Driver(A, B)
    fleet, _ = fleet_of(driver)
    await fleet.look()
    driver.list_answer = DeviceError("nvml_init", number, "Unknown Error")
    driver.hangs.add(B.uuid)
    seen = await fleet.look()
    assert seen.gpus == (A, B) and not seen.strangers
    assert seen.findings[B.uuid].health is Health.SICK


@pytest.mark.parametrize("number", [errno.ENXIO, errno.ELIBACC])
async def test_a_driver_that_is_gone_is_an_empty_host(number: int) -> None:
    driver = Driver(A)
    fleet, _ = fleet_of(driver)
    await fleet.look()
    driver.list_answer = DeviceError("nvml_init", number, "Driver Not Loaded")
    with pytest.raises(DeviceError):
        await fleet.look()
    assert fleet.seen.gpus == () and fleet.listed == ()
    # What a lease was of is known still: its teardown goes on.
    assert fleet.target(f"gpu:{A.uuid}").uuid == A.uuid


async def test_a_host_without_a_driver_is_looked_at_by_one_worker() -> None:
    """Each look is a start of Python and its import of NVML, once a minute on every such host."""
    driver = Driver()
    driver.list_answer = DeviceError("nvml_init", errno.ELIBACC, "Library Not Found")
    fleet, crew = fleet_of(driver)
    crew.answers["bus"] = Bus(("0000:01:00.0",))
    for _ in range(2):
        with pytest.raises(DeviceError):
            await fleet.look()
        assert await fleet.bus() == ("0000:01:00.0",)
        assert crew.running == set()
    assert crew.started == ["gpu survey"] * 2


async def test_a_count_that_hangs_at_first_is_an_error() -> None:
    driver = Driver(A)
    fleet, _ = fleet_of(driver)
    driver.list_answer = hung()
    with pytest.raises(DeviceError):
        await fleet.look()


@pytest.mark.parametrize(
    "fault",
    [
        Listed("", "", errno.ENODEV, "GPU is lost"),
        Listed(B.pci, "", errno.ENODEV, "GPU is lost"),
        Listed(B.pci, B.uuid, errno.ENODEV, "GPU is lost"),
    ],
)
async def test_a_lost_gpu_is_gone_however_little_it_tells_of_itself(fault: Listed) -> None:
    driver = Driver(A, B)
    fleet, _ = fleet_of(driver)
    await fleet.look()
    driver.faults[B.uuid] = fault
    seen = await fleet.look()
    assert seen.gpus == (A, B) and seen.findings[B.uuid].health is Health.GONE
    assert seen.strangers == ()
    driver.faults.clear()
    assert (await fleet.look()).findings == {}


async def test_a_gpu_that_is_pulled_is_not_there() -> None:
    driver = Driver(A, B)
    fleet, _ = fleet_of(driver)
    await fleet.look()
    driver.gpus.remove(B)
    seen = await fleet.look()
    assert seen.gpus == (A,) and seen.findings == {} and seen.strangers == ()


async def test_a_gpu_that_was_never_well_has_no_name() -> None:
    driver = Driver(A, B)
    fleet, _ = fleet_of(driver)
    driver.faults[B.uuid] = Listed("", "", errno.EIO, "Unknown Error")
    seen = await fleet.look()
    assert seen.gpus == (A,) and [one.fault for one in seen.strangers] == ["Unknown Error"]


async def test_a_condition_comes_and_goes() -> None:
    driver = Driver(A)
    fleet, _ = fleet_of(driver)
    driver.gpus = [gpu(0, condition=Condition(1, False, False))]
    assert (await fleet.look()).findings[A.uuid].health is Health.SICK
    assert fleet.suspects == ()
    driver.gpus = [A]
    assert (await fleet.look()).findings == {}


async def test_mig_devices_are_targets_and_their_gpu_is_none() -> None:
    one = gpu(0, mig_enabled=True, mig_pending=True, slices=7, instances=(instance(0),))
    fleet, _ = fleet_of(Driver(one))
    await fleet.look()
    assert fleet.target(f"gpu:{instance(0).uuid}").visible == instance(0).uuid
    with pytest.raises(DeviceError) as raised:
        fleet.target(f"gpu:{one.uuid}")
    assert raised.value.errno == errno.ENODEV


async def test_a_place_that_is_filled_while_a_look_goes_on_is_not_taken_for_empty() -> None:
    """A teardown that believed so would scrub nothing and fence the place for what it left."""
    driver = Driver(gpu(0, mig_enabled=True, mig_pending=True, slices=7))
    crew = driver.crew()
    config = GpuConfig(mig_layout=("1g.10gb@0",))
    fleet = Fleet(crew, config, lambda: True)  # type: ignore[arg-type]
    await fleet.look()
    [place] = fleet.resource_ids
    examine = crew.answers["examine"]

    def meanwhile(name: str, argument: Any) -> Any:
        seen = examine(name, argument)
        fleet.place(place, instance(0, start=0))
        return seen

    crew.answers["examine"] = meanwhile
    await fleet.look()
    assert fleet.target(place).instance == instance(0, start=0) and fleet.made_places == (place,)
    crew.answers["examine"] = examine
    await fleet.look()
    assert fleet.target(place).instance is None, "the next look is believed"


async def test_a_worker_that_cannot_be_started_makes_no_gpu_a_stranger() -> None:
    driver = Driver(A, B)
    fleet, _ = fleet_of(driver)
    await fleet.look()
    driver.list_answer = DeviceError("worker_answer", errno.EAGAIN, "worker gpu survey ended")
    with pytest.raises(DeviceError):
        await fleet.look()
    driver.list_answer = None
    driver.hangs.add(B.uuid)
    seen = await fleet.look()
    assert seen.gpus == (A, B) and seen.findings[B.uuid].health is Health.SICK
    assert not seen.strangers, "a tenant's lease would be ended: its GPU is not there"
