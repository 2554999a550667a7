# SPDX-License-Identifier: Apache-2.0
"""Places: MIG devices that are made for a lease and destroyed after it, where the layout is ours.

Destroying the GPU instance is the cleanest boundary there is: its memory, and with it whatever page
tables it had, go back to the GPU, and the next tenant's instance is another one: over memory that
is overwritten where it is not known to be clean (`reclaiming`).

Rule: what could not be destroyed fences its place and nothing else of the GPU; whoever gets the
place next destroys what is left there first. That it is gone is said by a worker that did not
destroy it.

Does not know leases.
"""

from __future__ import annotations

import errno

from leased.hardware.failure import failed_step
from leased.hardware.gpu import calls, verdict
from leased.hardware.gpu.desk import Desk, worker_of
from leased.hardware.gpu.facts import Target
from leased.hardware.gpu.fleet import Fleet
from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep


class Places:
    """Makes and destroys instances."""

    def __init__(self, desk: Desk, fleet: Fleet) -> None:
        self._desk = desk
        self._fleet = fleet

    async def make(self, resource_id: str, target: Target) -> Target:
        """The target with its own new instance. Raises DeviceError."""
        budget_ns = self._desk.config.mig_budget_ns
        call = calls.Make(target, budget_ns)
        made = await self._desk.ask(
            worker_of(target), "make", call, calls.Made, extra_ns=2 * budget_ns
        )
        return self._fleet.place(resource_id, made.instance)

    async def unmake(
        self, resource_id: str, target: Target, *, halves: bool = False
    ) -> StepReport:
        """How the instance's destruction went; `halves`: where no MIG device was seen."""
        began_ns = now_ns()
        budget_ns = self._desk.config.mig_budget_ns
        call = calls.Remove(target, budget_ns, halves)
        try:
            await self._desk.ask(
                worker_of(target), "unmake", call, calls.Nothing, extra_ns=budget_ns
            )
        except DeviceError as error:
            return failed_step(TeardownStep.OBJECT_REVOKE, error, began_ns)
        self._fleet.place(resource_id, None)
        return StepReport(TeardownStep.OBJECT_REVOKE, 0, began_ns, now_ns())

    async def witness(self, target: Target) -> tuple[tuple[StepReport, ...], calls.Absent | None]:
        """Whether it is gone, by somebody else's word; the GPU's condition with it."""
        began_ns = now_ns()
        try:
            seen = await self._desk.ask(
                worker_of(target), "absent", calls.Remove(target), calls.Absent
            )
        except DeviceError as error:
            return (failed_step(TeardownStep.WITNESS, error, began_ns),), None
        failed = errno.EBUSY if seen.left or not seen.room else 0
        step = StepReport(TeardownStep.WITNESS, failed, seen.began_ns, seen.ended_ns, seen.left)
        return (step,), seen


def health_step(
    seen: calls.Absent, xids: tuple[int, ...], *, heard_all: bool, lacking: tuple[str, ...]
) -> StepReport:
    """Whether the GPU is fit for the next tenant of the place."""
    failed, measured = verdict.judge_health(seen.condition, xids, heard_all, lacking)
    return StepReport(TeardownStep.HEALTH, failed, seen.began_ns, seen.ended_ns, measured)
