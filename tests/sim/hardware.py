# SPDX-License-Identifier: Apache-2.0
"""Simulated devices that know the truth: which lease occupies which capacity, and whether it is
clean.

Rule: a fake that argues back. Preparing more than a resource has, preparing on units another lease
still occupies, scrubbing what is still being accessed and proving what was never scrubbed are
failures of the run, whatever the agent's table says: this is the auditor's second witness for "no
unit twice".

Does not hold descriptors: memory of a lease lives while a worker or the reaper keeps it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import msgspec
import trio

from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_MS
from leased.terms.resource import Allotment, Inventory, Resource, ResourceKind, TierKind
from leased.terms.teardown import ProofReport, ScrubReport, StepReport, TeardownStep
from tests.sim.clock import SimClock
from tests.sim.faults import Faults

PAGE_BYTES = 1 << 20
"""Large pages, so that some leases are large enough for the slow paths of the agent's tasks."""
MEMORY_BYTES = 64 * PAGE_BYTES
CORE_MILLI = 1000
EVIDENCE = bytes(range(32))
NODES = 2
CORES = 4


def inventory() -> Inventory:
    """Two NUMA nodes of 64 pages and four cores: small, so that tenants fight."""
    memory = tuple(
        Resource(
            f"mem:node{node}:{PAGE_BYTES}",
            ResourceKind.MEM,
            TierKind.DRAM,
            MEMORY_BYTES,
            PAGE_BYTES,
            node,
        )
        for node in range(NODES)
    )
    cores = tuple(
        Resource(f"cpu:{core}", ResourceKind.CPU, None, CORE_MILLI, 1, core % NODES)
        for core in range(CORES)
    )
    return Inventory(memory + cores)


class Occupancy(msgspec.Struct):
    """What one lease physically takes. `dirty` lists what the scrub could not clean and nobody may
    have.
    """

    allotments: tuple[Allotment, ...]
    kept_by_reaper: bool = False
    scrubbed: bool = False
    dirty: tuple[Allotment, ...] = ()


