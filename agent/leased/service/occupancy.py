# SPDX-License-Identifier: Apache-2.0
"""Occupancy: which processes use a resource now, with a lease or without.

Rule: every source is named in the answer (`via`): the leaf cgroups of the leases on it, the
processes that leases are bound to, a pass over /proc for whoever holds or maps their memory or has
hugepages of their pool, and what the backend of the kind sees (descriptors, mappings, mounts, the
driver's own list). Looking is the workers' job. Which lease a process is in, its cgroup says.

Does not judge: an occupant outside its lease is the scrub's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import trio

from leased.hardware import leaves
from leased.hardware.calls import Pool
from leased.hardware.pieces import NORMAL_PAGE_BYTES, place_of
from leased.hardware.procfs import cgroup_of
from leased.hardware.usage.carrying import User
from leased.ports import Holder
from leased.service.custody import Custodian
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind, Shape, capacity_id, shape_of

AT_ONCE_MAX = 8
"""Backends asked at the same time: each may read all of /proc."""


class Eyes(Protocol):
    """What is needed of the device room."""

    async def users(
        self, memfds: Sequence[tuple[int, int, str]], pools: Sequence[Pool]
    ) -> tuple[User, ...]:
        """Who has memfds or hugepages. Raises DeviceError."""
        ...

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Who uses what a backend serves. Raises DeviceError."""
        ...


class Occupancy:
    """`ports.Holders`."""

    def __init__(
        self, *, custodian: Custodian, live_leases: Callable[[], Iterable[Lease]], devices: Eyes
    ) -> None:
        self._custodian = custodian
        self._live_leases = live_leases
        self._devices = devices

    async def scan(self, resource_ids: Sequence[str]) -> tuple[Holder, ...]:
        """Everybody who uses one of the resources. Raises DeviceError."""
        wanted = frozenset(resource_ids)
        leases = [lease for lease in self._live_leases() if not wanted.isdisjoint(_named_by(lease))]
        found = [holder for lease in leases for holder in self._of_lease(lease, wanted)]
        found += await self._of_memory(leases, wanted)
        found += await self._of_backends(sorted(wanted))
        return tuple(sorted(set(found), key=lambda one: (one.resource_id, one.pid, one.via)))

    def _of_lease(self, lease: Lease, wanted: frozenset[str]) -> Iterable[Holder]:
        """Who is inside it, and whom it is bound to."""
        inside = _members(self._custodian.of(lease.lease_id).cgroup)
        for resource_id in _named_by(lease):
            if resource_id in wanted:
                for pid in inside:
                    yield from _described(pid, "cgroup", lease.lease_id, resource_id)
                if lease.pid > 0:
                    yield from _described(lease.pid, "bound", lease.lease_id, resource_id)

    async def _of_memory(self, leases: Sequence[Lease], wanted: frozenset[str]) -> list[Holder]:
        """Who has the memory of a lease, wherever on the host, and who has hugepages of a pool."""
        memfds: dict[str, tuple[int, int, Lease]] = {}
        for lease in leases:
            for fd in self._custodian.of(lease.lease_id).fds:
                status = os.fstat(fd)
                name = os.readlink(f"/proc/self/fd/{fd}")
                name = name.removeprefix("/memfd:").removesuffix(" (deleted)")
                memfds[name] = (status.st_dev, status.st_ino, lease)
        pools = {place_of(one): one for one in sorted(wanted) if _is_hugepages(one)}
        if not memfds and not pools:
            return []
        sought = [(device, inode, name) for name, (device, inode, _) in memfds.items()]
        found: list[Holder] = []
        for user in await self._devices.users(sought, tuple(pools)):
            if user.pool is not None:
                via, ids = "pages", [pools[user.pool]]
                lease_id = self._lease_of(user.pid, ids[0])
            else:
                lease = memfds[user.memfd][2]
                via, lease_id = "memory", lease.lease_id
                ids = [one for one in _named_by(lease) if one in wanted and one[:4] == "mem:"]
            found += (Holder(user.pid, user.uid, user.name, via, lease_id, one) for one in ids)
        return found

    async def _of_backends(self, resource_ids: Sequence[str]) -> list[Holder]:
        found: list[Holder] = []
        failed: list[DeviceError] = []
        slots = trio.Semaphore(AT_ONCE_MAX)

        async def ask(allotment: Allotment) -> None:
            async with slots:
                try:
                    seen = await self._devices.holders(allotment)
                except DeviceError as error:
                    failed.append(error)
                    return
            for one in seen:
                resource_id = one.resource_id or allotment.resource_id
                lease_id = one.lease_id or self._lease_of(one.pid, resource_id)
                changes = {"lease_id": lease_id, "resource_id": resource_id}
                found.append(msgspec.structs.replace(one, **changes))

        async with trio.open_nursery() as nursery:
            for resource_id in resource_ids:
                kind = ResourceKind.__members__[resource_id.partition(":")[0].upper()]
                nursery.start_soon(ask, Allotment(resource_id, kind, None, 0))
        if failed:
            raise failed[0]
        return found

    def _lease_of(self, pid: int, resource_id: str) -> LeaseId | None:
        """The lease whose leaf the process is in; else the one on the resource that it is bound to:
        who is handed a namespace need not be inside.
        """
        if pid <= 0:
            return None
        return self._lease_inside(pid) or next(
            (
                lease.lease_id
                for lease in self._live_leases()
                if lease.pid == pid and resource_id in _named_by(lease)
            ),
            None,
        )

    def _lease_inside(self, pid: int) -> LeaseId | None:
        parts = frozenset(cgroup_of(pid).split("/"))
        for lease in self._live_leases():
            if lease.subject.cgroup in parts:
                return lease.lease_id
        return None


def _named_by(lease: Lease) -> tuple[str, ...]:
    """The resources that a lease is on: those it names, and those that count them."""
    ids = (a.resource_id for a in lease.subject.allotments)
    return tuple(dict.fromkeys(one for named in ids for one in (named, capacity_id(named))))


def _is_hugepages(resource_id: str) -> bool:
    if shape_of(resource_id) is not Shape.MEMFD:
        return False
    return place_of(resource_id).page_bytes != NORMAL_PAGE_BYTES


def _members(cgroup: str) -> list[int]:
    if not cgroup:
        return []
    try:
        with open(f"{leaves.inside(cgroup)}/cgroup.procs", encoding="ascii") as procs:
            return [int(line) for line in procs]
    except OSError:
        return []


def _described(pid: int, via: str, lease_id: LeaseId, resource_id: str) -> Iterable[Holder]:
    """The process as an operator knows it; nobody if it has exited meanwhile."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            yield Holder(pid, uid, comm.read().rstrip("\n"), via, lease_id, resource_id)
    except OSError:
        return
