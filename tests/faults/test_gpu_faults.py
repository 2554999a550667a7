# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a driver, injected into the mock one: each ends fenced for the reason that
holds, or proven, and never stalls the agent."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from leased.hardware.devices import Devices
from leased.hardware.gpu.backend import GpuBackend
from leased.terms.errors import DeviceError
from leased.terms.lease import Priority
from leased.terms.resource import Health, ResourceKind
from leased.terms.teardown import ProofReport, TeardownStep
from tests.doubles.gpu_host import (
    Holder,
    cut,
    failures,
    gpu_devices,
    gpu_lease,
    grant,
    mock_machine,
    reclaim,
    start,
    step_of,
)
from tests.doubles.host_agent import boot_ns
from tests.doubles.workers import workers_of
from tests.mocks.nvml.control import Machine

pytestmark = pytest.mark.quiet

GIB = 1 << 30
MS = 1_000_000
STALL_S_MAX = 0.5
CYCLES = int(os.environ.get("LEASED_GPU_CYCLES", "5"))
"""Grants that fail, with real workers; 1000 is the long form."""

QUICK = {
    "call_budget_ns": 1500 * MS,
    "kill_budget_ns": 300 * MS,
    "settle_budget_ns": 300 * MS,
    "gpu_release_budget_ns": 300 * MS,
    "gpu_scan_budget_ns": 1000 * MS,
    "gpu_scrub_bytes_per_s": 80 * GIB,
}
Step = TeardownStep


@pytest.fixture
def machine() -> Iterator[Machine]:
    with mock_machine(["H100", "H100"]) as one:
        yield one


@pytest.fixture
def devices(machine: Machine) -> Iterator[Devices]:
    with gpu_devices(machine, gpu_release_budget_ns=800 * MS) as real:
        yield real


@pytest.fixture
def hasty(machine: Machine) -> Iterator[Devices]:
    """Devices that wait for nobody long, where what is tested is that the wait ends."""
    with gpu_devices(machine, **QUICK) as real:
        yield real


