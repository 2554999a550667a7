# SPDX-License-Identifier: Apache-2.0
"""A host with GPUs that are a mock: devices over it, and holders in the leaves of its leases.

Rule: the mock's libraries, the stand-in nodes, the leaves and their device filters are real files,
real devices and real cgroups; what is emulated is the driver. Whatever is made is gone afterwards.

Does not judge.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leased.hardware.devices import Devices
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.verbs import kill_cgroup
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind
from leased.terms.teardown import ProofReport, ScrubReport, StepReport, TeardownStep
from tests.doubles.host import not_proven, real_devices
from tests.doubles.leases import lease
from tests.mocks.nvml.control import Machine, Unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534
CUT_MS = 5000


@contextlib.contextmanager
def mock_machine(gpus: Sequence[str] = ("H100",), **fields: Any) -> Iterator[Machine]:
    """A machine whose libraries are found by every process started meanwhile."""
    try:
        machine = Machine.create(gpus=gpus, **fields)
    except Unavailable as error:
        not_proven("anything of a GPU's teardown", str(error))
        raise
    with machine:
        before = dict(os.environ)
        os.environ.update(machine.environment())
        try:
            yield machine
        finally:
            machine.clear()
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def gpu_devices(machine: Machine, **settings: Any) -> Iterator[Devices]:
    """Devices that see the machine's GPUs. Settings of `HardwareConfig`, and with `gpu_` before
    them of `GpuConfig`."""
    own = {name[4:]: value for name, value in settings.items() if name.startswith("gpu_")}
    rest = {name: value for name, value in settings.items() if not name.startswith("gpu_")}
    told = {"release_budget_ns": 2_000_000_000, "settle_apart_ns": 50_000_000, **own}
    told = {"root": str(machine.root), "mps_dir": str(machine.root / "mps"), **told}
    plain = {"cpu_cores": "none", "hugepages": False, "call_budget_ns": 2_000_000_000, **rest}
    with real_devices(gpu=GpuConfig(**told), **plain) as devices:
        yield devices


INSTANCES = """
import sys
import pynvml as n

n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(int(sys.argv[1]))
for profile in map(int, sys.argv[2:]):
    made = n.nvmlDeviceCreateGpuInstance(
        gpu, n.nvmlDeviceGetGpuInstanceProfileInfo(gpu, profile).id
    )
    part = n.nvmlGpuInstanceGetComputeInstanceProfileInfo(made, profile, 0)
    n.nvmlGpuInstanceCreateComputeInstance(made, part.id)
for index in range(n.nvmlDeviceGetMaxMigDeviceCount(gpu)):
    try:
        print(n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)))
    except n.NVMLError_NotFound:
        pass
"""


def make_instances(gpu: int, *profiles: int) -> list[str]:
    """MIG devices of these profiles (NVML's numbers: 0 is one slice), as an operator makes them;
    the UUIDs of all that are there."""
    words = [sys.executable, "-c", INSTANCES, str(gpu), *map(str, profiles)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def gpu_lease(machine: Machine, *gpus: int, **changes: Any) -> Lease:
    """A lease of whole GPUs of the machine."""
    allotments = [
        Allotment(f"gpu:{machine.uuid(one)}", ResourceKind.GPU, None, 1000) for one in gpus or (0,)
    ]
    return lease(*allotments, pid=0, **changes)


async def start(devices: Devices) -> None:
    """As the agent does: look, and close what is nobody's."""
    await devices.inventory()
    await devices.adopt(())


async def grant(devices: Devices, one: Lease) -> Prepared:
    """Prepared, or the test fails."""
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared), made
    return made


async def reclaim(devices: Devices, one: Lease) -> tuple[ScrubReport, ProofReport]:
    """Scrub and prove."""
    [scrub] = await devices.scrub_many([(one, ())])
    assert isinstance(scrub, ScrubReport) and scrub.clean, scrub
    [proof] = await devices.prove_many([(one, ())])
    assert isinstance(proof, ProofReport), proof
    return scrub, proof


def failures(proof: ProofReport) -> set[tuple[TeardownStep, int]]:
    """What was not clean."""
    return {(step.step, step.errno) for step in proof.steps if step.errno}


def step_of(report: ScrubReport | ProofReport, wanted: TeardownStep) -> StepReport:
    """The first report of one step."""
    return next(step for step in report.steps if step.step is wanted)


def cut(made: Prepared) -> None:
    """What the reaper does to the leaf."""
    leaf = os.open(made.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        kill_cgroup(leaf, timeout_ms=CUT_MS)
    finally:
        os.close(leaf)


class Holder:
    """A tenant's process, in a leaf or outside of all."""

    def __init__(
        self,
        trick: str,
        size_bytes: int = 0,
        path: str = "",
        *,
        made: Prepared | None = None,
        uid: int = NOBODY,
    ) -> None:
        told = {one.name: one.value for one in made.access} if made is not None else {}
        paths = f"{REPOSITORY}:{REPOSITORY / 'agent'}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.doubles.cuda_holder", trick, str(size_bytes), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **told, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=lambda: _become(made.cgroup if made is not None else "", uid),
        )
        self.pid = self.process.pid

    def line(self) -> str:
        """Its next line; "" when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ready(self) -> Holder:
        """Wait until it holds."""
        said = self.line()
        assert said == "ready", said
        return self

    def ask(self, line: str = "") -> str:
        """What it can still do."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.line()

    def gone(self, timeout_s: float = 10) -> bool:
        """Whether it ends in that time."""
        pidfd = os.pidfd_open(self.pid) if self.process.poll() is None else None
        if pidfd is None:
            return True
        try:
            return bool(select.select([pidfd], [], [], timeout_s)[0])
        finally:
            os.close(pidfd)

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _become(cgroup: str, uid: int) -> None:
    if cgroup:
        with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write("0")
    os.setgid(uid)
    os.setuid(uid)
