# SPDX-License-Identifier: Apache-2.0
"""The child of `run`: a process that waits to be told its lease, joins it, and becomes the command.

Rule: it is forked before there is an event loop or a thread, so nothing of the parent's is half
done in it. It joins over a connection of its own, so that the agent moves exactly the process that
the kernel names. What the command inherits is listed in its environment; everything else is closed
by exec.

Does not hold or renew the lease (`run`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Final, NoReturn

import msgspec
import trio

from leased.client import Session
from leased.client.connection import descriptors_of
from leased.terms.errors import EX_OSERR, EX_SOFTWARE, LeasedError
from leased.wire import objects

EX_NOT_EXECUTABLE: Final = 126
EX_NOT_FOUND: Final = 127
_PACKET_BYTES: Final = 64 * 1024
_FD_BYTES: Final = 4
_NAME_OF: Final = {"memory": "LEASE_MEM_FDS", "block": "LEASE_BLOCK_FDS"}


class Orders(msgspec.Struct):
    """What the parent tells its child. The notice pipe comes along; what the lease itself comes
    with, the child gets when it joins.
    """

    lease_id: str
    socket: str
    timeout_s: float


class Failure(msgspec.Struct):
    """Why the child could not become the command, and what to exit with."""

    message: str
    status: int


class Child:
    """The parent's end: a process that has not begun yet."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._channel = channel

    def begin(self, orders: Orders, notices: int) -> None:
        """Tell the child to join and go. One that was ended while it waited tells by its status."""
        with suppress(BrokenPipeError):
            socket.send_fds(self._channel, [msgspec.json.encode(orders)], [notices])

    async def outcome(self) -> Failure | None:
        """None once the command runs; why not, if it does not. Takes as long as joining takes."""
        await trio.lowlevel.wait_readable(self._channel)
        try:
            said = self._channel.recv(_PACKET_BYTES)
        except ConnectionResetError:  # it ended with its orders unread
            said = b""
        self._channel.close()
        return msgspec.json.decode(said, type=Failure) if said else None

    def dismiss(self) -> None:
        """There is no lease: let the child end without having begun."""
        self._channel.close()
        os.waitpid(self.pid, 0)

    def is_outside(self, cgroup: str) -> bool:
        """Whether it lives, and not in the cgroup of that name."""
        try:
            with open(f"/proc/{self.pid}/cgroup", encoding="utf-8", errors="replace") as file:
                inside = f"/{cgroup}" in file.read()
        except OSError:
            return False  # not to be seen from here
        end = select.poll()
        end.register(self.pidfd, select.POLLIN)
        return not inside and not end.poll(0)

    async def status(self) -> int:
        """Wait for the end; the wait status."""
        await trio.lowlevel.wait_readable(self.pidfd)
        os.close(self.pidfd)
        return os.waitpid(self.pid, 0)[1]


def fork_child(command: Sequence[str]) -> Child:
    """Fork a child that will become `command`. Call it before trio runs and before any thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Who started us may ignore it, and then the kernel keeps no status for us to read.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # An interrupt ends the child as it ends a command: it must not be raised there as it is here.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pid = os.fork()
    if pid == 0:
        status = EX_SOFTWARE
        try:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            ours.close()
            status = _become(theirs, command)
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    return Child(pid, ours)


def _become(channel: socket.socket, command: Sequence[str]) -> int:
    """The child's life up to exec; returns a status only if there is nothing to become."""
    space = socket.CMSG_SPACE(_FD_BYTES)
    said, control, _, _ = channel.recvmsg(_PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    if not said:
        return 0
    orders = msgspec.json.decode(said, type=Orders)
    try:
        joined = trio.run(join, orders.lease_id, orders.socket, orders.timeout_s)
        [notices] = descriptors_of(control)
        os.set_inheritable(notices, True)
        told = {"LEASE_NOTIFY_FD": str(notices)}
        execute(command, {**os.environ, **joined, **told})
    except LeasedError as error:
        failure = Failure(f"cannot join lease {orders.lease_id[:8]}: {error}", error.exit_status)
    except OSError as error:
        failure = Failure(*not_executed(command, error))
    channel.send(msgspec.json.encode(failure))
    return failure.status


async def join(lease_id: str, path: str, timeout_s: float) -> dict[str, str]:
    """Move this process into the lease's cgroup; the environment that it should have from then on,
    in which the descriptors that its command inherits are named.
    """
    with closing(Session(path, timeout_s=timeout_s)) as session:
        joined, fds = await session.join_with_fds(lease_id)
    return {**joined.environment, **_inherited(joined.fds, fds)}


def execute(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become `command`. Signals that Python ignores are given back their defaults first."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    os.execvpe(command[0], list(command), dict(environment))


def not_executed(command: Sequence[str], error: OSError) -> tuple[str, int]:
    """What to say, and to exit with, for a command that could not be run: as the shell does."""
    status = EX_OSERR
    if isinstance(error, FileNotFoundError):
        status = EX_NOT_FOUND
    elif error.errno in (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
        status = EX_NOT_EXECUTABLE
    named = os.fsencode(command[0]).decode("utf-8", "backslashreplace")
    return f"{named}: {error.strerror}", status


def _inherited(items: Sequence[objects.LeaseFd], fds: Sequence[int]) -> dict[str, str]:
    """Let the command inherit what is meant for it, and name it."""
    found: dict[str, list[str]] = {}
    for item in sorted(items, key=lambda item: item.index):
        name = _NAME_OF.get(item.purpose)
        if name is not None:
            os.set_inheritable(fds[item.index], True)
            found.setdefault(name, []).append(str(fds[item.index]))
    return {name: ",".join(numbers) for name, numbers in found.items()}
