# SPDX-License-Identifier: Apache-2.0
"""Observing: the looks that telemetry takes at the host, its leases and its devices, by workers.

Rule: each source has a worker of its own, apart from those that grant and reclaim and behind them
where the processor is wanted, so that nothing waits for telemetry; a look that does not come back
in time costs its source that look. GPUs are asked one after the other: one that hangs is known by
that, and is not asked again before the worker that hangs on it has gone, and then later each time.
Where the driver's errors are not to be listened to (`listen = false`), the GPUs are let go of after
each round.

Does not keep anything and does not know what the values are for (`service.telemetry`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from leased.hardware.backend import Backend
from leased.hardware.block.names import identity_in
from leased.hardware.crew import Crew
from leased.hardware.gpu.backend import GpuBackend
from leased.hardware.gpu.calls import Gauge
from leased.hardware.gpu.desk import GAUGER
from leased.hardware.readings.carrying import Drives, Host, Leaves, Ports
from leased.hardware.starting import STARTING_NS
from leased.terms.errors import DeviceError
from leased.terms.resource import Resource, ResourceKind
from leased.terms.sample import Readings

WORKER: Final = "telemetry"
DRIVES: Final = "telemetry drives"
PORTS: Final = "telemetry ports"
DRIVES_MAX: Final = 64
PORTS_MAX: Final = 16
GPUS_MAX: Final = 32
"""Of one look. A host that has more of a kind is looked at in turns."""

ASIDE_MAX: Final = 64
"""Looks that a GPU sits out after it hung, doubled each time: at every 10 s, some ten minutes."""


class Observer:
    """`ports.Observer` on the real host."""

    def __init__(
        self,
        crew: Crew,
        backends: Sequence[Backend],
        resources: Callable[[], Iterable[Resource]],
    ) -> None:
        self._crew = crew
        for worker in (WORKER, DRIVES, PORTS):
            crew.defer(worker)
        self._gpus = next(one for one in backends if isinstance(one, GpuBackend))
        self._resources = resources
        self._aside: dict[str, tuple[int, int]] = {}
        self._turn = 0

    async def host(self) -> Readings:
        """The host's counters, and those of the cores that are offered."""
        cores = (
            int(one.resource_id.partition(":")[2])
            for one in self._resources()
            if one.kind is ResourceKind.CPU
        )
        return await self._ask(WORKER, "host", Host(tuple(sorted(cores))))

    async def leaves(self, leaves: Sequence[tuple[str, str]]) -> Readings:
        """What these leaves count, as (what to call it, path)."""
        return await self._ask(WORKER, "leaves", Leaves(tuple(leaves)))

    async def gpus(self) -> Readings:
        """What every GPU does."""
        found: list[Readings] = []
        failed: list[tuple[str, str]] = []
        gauges = self._gpus.gauges()[:GPUS_MAX]
        if gauges:
            await self._crew.stand_ready(GAUGER, "gpu")
        for gauge in gauges:
            if not self._gpus.gauges():
                break  # the driver is let go of meanwhile
            if self._sits_out(gauge.uuid):
                failed.append((gauge.subject, "it hung; it is asked again later"))
                continue
            try:
                found.append(await self._gauge(gauge))
            except DeviceError as error:
                failed.append((gauge.subject, str(error)))
        if not self._gpus.listens:
            self._crew.dismiss(GAUGER)
        return _together(found, failed)

    async def others(self, *, closely: bool) -> Readings:
        """Drives and RDMA ports; `closely`: the drives themselves are asked, too."""
        found: list[Readings] = []
        failed: list[tuple[str, str]] = []
        namespaces = self._namespaces()
        if namespaces:
            try:
                found.append(await self._ask(DRIVES, "drives", Drives(namespaces, closely)))
            except DeviceError as error:
                failed.append(("drives", str(error)))
        if any(one.resource_id.startswith("mem:rdma-") for one in self._resources()):
            try:
                found.append(await self._ask(PORTS, "ports", Ports(PORTS_MAX)))
            except DeviceError as error:
                failed.append(("ports", str(error)))
        return _together(found, failed)

    def gpu_indices(self) -> dict[str, int]:
        """The driver's number of the GPU that each resource is of."""
        return self._gpus.indices()

    # -- parts -------------------------------------------------------------------------------------

    async def _ask(self, worker: str, verb: str, argument: msgspec.Struct) -> Readings:
        if self._crew.is_stuck(worker):
            raise DeviceError(f"telemetry_{verb}", errno.ETIMEDOUT, "an earlier look still hangs")
        return await self._crew.task(
            worker, "readings", verb, argument, Readings, extra_ns=STARTING_NS
        )

    async def _gauge(self, gauge: Gauge) -> Readings:
        try:
            told = await self._crew.task(GAUGER, "gpu", "gauge", gauge, Readings)
        except DeviceError as error:
            if error.errno == errno.ETIMEDOUT:
                _, sat = self._aside.get(gauge.uuid, (0, 0))
                sits = min(max(1, 2 * sat), ASIDE_MAX)
                self._aside[gauge.uuid] = (sits, sits)
            raise
        self._aside.pop(gauge.uuid, None)
        return told

    def _sits_out(self, uuid: str) -> bool:
        left, sat = self._aside.get(uuid, (0, 0))
        if not left:
            return uuid in self._aside and self._crew.is_stuck(GAUGER)
        self._aside[uuid] = (left - 1, sat)
        return True

    def _namespaces(self) -> tuple[tuple[str, str], ...]:
        """Those that this look is at, as (resource, identity)."""
        named = (one.resource_id for one in self._resources() if one.kind is ResourceKind.BLOCK)
        # One that is also offered as it is stands there twice.
        every = list(dict.fromkeys(identity_in(name) for name in named))
        if len(every) > DRIVES_MAX:
            self._turn = (self._turn + DRIVES_MAX) % len(every)
            every = (every[self._turn :] + every[: self._turn])[:DRIVES_MAX]
        return tuple((f"block:{one}", one) for one in every)


def _together(found: Sequence[Readings], failed: Sequence[tuple[str, str]]) -> Readings:
    return Readings(
        max((one.read_ns for one in found), default=0),
        tuple(reading for one in found for reading in one.readings),
        (*(fault for one in found for fault in one.failed), *failed),
    )