class SimDevices:
    """`ports.Device`. `accessible` says whether the tenant still reaches a lease's hardware (the
    reaper knows).
    """

    def __init__(
        self, clock: SimClock, faults: Faults, accessible: Callable[[LeaseId], bool]
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._accessible = accessible
        self.occupied: dict[LeaseId, Occupancy] = {}
        self.capacity = {one.resource_id: one.capacity for one in inventory().resources}

    # -- truth ------------------------------------------------------------------------------------

    def occupy(self, lease: Lease) -> None:
        """The lease takes its units, now. Fails the run if they are not free."""
        assert lease.lease_id not in self.occupied, "prepared twice"
        self.occupied[lease.lease_id] = Occupancy(lease.subject.allotments)
        taken: dict[str, int] = {}
        for one in self.occupied.values():
            for allotment in one.dirty or one.allotments:
                used = taken.get(allotment.resource_id, 0) + allotment.capacity
                taken[allotment.resource_id] = used
        for resource_id, used in taken.items():
            most = self.capacity[resource_id]
            assert used <= most, f"{resource_id}: {used} of {most} occupied at once"

    def vacate(self, lease_id: LeaseId) -> None:
        """Nothing of the lease is left."""
        self.occupied.pop(lease_id, None)

    def agent_died(self) -> None:
        """The workers are gone, and with them every memfd that the reaper does not hold."""
        for lease_id, one in list(self.occupied.items()):
            if not one.kept_by_reaper and not one.dirty:
                del self.occupied[lease_id]

    def rebooted(self) -> None:
        """Memory forgets; what was dirty for want of a driver works again."""
        self.occupied.clear()

    def repair(self, lease_id: LeaseId) -> None:
        """What an operator does before unfencing."""
        self.occupied.pop(lease_id, None)

    # -- the port ---------------------------------------------------------------------------------

    async def inventory(self) -> Inventory:
        return inventory()

    async def prepare_many(self, leases: Sequence[Lease]) -> list[Prepared | DeviceError]:
        outcomes: list[Prepared | DeviceError] = []
        for lease in leases:
            await self._take("slow prepare")
            if self._faults.strikes("prepare fails", 25):
                outcomes.append(DeviceError("mem_create", errno.ENOMEM))
                continue
            self.occupy(lease)
            if self._faults.strikes("prepare fails late", 15):
                # The worker died after it had the pages; the kernel takes them back with it.
                self.vacate(lease.lease_id)
                outcomes.append(DeviceError("worker", errno.ETIMEDOUT))
                continue
            outcomes.append(Prepared((), "", EVIDENCE))
        return outcomes

    async def scrub_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ScrubReport | DeviceError]:
        outcomes: list[ScrubReport | DeviceError] = []
        for lease, _ in leases:
            began_ns = self._clock.now().boot_ns
            assert not self._accessible(lease.lease_id), "scrubbed under its holder's hands"
            await self._take("slow scrub")
            if self._faults.strikes("scrub fails", 10):
                outcomes.append(DeviceError("mem_scrub", errno.EIO))
                continue
            clean = not self._faults.strikes("scrub leaves residue", 10)
            occupancy = self.occupied.get(lease.lease_id)
            if occupancy is not None and clean:
                occupancy.scrubbed = True
            if self._faults.strikes("scrub answer lost", 5):
                outcomes.append(DeviceError("worker", errno.ETIMEDOUT))
                continue
            now_ns = self._clock.now().boot_ns
            step = StepReport(TeardownStep.SCRUB, 0 if clean else errno.EIO, began_ns, now_ns, 1)
            outcomes.append(ScrubReport(lease.lease_id, now_ns, _bytes_of(lease), clean, (step,)))
        return outcomes

    async def prove_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ProofReport | DeviceError]:
        outcomes: list[ProofReport | DeviceError] = []
        for lease, _ in leases:
            began_ns = self._clock.now().boot_ns
            await self._take("slow proof")
            if self._faults.strikes("proof fails", 8):
                outcomes.append(DeviceError("mem_blocks", errno.ETIMEDOUT))
                continue
            unproven = self._unproven(lease)
            occupancy = self.occupied.get(lease.lease_id)
            if occupancy is not None:
                occupancy.dirty = unproven
                if not unproven:
                    self.vacate(lease.lease_id)
            if self._faults.strikes("proof answer lost", 5):
                outcomes.append(DeviceError("worker", errno.ETIMEDOUT))
                continue
            now_ns = self._clock.now().boot_ns
            step = StepReport(TeardownStep.COUNTERS, 0, began_ns, now_ns, len(unproven))
            outcomes.append(ProofReport(lease.lease_id, now_ns, unproven, (step,)))
        return outcomes

    def _unproven(self, lease: Lease) -> tuple[Allotment, ...]:
        """What the counters do not bring back: everything that was not scrubbed, and now and then a
        page.
        """
        occupancy = self.occupied.get(lease.lease_id)
        if occupancy is None:
            return ()
        if not occupancy.scrubbed:
            return lease.subject.allotments
        if not self._faults.strikes("partly unproven", 15):
            return ()
        allotments = lease.subject.allotments
        stuck = allotments[self._faults.pick(len(allotments))]
        granule = PAGE_BYTES if stuck.kind is ResourceKind.MEM else stuck.capacity
        part = granule * (1 + self._faults.pick(stuck.capacity // granule))
        return (msgspec.structs.replace(stuck, capacity=part),)

    async def _take(self, slow: str) -> None:
        await trio.sleep(self._faults.latency_s(20_000, 2 * NS_PER_MS, slow=slow))


def _bytes_of(lease: Lease) -> int:
    return sum(a.capacity for a in lease.subject.allotments if a.kind is ResourceKind.MEM)
