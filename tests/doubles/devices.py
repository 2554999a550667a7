# SPDX-License-Identifier: Apache-2.0
"""Fake devices that argue back: real (sparse) memfds, an invented inventory, strict bookkeeping.

Rule: what the real hardware could not survive is an AssertionError here: capacity granted twice, a
lease prepared twice, memory scrubbed that is still in use, a proof before its scrub. Faults come in
pairs: `Fault(error, applied=False)` failed, `applied=True` failed only to say that it worked.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
import trio

from leased.hardware.pieces import memory_pieces
from leased.ports import Access, Holder, Prepared
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, RevocationReason
from leased.terms.resource import Absence, Allotment, Inventory, Resource, ResourceKind, TierKind
from leased.terms.teardown import ProofReport, ScrubReport, StepReport, TeardownStep
from tests.doubles.adoptions import FakeAdoptions

SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NOTHING_HELD = (RevocationReason.GRANT_FAILED, RevocationReason.NODE_REBOOT)


def _holds_nothing(lease: Lease) -> bool:
    """As the real ones: nothing was made, or it ended with its boot."""
    return not lease.activated or lease.reason in _NOTHING_HELD


class Fault(NamedTuple):
    """What goes wrong with one call for one lease."""

    error: DeviceError
    applied: bool = False


def small_inventory(pages: int = 1024) -> Inventory:
    """One DRAM pool of normal pages, and why there is nothing else."""
    pool = Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, pages * 4096, 4096, node=0)
    kinds = (ResourceKind.BLOCK, ResourceKind.NET, ResourceKind.GPU, ResourceKind.CPU)
    return Inventory((pool,), tuple(Absence(kind, "not in this fake") for kind in kinds))


class FakeDevices:
    """`ports.Device` and what `hardware.devices.Devices` has beside it.

    `fault(verb, lease)` may return a Fault for "prepare", "access", "scrub" or "prove".
    `in_use(lease_id)` says whether the tenant still has access; scrubbing then is our bug. `told`
    is, by resource, what a holder must know.
    """

    def __init__(self, inventory: Inventory | None = None) -> None:
        self.offered = inventory or small_inventory()
        self.fault: Callable[[str, Lease], Fault | None] = lambda verb, lease: None
        self.in_use: Callable[[LeaseId], bool] = lambda lease_id: False
        self.held: dict[LeaseId, tuple[Allotment, ...]] = {}
        self.pinned: dict[LeaseId, tuple[Allotment, ...]] = {}
        self.leaves: dict[LeaseId, str] = {}
        self.joined: list[tuple[LeaseId, int]] = []
        self.told: dict[str, tuple[Access, ...]] = {}
        self.calls: list[tuple[str, tuple[LeaseId, ...]]] = []
        self.adoptions = FakeAdoptions()
        self.detached: dict[ResourceKind, tuple[Holder, ...]] = {}
        self.driver_users: tuple[Holder, ...] = ()
        self.looks = 0
        self._scrubbed: set[LeaseId] = set()
        self._closed = False

    # -- the port ----------------------------------------------------------------------------------

    async def inventory(self) -> Inventory:
        """What the test offers."""
        await self._enter("inventory", ())
        return self.offered

    async def prepare_many(self, leases: Sequence[Lease]) -> list[Prepared | DeviceError]:
        """Make sparse memfds, or fail as told."""
        await self._enter("prepare", leases)
        return [await self._adopt(lease, self._prepare(lease)) for lease in leases]

    async def scrub_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ScrubReport | DeviceError]:
        """Truncate, or fail as told."""
        await self._enter("scrub", [lease for lease, _ in leases])
        for lease, _ in leases:
            if lease.reason is RevocationReason.GRANT_FAILED:
                await self.adoptions.put_back(lease.lease_id)
        return [self._scrub(lease, fds) for lease, fds in leases]

    async def prove_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ProofReport | DeviceError]:
        """Look at the memfds and at what the test pinned."""
        await self._enter("prove", [lease for lease, _ in leases])
        return [self._prove(lease, fds) for lease, fds in leases]

    # -- beside the port ---------------------------------------------------------------------------

    def handout(self, lease: Lease, fds: Sequence[int]) -> list[tuple[str, int]]:
        """Opened anew, as the real ones."""
        assert lease.lease_id not in self._scrubbed, "handed out after its scrub"
        opened = [os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC) for fd in fds]
        ids = [piece.allotment.resource_id for piece in memory_pieces(lease)]
        return list(zip(ids, opened, strict=True))

    async def access(self, lease: Lease) -> tuple[Access, ...]:
        """What the test says (`told`), or fails as told."""
        await self._enter("access", [lease])
        assert lease.lease_id in self.held, "asked for a lease that was never prepared"
        fault = self.fault("access", lease)
        if fault is not None:
            raise fault.error
        return self._told(lease)

    def _told(self, lease: Lease) -> tuple[Access, ...]:
        ids = (allotment.resource_id for allotment in lease.subject.allotments)
        return tuple(access for one in ids for access in self.told.get(one, ()))

    async def let_go(self, kind: ResourceKind) -> tuple[Holder, ...]:
        """Whom the test put there (`driver_users`)."""
        await trio.lowlevel.checkpoint()
        held = [a.kind for allotments in self.held.values() for a in allotments]
        assert kind not in held, "let go under a lease"
        self.detached[kind] = self.driver_users
        return self.driver_users

    async def take_up(self, kind: ResourceKind) -> None:
        """Use it again."""
        await trio.lowlevel.checkpoint()
        self.detached.pop(kind, None)

    def exempt(self, pid: int) -> None:
        """Nobody is searched for here."""

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Count what an earlier run granted."""
        await trio.lowlevel.checkpoint()
        for lease in leases:
            self.held.setdefault(lease.lease_id, lease.subject.allotments)

    async def join(self, lease: Lease, pid: int, pidfd: int) -> str:
        """Note who joined; the leaf's path."""
        await trio.lowlevel.checkpoint()
        assert lease.lease_id in self.held, "joined a lease that was never prepared"
        self.joined.append((lease.lease_id, pid))
        return self.leaves.setdefault(lease.lease_id, _leaf(lease))

    def close(self) -> None:
        """Nothing may be asked afterwards."""
        self._closed = True

    def pin(self, lease: Lease, *unproven: Allotment) -> None:
        """The proof of `lease` will miss this much."""
        self.pinned[lease.lease_id] = unproven

    # -- one lease ---------------------------------------------------------------------------------

    async def _enter(self, verb: str, leases: Sequence[Lease]) -> None:
        assert not self._closed, f"{verb} after close"
        self.calls.append((verb, tuple(lease.lease_id for lease in leases)))
        await trio.lowlevel.checkpoint()

    async def _adopt(self, lease: Lease, made: Prepared | DeviceError) -> Prepared | DeviceError:
        if isinstance(made, Prepared):
            try:
                await self.adoptions.move_wanted(lease, made.cgroup)
            except DeviceError as error:
                self.held.pop(lease.lease_id)
                for fd in made.fds:
                    os.close(fd)
                return error
        return made

    def _prepare(self, lease: Lease) -> Prepared | DeviceError:
        fault = self.fault("prepare", lease)
        if fault is not None and not fault.applied:
            return fault.error
        assert lease.lease_id not in self.held, "prepared twice"
        known = {resource.resource_id: resource for resource in self.offered.resources}
        for allotment in lease.subject.allotments:
            resource = known.get(allotment.resource_id)
            if resource is None:
                return DeviceError("mem_create", errno.EINVAL, allotment.resource_id)
            self._check_room(resource, allotment)
        if fault is not None:
            return fault.error
        self.held[lease.lease_id] = lease.subject.allotments
        memory = [a for a in lease.subject.allotments if a.kind is ResourceKind.MEM]
        try:
            fds = tuple(_sparse(allotment.capacity) for allotment in memory)
        except OSError as error:
            del self.held[lease.lease_id]
            return DeviceError("mem_create", error.errno or errno.EIO)
        if not lease.pid:
            self.leaves[lease.lease_id] = _leaf(lease)
        evidence = hashlib.sha256(lease.lease_id).digest()
        leaf = self.leaves.get(lease.lease_id, "")
        return Prepared(fds, leaf, evidence, self._told(lease))

    def _check_room(self, resource: Resource, wanted: Allotment) -> None:
        everything = (*self.held.values(), *self.pinned.values())
        used = sum(
            allotment.capacity
            for allotments in everything
            for allotment in allotments
            if allotment.resource_id == resource.resource_id
        )
        room = resource.capacity - used
        assert wanted.capacity <= room, f"{resource.resource_id} granted twice"
        assert wanted.capacity % resource.granule == 0, "not a multiple of the granule"

    def _scrub(self, lease: Lease, fds: Sequence[int]) -> ScrubReport | DeviceError:
        assert not self.in_use(lease.lease_id), "scrubbed while the tenant still has access"
        fault = self.fault("scrub", lease)
        if fault is not None and not fault.applied:
            return fault.error
        memory = [a for a in lease.subject.allotments if a.kind is ResourceKind.MEM]
        if len(fds) != len(memory) and (fds or not _holds_nothing(lease)):
            return DeviceError("scrub", errno.EBADF, "descriptors lost")
        scrubbed_bytes = sum(os.fstat(fd).st_size for fd in fds)
        for fd in fds:
            os.ftruncate(fd, 0)
        self._scrubbed.add(lease.lease_id)
        if fault is not None:
            return fault.error
        step = StepReport(TeardownStep.SCRUB, 0, _now_ns(), _now_ns(), scrubbed_bytes)
        return ScrubReport(lease.lease_id, _now_ns(), scrubbed_bytes, True, (step,))

    def _prove(self, lease: Lease, fds: Sequence[int]) -> ProofReport | DeviceError:
        fault = self.fault("prove", lease)
        if fault is not None and not fault.applied:
            return fault.error
        unproven = self.pinned.get(lease.lease_id, ())
        if any(os.fstat(fd).st_size for fd in fds):
            unproven = lease.subject.allotments
        else:
            self.held.pop(lease.lease_id, None)
            self.leaves.pop(lease.lease_id, None)
        if fault is not None:
            return fault.error
        failed = errno.EBUSY if unproven else 0
        step = StepReport(TeardownStep.COUNTERS, failed, _now_ns(), _now_ns())
        return ProofReport(lease.lease_id, _now_ns(), tuple(unproven), (step,))

    def unfence(self, lease: Lease) -> None:
        """What was pinned has come back."""
        self.pinned.pop(lease.lease_id, None)


def _sparse(size_bytes: int) -> int:
    fd = os.memfd_create("leased-fake", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def _leaf(lease: Lease) -> str:
    return f"/fake/{lease.subject.cgroup}"


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def replace_capacity(allotment: Allotment, capacity: int) -> Allotment:
    """The same resource, another amount."""
    return msgspec.structs.replace(allotment, capacity=capacity)
