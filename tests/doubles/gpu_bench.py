# SPDX-License-Identifier: Apache-2.0
"""The GPU backend on a bench: over a crew that answers as told, with GPUs in values.

Does not test anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from leased.hardware.backend import Verdict
from leased.hardware.config import EscapeePolicy, HardwareConfig
from leased.hardware.gpu.backend import GpuBackend
from leased.hardware.gpu.calls import (
    Examined,
    Guarded,
    Listing,
    Readied,
)
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.facts import Gpu
from leased.hardware.gpu.survey import Seen, describe
from leased.terms.identity import TenantId
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.gpu import (
    IDLE,
    GpuCrew,
    gpu,
    listed,
    released,
    scrubbed,
    witnessed,
)
from tests.doubles.leases import lease

A, B = gpu(0), gpu(1)
RULES = ((2, 6, 195, 3), (2, 6, 195, 255))


def allotment(one: Gpu | str, capacity: int = 1000) -> Allotment:
    uuid = one if isinstance(one, str) else one.uuid
    return Allotment(f"gpu:{uuid}", ResourceKind.GPU, None, capacity)


def gpu_lease(*gpus: Gpu, tenant: str = "acme", **changes: Any) -> Lease:
    one = lease(*(allotment(each) for each in gpus), pid=0)
    subject = msgspec.structs.replace(one.subject, tenant=TenantId(tenant))
    if "priority" in changes:
        subject = msgspec.structs.replace(subject, priority=changes.pop("priority"))
    return msgspec.structs.replace(one, subject=subject, **changes)


class Bench:
    """A backend, its crew, and the GPUs that are there: the log knows that they were overwritten,
    unless they are `new` to it or their leases may have left it for later."""

    def __init__(self, directory: Path, *gpus: Gpu, new: bool = False, **settings: Any) -> None:
        self.gpus = list(gpus)
        self.pipes = directory / "mps"
        escapees = settings.pop("escapees", EscapeePolicy.KILL)
        config = GpuConfig(mps_dir=str(self.pipes), **settings)
        self.hardware = HardwareConfig(cgroup_root="leased", escapees=escapees, gpu=config)
        self.crew = GpuCrew(
            list=lambda name, _: Listing("570.86.15", True, tuple(map(listed, self.gpus))),
            examine=lambda name, call: Examined(
                tuple(one for one in self.gpus if listed(one) in call.gpus), ()
            ),
            ready=Readied(RULES, IDLE),
            guard=lambda name, call: Guarded(0, call.mode),
            release=released(),
            scrub=scrubbed(),
            witness=witnessed(),
        )
        self.backend = GpuBackend(self.crew, self.hardware)  # type: ignore[arg-type]
        if not new and not config.scrub_later:
            self.backend.remember(describe(Seen(gpus), config, {}).resources)

    async def start(self, *kept: Lease) -> None:
        await self.backend.survey()
        await self.backend.adopt(kept)
        self.crew.asked.clear()

    async def prepare(self, one: Lease) -> Any:
        return await self.backend.prepare(one, one.subject.allotments, "/leaf", ())

    async def end(self, one: Lease) -> Verdict:
        wiped = await self.backend.scrub(one, one.subject.allotments)
        assert wiped.clean
        return await self.backend.prove(one, one.subject.allotments)

    def of(self, verb: str) -> list[Any]:
        return [argument for _, name, argument in self.crew.asked if name == verb]
