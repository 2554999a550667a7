# SPDX-License-Identifier: Apache-2.0
"""A speaker: which process is at the other end, where the kernel does not name it (before 6.5).

Rule: the number of who connected may be another's by the time that a pidfd of it is opened. So it
counts when something has come that was said later, by that number (SCM_CREDENTIALS, unix(7)), and
its process still lives: it had the number when that was said. What was said before, by whom ever,
proves nothing, nor does what somebody says who inherited the connection.

Source: net/unix/af_unix.c (`maybe_add_creds`, `unix_stream_read_generic`: one read brings the words
of one process), include/net/scm.h (nobody names another process without CAP_SYS_ADMIN where that
process lives). Does not read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterable

from leased.service.api.peers import UCRED, has_exited

ROOM = socket.CMSG_SPACE(UCRED.size)
"""For who said it, beside what was said."""

_COUNT = struct.Struct("i")


class Speaker:
    """Whoever connected, not proven yet. Owns its pidfd until that is taken."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        """`sock` tells from now on who speaks. Raises OSError: out of descriptors."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock = sock
        self._pid = pid
        self._pidfd: int | None = None
        # 0 is a process that cannot be named here, of another pid namespace.
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid) if pid else None
        [self._said_before] = _COUNT.unpack(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))

    def hear(self, length: int, control: Iterable[tuple[int, int, bytes]]) -> int | None:
        """So many bytes were read, with this beside them. The pidfd of who speaks, which is the
        caller's now, once it is proven; nothing more is to be told then."""
        late = self._said_before <= 0
        self._said_before -= length
        if not late or self._pidfd is None or not length:
            return None
        if _said_by(control) != self._pid or has_exited(self._pidfd):
            return None
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        pidfd, self._pidfd = self._pidfd, None
        return pidfd

    def close(self) -> None:
        """It was not proven."""
        if self._pidfd is not None:
            os.close(self._pidfd)


def _said_by(control: Iterable[tuple[int, int, bytes]]) -> int:
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(UCRED.unpack(data)[0])
    return 0
