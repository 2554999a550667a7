# SPDX-License-Identifier: Apache-2.0
"""A fake Reaper on any Clock: holds leases in a dictionary and cuts them when `run` sees their
deadline.

Rule: it argues back as the C reaper does: an older generation is ESTALE, the same generation with
another deadline EINVAL, anything about a lease whose deadline has passed ETIME, a deadline beyond
the horizon ERANGE; late renewals lose; a cut, once begun, goes on. Errors can be ordered for one
lease, and a cut can be made to take long or to end unclean.

Does not touch a process: `cut` tells the test what would have been killed.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
import trio

from leased.ports import Arming, Clock, Revocable
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.moment import NS_PER_S
from leased.terms.teardown import CutReport, StepReport, TeardownStep

HORIZON_NS = 31 * 86_400 * NS_PER_S
KILL_NS = 5 * NS_PER_S


class Slot(msgspec.Struct):
    """One lease as the fake holds it."""

    generation: int
    deadline_ns: int
    cgroup: str
    fds: tuple[int, ...]
    pidfd: int | None
    objects: tuple[Revocable, ...] = ()
    cutting: bool = False
    spared: bool = False
    forget: bool = False
    cut: CutReport | None = None


class FakeReaper:
    """`ports.Reaper`, and the knobs a test turns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.slots: dict[LeaseId, Slot] = {}
        self.arm_errors: dict[LeaseId, int] = {}
        self.object_errors: dict[LeaseId, int] = {}
        self.cut_takes_ns: dict[LeaseId, int] = {}
        self.calls: list[tuple[str, int]] = []
        self.board = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Cut whatever is due, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                changed = self._changed
                first_ns = self._cut_due()
                with trio.CancelScope() as until_changed:
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(_then_cancel, changed.wait, until_changed)
                        if first_ns is not None:
                            await self._clock.sleep_until(first_ns)
                            until_changed.cancel()

    # -- the port ---------------------------------------------------------------------------------

    async def arm_many(self, leases: Sequence[Arming]) -> list[DeviceError | None]:
        """As the port says."""
        await self._asked("arm", len(leases))
        outcomes: list[DeviceError | None] = []
        for arming in leases:
            status = self._arm(arming)
            outcomes.append(DeviceError("arm", status) if status else None)
        self._wake()
        return outcomes

    async def renew_many(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool]:
        """As the port says."""
        await self._asked("renew", len(moves))
        outcomes = [self._renew(*move) == 0 for move in moves]
        self._wake()
        return outcomes

    def renew_ahead(self, moves: Sequence[tuple[LeaseId, int, int]]) -> None:
        """Lost on its way: `renew_many` is what counts."""
        self.calls.append(("renew ahead", len(moves)))

    def renew_at_once(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool] | None:
        """As the link does it; without a `board`, not at all."""
        if not self.board:
            return None
        self.calls.append(("renew on board", len(moves)))
        outcomes = [self._renew(*move) == 0 for move in moves]
        self._wake()
        return outcomes

    async def revoke_many(
        self, lease_ids: Sequence[LeaseId], *, spare: Collection[LeaseId] = ()
    ) -> list[CutReport | DeviceError]:
        """As the port says."""
        await self._asked("revoke", len(lease_ids))
        for lease_id in lease_ids:
            slot = self.slots.get(lease_id)
            if slot is not None and not slot.cutting:
                overdue = slot.deadline_ns <= self._now()
                slot.spared = lease_id in spare and not overdue
                self._begin(lease_id, slot, by_reaper=overdue)
        reports: list[CutReport | DeviceError] = []
        for lease_id in lease_ids:
            slot = self.slots.get(lease_id)
            while slot is not None and slot.cut is None:
                await self._changed.wait()
            nothing = CutReport(lease_id, self._now(), by_reaper=False, clean=True, steps=())
            reports.append(nothing if slot is None or slot.cut is None else slot.cut)
        return reports

    async def disarm_many(self, lease_ids: Sequence[LeaseId]) -> None:
        """As the port says."""
        await self._asked("disarm", len(lease_ids))
        for lease_id in lease_ids:
            slot = self.slots.get(lease_id)
            if slot is not None and slot.cut is None:
                slot.forget = True
                if not slot.cutting:
                    self._begin(lease_id, slot, by_reaper=False)
            elif slot is not None:
                del self.slots[lease_id]

    # -- inside -----------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._clock.now().boot_ns

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _asked(self, verb: str, leases: int) -> None:
        self.calls.append((verb, leases))
        await trio.lowlevel.checkpoint()

    def _arm(self, arming: Arming) -> int:
        lease, cgroup, fds, pidfd, objects = arming
        if lease.lease_id in self.arm_errors:
            return self.arm_errors[lease.lease_id]
        if lease.deadline_ns > self._now() + HORIZON_NS:
            return errno.ERANGE
        slot = self.slots.get(lease.lease_id)
        if slot is None:
            self.slots[lease.lease_id] = Slot(
                lease.generation, lease.deadline_ns, cgroup, fds, pidfd, objects
            )
            return 0
        status = self._move(slot, lease.generation, lease.deadline_ns)
        if status == 0:
            slot.cgroup = slot.cgroup or cgroup
            slot.fds = tuple(dict.fromkeys((*slot.fds, *fds)))
            slot.pidfd = pidfd if slot.pidfd is None else slot.pidfd
            slot.objects = tuple(dict.fromkeys((*slot.objects, *objects)))
        return status

    def _renew(self, lease_id: LeaseId, generation: int, deadline_ns: int) -> int:
        slot = self.slots.get(lease_id)
        if slot is None:
            return errno.ENOENT
        if deadline_ns > self._now() + HORIZON_NS:
            return errno.ERANGE
        status = self._move(slot, generation, deadline_ns)
        if status == errno.EINVAL:
            return errno.ESTALE
        if status == errno.ESTALE:  # overtaken by a later one, and not late
            return 0
        return status or (errno.ETIME if deadline_ns <= self._now() else 0)

    def _move(self, slot: Slot, generation: int, deadline_ns: int) -> int:
        if slot.cutting or slot.deadline_ns <= self._now():
            return errno.ETIME
        if generation < slot.generation:
            return errno.ESTALE
        if generation == slot.generation and deadline_ns != slot.deadline_ns:
            return errno.ESTALE if deadline_ns < slot.deadline_ns else errno.EINVAL
        slot.generation, slot.deadline_ns = generation, deadline_ns
        return 0

    def _cut_due(self) -> int | None:
        """Begin every cut that is due; the next deadline after them."""
        ahead: list[int] = []
        for lease_id, slot in self.slots.items():
            if slot.cutting:
                continue
            if slot.deadline_ns <= self._now():
                self._begin(lease_id, slot, by_reaper=True)
            else:
                ahead.append(slot.deadline_ns)
        return min(ahead, default=None)

    def _begin(self, lease_id: LeaseId, slot: Slot, *, by_reaper: bool) -> None:
        assert self._nursery is not None, "the fake must be running before a lease can end"
        slot.cutting = True
        self._nursery.start_soon(self._cut, lease_id, slot, by_reaper)

    async def _cut(self, lease_id: LeaseId, slot: Slot, by_reaper: bool) -> None:
        began_ns = self._now()
        takes_ns = self.cut_takes_ns.get(lease_id, 0)
        clean = takes_ns < KILL_NS
        await self._clock.sleep_until(began_ns + min(takes_ns, KILL_NS))
        status = 0 if clean else errno.ETIMEDOUT
        gone = bool(slot.cgroup) + (slot.pidfd is not None and not slot.spared)
        kill = StepReport(TeardownStep.KILL, status, began_ns, self._now(), gone)
        steps = (kill,)
        if slot.objects:
            revoked = self.object_errors.get(lease_id, 0)
            clean = clean and not revoked
            count = 0 if revoked else len(slot.objects)
            step = TeardownStep.OBJECT_REVOKE
            steps = (StepReport(step, revoked, began_ns, self._now(), count), kill)
        slot.cut = CutReport(lease_id, self._now(), by_reaper, clean, steps)
        if slot.forget and clean:
            del self.slots[lease_id]
        self._wake()


async def _then_cancel(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
