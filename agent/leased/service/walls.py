# SPDX-License-Identifier: Apache-2.0
"""The walls: moving a process into its lease's cgroup, so that what it may use and when it ends is
the kernel's business.

Rule: the leaf exists and the reaper holds it before a process enters, so there is no instant at
which somebody is inside a lease that would not be cut. Only the process that a pidfd proves is
moved: the caller's own for Join, and for Adopt the one whose pidfd the operator sent.

Does not decide who may join: the table answered that before we are asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from leased.ports import Reaper
from leased.service.connection import Connection
from leased.service.custody import Custodian
from leased.service.holders import Holders
from leased.service.notifier import Notifier
from leased.terms.errors import CallerError, PermissionDenied
from leased.terms.lease import BOUND_TO_CGROUP, Lease, LeaseState
from leased.terms.moment import Moment
from leased.wire import replies
from leased.wire.portrayal import portray_lease


class Leaves(Protocol):
    """What is needed of the device room: leaf cgroups."""

    async def make_leaf(self, lease: Lease) -> str:
        """Make the lease's leaf (idempotent) and return its path. Raises DeviceError."""
        ...

    async def join(self, lease: Lease, pid: int, pidfd: int) -> str:
        """Move the process into the lease's leaf. Raises DeviceError."""
        ...


class Walls:
    """Join and Adopt."""

    def __init__(
        self,
        *,
        leaves: Leaves,
        reaper: Reaper,
        custodian: Custodian,
        holders: Holders,
        notifier: Notifier,
        user_socket: Path,
        epoch: Callable[[], int],
    ) -> None:
        self._leaves = leaves
        self._reaper = reaper
        self._custodian = custodian
        self._holders = holders
        self._notifier = notifier
        self._user_socket = user_socket
        self._epoch = epoch

    async def join(self, lease: Lease, connection: Connection) -> dict[str, str]:
        """Move the caller in; what its programs should see of the lease itself. Raises CallerError,
        PermissionDenied, DeviceError."""
        if connection.pidfd is None:
            raise PermissionDenied(
                "this kernel does not name the calling process: send its pidfd as descriptor 0"
            )
        await self._enter(lease, connection.caller.pid, connection.pidfd)
        directory = self._notifier.open_directory(lease)
        return {
            "LEASE_ID": lease.lease_id.hex(),
            "LEASE_EPOCH": str(lease.generation),
            "LEASE_DIR": str(directory),
            "LEASE_SOCKET": str(self._user_socket),
        }

    async def adopt(self, lease: Lease, pid: int | None, fds: list[int], moment: Moment) -> bytes:
        """Move a running process in, on an operator's word."""
        if fds:
            pid = _pid_of(fds[0])
            pidfd = os.dup(fds[0])
        elif pid is not None:
            pidfd = os.pidfd_open(pid)
        else:
            raise CallerError("adopt needs a pidfd as descriptor 0, or pid")
        try:
            await self._enter(lease, pid, pidfd)
        finally:
            os.close(pidfd)
        return replies.encode(replies.LeaseReply(portray_lease(lease, moment)))

    async def _enter(self, lease: Lease, pid: int, pidfd: int) -> None:
        if lease.state not in (LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.DRAINING):
            raise CallerError(
                f"the lease is {lease.state.name.lower()}: nobody can join it any more"
            )
        cgroup = await self._leaves.make_leaf(lease)
        if lease.lease_id not in self._custodian:
            raise CallerError("the lease has ended meanwhile: nobody can join it any more")
        if self._custodian.of(lease.lease_id).cgroup != cgroup:
            [failed] = await self._reaper.arm_many([(lease, cgroup, (), None)])
            if failed is not None:
                raise failed
            self._custodian.set_cgroup(lease.lease_id, cgroup)
        await self._leaves.join(lease, pid, pidfd)
        if lease.pid == BOUND_TO_CGROUP:
            self._holders.watch_leaf(lease.lease_id, cgroup)


def _pid_of(pidfd: int) -> int:
    """The number behind a pidfd, in our pid namespace. Raises CallerError for anything that is
    none."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise CallerError("descriptor 0 is not a pidfd")
