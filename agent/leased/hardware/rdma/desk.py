# SPDX-License-Identifier: Apache-2.0
"""The desk: who is asked about a device, and the questions that have no part in what follows.

Rule: a device has a worker as far as they go round, and keeps it whatever comes and goes beside it:
owners answer in microseconds, but one whose driver hangs takes all the time there is. Its probers
live in a worker of their own, for as long as leases do.

Does not decide anything.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.instant import now_ns
from leased.hardware.rdma import calls
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.teardown import StepReport, TeardownStep

WORKERS_MAX: Final = 8
PROBERS: Final = "probers "
_T = TypeVar("_T")


class Desk:
    """The RDMA backend's workers."""

    def __init__(self, crew: Crew, config: HardwareConfig) -> None:
        self._crew = crew
        self._config = config
        self._numbers: dict[str, int] = {}

    @property
    def patience_ns(self) -> int:
        """How long a worker waits for an owner: less than we wait for the worker."""
        return self._config.call_budget_ns * 3 // 4

    def worker(self, guid: str, what: str = "") -> str:
        """The device's worker."""
        number = self._numbers.setdefault(guid, len(self._numbers) % WORKERS_MAX)
        return f"rdma {what}{number}"

    async def stand_ready(self, guid: str) -> None:
        """Have the device's worker there. Raises DeviceError."""
        await self._crew.stand_ready(self.worker(guid), "rdma")

    async def ask(
        self, guid: str, verb: str, asked: msgspec.Struct, returns: type[_T], what: str = ""
    ) -> _T:
        """One verb by the device's worker. Raises DeviceError."""
        return await self._crew.task(self.worker(guid, what), "rdma", verb, asked, returns)

    async def ask_again(
        self,
        guid: str,
        verb: str,
        asked: msgspec.Struct,
        returns: type[_T],
        what: str = "",
        *,
        extra_ns: int = 0,
    ) -> _T:
        """As `ask`, for a verb that may be repeated. Raises DeviceError."""
        worker = self.worker(guid, what)
        return await self._crew.task_again(
            worker, "rdma", verb, asked, returns, extra_ns=extra_ns
        )

    # -- the second proof --------------------------------------------------------------------------

    async def watch(self, lease: Lease, leaf: str, guid: str) -> None:
        """Have a prober read the lease's memory, if there are probers. Raises DeviceError."""
        rdma = self._config.rdma
        if rdma.prober:
            room = calls.Room(leaf, guid, self.patience_ns)
            asked = calls.Watch(room, rdma.program, lease.lease_id.hex(), rdma.prober)
            await self.ask(guid, "watch", asked, calls.Nothing, PROBERS)

    async def probe(self, lease: Lease, guid: str) -> list[StepReport]:
        """Let it read once more, which must fail now; nothing where there is none, or it has ended
        with its worker. Raises DeviceError."""
        if not self._config.rdma.prober:
            return []
        began_ns = now_ns()
        asked = calls.Probe(lease.lease_id.hex(), guid)
        probed = await self.ask_again(guid, "probe", asked, calls.Probed, PROBERS)
        if not probed.ran:
            return []
        failed = 0 if probed.status else errno.EBUSY
        return [StepReport(TeardownStep.WITNESS, failed, began_ns, now_ns(), probed.status)]

    async def unwatch(self, lease: Lease, guid: str) -> None:
        """End it. A worker that does not answer is ended, and its probers with it."""
        if self._config.rdma.prober:
            asked = calls.Probe(lease.lease_id.hex(), guid)
            with suppress(DeviceError):
                await self.ask(guid, "unwatch", asked, calls.Nothing, PROBERS)
