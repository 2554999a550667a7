# SPDX-License-Identifier: Apache-2.0
"""Owners: the processes that hold leases' RDMA objects, started, found again and spoken to.

An owner keeps both ends of its control socket. Whoever may trace it takes the other end (the door)
out of it with pidfd_getfd, says one thing and lets go again: nothing has a name that somebody could
squat, nothing is left behind, and an agent that was restarted speaks to it as the one before did.

Rule: it is found by its room in the lease's cgroup, where nobody but us puts processes. Every wait
has a deadline. Runs in workers.

Does not decide when an owner ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from leased.hardware import leaves, verbs
from leased.hardware.rdma import protocol
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S

DOOR_FD: Final = 4
"""Where an owner keeps the door (native/rdma/confinement.c)."""

PREFIX: Final = leaves.OURS
"""An owner's room in the leaf is called after its device."""

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_CANDIDATES: Final = (
    _PACKAGE / "bin" / "leased-rdma",
    _PACKAGE.parent.parent / "native" / "build" / "leased-rdma",
    Path("/usr/lib/leased/leased-rdma"),
)
_SLACK_BYTES: Final = 64 << 20
"""What a device's library may pin for itself: queues, doorbells."""

_DYING_S: Final = 0.1

_left: list[subprocess.Popen[Any]] = []
"""Those that were killed and had not ended when they were looked at last."""


def room_of(leaf: str, guid: str) -> str:
    """The room of the owner on that device."""
    return f"{leaf}/{PREFIX}{guid}"


def guid_of(room: str) -> str:
    """The device that the owner in the room is on; "" for a room of something else."""
    name = os.path.basename(room)
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""


def find_program(named: str) -> str:
    """leased-rdma of this installation, or the one that is named. Raises DeviceError."""
    for candidate in (named,) if named else _CANDIDATES:
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise DeviceError("rdma_start", errno.ENOENT, named or "no leased-rdma is installed")


class Door:
    """One end of a leased-rdma's control socket. Use within `with`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._serial = int.from_bytes(os.urandom(4), "little")

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._sock.close()

    def ask(
        self, kind: int, body: bytes = b"", *, fds: Sequence[int] = (), budget_ns: int
    ) -> bytes:
        """The answer's body. Raises DeviceError."""
        end_ns = time.monotonic_ns() + budget_ns
        self._serial = (self._serial + 1) & 0xFFFFFFFF
        try:
            self._wait(select.POLLOUT, end_ns)
            socket.send_fds(self._sock, [protocol.encode(kind, self._serial, body)], list(fds))
            while True:
                self._wait(select.POLLIN, end_ns)
                raw = self._sock.recv(protocol.PACKET_BYTES_MAX, socket.MSG_DONTWAIT)
                if not raw:
                    raise DeviceError("rdma_answer", errno.EPIPE, "leased-rdma has ended")
                answer = protocol.open_answer(raw, kind, self._serial)
                # Else somebody did not wait for it.
                if answer is not None:
                    return answer
        except OSError as error:
            raise DeviceError("rdma_answer", error.errno or errno.EIO, str(error)) from error

    def _wait(self, event: int, end_ns: int) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        left_ms = max((end_ns - time.monotonic_ns()) // 1_000_000, 0)
        if not poll.poll(left_ms):
            raise DeviceError("rdma_answer", errno.ETIMEDOUT, "leased-rdma does not answer")


# ---- starting ----------------------------------------------------------------------------------


def start_owner(program: str, room: str, pinned_bytes: int, *, budget_ns: int) -> Door:
    """Start an owner in `room`; it lives on without us. Raises DeviceError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        procs = os.open(f"{room}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, procs)
        numbers = (theirs.fileno(), ours.fileno(), procs)
        arguments = ("own", *map(str, numbers), str(pinned_bytes + _SLACK_BYTES))
        _run(program, arguments, numbers, budget_ns)
        return Door(ours.dup())


def start_prober(program: str) -> tuple[subprocess.Popen[bytes], Door]:
    """Start a prober; it ends with its door, or with this process. Raises DeviceError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                [program, "probe", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise DeviceError("rdma_start", error.errno or errno.EIO, program) from error
    return process, Door(ours)


def look(program: str, device: str, *, budget_ns: int) -> dict[str, str]:
    """What the library says that a device can. Raises DeviceError."""
    lines = _run(program, ("look", device), (), budget_ns).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _run(program: str, arguments: Sequence[str], fds: Sequence[int], budget_ns: int) -> str:
    """Run leased-rdma to its end, or until it has detached."""
    try:
        process = subprocess.Popen(
            [program, *arguments],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
        )
    except OSError as error:
        raise DeviceError("rdma_start", error.errno or errno.EIO, program) from error
    try:
        said, complaint = process.communicate(timeout=budget_ns / NS_PER_S)
    except subprocess.TimeoutExpired as error:
        leave(process)
        raise DeviceError("rdma_start", errno.ETIMEDOUT, " ".join(arguments)) from error
    if process.returncode == 0:
        return said
    number, _, what = complaint.strip().rpartition("\n")[2].partition(" ")
    if number.isdecimal():
        raise DeviceError("rdma_start", int(number), what)
    raise DeviceError("rdma_start", errno.EIO, f"exit status {process.returncode}: {complaint!r}")


def leave(process: subprocess.Popen[Any]) -> None:
    """Kill it, and wait no longer than whoever dies takes: one that hangs in the kernel does not
    even die, and whoever waits for it hangs as well."""
    process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DYING_S)
    _left[:] = [one for one in (*_left, process) if one.poll() is None]


# ---- finding -----------------------------------------------------------------------------------


def members(room: str) -> list[int]:
    """Who is in the room; nobody is where there is no room."""
    try:
        return [int(line) for line in Path(room, "cgroup.procs").read_text("ascii").split()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ENODEV:
            return []
        raise DeviceError("rdma_find", error.errno or errno.EIO, room) from error


@contextlib.contextmanager
def door_of(room: str) -> Iterator[Door]:
    """Speak to the owner in `room`. Raises DeviceError(ESRCH) where none lives."""
    found = members(room)
    if len(found) != 1:
        raise DeviceError("rdma_find", errno.ESRCH, f"{len(found)} processes in {room}")
    with contextlib.ExitStack() as stack:
        pidfd = verbs.open_pidfd(found[0])
        stack.callback(os.close, pidfd)
        # Still there, so the number was its own when the pidfd was opened.
        if members(room) != found:
            raise DeviceError("rdma_find", errno.ESRCH, room)
        taken = verbs.take_descriptor(pidfd, DOOR_FD)
        try:
            door = Door(socket.socket(fileno=taken))
        except OSError as error:
            os.close(taken)  # whoever is in the room is no owner
            detail = f"what {found[0]} in {room} has as its door is no socket"
            raise DeviceError("rdma_find", error.errno or errno.EIO, detail) from error
        yield stack.enter_context(door)


def end_owner(room: str, budget_ns: int) -> None:
    """Kill whoever is in the room and wait until nobody is. Raises DeviceError."""
    try:
        directory = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        verbs.kill_cgroup(directory, timeout_ms=max(budget_ns // 1_000_000, 1))
    finally:
        os.close(directory)