@asynccontextmanager
async def never_stalled() -> AsyncIterator[None]:
    """The agent's own loop turned all the while."""
    longest_s = 0.0

    async def turn() -> None:
        nonlocal longest_s
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            longest_s = max(longest_s, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        yield
        nursery.cancel_scope.cancel()
    assert longest_s < STALL_S_MAX, f"stalled for {longest_s:.2f} s"


async def health_of(devices: Devices, machine: Machine, gpu: int) -> Health | None:
    found = {r.resource_id: r.health for r in (await devices.inventory()).resources}
    return found.get(f"gpu:{machine.uuid(gpu)}")


# ---- calls that do not return --------------------------------------------------------------------

RELEASE_CALLS = [
    "nvmlInitWithFlags",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMemoryInfo_v2",
]
SCRUB_CALLS = [
    "nvmlDeviceSetComputeMode",
    "nvmlDeviceGetComputeMode",
    "cuInit",
    "cuDeviceGetUuid_v2",
    "cuCtxCreate_v2",
    "cuMemAlloc_v2",
    "cuModuleLoadData",
    "cuLaunchKernel",
    "cuMemsetD32_v2",
    "cuCtxSynchronize",
    "cuMemcpyDtoH_v2",
]
WITNESS_CALLS = ["nvmlDeviceGetFieldValues", "nvmlDeviceGetRemappedRows"]
HANGS = [
    *((call, Step.RELEASE) for call in RELEASE_CALLS),
    *((call, Step.SCRUB) for call in SCRUB_CALLS),
    *((call, Step.WITNESS) for call in WITNESS_CALLS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "step"), HANGS, ids=lambda value: str(value))
async def test_a_call_that_hangs_fences_the_gpu_and_stalls_nobody(
    machine: Machine, hasty: Devices, call: str, step: TeardownStep
) -> None:
    await start(hasty)
    one = gpu_lease(machine, 0)
    made = await grant(hasty, one)
    cut(made)
    machine.fault(call, "hang")
    async with never_stalled():
        _, proof = await reclaim(hasty, one)
    assert proof.unproven == one.subject.allotments
    assert (step, errno.ETIMEDOUT) in failures(proof)
    machine.clear()
    # It answers again: a probe finds it well, without anybody's word. What fails is tried again at
    # the next look, and the driver may not have let go yet of what the killed worker had.
    looks = [await health_of(hasty, machine, 0) for _ in range(3)]
    assert looks[-1] is Health.OK, looks


@pytest.mark.slow
@pytest.mark.parametrize("call", ["nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "*"])
async def test_a_survey_that_hangs_keeps_the_last_and_stalls_nobody(
    machine: Machine, hasty: Devices, call: str
) -> None:
    await start(hasty)
    machine.fault(call, "hang")
    async with never_stalled():
        found = await hasty.inventory()
    assert len([r for r in found.resources if r.kind is ResourceKind.GPU]) == 2


@pytest.mark.slow
async def test_one_gpu_that_hangs_spoils_no_other(machine: Machine, hasty: Devices) -> None:
    await start(hasty)
    machine.fault("nvmlDeviceGetMemoryInfo_v2", "hang", gpu=1)
    async with never_stalled():
        assert await health_of(hasty, machine, 1) is Health.SICK
        assert await health_of(hasty, machine, 0) is Health.OK
        one = gpu_lease(machine, 0)
        cut(await grant(hasty, one))
        _, proof = await reclaim(hasty, one)
    assert proof.unproven == ()
    machine.clear()
    await hasty.inventory()
    assert await health_of(hasty, machine, 1) is Health.OK


@pytest.mark.slow
@pytest.mark.parametrize("call", ["cuCtxDestroy_v2", "cuInit"])
async def test_a_debt_whose_payment_hangs_is_no_grant(machine: Machine, call: str) -> None:
    """What was there before the agent's start is overwritten before the first grant. Nobody waits
    for that worker's end, so it destroys its context, as no other scrub does."""
    with gpu_devices(machine, **QUICK, gpu_scrub_later=(Priority.STANDARD,)) as devices:
        await start(devices)
        machine.fault(call, "hang")
        async with never_stalled():
            [made] = await devices.prepare_many([gpu_lease(machine, 0)])
            assert isinstance(made, DeviceError) and made.errno == errno.ETIMEDOUT, made
            assert await health_of(devices, machine, 0) is Health.SICK
        machine.clear()
        with trio.fail_after(60):  # what the killed worker had goes in the driver's own time
            while await health_of(devices, machine, 0) is not Health.OK:
                pass
        one = gpu_lease(machine, 0)
        cut(await grant(devices, one))
        _, proof = await reclaim(devices, one)
        assert proof.unproven == ()


# ---- answers that prove nothing ------------------------------------------------------------------

INVALID_ARGUMENT, NOT_SUPPORTED, UNKNOWN, LOST = 2, 3, 999, 15
REFUSALS = [
    ("nvmlDeviceGetComputeRunningProcesses_v3", NOT_SUPPORTED, Step.RELEASE, errno.ENOTSUP),
    ("nvmlDeviceGetMemoryInfo_v2", UNKNOWN, Step.RELEASE, errno.EIO),
    ("nvmlDeviceGetUUID", LOST, Step.RELEASE, errno.ENODEV),
    ("nvmlDeviceSetComputeMode", NOT_SUPPORTED, Step.SCRUB, errno.ENOTSUP),
    ("cuCtxCreate_v2", 46, Step.SCRUB, errno.EBUSY),
    ("cuModuleLoadData", 218, Step.SCRUB, errno.EIO),
    ("nvmlDeviceGetFieldValues", UNKNOWN, Step.WITNESS, errno.EIO),
]


@pytest.mark.parametrize(("call", "code", "step", "number"), REFUSALS, ids=lambda value: str(value))
async def test_an_answer_that_proves_nothing_fences(
    machine: Machine, devices: Devices, call: str, code: int, step: TeardownStep, number: int
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    cut(await grant(devices, one))
    machine.fault(call, f"return:{code}")
    _, proof = await reclaim(devices, one)
    assert proof.unproven == one.subject.allotments and (step, number) in failures(proof)


@pytest.mark.parametrize(
    "call",
    ["nvmlDeviceGetFieldValues", "nvmlDeviceGetNumaNodeId", "nvmlDeviceGetGpuFabricInfoV"],
)
async def test_a_question_that_the_driver_does_not_know_is_no_fault_of_the_gpus(
    machine: Machine, devices: Devices, call: str
) -> None:
    machine.fault(call, f"return:{INVALID_ARGUMENT}")
    await start(devices)
    assert await health_of(devices, machine, 0) is Health.OK
    await grant(devices, gpu_lease(machine, 0))


async def test_memory_that_cannot_be_overwritten_fences(machine: Machine, devices: Devices) -> None:
    machine.set(0, scrub_on_free=0)
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    with Holder("hold", 2 * GIB, made=made) as holder:
        holder.ready()
        cut(made)
    machine.fault("cuMemsetD32_v2", "return:0")  # it says that it did
    _, proof = await reclaim(devices, one)
    assert proof.unproven == one.subject.allotments
    assert (Step.READ_BACK, errno.EIO) in failures(proof)
    machine.clear()
    _, proof = await reclaim(devices, one)
    assert proof.unproven == () and machine.dirty(0) == 0


# ---- what a driver can leave behind --------------------------------------------------------------


async def test_a_ghost_in_the_list_fences(machine: Machine, devices: Devices) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    cut(await grant(devices, one))
    machine.ghost(0, 4_100_000, 0)
    _, proof = await reclaim(devices, one)
    assert failures(proof) == {(Step.WITNESS, errno.ESRCH)}
    machine.unghost(0)
    assert (await reclaim(devices, one))[1].unproven == ()


@pytest.mark.parametrize("leaked_bytes", [20 << 20, 4 * GIB])
async def test_memory_that_nobody_has_fences(
    machine: Machine, devices: Devices, leaked_bytes: int
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    cut(await grant(devices, one))
    machine.leak(0, leaked_bytes)
    _, proof = await reclaim(devices, one)
    assert failures(proof) == {(Step.RELEASE, errno.EBUSY)}
    assert step_of(proof, Step.RELEASE).measured >= leaked_bytes - (16 << 20)


async def test_a_gpu_of_which_nobody_has_a_part_is_not_granted(
    machine: Machine, devices: Devices
) -> None:
    """What was in use at the grant was what might be in use at the end: the tenant had less than it
    paid for, and whoever had the rest was never looked for."""
    await start(devices)
    machine.leak(0, 10 * GIB)
    [refused] = await devices.prepare_many([gpu_lease(machine, 0)])
    assert isinstance(refused, DeviceError) and refused.errno == errno.EBUSY
    assert "10240 MiB" in refused.detail and "reset" in refused.detail
    assert await health_of(devices, machine, 0) is Health.BUSY
    machine.set(0, memory_node=1)  # then it may be the host's own
    assert await health_of(devices, machine, 0) is Health.OK
    cut(await grant(devices, one := gpu_lease(machine, 0)))
    machine.set(0, memory_node=-1)
    machine.unleak(0)
    assert (await reclaim(devices, one))[1].unproven == ()
    machine.leak(0, GIB >> 1)  # what a driver needs for itself
    cut(await grant(devices, other := gpu_lease(machine, 0)))
    assert (await reclaim(devices, other))[1].unproven == ()


async def test_a_driver_that_takes_its_time_is_waited_for(machine: Machine) -> None:
    with gpu_devices(machine, gpu_release_budget_ns=5000 * MS) as devices:
        machine.set(0, release_ms=1500, release_busy_ms=1500)
        await start(devices)
        one = gpu_lease(machine, 0)
        made = await grant(devices, one)
        with Holder("hold", 2 * GIB, made=made) as holder:
            holder.ready()
            cut(made)
            scrub, proof = await reclaim(devices, one)
        assert proof.unproven == ()
        release = step_of(scrub, Step.RELEASE)
        assert release.ended_ns - release.began_ns > 1000 * MS


@pytest.mark.slow
async def test_gpus_whose_state_nobody_keeps_are_waited_for() -> None:
    """Without persistence mode the driver initialises them one after another for the first client,
    seconds each: whoever was ended meanwhile was always the first."""
    with (
        mock_machine(["L4"] * 3, persistence=0, attach_ms=200) as machine,
        gpu_devices(machine, call_budget_ns=400 * MS) as devices,
    ):
        await start(devices)
        one = gpu_lease(machine, 1)
        cut(await grant(devices, one))
        _, proof = await reclaim(devices, one)
        assert proof.unproven == ()


async def test_residue_of_an_earlier_tenant_is_overwritten_and_told_of(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    cut(await grant(devices, one))
    machine.residue(0, 3 * GIB + 4096, 8192)
    _, proof = await reclaim(devices, one)
    assert proof.unproven == () and machine.dirty(0) == 0
    [limit] = [
        limit
        for r in (await devices.inventory()).resources
        if r.resource_id == f"gpu:{machine.uuid(0)}"
        for limit in r.limits
    ]
    assert "8192 bytes" in limit


# ---- health --------------------------------------------------------------------------------------


async def test_a_lost_gpu_is_gone_and_its_lease_is_not_proven(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    machine.lose(0)
    assert await health_of(devices, machine, 0) is Health.GONE
    assert await health_of(devices, machine, 1) is Health.OK
    cut(made)
    _, proof = await reclaim(devices, one)
    assert failures(proof) == {(Step.RELEASE, errno.ENODEV)}
    machine.find(0)
    assert await health_of(devices, machine, 0) is Health.OK


async def test_a_gpu_of_whose_loss_only_an_event_tells_is_gone(
    machine: Machine, devices: Devices
) -> None:
    """Asked for it anew, newer drivers say "Unknown Error", as of much else."""
    await start(devices)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(devices.watch, lambda: None)
        await hears(devices, machine)
        machine.fault("nvmlDeviceGetHandleByIndex_v2", "return:999", gpu=1)
        assert await health_of(devices, machine, 1) is Health.SICK
        await hears(devices, machine, 0)  # begun again, for the GPUs are others now
        machine.lose(0, says_so=False)
        with trio.fail_after(10):
            while await health_of(devices, machine, 0) is not Health.GONE:
                await trio.sleep(0.02)
        assert await health_of(devices, machine, 1) is Health.SICK
        machine.clear()
        machine.find(0)
        for gpu in (0, 1):
            assert await health_of(devices, machine, gpu) is Health.OK
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("action", [1, 2, 4, 7])
async def test_a_recovery_action_stops_grants_fences_and_goes_by_itself(
    machine: Machine, devices: Devices, action: int
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    cut(await grant(devices, one))
    machine.recovery(0, action)
    assert await health_of(devices, machine, 0) is Health.SICK
    _, proof = await reclaim(devices, one)
    assert failures(proof) == {(Step.HEALTH, errno.ENOTRECOVERABLE)}
    assert step_of(proof, Step.HEALTH).measured == action
    machine.set(0, recovery_action=0)
    assert await health_of(devices, machine, 0) is Health.OK
    assert (await reclaim(devices, one))[1].unproven == ()


@pytest.mark.parametrize(("state", "words"), [(1, "not started"), (2, "in progress")])
async def test_a_gpu_that_has_not_joined_its_fabric_is_not_granted(
    machine: Machine, devices: Devices, state: int, words: str
) -> None:
    """Behind a switch nothing of CUDA starts before that: the tenant had a GPU for nothing, and its
    end fenced it."""
    await start(devices)
    lease = gpu_lease(machine, 0)
    cut(await grant(devices, lease))  # before it lost it
    machine.set(0, fabric_state=state)
    found = {one.resource_id: one for one in (await devices.inventory()).resources}
    one = found[f"gpu:{machine.uuid(0)}"]
    assert one.health is Health.SICK
    assert words in one.limits[0] and "nvidia-fabricmanager" in one.limits[0]
    assert found[f"gpu:{machine.uuid(1)}"].health is Health.OK
    assert failures((await reclaim(devices, lease))[1]) == {(Step.SCRUB, errno.EAGAIN)}
    machine.set(0, fabric_state=3)
    assert await health_of(devices, machine, 0) is Health.OK
    assert (await reclaim(devices, lease))[1].unproven == ()


async def test_a_gpu_whose_fabric_refused_it_is_leased_without_its_peers(
    machine: Machine, devices: Devices
) -> None:
    machine.set(0, fabric_status=999)
    found = {one.resource_id: one for one in (await devices.inventory()).resources}
    one = found[f"gpu:{machine.uuid(0)}"]
    assert one.health is Health.OK
    assert dict(one.attributes)["fabric"] == "failed (NVML error 999)"
    assert any("no GPU by NVLink" in limit for limit in one.limits)


async def test_a_row_that_waits_for_a_reset_fences(machine: Machine, devices: Devices) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    cut(await grant(devices, one))
    machine.set(0, remap_pending=1)
    _, proof = await reclaim(devices, one)
    assert failures(proof) == {(Step.HEALTH, errno.EUCLEAN)}


async def test_errors_are_heard_as_they_happen_and_a_storm_is_one_reason_to_look(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    noticed: list[None] = []
    heard = trio.Event()

    def notice() -> None:
        noticed.append(None)
        heard.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(devices.watch, notice)
        one = gpu_lease(machine, 0)
        cut(await grant(devices, one))
        await hears(devices, machine)
        machine.xid(0, 43, times=3)
        machine.xid(0, 95, times=2000)
        with trio.fail_after(10):
            await heard.wait()
        assert await health_of(devices, machine, 0) is Health.SICK
        [scrub] = await devices.scrub_many([(one, ())])
        machine.xid(0, 94)
        await hears(devices, machine)
        [proof] = await devices.prove_many([(one, ())])
        assert isinstance(proof, ProofReport)
        assert failures(proof) == {(Step.HEALTH, errno.EIO)}
        assert len(noticed) < 64
        # Suspected, not condemned: it is free, so it is probed, and it is well.
        assert await health_of(devices, machine, 0) is Health.OK
        nursery.cancel_scope.cancel()


async def test_a_lost_gpu_that_tells_nothing_more_takes_no_others_errors_along(
    machine: Machine, devices: Devices
) -> None:
    """The event that told of its loss could not be given an address, and with it all those behind
    it were thrown away."""
    await start(devices)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(devices.watch, lambda: None)
        await hears(devices, machine)
        [backend] = [one for one in devices._backends if isinstance(one, GpuBackend)]
        machine.fault("nvmlDeviceGetPciInfo_v3", "return:15", gpu=0)
        since_ns = boot_ns()
        machine.xid(0, 79)
        machine.xid(1, 95)
        with trio.fail_after(10):
            while not backend._ear.xids("0000:2b:00.0", since_ns):
                await trio.sleep(0.02)
        assert backend._ear.xids("0000:1a:00.0", since_ns) == (79,)
        nursery.cancel_scope.cancel()


async def hears(devices: Devices, machine: Machine, gpu: int = 1) -> None:
    """Return when the ear has heard what came before: it tells of one more error of the GPU."""
    [backend] = [one for one in devices._backends if isinstance(one, GpuBackend)]
    [pci] = [one.pci for one in backend._ear._gpus if one.uuid == machine.uuid(gpu)]
    with trio.fail_after(10):
        while True:
            since_ns = boot_ns()
            machine.xid(gpu, 43)
            for _ in range(20):
                if backend._ear.xids(pci, since_ns):
                    return
                await trio.sleep(0.05)


# ---- workers that are killed ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ready", "release", "scrub", "witness"])
async def test_a_worker_killed_in_the_middle_is_replaced_once(
    machine: Machine, devices: Devices, verb: str
) -> None:
    """Each verb is held up in the driver, its worker is killed there, and the driver goes on."""
    held_up = {
        "ready": "nvmlDeviceGetMemoryInfo_v2",
        "release": "nvmlDeviceGetMemoryInfo_v2",
        "scrub": "cuMemsetD32_v2",
        "witness": "nvmlDeviceGetFieldValues",
    }
    await start(devices)
    one = gpu_lease(machine, 0)

    async def kill_one() -> None:
        while True:
            for pid in workers_of(os.getpid()):
                if _is_on(pid, machine):
                    os.kill(pid, signal.SIGKILL)
                    machine.clear()
                    return
            await trio.sleep(0.02)

    if verb == "ready":
        machine.fault(held_up[verb], "hang", gpu=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_one)
            made = await grant(devices, one)
    else:
        made = await grant(devices, one)
    cut(made)
    if verb in ("release", "scrub"):
        machine.fault(held_up[verb], "hang")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_one)
            await devices.scrub_many([(one, ())])
    else:
        await devices.scrub_many([(one, ())])
    if verb == "witness":
        machine.fault(held_up[verb], "hang")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_one)
            [proof] = await devices.prove_many([(one, ())])
    else:
        [proof] = await devices.prove_many([(one, ())])
    assert isinstance(proof, ProofReport) and proof.unproven == (), proof


def _is_on(pid: int, machine: Machine) -> bool:
    """Whether the worker has the GPU attached (for a scrub: has a context)."""
    node = machine.node(0).stat().st_rdev
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
        return any(os.stat(f"/proc/{pid}/fd/{n}").st_rdev == node for n in numbers)
    except OSError:
        return False


# ---- again and again ----------------------------------------------------------------------------


async def test_grants_that_fail_leave_nothing_behind(machine: Machine, devices: Devices) -> None:
    await start(devices)
    machine.fault("nvmlDeviceSetComputeMode", f"return:{NOT_SUPPORTED}", gpu=1)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(CYCLES):
        [failed] = await devices.prepare_many([gpu_lease(machine, 0, 1)])
        assert isinstance(failed, DeviceError)
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 2
    assert machine.processes(0) == [] and machine.show(0)["compute_mode"] == "2"
    assert list((machine.root / "mps").iterdir()) == []
    made = await grant(devices, gpu_lease(machine, 0))
    assert os.listdir(os.path.dirname(made.cgroup))
