# SPDX-License-Identifier: Apache-2.0
"""The walls: moving a process into its lease's cgroup, so that what it may use and when it ends is
the kernel's business.

Rule: the leaf exists and the reaper holds it before a process enters, so there is no instant at
which somebody is inside a lease that would not be cut. Only the process that a pidfd proves is
moved, which for Join is the caller's own.

Does not decide who may join: the table answered that before we are asked.
"""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from leased.hardware.leaves import inside
from leased.lessor.table import end_ns
from leased.ports import Arming, Clock, Reaper
from leased.service.api.connection import Connection
from leased.service.custody import Custodian, Custody
from leased.service.evidence import NO_COMMAND
from leased.service.holders import Holders
from leased.service.notifier import Notifier
from leased.terms.command import Caller, Command, Describe
from leased.terms.errors import CallerError, PermissionDenied
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import BOUND_TO_CGROUP, Lease, LeaseState
from leased.terms.reply import Changed, Reply

_AGENT = Caller(0, 0, 0, TenantId("root"), operator=True)


class Leaves(Protocol):
    """What is needed of the device room: leaf cgroups."""

    async def make_leaf(self, lease: Lease) -> str:
        """Make the lease's leaf (idempotent) and return its path. Raises DeviceError."""
        ...

    async def join(self, lease: Lease, pid: int, pidfd: int) -> str:
        """Move the process into the lease's leaf. Raises DeviceError."""
        ...


class Walls:
    """Join, and what Adopt needs of a leaf."""

    def __init__(
        self,
        *,
        leaves: Leaves,
        reaper: Reaper,
        custodian: Custodian,
        holders: Holders,
        notifier: Notifier,
        user_socket: Path,
        find: Callable[[LeaseId], Lease | None],
        ask: Callable[[Command], Awaitable[Reply]],
        clock: Clock,
    ) -> None:
        """`find` tells of what is being sealed, too; `ask` of what is."""
        self._leaves = leaves
        self._reaper = reaper
        self._custodian = custodian
        self._holders = holders
        self._notifier = notifier
        self._user_socket = user_socket
        self._find = find
        self._ask = ask
        self._clock = clock

    async def join(self, lease: Lease, connection: Connection) -> dict[str, str]:
        """Move the caller in; what its programs should see of the lease itself. Raises CallerError,
        PermissionDenied, DeviceError."""
        if connection.pidfd is None:
            raise PermissionDenied(
                "this kernel does not name the calling process, which is proven by what it says"
                " after an answer: ask again over this connection"
            )
        await self._enter(lease, connection.caller.pid, connection.pidfd)
        directory = self._notifier.open_directory(lease)
        return {
            "LEASE_ID": lease.lease_id.hex(),
            "LEASE_EPOCH": str(lease.generation),
            "LEASE_DIR": str(directory),
            "LEASE_SOCKET": str(self._user_socket),
        }

    async def _enter(self, lease: Lease, pid: int, pidfd: int) -> None:
        cgroup = await self.open_leaf(lease)
        await self._leaves.join(lease, pid, pidfd)
        if self.is_over(lease):
            # It may have come in after the cut, which is not repeated: it must not stay.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise CallerError("the lease has ended meanwhile: nobody can join it any more")
        self.watch(lease, cgroup)

    def is_over(self, lease: Lease) -> bool:
        """By the table, or by the clock that the reaper cuts by."""
        now = self._find(lease.lease_id)
        return now is None or now.ended is not None or self._clock.now().boot_ns >= end_ns(now)

    async def open_leaf(self, lease: Lease) -> str:
        """The lease's leaf, held by the reaper, so that somebody may enter. Raises CallerError,
        DeviceError."""
        if lease.state not in (LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.DRAINING):
            raise CallerError(
                f"the lease is {lease.state.name.lower()}: nobody can join it any more"
            )
        cgroup = await self._leaves.make_leaf(lease)
        if self._custody(lease).cgroup != cgroup:
            await self._arm(lease, cgroup)
            self._custody(lease)  # else disarmed after it was armed
            self._custodian.set_cgroup(lease.lease_id, cgroup)
        return cgroup

    def _custody(self, lease: Lease) -> Custody:
        """Raises CallerError."""
        held = self._custodian.find(lease.lease_id)
        if held is None:
            raise CallerError("the lease has ended meanwhile: nobody can join it any more")
        return held

    async def _arm(self, lease: Lease, cgroup: str) -> None:
        """Until the reaper knows no later renewal than the log: the holder goes on meanwhile. What
        is only being sealed may never have happened, and is not the reaper's to know."""
        asked = -1
        while True:
            reply = await self._ask(Describe(NO_COMMAND, _AGENT, lease.lease_id))
            now = reply.lease if isinstance(reply, Changed) else lease
            self._custody(lease)  # else it would be armed anew, and for ever
            armed = msgspec.structs.replace(now, deadline_ns=end_ns(now))
            [failed] = await self._reaper.arm_many([Arming(armed, cgroup)])
            if failed is None:
                return
            if failed.errno != errno.ESTALE or now.generation == asked:
                raise failed
            asked = now.generation

    def watch(self, lease: Lease, cgroup: str = "") -> None:
        """Somebody is inside: a lease that is bound to its leaf ends when nobody is any more."""
        cgroup = cgroup or self._custodian.of(lease.lease_id).cgroup
        if lease.pid == BOUND_TO_CGROUP and cgroup:
            self._holders.watch_leaf(lease.lease_id, inside(cgroup))
