# SPDX-License-Identifier: Apache-2.0
"""Spares: workers that have been started, have read their modules and touched nothing, for whoever
needs one at once. A fresh Python that reads a vendor's library takes longer than most of what a
teardown asks of it.

Rule: a spare is given away once, and one that has ended meanwhile never; for one that was given
away the next is started. It has nothing open but its socket.

Does not talk to them (`crew`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from leased.hardware.worker import MESSAGE_BYTES_MAX

_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])
"""A worker runs the very code that its agent runs, wherever that was found."""


class Started(NamedTuple):
    """A worker and our end of its socket."""

    sock: socket.socket
    process: subprocess.Popen[bytes]


def start(backend: str = "") -> Started:
    """A fresh worker, which reads a backend's modules before it is asked anything of it. Raises
    OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES_MAX)
    paths = [_SOURCE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    words = [sys.executable, "-P", "-m", "leased.hardware.worker", str(theirs.fileno())]
    with theirs:
        # From this thread, never a thread of trio's: the worker dies with the thread that
        # forked it (PR_SET_PDEATHSIG), and trio's threads end when they are idle.
        process = subprocess.Popen(
            [*words, *filter(None, [backend])],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
    return Started(ours, process)


class Spares:
    """Those that wait, by the backend that they have read."""

    def __init__(self) -> None:
        self._wanted: dict[str, int] = {}
        self._waiting: dict[str, list[Started]] = {}

    def keep(self, backend: str, count: int) -> None:
        """Have so many from here on. Raises OSError."""
        self._wanted[backend] = count
        self._fill(backend)

    def take(self, backend: str) -> Started:
        """One of them, or a fresh one where none waits. Raises OSError."""
        waiting = self._waiting.get(backend, [])
        while waiting:
            spare = waiting.pop(0)
            if spare.process.poll() is None:
                self._fill(backend)
                return spare
            spare.sock.close()
        taken = start()
        self._fill(backend)
        return taken

    @property
    def pids(self) -> tuple[int, ...]:
        """Those that wait."""
        return tuple(spare.process.pid for each in self._waiting.values() for spare in each)

    def close(self) -> None:
        """End them all. Idempotent."""
        self._wanted.clear()
        for waiting in self._waiting.values():
            while waiting:
                spare = waiting.pop()
                spare.sock.close()
                spare.process.kill()
                spare.process.wait()

    def _fill(self, backend: str) -> None:
        waiting = self._waiting.setdefault(backend, [])
        while len(waiting) < self._wanted.get(backend, 0):
            waiting.append(start(backend))
