# SPDX-License-Identifier: Apache-2.0
"""The desk: what every dealing with a device needs: its turn, its worker, who may be there.

Rule: one thing at a time happens to a device, and each device has a worker of its own for it, ended
when the thing is done, so that the agent keeps no GPU open. A worker that somebody killed is asked
once more, because every verb may be repeated; one that did not answer hangs in the driver, and
while it does nobody else is sent there.

Does not know what the verbs are for.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
import trio

from leased.hardware.config import EscapeePolicy, HardwareConfig
from leased.hardware.crew import Crew, was_killed
from leased.hardware.gpu.calls import Guests
from leased.hardware.gpu.facts import Target
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S

T = TypeVar("T")
GAUGER = "gpu gauge"
"""The worker that telemetry looks through; it keeps GPUs attached."""

LET_GO_STEP_S = 0.05


class Desk:
    """Turns, workers and guests."""

    def __init__(
        self, crew: Crew, hardware: HardwareConfig, attaching_ns: Callable[[], int]
    ) -> None:
        """`attaching_ns`: how much longer a first answer may take now."""
        self._crew = crew
        self._attaching_ns = attaching_ns
        self.hardware = hardware
        self.config = hardware.gpu
        self._turns: dict[str, trio.Lock] = {}
        self._leaves: dict[str, tuple[str, str]] = {}
        self._asking: dict[str, trio.Lock] = {}

    # -- whose it is -------------------------------------------------------------------------------

    def occupy(self, resource_id: str, target: Target | None, lease: Lease) -> None:
        """The device is the lease's from here on, until `vacate`."""
        leaf = f"/{self.hardware.cgroup_root.strip('/')}/{lease.subject.cgroup}"
        self._leaves[resource_id] = ("" if target is None else target.uuid, leaf)

    def keep(self, resource_id: str, target: Target, lease: Lease) -> None:
        """As `occupy`, for the lease's end. Raises DeviceError(EBUSY): it is another lease's by now
        (an operator lifted the fence), who is not to be ended for this one."""
        if self.leaf_of(resource_id) and not self.holds(resource_id, lease):
            raise DeviceError("gpu_release", errno.EBUSY, f"{resource_id} is another lease's now")
        self.occupy(resource_id, target, lease)

    def vacate(self, resource_id: str, lease: Lease) -> None:
        """The device is nobody's, if it was the lease's."""
        if self.holds(resource_id, lease):
            del self._leaves[resource_id]

    def holds(self, resource_id: str, lease: Lease) -> bool:
        """Whether the device is this lease's."""
        _, leaf = self._leaves.get(resource_id, ("", ""))
        return leaf.endswith(f"/{lease.subject.cgroup}")

    def leaf_of(self, resource_id: str) -> str:
        """The leaf of the lease that has the device, as a path of the v2 tree; "" where none
        has."""
        return self._leaves.get(resource_id, ("", ""))[1]

    def is_occupied(self, resource_id: str) -> bool:
        """Whether a lease has it, or is being ended on it."""
        return resource_id in self._leaves or self._turn(resource_id).locked()

    def guests(self, resource_id: str, target: Target) -> Guests:
        """Who may have the device's nodes besides its lease."""
        neighbours = tuple(
            leaf
            for other, (uuid, leaf) in self._leaves.items()
            if not target.is_whole and other != resource_id and uuid == target.uuid
        )
        return Guests(self._crew.ours(), self.config.guests, neighbours)

    def stop_gauging(self) -> None:
        """Have nothing of the driver open for telemetry."""
        self._crew.dismiss(GAUGER)

    def ours(self) -> tuple[tuple[int, int], ...]:
        """Our own processes."""
        return self._crew.ours()

    @property
    def kills(self) -> bool:
        """Whether escapees are killed."""
        return self.hardware.escapees is EscapeePolicy.KILL

    # -- asking ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, resource_id: str) -> AsyncIterator[None]:
        """Nothing else happens to the device meanwhile."""
        async with self._turn(resource_id):
            yield

    def _turn(self, resource_id: str) -> trio.Lock:
        return self._turns.setdefault(resource_id, trio.Lock())

    async def ask(
        self, worker: str, verb: str, argument: msgspec.Struct, returns: type[T], extra_ns: int = 0
    ) -> T:
        """One verb by a worker that ends with it. Raises DeviceError."""
        asking = self._asking.setdefault(worker, trio.Lock())
        async with asking:
            try:
                return await self._ask(worker, verb, argument, returns, extra_ns)
            finally:
                self._crew.dismiss(worker)
                if not asking.statistics().tasks_waiting:
                    self._asking.pop(worker, None)

    async def _ask(
        self, worker: str, verb: str, argument: msgspec.Struct, returns: type[T], extra_ns: int
    ) -> T:
        if self._crew.is_stuck(worker):
            raise DeviceError(f"gpu_{verb}", errno.ETIMEDOUT, "an earlier call still hangs")
        extra_ns += self._attaching_ns()
        try:
            return await self._crew.task(worker, "gpu", verb, argument, returns, extra_ns=extra_ns)
        except DeviceError as error:
            if not was_killed(error):
                raise
        await self._crew.see_off(worker)
        # The driver lets go of what a killed process had when it has the time, as of a lease's.
        last_s = trio.current_time() + self.config.release_budget_ns / NS_PER_S
        while True:
            try:
                return await self._crew.task(
                    worker, "gpu", verb, argument, returns, extra_ns=extra_ns
                )
            except DeviceError as error:
                if error.errno != errno.EBUSY or trio.current_time() >= last_s:
                    raise
            await trio.sleep(LET_GO_STEP_S)


def worker_of(target: Target) -> str:
    """The worker that opens and closes a device and watches it being let go."""
    return f"gpu {target.name}"


def scrubber_of(target: Target) -> str:
    """The worker that overwrites it: CUDA sees only what was chosen before it was loaded."""
    return f"gpu scrub {target.name}"
