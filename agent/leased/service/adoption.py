# SPDX-License-Identifier: Apache-2.0
"""Adoption: running work brought under a lease, on an operator's word.

Rule: the lease is the work's own: whose it is, and who pays, the kernel says of the process, not
the operator. It is answered when the whole tree is inside and the record that says who did it is
durable. What was refused, or did not come about, leaves the work as it was.

Does not move anybody itself (`hardware.adopting`) and does not renew: whoever adopts sees to that.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable, Sequence

from leased.hardware.adopting import Adoptions
from leased.ports import Entropy
from leased.service.api.connection import Connection
from leased.service.api.peers import PIDFD_THREAD, TenantOf, trust_of
from leased.service.evidence import NO_COMMAND
from leased.service.walls import Walls
from leased.terms.command import Acquire, Caller, Command, NoteAdoption
from leased.terms.errors import CallerError, DeviceError, PermissionDenied
from leased.terms.identity import LeaseId
from leased.terms.reply import Changed, Granted, Reply
from leased.wire import parameters
from leased.wire.calls import to_command
from leased.wire.conversation import Call


class Adoption:
    """io.leased.Admin.Adopt."""

    def __init__(
        self,
        *,
        ask: Callable[[Command], Awaitable[Reply]],
        ask_own: Callable[[Command], Awaitable[Reply]],
        adoptions: Adoptions,
        walls: Walls,
        entropy: Entropy,
        tenant_of: TenantOf,
        ttl_ns_default: Callable[[], int],
    ) -> None:
        self._ask = ask
        self._ask_own = ask_own
        self._adoptions = adoptions
        self._walls = walls
        self._entropy = entropy
        self._tenant_of = tenant_of
        self._ttl_ns_default = ttl_ns_default

    async def adopt(self, connection: Connection, call: Call, fds: Sequence[int]) -> Reply:
        """What to answer: the lease as it is with the work in it, or why not. Raises
        LeasedError."""
        asked = call.parameters
        assert isinstance(asked, parameters.Adopt)
        pid, pidfd = _process_of(asked.pid, fds)
        try:
            if asked.lease_id is not None:
                return await self._into(connection, call, pid, pidfd)
            return await self._under_a_new_one(connection, call, pid, pidfd)
        except DeviceError as error:
            if error.errno == errno.EPERM:  # the tree's own fault, and nobody's hardware
                raise CallerError(error.detail) from error
            raise
        finally:
            os.close(pidfd)

    async def _into(self, connection: Connection, call: Call, pid: int, pidfd: int) -> Reply:
        """Into a lease that is there."""
        command = to_command(call, connection.caller, self._entropy)
        assert command is not None
        reply = await self._ask(command)
        if not isinstance(reply, Changed):
            return reply
        leaf = await self._walls.open_leaf(reply.lease)
        moved = await self._adoptions.move(leaf, pid, pidfd)
        if self._walls.is_over(reply.lease):
            await self._adoptions.undo(leaf, moved)
            raise CallerError("the lease has ended meanwhile: nobody can be adopted into it")
        noted = await self._note(connection, reply.lease.lease_id, pid, len(moved))
        self._walls.watch(reply.lease, leaf)
        return noted

    async def _under_a_new_one(
        self, connection: Connection, call: Call, pid: int, pidfd: int
    ) -> Reply:
        """Under a lease of its own owner."""
        owner = await self._adoptions.inspect(pid, pidfd)
        tenant = self._tenant_of(owner.uid, (owner.gid, *owner.groups))
        if tenant is None:
            raise PermissionDenied(
                f"process {pid} is uid {owner.uid}'s, who belongs to no tenant; see tenants in"
                " leased.toml"
            )
        caller = Caller(owner.uid, owner.gid, pid, tenant, trust=trust_of(pid, owner.uid))
        ttl_ns = self._ttl_ns_default()
        command = to_command(call, caller, self._entropy, ttl_ns_default=ttl_ns)
        assert isinstance(command, Acquire)
        request, granted = (owner.uid, command.command_id), None
        self._adoptions.want(request, pid, pidfd)
        try:
            reply = await self._ask(command)
            if not isinstance(reply, Granted):
                return reply
            granted = reply.lease.lease_id
            processes = self._adoptions.moved_for(granted)
        finally:
            self._adoptions.settle(request, granted)
        if reply.attached and not processes:  # asked again: it is in, and on record
            return Changed(reply.lease)
        noted = await self._note(connection, granted, pid, processes)
        self._walls.watch(reply.lease)
        return noted

    async def _note(
        self, connection: Connection, lease_id: LeaseId, pid: int, processes: int
    ) -> Reply:
        uid = connection.caller.uid
        return await self._ask_own(NoteAdoption(NO_COMMAND, lease_id, uid, pid, processes))


def _process_of(pid: int | None, fds: Sequence[int]) -> tuple[int, int]:
    """The process that is meant, and a pidfd of it that is the caller's. Raises CallerError."""
    if fds:
        return _pid_of(fds[0]), os.dup(fds[0])
    if pid is None:
        raise CallerError("adopt needs a pidfd as descriptor 0, or pid")
    try:
        return pid, os.pidfd_open(pid)
    except OSError as error:
        raise CallerError(f"there is no process {pid}: {error.strerror}") from error


def _pid_of(pidfd: int) -> int:
    """The number behind a pidfd, in our pid namespace. Raises CallerError for anything that is
    none."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("Pid:"):
                if fcntl.fcntl(pidfd, fcntl.F_GETFL) & PIDFD_THREAD:
                    raise CallerError("descriptor 0 is a pidfd of one thread")
                pid = int(line.split()[1])
                if pid <= 0:
                    raise CallerError("the process of descriptor 0 has ended")
                return pid
    raise CallerError("descriptor 0 is not a pidfd")
