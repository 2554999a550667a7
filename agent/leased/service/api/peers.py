# SPDX-License-Identifier: Apache-2.0
"""Peers: who is at the other end of a local connection, by the kernel's word alone.

Rule: uid and gid come from SO_PEERCRED, the process from SO_PEERPIDFD (Linux 6.5 and later), else
from what it says (`speaker`); there is no silent fallback to the bare number. Nothing of this is
ever read from JSON.

Which uid or gid is which tenant is configuration (`config.tenant_of`). Does not authorise: methods
do.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable

from leased.terms.command import Caller
from leased.terms.errors import PermissionDenied
from leased.terms.identity import TenantId
from leased.terms.lease import Trust

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
PIDFD_THREAD = os.O_EXCL
"""Set on a pidfd that stands for one thread (Linux 6.9): it tells of that thread's end, and from
then on a signal by it reaches nobody."""

_GROUPS_BYTES_MAX = 1024
UCRED = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""

_CAP_SYS_ADMIN = 1 << 21


TenantOf = Callable[[int, tuple[int, ...]], TenantId | None]
"""Which tenant a uid and its groups are; None: nobody we serve."""


def identify(sock: socket.socket, *, tenant_of: TenantOf, operator: bool) -> Caller:
    """The caller behind a connected AF_UNIX socket. Raises PermissionDenied for a stranger."""
    pid, uid, gid = UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    )
    tenant = tenant_of(uid, (gid, *_supplementary_groups(sock)))
    if tenant is None:
        raise PermissionDenied(
            f"uid {uid} and its groups belong to no tenant; see tenants in leased.toml"
        )
    return Caller(
        uid=uid,
        gid=gid,
        pid=pid,
        tenant=tenant,
        operator=operator,
        trust=trust_of(pid, uid),
    )


def uid_of(sock: socket.socket) -> int:
    """Whose process connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    return int(UCRED.unpack(credentials)[1])


def peer_pidfd(sock: socket.socket) -> int | None:
    """A new pidfd of the peer from SO_PEERPIDFD, or None where the kernel is older than 6.5."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EINVAL):
            return None
        raise
    return int.from_bytes(raw, "little", signed=True)


def are_named() -> bool:
    """Whether this kernel gives a pidfd of a peer: asked of ourselves, for a peer may have gone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pidfd = peer_pidfd(ours)
    if pidfd is not None:
        os.close(pidfd)
    return pidfd is not None


def has_exited(pidfd: int) -> bool:
    """Whether the process of a pidfd has."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _supplementary_groups(sock: socket.socket) -> tuple[int, ...]:
    """SO_PEERGROUPS: the groups that the peer had when it connected. None, if they are more than
    Python's getsockopt has room for."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BYTES_MAX)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def trust_of(pid: int, uid: int) -> Trust:
    """ROOT if the peer could undo its own walls: uid 0 with CAP_SYS_ADMIN, or any uid that holds
    it."""
    try:
        # Bytes: a name with a carriage return in it begins no line of its own.
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    return (
                        Trust.ROOT if int(line.split()[1], 16) & _CAP_SYS_ADMIN else Trust.CONFINED
                    )
    except (OSError, ValueError):
        os.stat("/proc/self")  # procfs itself must be there; the peer alone may have gone
    return Trust.ROOT if uid == 0 else Trust.CONFINED
