# SPDX-License-Identifier: Apache-2.0
"""A closer: a process that has nothing but what it is sent, and closes that, in order.

Rule: what is in its queue is not here, so that whatever it waits for keeps nobody but itself. It is
put where systemd does not wait for it either. What cannot be given to it is closed here: it is to
go all the same.

Does not know whose they are (`disposal`). Why a process, and why by a queue: decisions 0218, 0234.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from leased.hardware.descriptors import close_all, passing

TOGETHER_MAX = 253
"""Descriptors of one message, by the kernel."""

_CLOSES = ("sh", "-c", "while read -r told <&1 && read -r it; do echo; done")
"""Reads from its queue when it is told that we have closed what is there, so that our close was not
the last. It has no room for what comes beside bytes: that is closed before it has them. It starts
in 1 ms, where a Python takes 6."""

_SO_SNDBUFFORCE = 32
_QUEUE_BYTES = 4 << 20
"""A message counts for a KiB."""

_CGROUPS = "/sys/fs/cgroup"
_ENDS_S = 1
_FORKS = threading.Lock()
"""Who is forked has all that is here, until it begins: meanwhile nothing is closed."""


class Closer:
    """The process, and our end of its queue."""

    def __init__(self, cgroup_root: str | None) -> None:
        """Beside the process that keeps the leases' cgroup, if it is told: of those there systemd
        waits for none when the agent's unit is stopped. Raises OSError."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            self._queue, queue = socket.socketpair()
            undo.callback(self._queue.close)
            theirs.callback(queue.close)
            self._talk, talk = socket.socketpair()
            undo.callback(self._talk.close)
            theirs.callback(talk.close)
            self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._news)
            with _FORKS:
                self._process = subprocess.Popen(
                    _CLOSES, stdin=queue.fileno(), stdout=talk.fileno()
                )
            undo.pop_all()
        self._sent: deque[int] = deque()
        for ours in (self._queue, self._talk):
            ours.setblocking(False)
            with contextlib.suppress(OSError):
                ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _QUEUE_BYTES)
        if cgroup_root is not None:
            with contextlib.suppress(OSError):
                keeper = Path(_CGROUPS, cgroup_root, "keeper")
                (keeper / "cgroup.procs").write_bytes(b"%d" % self._process.pid)

    def take(self, fds: Sequence[int]) -> int | None:
        """Close them so that the last close of each is its own: of how many it is. None: its queue
        has no room for them now."""
        there = len(fds)
        with _FORKS:
            try:
                self._queue.sendmsg([b"\n"], passing(fds))
            except BlockingIOError:
                return None
            except OSError:
                there = 0
            close_all(fds)
        if there:
            self._sent.append(there)
            with contextlib.suppress(OSError):  # it has ended: `wait` says so
                self._talk.send(b"\n")
        return there

    def tell(self) -> None:
        """There is more: whoever waits need not."""
        os.eventfd_write(self._news, 1)

    def wait(self) -> int | None:
        """Until there is more, or something was closed: how many. None: it has ended, and all with
        it."""
        poll = select.poll()
        poll.register(self._talk, select.POLLIN)
        poll.register(self._news, select.POLLIN)
        ready = dict(poll.poll())
        if self._news in ready:
            os.eventfd_read(self._news)
        if self._talk.fileno() not in ready:
            return 0
        try:
            told = len(self._talk.recv(1 << 16))
        except OSError:
            told = 0
        return sum(self._sent.popleft() for _ in range(told)) or None

    def end(self) -> None:
        """Of one that has nothing left, or has ended."""
        self._queue.close()
        self._talk.close()
        os.close(self._news)
        with contextlib.suppress(subprocess.TimeoutExpired):  # somebody killed it
            self._process.wait(_ENDS_S)


def close_here(fds: Sequence[int]) -> int:
    """Where no closer could be had: none of them is there."""
    with _FORKS:
        close_all(fds)
    return 0
