# SPDX-License-Identifier: Apache-2.0
"""Adopting: running work that a lease is granted for, brought into the lease's leaf while it is
prepared; and what of a lease's work the reaper has killed, brought to its end.

Rule: it is inside before any device is looked at, so that what it has open already is its own
lease's; and it is put back if the lease does not come about. Nothing is killed by a grant that
failed.

Does not decide who may be adopted (`adoption.tree`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from leased.hardware.adoption.carrying import Move, Moved, Undo
from leased.hardware.adoption.servers import BUDGET_NS, Killed, Loosen, Loosened
from leased.hardware.adoption.tree import Process
from leased.hardware.calls import CgroupFacts
from leased.hardware.crew import Crew
from leased.terms.errors import DeviceError
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import Lease

Request = tuple[int, CommandId]
"""(uid, command id): what a lease is known by before there is one."""

_WORKER = "adoption"
_LOOSENER = "loosen"
NAMED_MAX = 16
"""Leases of a look that failed: it is for all that are stuck."""


class Owner(msgspec.Struct, frozen=True):
    """Whose a process is, and how many there are in its tree."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    processes: int


class Adoptions:
    """Who is to be moved where, and who has been."""

    def __init__(self, crew: Crew, facts: Callable[[], Awaitable[CgroupFacts]]) -> None:
        self._crew = crew
        self._facts = facts
        self._wanted: dict[Request, tuple[int, int]] = {}
        self._moved: dict[LeaseId, tuple[str, tuple[Process, ...]]] = {}

    async def inspect(self, pid: int, pidfd: int) -> Owner:
        """Whose the process is. Raises DeviceError(EPERM) for a tree that must be left alone."""
        root = (await self._facts()).path
        seen = await self._ask(Move(pid, root, root, self._crew.ours(), True), pidfd)
        return Owner(seen.uid, seen.gid, seen.groups, len(seen.processes))

    def want(self, request: Request, pid: int, pidfd: int) -> None:
        """The lease that this request gets is for that process. The pidfd stays the caller's, open
        until `settle`."""
        self._wanted[request] = (pid, pidfd)

    def settle(self, request: Request, lease_id: LeaseId | None) -> None:
        """The request has its answer: forget it."""
        self._wanted.pop(request, None)
        if lease_id is not None:
            self._moved.pop(lease_id, None)

    async def move_wanted(self, lease: Lease, leaf: str) -> None:
        """Move whom the lease was asked for, if it was. Raises DeviceError; then nobody is
        moved."""
        wanted = self._wanted.get((lease.subject.uid, lease.command_id))
        if wanted is None:
            return
        if not leaf:
            raise DeviceError("adopt", errno.EINVAL, "the lease has no leaf")
        self._moved[lease.lease_id] = (leaf, await self.move(leaf, *wanted))

    async def move(self, leaf: str, pid: int, pidfd: int) -> tuple[Process, ...]:
        """Move a tree; whom it was. Raises DeviceError; then nobody is moved."""
        root = os.path.dirname(leaf)
        moved = await self._ask(Move(pid, leaf, root, self._crew.ours()), pidfd)
        return moved.processes

    def moved_for(self, lease_id: LeaseId) -> int:
        """How many processes were moved while the lease was prepared."""
        return len(self._moved.get(lease_id, ("", ()))[1])

    async def put_back(self, lease_id: LeaseId) -> None:
        """The lease did not come about: everybody goes back where they were. Raises DeviceError."""
        leaf, processes = self._moved.pop(lease_id, ("", ()))
        await self._undo(Undo(leaf, processes, alone=True))

    async def undo(self, leaf: str, processes: tuple[Process, ...]) -> None:
        """Whoever of these is still in the leaf goes back where it was. Raises DeviceError."""
        await self._undo(Undo(leaf, processes))

    async def loosen(self, leases: Sequence[Lease]) -> tuple[str, ...]:
        """Have those who keep killed processes of these leases waiting let go, all in one look;
        what was done."""
        tenants: dict[TenantId, list[Killed]] = {}
        for at, lease in enumerate(leases):
            killed = Killed(at, lease.subject.cgroup, lease.pid)
            tenants.setdefault(lease.subject.tenant, []).append(killed)
        try:
            root = (await self._facts()).path
            asked = Loosen(root, tuple(map(tuple, tenants.values())))
            done = await self._crew.task(
                _LOOSENER, "adoption", "loosen", asked, Loosened, extra_ns=BUDGET_NS
            )
        except DeviceError as error:
            whose = ", ".join(lease.lease_id.hex() for lease in leases[:NAMED_MAX])
            return (f"who keeps killed processes could not be looked for ({error}): {whose}",)
        finally:
            self._crew.dismiss(_LOOSENER)
        told = tuple(
            f"lease {leases[one.at].lease_id.hex()}: thread {one.tid} was killed and waited for"
            f" FUSE connection {one.number} of uid {one.uid}, which did not answer: aborted"
            for one in done.connections
        )
        more = (f"{done.untold} more such connections were aborted",) if done.untold else ()
        keepers = tuple(
            f"lease {leases[one.at].lease_id.hex()}: process {one.pid} of uid {one.uid} slept with"
            " the lock of a pipe that whoever was killed may have waited for: killed"
            for one in done.ended
        )
        return (*told, *more, *keepers)

    async def _undo(self, asked: Undo) -> None:
        if asked.processes:
            await self._crew.task(_WORKER, "adoption", "undo", asked, Moved)

    async def _ask(self, asked: Move, pidfd: int) -> Moved:
        return await self._crew.task(_WORKER, "adoption", "move", asked, Moved, fds=(pidfd,))
