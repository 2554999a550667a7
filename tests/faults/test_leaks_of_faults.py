# SPDX-License-Identifier: Apache-2.0
"""Random leases of GPUs, MIG devices, pages and hugepages over a driver that fails at random steps:
afterwards this process, its cgroup and the machine have what they had, and every fence was lifted.

`LEASED_FAULT_CYCLES=1000` is the long form, `LEASED_FAULT_SEED` draws others; both are printed.
Kinds that need another machine have their cycles there: `vm/guest/hardware_leaks.py`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio

from leased.hardware.devices import Devices
from leased.hardware.gpu.backend import GpuBackend
from leased.ports import Prepared
from leased.terms.lease import Lease, RevocationReason
from leased.terms.resource import MIG_PREFIX, Allotment, ResourceKind
from leased.terms.teardown import ProofReport, ScrubReport
from tests.doubles.footprint import Footprint, kept
from tests.doubles.gpu_host import Holder, cut, gpu_devices, make_instances, mock_machine, start
from tests.doubles.host import HUGEPAGE_BYTES, hugepages
from tests.doubles.leases import lease, memory
from tests.doubles.workers import workers_of
from tests.mocks.nvml.control import Machine

pytestmark = [pytest.mark.quiet, pytest.mark.root]

CYCLES = int(os.environ.get("LEASED_FAULT_CYCLES", "24"))
SEED = int(os.environ.get("LEASED_FAULT_SEED", "20261129"))
WARM_UP = 12
PROOFS_MAX = 12
MS = 1_000_000
GIB = 1 << 30
WHOLE, SLICED = (0, 1, 2), 3
BY_GPU = {f"Reclaimer.{table}" for table in ("dirty", "_baselines", "_owed")}
"""What is kept of each GPU, whoever had it."""

PLACES = ("1g.10gb@0", "3g.40gb@4")
POOL_PAGES = 8
CALLS = (
    "nvmlInitWithFlags",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceSetComputeMode",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlGpuInstanceDestroy",
    "nvmlDeviceGetFieldValues",
    "cuInit",
    "cuCtxCreate_v2",
    "cuMemAlloc_v2",
    "cuLaunchKernel",
    "cuMemsetD32_v2",
    "cuMemcpyDtoH_v2",
    "*",
)
RETURNS = (3, 15, 46, 999)
QUICK = {
    "hugepages": True,
    "call_budget_ns": 1000 * MS,
    "kill_budget_ns": 300 * MS,
    "settle_budget_ns": 300 * MS,
    "gpu_release_budget_ns": 400 * MS,
    "gpu_scan_budget_ns": 1000 * MS,
    "gpu_mig_budget_ns": 300 * MS,
    "gpu_settle_apart_ns": 20 * MS,
    "gpu_scrub_bytes_per_s": 80 * GIB,
}

# ---- what goes wrong -----------------------------------------------------------------------------

Fault = Callable[[Machine, int, Random], object]


def hangs(machine: Machine, gpu: int, chance: Random) -> None:
    machine.fault(chance.choice(CALLS), "hang", gpu=gpu, after=chance.randint(0, 9))


def fails(machine: Machine, gpu: int, chance: Random) -> None:
    kind, after = f"return:{chance.choice(RETURNS)}", chance.randint(0, 9)
    machine.fault(chance.choice(CALLS), kind, gpu=gpu, after=after, count=chance.choice((1, -1)))


def kills(machine: Machine, gpu: int, chance: Random) -> None:
    """A worker of ours, whichever there is."""
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(chance.choice(workers_of(os.getpid())), signal.SIGKILL)


FAULTS: dict[str, Fault] = {
    "none": lambda machine, gpu, chance: None,
    "hang": hangs,
    "failure": fails,
    "killed worker": kills,
    "ghost": lambda machine, gpu, chance: machine.ghost(gpu, 4_100_000 + gpu, GIB),
    "leak": lambda machine, gpu, chance: machine.leak(gpu, chance.choice((20 << 20, 4 * GIB))),
    "residue": lambda machine, gpu, chance: machine.residue(gpu, GIB, 8192),
    "lost": lambda machine, gpu, chance: machine.lose(gpu),
    "recovery": lambda machine, gpu, chance: machine.recovery(gpu, chance.choice((1, 2, 4))),
    "xid": lambda machine, gpu, chance: machine.xid(gpu, chance.choice((43, 79, 95)), times=3),
    "rows": lambda machine, gpu, chance: machine.set(gpu, remap_pending=1),
    "MIG in use": lambda machine, gpu, chance: machine.mig_in_use(gpu, chance.randint(1, 9)),
}


def mend(machine: Machine) -> None:
    """Everything is well again, and what hangs goes on."""
    machine.clear()
    for gpu in (*WHOLE, SLICED):
        machine.unghost(gpu)
        machine.unleak(gpu)
        machine.find(gpu)
        machine.set(gpu, recovery_action=0, remap_pending=0, mig_in_use=0)


# ---- cycles --------------------------------------------------------------------------------------


class Cycles:
    """One lease after the other, each with something that goes wrong somewhere."""

    def __init__(self, machine: Machine, devices: Devices, chance: Random) -> None:
        self.machine, self.devices, self.chance = machine, devices, chance
        self.came_to: Counter[str] = Counter()
        self.unclean: list[str] = []

    async def run(self, count: int) -> None:
        for _ in range(count):
            await self._one()

    async def _one(self) -> None:
        chance, gpu = self.chance, self.chance.choice((*WHOLE, SLICED))
        fault, before = chance.choice(tuple(FAULTS)), chance.random() < 0.4
        of = lease(*self._wanted(gpu), pid=chance.choice((0, 1)))
        if before:
            FAULTS[fault](self.machine, gpu, chance)
        [made] = await self.devices.prepare_many([of])
        fds = made.fds if isinstance(made, Prepared) else ()
        if isinstance(made, Prepared):
            outcome = "granted"
            self._use(of, made, gpu)
            if chance.random() < 0.2:
                of = msgspec.structs.replace(of, reason=RevocationReason.GRANT_FAILED)
        else:
            outcome = "refused"
            of = msgspec.structs.replace(of, reason=RevocationReason.GRANT_FAILED)
        if not before:
            FAULTS[fault](self.machine, gpu, chance)
        if chance.random() < 0.3:
            await self.devices.inventory()
        end = await self._ended(of, fds)
        self.came_to[f"{fault}: {outcome}, {end}"] += 1
        for fd in fds:
            os.close(fd)
        self.devices.forget([of.lease_id])
        mend(self.machine)

    async def _ended(self, of: Lease, fds: tuple[int, ...]) -> str:
        """Whether it came back clean at once, or was fenced until somebody saw to it."""
        for tries in range(PROOFS_MAX):
            if await self._reclaimed(of, fds):
                return "fenced" if tries else "clean"
            mend(self.machine)  # and the fence opens with the next proof
            await self.devices.inventory()
        self.unclean.append(f"{of.subject.allotments}: {self.last}")
        return "never clean"

    def _wanted(self, gpu: int) -> list[Allotment]:
        uuid = self.machine.uuid(gpu)
        found = [f"gpu:{uuid}"]
        if gpu == SLICED:
            found = [
                f"{MIG_PREFIX}{uuid}/{one}" for one in self.chance.sample(PLACES, self._some(2))
            ]
        wanted = [Allotment(one, ResourceKind.GPU, None, 1000) for one in found]
        if self.chance.random() < 0.5:
            wanted.append(memory(4096 * self._some(64)))
        if self.chance.random() < 0.5:
            wanted.append(memory(HUGEPAGE_BYTES * self._some(POOL_PAGES), HUGEPAGE_BYTES))
        if self.chance.random() < 0.1:
            wanted.append(memory(node=999))  # of what is nowhere: all or nothing
        return wanted

    def _some(self, most: int) -> int:
        return self.chance.randint(1, most)

    def _use(self, of: Lease, made: Prepared, gpu: int) -> None:
        """Perhaps it is fetched, perhaps somebody is in it; and then it is cut."""
        if self.chance.random() < 0.7:
            for _, fd in self.devices.handout(of, made.fds):
                os.close(fd)
        if gpu in WHOLE and made.cgroup and self.chance.random() < 0.1:
            with Holder("hold", 2 * GIB, made=made) as holder:
                holder.line()
                cut(made)
        elif made.cgroup:
            cut(made)

    async def _reclaimed(self, of: Lease, fds: tuple[int, ...]) -> bool:
        """Whether it came back clean, this time."""
        [scrub] = await self.devices.scrub_many([(of, fds)])
        [proof] = await self.devices.prove_many([(of, fds)])
        self.last = scrub, proof
        if not isinstance(scrub, ScrubReport) or not isinstance(proof, ProofReport):
            return False
        return scrub.clean and not proof.unproven


# ---- what there is -------------------------------------------------------------------------------


async def settled(machine: Machine, devices: Devices) -> None:
    """Everything has been looked at, and what was suspected is trusted again."""
    mend(machine)
    for _ in range(4):
        await devices.inventory()
        await trio.sleep(0.1)
    gc.collect()


def leased_files(machine: Machine) -> int:
    """Below the directory of the leases' MPS servers."""
    return len(list((machine.root / "mps").glob("*")))


