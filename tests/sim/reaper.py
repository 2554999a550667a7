# SPDX-License-Identifier: Apache-2.0
"""The simulated reaper: cuts on its own clock, whether or not an agent is there, and dies and comes
back itself.

Rule: state survives its own death (the mmap'd file), not a reboot. A deadline that passed while it
was dead is cut the moment it is back. If nobody disarms within the backstop it overwrites and gives
back by itself. Every deadline it is told and every cut it makes is kept for the auditor.

Does not trust the agent: arming twice with another generation's deadline, or after a cut, is
answered as the C reaper answers it.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence

import msgspec
import trio

from leased.ports import Arming
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.teardown import CutReport, StepReport, TeardownStep
from tests.sim.clock import SimClock
from tests.sim.faults import Faults
from tests.sim.hardware import SimDevices

BACKSTOP_NS = 2 * NS_PER_S
ANSWER_S = 2.0
CUT_S = 10.0


class ArmedLease(msgspec.Struct):
    """One slot of the reaper. Times are of the boot it was armed in."""

    generation: int
    deadline_ns: int
    cutting: bool = False
    stuck: bool = False
    forget: bool = False
    cut: CutReport | None = None


class Told(msgspec.Struct, frozen=True):
    """For the auditor: the reaper was told of a deadline at a true time."""

    true_ns: int
    boot_id: bytes
    boot_ns: int
    lease_id: LeaseId
    generation: int
    deadline_ns: int


class Cut(msgspec.Struct, frozen=True):
    """For the auditor: when access really ended, and whether the deadline did it. `late_ns` counts
    what the reaper's own death cost.
    """

    true_ns: int
    boot_id: bytes
    boot_ns: int
    lease_id: LeaseId
    by_deadline: bool
    down_ns: int


class SimReaper:
    """`ports.Reaper`."""

    def __init__(self, clock: SimClock, faults: Faults) -> None:
        self._clock = clock
        self._faults = faults
        self.devices: SimDevices | None = None
        self.slots: dict[LeaseId, ArmedLease] = {}
        self.told: list[Told] = []
        self.cuts: list[Cut] = []
        self._forgotten: list[LeaseId] = []
        self.down_ns = 0
        self._down_since: int | None = None
        self._up = trio.Event()
        self._up.set()
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None

    # -- truth ------------------------------------------------------------------------------------

    def accessible(self, lease_id: LeaseId) -> bool:
        """Whether the tenant reaches the lease's hardware."""
        slot = self.slots.get(lease_id)
        return slot is not None and slot.cut is None

    def rebooted(self) -> None:
        """Nothing of the old boot is left, and with it no holder."""
        for lease_id, slot in self.slots.items():
            if slot.cut is None:
                self._note_cut(lease_id, by_deadline=False)
        self.slots.clear()
        self._forgotten.clear()
        self._wake()

    def die(self) -> None:
        """Killed. Its file stays."""
        if self._up.is_set():
            self._up = trio.Event()
            self._down_since = self._clock.true_ns()
            for slot in self.slots.values():
                slot.cutting = False

    def come_back(self) -> None:
        """Started again by systemd."""
        if self._down_since is not None:
            self.down_ns += self._clock.true_ns() - self._down_since
            self._down_since = None
            self._up.set()
            forgotten, self._forgotten = self._forgotten, []
            self._disarm(forgotten)

    def suspended(self, asleep_ns: int) -> None:
        """The host slept for so long, and whatever was due meanwhile is cut now."""
        self.down_ns += asleep_ns
        self._wake()

    async def reached(self) -> None:
        """Return when it is up."""
        await self._up.wait()

    async def run(self) -> None:
        """Cut what is due, for ever."""
        async with trio.open_nursery() as self._nursery:
            while True:
                await self._up.wait()
                now_ns = self._clock.now().boot_ns
                ahead: list[int] = []
                for lease_id, slot in self.slots.items():
                    if slot.cut is not None or slot.cutting:
                        continue
                    if slot.deadline_ns <= now_ns:
                        self._begin_cut(lease_id, slot, by_deadline=True)
                    else:
                        ahead.append(slot.deadline_ns)
                changed = self._changed
                with trio.CancelScope() as sleeping:
                    if ahead:
                        sleeping.deadline = self._clock.true_of(min(ahead)) / NS_PER_S
                    await changed.wait()

    def _begin_cut(self, lease_id: LeaseId, slot: ArmedLease, *, by_deadline: bool) -> None:
        assert self._nursery is not None, "the reaper is asked before it runs"
        slot.cutting = True
        self._nursery.start_soon(self._cut, lease_id, slot, by_deadline)

    def _wake(self) -> None:
        """Something changed: whoever waits looks again."""
        self._changed.set()
        self._changed = trio.Event()

    async def _cut(self, lease_id: LeaseId, slot: ArmedLease, by_deadline: bool) -> None:
        """Its own task: an agent that dies while it waits for the report changes nothing."""
        began_ns = self._clock.now().boot_ns
        boot_id = self._clock.boot_id
        await trio.sleep(self._faults.latency_s(50_000, 3 * NS_PER_MS))
        if not self._up.is_set() or self._clock.boot_id != boot_id or slot.cut is not None:
            return
        now_ns = self._clock.now().boot_ns
        step = StepReport(TeardownStep.KILL, 0, began_ns, now_ns, 1)
        slot.cut = CutReport(lease_id, now_ns, by_deadline, True, (step,))
        self._note_cut(lease_id, by_deadline=by_deadline)
        if slot.forget:
            del self.slots[lease_id]
        self._wake()
        await trio.sleep(BACKSTOP_NS / NS_PER_S)
        if self._clock.boot_id == boot_id and self.slots.get(lease_id) is slot:
            assert self.devices is not None
            occupancy = self.devices.occupied.get(lease_id)
            if occupancy is not None:
                occupancy.scrubbed = True

    def _note_cut(self, lease_id: LeaseId, *, by_deadline: bool) -> None:
        now = self._clock.now()
        down_ns = self.down_ns
        self.cuts.append(
            Cut(self._clock.true_ns(), now.boot_id, now.boot_ns, lease_id, by_deadline, down_ns)
        )

    # -- the port ---------------------------------------------------------------------------------

    async def arm_many(self, leases: Sequence[Arming]) -> list[DeviceError | None]:
        if not await self._reached():
            return [DeviceError("arm", errno.ETIMEDOUT) for _ in leases]
        outcomes: list[DeviceError | None] = []
        for lease, *_ in leases:
            if self._faults.strikes("arm fails", 8):
                status = errno.ENOSPC
            else:
                status = self._arm(lease)
                if self._faults.strikes("arm answer lost", 5):
                    status = errno.ETIMEDOUT
            outcomes.append(DeviceError("arm", status) if status else None)
        self._wake()
        return outcomes

    def _arm(self, lease: Lease) -> int:
        """As the C reaper: what is armed already is a renewal, or late, or overtaken."""
        lease_id, slot = lease.lease_id, self.slots.get(lease.lease_id)
        generation, deadline_ns = lease.generation, lease.deadline_ns
        if slot is None:
            self.slots[lease_id] = ArmedLease(generation, deadline_ns)
            self._note_told(lease_id, generation, deadline_ns)
            assert self.devices is not None
            occupancy = self.devices.occupied.get(lease_id)
            if occupancy is not None:
                occupancy.kept_by_reaper = True
            return 0
        if slot.cut is not None or slot.cutting or slot.deadline_ns <= self._now_ns():
            return errno.ETIME
        if generation < slot.generation:
            return errno.ESTALE
        if generation == slot.generation and deadline_ns != slot.deadline_ns:
            return errno.ESTALE if deadline_ns < slot.deadline_ns else errno.EINVAL
        self._move(lease_id, slot, generation, deadline_ns)
        return 0

    async def renew_many(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool]:
        if not await self._reached():
            raise DeviceError("renew", errno.ETIMEDOUT)
        outcomes = self._renew(moves)
        if self._faults.strikes("renew answer lost", 20):
            raise DeviceError("renew", errno.ETIMEDOUT)
        return outcomes

    def renew_ahead(self, moves: Sequence[tuple[LeaseId, int, int]]) -> None:
        """Sent before the agent's next turn, or lost on its way: `renew_many` is what counts."""
        if self._up.is_set() and not self._faults.strikes("ahead lost", 300):
            self._renew(moves)

    def renew_at_once(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool] | None:
        """On the board, which is there as long as the reaper is."""
        if not self._up.is_set() or self._faults.strikes("no board", 50):
            return None
        return self._renew(moves)

    def _renew(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool]:
        now_ns = self._clock.now().boot_ns
        outcomes: list[bool] = []
        for lease_id, generation, deadline_ns in moves:
            slot = self.slots.get(lease_id)
            late = slot is None or slot.cut is not None or slot.cutting
            if slot is None or late or slot.deadline_ns <= now_ns:
                outcomes.append(False)
            elif (generation, deadline_ns) == (slot.generation, slot.deadline_ns):
                outcomes.append(True)  # asked again because the answer was lost
            elif generation <= slot.generation:
                outcomes.append(generation < slot.generation)  # overtaken
            else:
                self._move(lease_id, slot, generation, deadline_ns)
                outcomes.append(deadline_ns > now_ns)
        self._wake()
        return outcomes

    async def revoke_many(
        self, lease_ids: Sequence[LeaseId], *, spare: Collection[LeaseId] = ()
    ) -> list[CutReport | DeviceError]:
        outcomes: list[CutReport | DeviceError] = []
        with trio.move_on_after(CUT_S):
            await self._reached(CUT_S)
            for lease_id in lease_ids:
                cut = await self._revoke(lease_id)
                lost = self._faults.strikes("revoke answer lost", 5)
                outcomes.append(DeviceError("revoke", errno.ETIMEDOUT) if lost else cut)
        missing = len(lease_ids) - len(outcomes)
        return outcomes + [DeviceError("revoke", errno.ETIMEDOUT) for _ in range(missing)]

    async def _revoke(self, lease_id: LeaseId) -> CutReport:
        while True:
            await self._up.wait()
            slot = self.slots.get(lease_id)
            if slot is None:
                return CutReport(lease_id, self._clock.now().boot_ns, False, True, ())
            if slot.cut is not None:
                dirty = self._faults.strikes("cut not clean", 8)
                return msgspec.structs.replace(slot.cut, clean=False) if dirty else slot.cut
            changed = self._changed
            if not slot.cutting:
                self._begin_cut(lease_id, slot, by_deadline=slot.deadline_ns <= self._now_ns())
            await changed.wait()

    async def disarm_many(self, lease_ids: Sequence[LeaseId]) -> None:
        if await self._reached():
            self._disarm(lease_ids)
        else:
            self._forgotten += lease_ids

    def _disarm(self, lease_ids: Sequence[LeaseId]) -> None:
        for lease_id in lease_ids:
            slot = self.slots.get(lease_id)
            if slot is None:
                continue
            if slot.cut is not None:
                del self.slots[lease_id]
                continue
            # As the C reaper does it: nobody is let go with somebody inside.
            slot.forget = True
            if not slot.cutting:
                self._begin_cut(lease_id, slot, by_deadline=False)
        self._wake()

    # -- inside -----------------------------------------------------------------------------------

    async def _reached(self, patience_s: float = ANSWER_S) -> bool:
        """One trip over the link; False if the reaper did not answer in time."""
        await trio.sleep(self._faults.latency_s(10_000, NS_PER_MS))
        with trio.move_on_after(patience_s):
            await self._up.wait()
            return True
        return False

    def _now_ns(self) -> int:
        return self._clock.now().boot_ns

    def _move(self, lease_id: LeaseId, slot: ArmedLease, generation: int, deadline_ns: int) -> None:
        slot.generation = generation
        slot.deadline_ns = deadline_ns
        self._note_told(lease_id, generation, deadline_ns)

    def _note_told(self, lease_id: LeaseId, generation: int, deadline_ns: int) -> None:
        now = self._clock.now()
        self.told.append(
            Told(self._clock.true_ns(), now.boot_id, now.boot_ns, lease_id, generation, deadline_ns)
        )
