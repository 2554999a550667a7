# SPDX-License-Identifier: Apache-2.0
"""Births: who is born of a process tree while it is brought in, as the kernel tells it (its process
connector, a netlink family of its own).

A parent that ends takes with it what leads from the tree to its child, so two looks at the tree may
both miss whoever daemonizes between them. The kernel tells of every birth before it lets anybody be
moved to another cgroup who was giving birth: when all that are known have been moved, everybody
born outside has been told of.

Rule: what was lost (more births than fit into the socket) is an error, never a smaller family.

Does not move anybody (`carrying`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator

from leased.terms.errors import DeviceError

_CONNECTOR = 11
_PROCESSES = 1
_LISTEN, _IGNORE = 1, 2
_ANSWER, _FORK = 0, 1
_DONE = 3
_ANSWER_S = 0.5
_BUFFER_BYTES = 8 << 20
_EVENT_BYTES_MAX = 4096
_SO_RCVBUFFORCE = 33
_NETLINK = struct.Struct("=IHHII")
_HEAD = struct.Struct("=IIIIHHIIQ")
"""The connector's header (`cn_msg`: idx, val, seq, ack, len, flags), and of an event what it is,
on which processor, and when."""

_TOLD = struct.Struct("=IIII")


class Births:
    """What the kernel has told since this was made, of the family of one process. `settled` are
    those whose births outside are all known, `loose` all others."""

    def __init__(self, listening: socket.socket, root: int) -> None:
        self._listening = listening
        self.loose = {root}
        self.settled: set[int] = set()

    def saw(self, pids: Iterable[int]) -> None:
        """These are of the family, too: they were found below it."""
        self.loose.update(set(pids) - self.settled)

    def take(self) -> bool:
        """Take in whoever was born since the last time, and leave out the pids that others have
        now; whether anybody was born who may be outside. Raises DeviceError(EAGAIN) when something
        was lost."""
        grown = False
        while True:
            try:
                told = self._listening.recv(_EVENT_BYTES_MAX)
            except BlockingIOError:
                return grown
            except OSError as error:
                detail = "more was born meanwhile than could be followed"
                raise DeviceError("adopt", errno.EAGAIN, detail) from error
            parent, child = _born(told)
            self.loose.discard(child)
            self.settled.discard(child)
            if parent in self.settled:
                self.settled.add(child)
            elif parent in self.loose:
                self.loose.add(child)
                grown = True

    def settle(self, pids: Iterable[int]) -> None:
        """These were inside, or had ended, before the last `take`: whom they bear from here on is
        born inside."""
        settled = self.loose & set(pids)
        self.loose -= settled
        self.settled |= settled


@contextlib.contextmanager
def following(root: int) -> Iterator[Births | None]:
    """Follow the births of a process and of all below it; None where the kernel tells us of none:
    it has no process connector, or we are in a pid or network namespace of our own."""
    with contextlib.ExitStack() as stack:
        yield Births(listening, root) if (listening := _listen(stack)) is not None else None


def _listen(stack: contextlib.ExitStack) -> socket.socket | None:
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    try:
        listening = stack.enter_context(socket.socket(socket.AF_NETLINK, kind, _CONNECTOR))
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        listening.bind((0, _PROCESSES))
        _tell(listening, _LISTEN)
        stack.callback(_tell, listening, _IGNORE)
        return listening if _is_answered(listening) else None
    except OSError:
        return None


def _tell(listening: socket.socket, operation: int) -> None:
    body = struct.pack("=IIIIHHI", _PROCESSES, 1, 0, 0, 4, 0, operation)
    listening.send(_NETLINK.pack(_NETLINK.size + len(body), _DONE, 0, 0, os.getpid()) + body)


def _is_answered(listening: socket.socket) -> bool:
    """Whether the kernel says that it will tell: it does so at once, or never. What it tells others
    comes here as well."""
    end_s = time.monotonic() + _ANSWER_S
    while select.select([listening], [], [], max(0.0, end_s - time.monotonic()))[0]:
        told = listening.recv(_EVENT_BYTES_MAX)
        if _HEAD.unpack_from(told, _NETLINK.size)[6] == _ANSWER:
            return bool(_TOLD.unpack_from(told, _NETLINK.size + _HEAD.size)[0] == 0)
    return False


def _born(told: bytes) -> tuple[int, int]:
    """(parent, child) as pids of processes; of anything else, also of a thread, nobody's."""
    if _HEAD.unpack_from(told, _NETLINK.size)[6] != _FORK:
        return 0, 0
    _, parent, child, process = _TOLD.unpack_from(told, _NETLINK.size + _HEAD.size)
    return (parent, child) if child == process else (0, 0)
