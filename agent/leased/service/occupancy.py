# SPDX-License-Identifier: Apache-2.0
"""Occupancy: which processes use a resource now, with a lease or without.

Rule: three sources, each named in the answer (`via`): the leaf cgroups of the leases on it, the
processes that leases are bound to, and a pass over /proc for whoever holds or maps their memory,
wherever on the host. The pass is bounded in time and runs in a thread: it reads procfs, which hangs
on no driver.

Does not judge: an occupant outside its lease is the scrub's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import trio

from leased.hardware import occupants
from leased.ports import Clock, Holder
from leased.service.custody import Custodian
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment

SCAN_NS = 5 * NS_PER_S


class Occupancy:
    """Answers io.leased.Device.Holders."""

    def __init__(
        self,
        *,
        clock: Clock,
        custodian: Custodian,
        live_leases: Callable[[], Iterable[Lease]],
        own_pids: Callable[[], Iterable[int]],
    ) -> None:
        self._clock = clock
        self._custodian = custodian
        self._live_leases = live_leases
        self._own_pids = own_pids

    async def scan(self, allotment: Allotment) -> tuple[Holder, ...]:
        """The processes that use the resource. Raises DeviceError if /proc could not be read in
        time."""
        leases = [
            lease
            for lease in self._live_leases()
            if any(a.resource_id == allotment.resource_id for a in lease.subject.allotments)
        ]
        found: dict[tuple[int, str], Holder] = {}
        sought: dict[occupants.Inode, tuple[LeaseId, str]] = {}
        for lease in leases:
            held = self._custodian.of(lease.lease_id)
            for pid in _members(held.cgroup):
                _add(found, pid, "cgroup", lease.lease_id)
            if lease.pid > 0:
                _add(found, lease.pid, "bound", lease.lease_id)
            for fd in held.fds:
                status = os.fstat(fd)
                name = (
                    os.readlink(f"/proc/self/fd/{fd}")
                    .removeprefix("/memfd:")
                    .removesuffix(" (deleted)")
                )
                sought[status.st_dev, status.st_ino] = (lease.lease_id, name)
        if sought:
            await self._look_everywhere(sought, found)
        return tuple(found[key] for key in sorted(found))

    async def _look_everywhere(
        self,
        sought: dict[occupants.Inode, tuple[LeaseId, str]],
        found: dict[tuple[int, str], Holder],
    ) -> None:
        deadline_ns = self._clock.now().boot_ns + SCAN_NS
        exempt = {pid: occupants.start_time(pid) or 0 for pid in self._own_pids()}
        wanted = [occupants.Sought(inode, name) for inode, (_, name) in sought.items()]
        seen = await trio.to_thread.run_sync(
            lambda: occupants.scan(wanted, exempt=exempt, deadline_ns=deadline_ns)
        )
        for inode, users in seen.items():
            for user in users:
                _add(found, user.pid, "memory", sought[inode][0])


def _members(cgroup: str) -> list[int]:
    if not cgroup:
        return []
    try:
        with open(f"{cgroup}/cgroup.procs", encoding="ascii") as procs:
            return [int(line) for line in procs]
    except OSError:
        return []


def _add(found: dict[tuple[int, str], Holder], pid: int, via: str, lease_id: LeaseId) -> None:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            found[pid, via] = Holder(pid, uid, comm.read().rstrip("\n"), via, lease_id)
    except OSError:
        return  # it has exited meanwhile
