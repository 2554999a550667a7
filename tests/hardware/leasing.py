# SPDX-License-Identifier: Apache-2.0
"""A whole lease of a GPU by the agent's own hands: grant, holder, cut, scrub, proof.

    python -m tests.hardware.leasing TRICK ROOT UUID

TRICK is what the holder inside the leaf does (`tests.hostile.cuda_holders`); with `+outside` behind
it somebody outside opens the GPU's node meanwhile. One line of JSON out.

Rule: the backend is told to set no mode (`close_free` off): the GPU is as it was afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from leased.hardware.config import HardwareConfig
from leased.hardware.devices import Devices
from leased.hardware.gpu.config import GpuConfig
from leased.ports import Prepared
from leased.terms.resource import Allotment, ResourceKind
from leased.terms.teardown import ProofReport, ScrubReport
from tests.doubles.leases import lease
from tests.hardware.bench import kill_all
from tests.hostile.cuda_process import Holder, holder

_WHOLE = 1000


def _devices(root: str, mps_dir: str) -> Devices:
    gpu = GpuConfig(root=root, close_free=False, mps_dir=mps_dir)
    return Devices(
        HardwareConfig(
            cgroup_root=f"leased-hardware-lease-{os.getpid()}",
            cpu_cores="none",
            hugepages=False,
            call_budget_ns=30_000_000_000,
            gpu=gpu,
        )
    )


@contextlib.contextmanager
def _outsider(there: bool, node: str) -> Iterator[Holder | None]:
    if not there:
        yield None
        return
    with holder("node_only", node, environment=os.environ) as one:
        yield one


async def lease_it(trick: str, root: str, uuid: str, node: str) -> dict[str, Any]:
    """From the inventory to the proof; every time in milliseconds."""
    trick, _, outside = trick.partition("+")
    with tempfile.TemporaryDirectory(prefix="leased-hardware-mps-") as mps_dir:
        os.chmod(mps_dir, 0o755)
        devices = _devices(root, mps_dir)
        try:
            return await _lease_it(devices, trick, bool(outside), uuid, node)
        finally:
            devices.close()
            with contextlib.suppress(OSError):
                _remove_root()


async def _lease_it(
    devices: Devices, trick: str, outside: bool, uuid: str, node: str
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    inventory = await devices.inventory()
    await devices.adopt(())
    [found] = [one for one in inventory.resources if one.resource_id == f"gpu:{uuid}"]
    told["evidence"] = found.evidence.value
    allotment = Allotment(found.resource_id, ResourceKind.GPU, None, found.capacity)
    one = lease(allotment, pid=0)
    began = time.monotonic()
    [made] = await devices.prepare_many([one])
    told["grant_ms"] = _ms(began)
    if not isinstance(made, Prepared):
        return {**told, "refused": str(made)}
    access = {given.name: given.value for given in made.access}
    environment = {**os.environ, **access}
    with (
        holder(trick, environment=environment, leaf=Path(made.cgroup)) as held,
        _outsider(outside, node) as stranger,
    ):
        began = time.monotonic()
        kill_all(Path(made.cgroup))
        held.process.wait()
        told["cut_ms"] = _ms(began)
        [scrub] = await devices.scrub_many([(one, ())])
        assert isinstance(scrub, ScrubReport), scrub
        told["scrub_ms"] = _ms(began)
        told["scrubbed_bytes"] = scrub.scrubbed_bytes
        [proof] = await devices.prove_many([(one, ())])
        assert isinstance(proof, ProofReport), proof
        told["proof_ms"] = _ms(began)
        told["unproven"] = [unproven.resource_id for unproven in proof.unproven]
        steps = (*scrub.steps, *proof.steps)
        told["failed"] = [f"{step.step.name} {step.errno}" for step in steps if step.errno]
        told["stranger"] = "" if stranger is None else _state(stranger)
    return told


def _state(stranger: Holder) -> str:
    return "killed" if stranger.process.poll() is not None else "alive"


def _ms(began_s: float) -> int:
    return round((time.monotonic() - began_s) * 1000)


def _remove_root() -> None:
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            root = Path(fields.split()[4]) / f"leased-hardware-lease-{os.getpid()}"
            for leaf in sorted(root.glob("**/"), reverse=True):
                leaf.rmdir()


def main() -> int:
    """Lease, print."""
    print(json.dumps(trio.run(functools.partial(lease_it, *sys.argv[1:]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
