# SPDX-License-Identifier: Apache-2.0
"""Every promise of `ports.Observer`, on the workers and on the double: the host, real leaves, and
GPUs over the mock driver, with those that hang or lie among them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.hardware.clock import BootClock
from leased.hardware.devices import Devices
from leased.ports import Observer
from leased.terms.resource import Health, ResourceKind
from leased.terms.sample import Reading, Readings
from leased.terms.series import SERIES
from tests.doubles.gpu_host import (
    gpu_devices,
    gpu_lease,
    grant,
    make_instances,
    mock_machine,
    start,
)
from tests.doubles.host import real_devices
from tests.doubles.observer import FileObserver
from tests.hostile.cuda_process import holder
from tests.mocks.nvml.control import Machine

pytestmark = pytest.mark.quiet

SM = (("leased.gpu.engine", "sm"),)

SLOW_READER = """
import select
import sys


class Slow:
    def find_spec(self, name, path, target=None):
        if name == "pynvml":
            select.select([], [], [], 3)
        return None


sys.meta_path.insert(0, Slow())
"""


def by_key(told: Readings) -> dict[tuple[str, str, tuple[tuple[str, str], ...]], int]:
    return {(one.series, one.subject, one.attributes): one.value for one in told.readings}


def all_can_be_meant(told: Readings) -> bool:
    """Every reading is of a series that there is, with just its attributes, and within it."""
    for one in told.readings:
        described = SERIES[one.series]
        assert described.holds(one.value), one
        assert tuple(name for name, _ in one.attributes) == described.attributes, one
    return len(by_key(told)) == len(told.readings)


# ---- the host and leaves, double and real --------------------------------------------------------


@pytest.fixture(params=["double", "workers"])
def observer(request: pytest.FixtureRequest) -> Iterator[Observer]:
    if request.param == "double":
        yield FileObserver(BootClock(), Path("/"))
        return
    with real_devices() as devices:
        yield devices.observer


async def test_the_host_is_told_in_the_kernels_own_numbers(observer: Observer) -> None:
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    told = await observer.host()
    assert before_ns <= told.read_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert all_can_be_meant(told)
    found = by_key(told)
    total = next(
        int(line.split()[3]) << 10
        for line in Path("/sys/devices/system/node/node0/meminfo").read_text().splitlines()
        if "MemTotal:" in line
    )
    assert found["system.memory.limit", "mem:node0", ()] == total
    user = found["system.cpu.time", "cpu", (("cpu.mode", "user"),)]
    assert user > 0
    again = by_key(await observer.host())
    assert again["system.cpu.time", "cpu", (("cpu.mode", "user"),)] >= user


async def test_a_leaf_counts_what_is_done_in_it(observer: Observer, tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 7\nuser_usec 5\nsystem_usec 2\n")
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 1\nmax 2\noom 0\noom_kill 3\n")
    (tmp_path / "pids.current").write_text("12\n")
    (tmp_path / "io.stat").write_text("8:0 rbytes=10 wbytes=4 rios=1\n259:1 rbytes=5 wbytes=0\n")
    (tmp_path / "io.pressure").write_text("some avg10=0 avg60=0 avg300=0 total=9\nfull total=x\n")
    told = await observer.leaves([("one", str(tmp_path)), ("gone", str(tmp_path / "gone"))])
    assert all_can_be_meant(told)
    assert {one.subject for one in told.readings} == {"one"}, "what is not there counts nothing"
    found = {
        (
            name,
            dict(attributes).get("disk.io.direction")
            or dict(attributes).get("cpu.mode")
            or dict(attributes).get("leased.event"),
        ): value
        for (name, _, attributes), value in by_key(told).items()
    }
    assert found == {
        ("leased.lease.cpu.time", "user"): 5_000,
        ("leased.lease.cpu.time", "system"): 2_000,
        ("leased.lease.memory.usage", None): 4096,
        ("leased.lease.memory.events", "high"): 1,
        ("leased.lease.memory.events", "max"): 2,
        ("leased.lease.memory.events", "oom"): 0,
        ("leased.lease.memory.events", "oom_kill"): 3,
        ("leased.lease.processes", None): 12,
        ("leased.lease.io", "read"): 15,
        ("leased.lease.io", "write"): 4,
        ("leased.pressure.time", None): 9_000,
    }


async def test_nothing_is_said_of_devices_that_are_not_there(observer: Observer) -> None:
    assert not (await observer.gpus()).readings
    assert not (await observer.others(closely=True)).readings


async def test_a_real_leaf_tells_of_the_process_in_it() -> None:
    with real_devices() as devices:
        from tests.doubles.leases import lease

        one = lease(pid=0)
        path = await devices.make_leaf(one)
        busy = await trio.to_thread.run_sync(
            os.spawnvp, os.P_NOWAIT, "sh", ["sh", "-c", "while :; do :; done"]
        )
        try:
            Path(path, "cgroup.procs").write_text(str(busy))
            spent = 0
            with trio.fail_after(30):
                while spent < 50_000_000:
                    found = by_key(await devices.observer.leaves([("one", path)]))
                    spent = found["leased.lease.cpu.time", "one", (("cpu.mode", "user"),)]
        finally:
            os.kill(busy, 9)
            os.waitpid(busy, 0)


# ---- GPUs, over the mock driver ------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[Machine]:
    with mock_machine(["H100", "H100"]) as one:
        yield one


@pytest.fixture
def devices(machine: Machine) -> Iterator[Devices]:
    with gpu_devices(machine) as real:
        yield real


def of(told: Readings, machine: Machine, gpu: int) -> list[Reading]:
    return [one for one in told.readings if one.subject == f"gpu:{machine.uuid(gpu)}"]


async def test_a_gpu_says_what_it_does(machine: Machine, devices: Devices) -> None:
    await start(devices)
    machine.set(0, power_mw=321_000, temperature_c=55, utilization=40, ecc_lifetime_corrected=3)
    told = await devices.observer.gpus()
    assert all_can_be_meant(told) and not told.failed
    found = by_key(told)
    name = f"gpu:{machine.uuid(0)}"
    gpu = ("hw.type", "gpu")
    assert found["hw.power", name, (gpu,)] == 321_000
    assert found["hw.temperature", name, (gpu, ("hw.sensor_location", "gpu"))] == 55_000
    assert found["hw.gpu.utilization", name, (("hw.gpu.task", "general"),)] == 400_000
    assert found["hw.errors", name, (gpu, ("error.type", "corrected"))] == 3
    assert found["hw.gpu.memory.limit", name, ()] > 70 << 30
    assert found["hw.energy", name, (gpu,)] > 0
    assert ("leased.gpu.active", name, SM) not in found, "it takes two looks"
    again = by_key(await devices.observer.gpus())
    assert again["leased.gpu.active", name, SM] == 0
    assert again["hw.energy", name, (gpu,)] >= found["hw.energy", name, (gpu,)]


async def test_a_kernel_that_runs_is_seen_on_its_gpu_alone(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    await grant(devices, one)
    leaf = await devices.make_leaf(one)
    with holder("spin", environment=dict(os.environ), leaf=leaf):
        await devices.observer.gpus()
        found = by_key(await devices.observer.gpus())
    assert found["leased.gpu.active", f"gpu:{machine.uuid(0)}", SM] > 900_000
    assert found["leased.gpu.active", f"gpu:{machine.uuid(1)}", SM] == 0


async def test_one_that_hangs_costs_the_others_nothing_and_is_left_alone(machine: Machine) -> None:
    with gpu_devices(machine, call_budget_ns=3_000_000_000) as devices:
        await start(devices)
        machine.fault("nvmlDeviceGetPowerUsage", "hang", gpu=0)
        began = time.monotonic()
        told = await devices.observer.gpus()
        assert not of(told, machine, 0) and of(told, machine, 1)
        [(subject, why)] = told.failed
        assert subject == f"gpu:{machine.uuid(0)}" and "did not answer" in why
        again = await devices.observer.gpus()
        assert of(again, machine, 1) and "later" in dict(again.failed)[subject]
        assert time.monotonic() - began < 6, "one call waited, no more"
        machine.clear()
        assert of(await devices.observer.gpus(), machine, 0)


async def test_one_that_was_lost_is_named_and_the_other_answers(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    machine.fault("nvmlDeviceGetPowerUsage", "return:15", gpu=0)
    told = await devices.observer.gpus()
    assert of(told, machine, 1) and not of(told, machine, 0)
    assert dict(told.failed)[f"gpu:{machine.uuid(0)}"]


async def test_while_the_driver_is_let_go_nobody_of_us_looks(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    assert (await devices.observer.gpus()).readings
    assert await devices.let_go(ResourceKind.GPU) == (), "what looked is gone, too"
    assert not (await devices.observer.gpus()).readings
    await devices.take_up(ResourceKind.GPU)
    assert (await devices.observer.gpus()).readings


async def test_a_driver_that_is_asked_by_a_slow_starter_does_not_hang(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that boots has better things to do than to read the vendor's library for Python."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_READER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with gpu_devices(machine, call_budget_ns=2_500_000_000) as devices:
        inventory = await devices.inventory()
        found = [one for one in inventory.resources if one.kind is ResourceKind.GPU]
        assert [one.health for one in found] == [Health.OK, Health.OK], inventory.absences
        await devices.adopt(())
        assert (await devices.observer.gpus()).readings


async def test_a_gpu_that_is_not_to_be_kept_attached_is_let_go_of(machine: Machine) -> None:
    with gpu_devices(machine, gpu_listen=False) as devices:
        await start(devices)
        assert (await devices.observer.gpus()).readings
        assert "gpu gauge" not in devices._crew._links


async def test_an_instance_is_measured_and_its_handle_is_not_kept() -> None:
    with mock_machine(["H100"], mig={0: True}) as machine:
        [uuid] = make_instances(0, 0)[:1]
        with gpu_devices(machine) as devices:
            await start(devices)
            await devices.observer.gpus()
            found = by_key(await devices.observer.gpus())
            assert found["leased.gpu.active", f"gpu:{uuid}", SM] == 0
            whole = f"gpu:{machine.uuid(0)}"
            assert ("hw.power", whole, (("hw.type", "gpu"),)) in found
            assert ("leased.gpu.active", whole, SM) not in found, "MIG: not busy as a whole"
