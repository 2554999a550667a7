# SPDX-License-Identifier: Apache-2.0
"""Descriptors that travel beside bytes over a socket: passed, taken, closed.

Rule: what is taken is closed by exec; `socket.recv_fds` of Python 3.11 forgets the flag that says
so.

Does not know whose they are.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

ONE = socket.CMSG_LEN(array.array("i").itemsize)
"""Room beside a message for one of them."""


def passing(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """What `sendmsg` takes so that they come along."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def taken(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Those that came, of what `recvmsg` tells; it was asked with MSG_CMSG_CLOEXEC."""
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def close_all(fds: Iterable[int]) -> None:
    """Close what nobody will get, or has been passed on."""
    for fd in fds:
        os.close(fd)
