# SPDX-License-Identifier: Apache-2.0
"""The fork server: the process that has read what workers are made of, and forks one whenever it is
asked. A fresh Python that reads a vendor's library takes longer than most of what a teardown asks
of it; a fork takes milliseconds, and shares its memory with the others.

`python -m leased.hardware.forkserver FD` serves one SOCK_SEQPACKET socket: orders in, births
out. It dies with the agent, and every worker with it.

Rule: it has one thread, touches no device, and has nothing open but its socket. A backend is read
before the first worker for it is forked, and never again. Workers that end are waited for here.

Does not carry out calls (`worker`) and does not keep the time (`starting`).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from leased.hardware import verbs, worker
from leased.hardware.descriptors import ONE, close_all, taken
from leased.terms.errors import DeviceError

COMM = "leased-forks"
MESSAGE_BYTES_MAX = 256


ORDER = struct.Struct("<Q")
"""An order's number; behind it stands the name of the backend that the worker is to have read
(none: ""). One descriptor comes with it: the socket that the worker is to serve."""

BIRTH = struct.Struct("<QII")
"""The answer to the order of that number: the worker's pid, and an errno if there is none. The
worker's pidfd comes with it."""


def serve(sock: socket.socket) -> None:
    """Fork workers until the other end closes, also with answers that it has not read."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while _serve_one(sock):
            pass


def _serve_one(sock: socket.socket) -> bool:
    """One order; whether there was one. Raises OSError."""
    raw, control, _, _ = sock.recvmsg(MESSAGE_BYTES_MAX, ONE, socket.MSG_CMSG_CLOEXEC)
    if not raw:
        return False
    (number,), backend = ORDER.unpack_from(raw), raw[ORDER.size :].decode("ascii")
    birth, pidfds = _born(backend, sock, taken(control))
    try:
        socket.send_fds(sock, [BIRTH.pack(number, *birth)], pidfds)
    finally:
        close_all(pidfds)
    return True


def _born(
    backend: str, ours: socket.socket, fds: list[int]
) -> tuple[tuple[int, int], list[int]]:
    """The worker's pid, or an errno; and its pidfd."""
    if not fds:  # it came, and there was no room for it
        return (0, errno.EMFILE), []
    with socket.socket(fileno=fds[0]) as theirs:
        try:
            pid, pidfd = _fork(backend, ours, theirs)
        except OSError as error:
            return (0, error.errno or errno.EAGAIN), []
        return (pid, 0), [pidfd]


def _fork(backend: str, ours: socket.socket, theirs: socket.socket) -> tuple[int, int]:
    """The worker's pid and pidfd. Does not return in the worker. Raises OSError."""
    with contextlib.suppress(DeviceError):  # the worker says it to whoever asks something of it
        if backend in worker.BACKENDS:
            worker.load(backend)
    # What is here by now is shared with every worker, as long as no collector goes through it.
    gc.freeze()
    server = os.getpid()
    with _unburied():
        pid = os.fork()
        if pid == 0:
            _work(server, ours, theirs)
        return pid, os.pidfd_open(pid)


def _work(server: int, ours: socket.socket, theirs: socket.socket) -> NoReturn:
    """A worker's whole life."""
    status = 1
    try:
        verbs.die_with_parent()
        if os.getppid() != server:  # it ended before we had said so
            os._exit(status)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
        ours.close()
        worker.work(theirs)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        # Not the fork server's way out: what it would tidy up is not ours.
        os._exit(status)


@contextlib.contextmanager
def _unburied() -> Iterator[None]:
    """For the `with`, the number of a worker that has ended stays its own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))


def _bury(*_: object) -> None:
    """Wait for those that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def main(argv: Sequence[str]) -> int:
    """Serve the socket whose descriptor is the first argument."""
    verbs.die_with_parent()
    worker.ignore_signals()
    signal.signal(signal.SIGCHLD, _bury)
    worker.call_oneself(COMM)
    with socket.socket(fileno=int(argv[0])) as sock:
        serve(sock)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
