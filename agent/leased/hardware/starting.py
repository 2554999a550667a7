# SPDX-License-Identifier: Apache-2.0
"""Starting workers: the agent's end of the fork server, and each worker as a process.

Rule: a process is held by its pidfd, never by its number. Orders are answered in turn; whoever
gives up leaves a worker that finds its socket closed and ends. A server that has answered nobody
for as long as its own start may take is killed, with all its workers, and the next order starts
another.

Does not talk to workers (`crew`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trio

from leased.hardware.descriptors import ONE, close_all, taken
from leased.hardware.forkserver import BIRTH, MESSAGE_BYTES_MAX, ORDER
from leased.hardware.procfs import start_time
from leased.hardware.worker import MESSAGE_BYTES_MAX as BATCH_BYTES_MAX

STARTING_NS = 20_000_000_000
"""What the first words with a worker may take besides: Python's start on a host that is itself
booting. Whoever grants or tears down talks to workers that have long been there."""

STUCK_NS = 5_000_000_000
"""A killed process that is still there after this hangs in the kernel."""

SO_SNDBUFFORCE = 32
"""Python has no name for it. Without, a socket holds no more than net.core.wmem_max allows, which
is 208 KiB on most hosts."""

_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])
"""A worker runs the very code that its agent runs, wherever that was found."""


class Child:
    """A worker's process. Takes over `pidfd`."""

    __slots__ = ("_killed_ns", "_pidfd", "pid", "started")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.started = start_time(pid) or 0
        self._pidfd = pidfd
        self._killed_ns: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait so long for its end; whether it has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1_000))

    def kill(self) -> None:
        """SIGKILL. It may have ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._killed_ns = time.monotonic_ns()

    def is_stuck(self) -> bool:
        """Whether it was killed a while ago, and is still there."""
        killed_ns = self._killed_ns
        late = killed_ns is not None and time.monotonic_ns() - killed_ns > STUCK_NS
        return late and not self.ended

    def close(self) -> None:
        """Let go of it. Called once."""
        os.close(self._pidfd)


class Starter:
    """Starts workers, by a fork server of its own that is started when the first is wanted."""

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._turn = trio.StrictFIFOLock()
        self._sock: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._dropped: list[subprocess.Popen[bytes]] = []
        self._number = 0
        self._unanswered_ns: int | None = None

    async def start(self, backend: str = "") -> tuple[socket.socket, Child]:
        """Our end of a fresh worker's socket, and the worker; it has read the backend. Raises
        OSError, EOFError."""
        ours, theirs = _pair(2 * BATCH_BYTES_MAX)
        try:
            with theirs:
                async with self._turn:
                    return ours, await self._order(backend, theirs)
        except BaseException:
            ours.close()
            raise

    async def _order(self, backend: str, theirs: socket.socket) -> Child:
        self._number += 1
        order = ORDER.pack(self._number) + backend.encode("ascii")
        try:
            sock = await self._send(order, theirs)
            while True:
                await trio.lowlevel.wait_readable(sock)
                self._unanswered_ns = None
                number, pid, failed, pidfds = _receive(sock)
                if number == self._number:
                    break
                # Of an order that was given up: that worker has found its socket closed.
                close_all(pidfds)
        except EOFError:
            self._drop()
            raise
        except trio.Cancelled:
            asked_ns = self._unanswered_ns
            if asked_ns is not None and self._monotonic_ns() - asked_ns > STARTING_NS:
                self._drop()
            raise
        if failed:
            raise OSError(failed, os.strerror(failed))
        return Child(pid, pidfds[0])

    async def _send(self, order: bytes, theirs: socket.socket) -> socket.socket:
        """To the server, or where it has ended meanwhile to the next one."""
        if self._sock is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                return await self._sent(self._sock, order, theirs)
            self._drop()
        return await self._sent(self._begin(), order, theirs)

    async def _sent(
        self, sock: socket.socket, order: bytes, theirs: socket.socket
    ) -> socket.socket:
        while True:
            try:
                socket.send_fds(sock, [order], [theirs.fileno()])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
                continue
            if self._unanswered_ns is None:
                self._unanswered_ns = self._monotonic_ns()
            return sock

    def _begin(self) -> socket.socket:
        ours, theirs = _pair()
        paths = [_SOURCE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        words = [sys.executable, "-P", "-m", "leased.hardware.forkserver", str(theirs.fileno())]
        with theirs:
            # From this thread, never a thread of trio's: the server dies with the thread that
            # forked it (PR_SET_PDEATHSIG), and trio's threads end when they are idle.
            self._server = subprocess.Popen(
                words,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        self._sock = ours
        return ours

    def _drop(self) -> None:
        """Kill the server, and every worker with it, and wait for nothing."""
        self._unanswered_ns = None
        if self._sock is not None:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self._sock = None
        self._dropped = [server for server in self._dropped if server.poll() is None]
        if self._server is not None:
            self._server.kill()
            self._dropped.append(self._server)
            self._server = None

    def close(self) -> None:
        """End the server, and every worker with it; one that hangs is left to the kernel.
        Idempotent."""
        self._drop()
        for server in self._dropped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=1)
            # What is left is in D state; Popen would warn about it in its finaliser.
            server.returncode = 0 if server.returncode is None else server.returncode
        self._dropped = []


def _pair(bytes_max: int = 0) -> tuple[socket.socket, socket.socket]:
    """A socket of ours, which does not block, and its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    for end in (ours, theirs) if bytes_max else ():
        try:
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, bytes_max)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bytes_max)
    return ours, theirs


def _receive(sock: socket.socket) -> tuple[int, int, int, list[int]]:
    """An answer: of which order, the worker's pid, an errno, its pidfd. Raises OSError,
    EOFError."""
    raw, control, flags, _ = sock.recvmsg(MESSAGE_BYTES_MAX, ONE, socket.MSG_CMSG_CLOEXEC)
    if not raw:
        raise EOFError
    number, pid, failed = BIRTH.unpack(raw)
    return number, pid, errno.EMFILE if flags & socket.MSG_CTRUNC else failed, taken(control)