@pytest.mark.slow
async def test_leases_over_a_driver_that_fails_leave_nothing_behind() -> None:
    print(f"LEASED_FAULT_SEED={SEED} LEASED_FAULT_CYCLES={CYCLES}")
    with (
        hugepages(POOL_PAGES),
        mock_machine(["H100"] * 4, mig={SLICED: True}) as machine,
        gpu_devices(machine, **QUICK, gpu_mig_layout=PLACES) as devices,
    ):
        await start(devices)
        cgroup = Path((await devices.facts()).path)
        more: dict[str, Callable[[], int]] = {
            "clients of GPUs": lambda: sum(len(machine.processes(one)) for one in WHOLE),
            "memory of GPUs": lambda: sum(machine.used(one) for one in (*WHOLE, SLICED)),
            "MIG instances": lambda: len(make_instances(SLICED)),
            "MPS directories": lambda: leased_files(machine),
            "threads": lambda: len(os.listdir("/proc/self/task")),
        }

        def counted() -> tuple[int, ...]:
            devices._crew.ours()  # a look's worker is let go of when somebody asks who there is
            return (os.getpid(),)

        footprint = Footprint(counted, cgroup, set, more)
        cycles = Cycles(machine, devices, Random(SEED))
        await cycles.run(WARM_UP)
        await settled(machine, devices)
        before, kept_before = footprint.count(), kept(devices)
        await cycles.run(CYCLES)
        assert not cycles.unclean, cycles.unclean
        await settled(machine, devices)
        left = footprint.settled(before)
        more_kept = kept(devices) - kept_before
        print(dict(sorted(cycles.came_to.items())))
        assert not left, left
        assert more_kept.keys() <= BY_GPU, more_kept
        assert {machine.show(one)["compute_mode"] for one in WHOLE} == {"2"}
        [backend] = [one for one in devices._backends if isinstance(one, GpuBackend)]
        assert backend.remembered == 0
