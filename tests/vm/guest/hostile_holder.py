# SPDX-License-Identifier: Apache-2.0
"""A holder that will not let go, as the machine's own user: `python hostile_holder.py ORDER`.

ORDER is JSON: `trick`, `asks` (of Acquire) and `device` (to open before it joins). It acquires,
joins its lease's leaf, and plays the trick there with the memory that it got; where the trick
begins with `outside:`, a second process plays it, which was never inside the leaf and has the
descriptor over a socket. Then one line of JSON says who is who, and from then on each line of
standard input is answered with a line: what the process that plays can still do.

The tricks with a descriptor alone are those of `tests/doubles/intruder.py`. Imports nothing of the
agent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host import CGROUP, Connection

from tests.doubles import intruder
from tests.doubles.intruder import Answer

_LIBC = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _TRACE_EXIT = 0x4206, 0x4207, 0x40
_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUSER = 0x20000, 0x2000000, 0x10000000
_FUSE_LOOKUP, _FUSE_INIT = 1, 26
DEVICE_FD = 100
_EVERY_SIGNAL = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}


# ---- tricks of a whole process -------------------------------------------------------------------


def stopped(fd: int) -> Answer:
    """Stop a child that has it mapped: it handles nothing, not even its end."""
    child = os.fork()
    if child == 0:
        intruder.mapped(fd)
        os.kill(os.getpid(), signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    return lambda line: "stopped"


def ignores_signals(fd: int) -> Answer:
    """Ignore what can be ignored, and keep writing."""
    for number in _EVERY_SIGNAL:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    return intruder.mapped(fd)


def reopens(fd: int) -> Answer:
    """Open it again and again, in four processes, and never for long."""
    path = f"/proc/self/fd/{fd}"
    for _ in range(4):
        if os.fork() == 0:
            while True:
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_RDWR))
    return lambda line: "re-opening"


def traced(fd: int) -> Answer:
    """A tracer holds a process of the leaf at its exit; it is the outsider that plays. `fd` is a
    socket over which the pid to trace comes."""
    pid = int(os.read(fd, 32))
    if _LIBC.ptrace(_PTRACE_SEIZE, pid, None, ctypes.c_void_p(_TRACE_EXIT)):
        raise OSError(ctypes.get_errno(), "ptrace")
    _LIBC.ptrace(_PTRACE_INTERRUPT, pid, None, None)
    os.waitpid(pid, os.WUNTRACED)
    return lambda line: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_flight(fd: int) -> Answer:
    """Leave it in the queue of a socket, `fd`, to be received when asked."""
    queue = socket.socket(fileno=os.dup(fd))
    return lambda line: intruder._try_file(socket.recv_fds(queue, 1, 1)[1][0])


def escapes(fd: int) -> Answer:
    """Try every way out of the leaf; say which one the kernel left open."""
    (own,) = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    leaf = Path(f"/sys/fs/cgroup{own}")
    top = Path("/sys/fs/cgroup")
    doors = [leaf.parent, CGROUP / "keeper", top, top / "user.slice"]
    ways: dict[str, Callable[[], Any]] = {
        f"into {door}": lambda door=door: (door / "cgroup.procs").write_text(str(os.getpid()))
        for door in doors
    }
    ways["a thread out"] = lambda: (leaf.parent / "cgroup.threads").write_text(str(os.getpid()))
    ways["a room below"] = lambda: (leaf / "below").mkdir()
    ways["thaw"] = lambda: (leaf / "cgroup.freeze").write_text("0")
    ways["no limit"] = lambda: (leaf / "pids.max").write_text("max")
    ways["as root of a namespace"] = lambda: _escape_in_namespaces(leaf)
    found = []
    for name, way in ways.items():
        with contextlib.suppress(OSError):
            way()
            found.append(name)
    intruder.mapped(fd)
    return lambda line: ", ".join(found) or "none"


def _escape_in_namespaces(leaf: Path) -> None:
    """As root of user, mount and cgroup namespaces, on a mount of its own. In a child: what it sets
    up should not last."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        status = b"0"
        try:
            uid = os.getuid()
            if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWCGROUP):
                raise OSError(ctypes.get_errno(), "unshare")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            place = f"/tmp/escape-{os.getpid()}"
            os.mkdir(place)
            if _LIBC.mount(b"none", place.encode(), b"cgroup2", 0, None):
                raise OSError(ctypes.get_errno(), "mount")
            (Path(place) / "room").mkdir()
            (Path(place) / "cgroup.procs").write_text(str(os.getpid()))
            status = b"1"
        finally:
            os.write(writing, status)
            os._exit(0)
    if os.read(reading, 1) != b"1":
        raise OSError("refused")


def nests(fd: int) -> Answer:
    """Root makes rooms below the leaf, one in another, and lives in the lowest."""
    (own,) = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    low = Path(f"/sys/fs/cgroup{own}/below/lower")
    low.mkdir(parents=True)
    (low / "cgroup.procs").write_text(str(os.getpid()))
    return intruder.mapped(fd)


def leaves(fd: int) -> Answer:
    """Root moves a child, that has it mapped, out of the leaf to where the machine's root lives."""
    child = os.fork()
    if child == 0:
        Path("/sys/fs/cgroup/cgroup.procs").write_text("0")
        intruder.mapped(fd)
        signal.pause()
    return lambda line: str(child)


def uninterruptible(fd: int) -> Answer:
    """Read a suspended device (opened before it joined): D state, by a child that has it
    mapped."""
    child = os.fork()
    if child == 0:
        intruder.mapped(fd)
        os.preadv(DEVICE_FD, [mmap.mmap(-1, 4096)], 0)
        os._exit(0)
    state = Path(f"/proc/{child}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "D":
        time.sleep(0.01)
    return lambda line: str(child)


def serve_oneself() -> None:
    """Before it joins: a file system of its own (FUSE), in namespaces of its own, whose server is
    outside the leaf, answers nobody, and says when somebody waits."""
    users, groups = f"0 {os.getuid()} 1", f"0 {os.getgid()} 1"
    own = (("setgroups", "deny"), ("uid_map", users), ("gid_map", groups))
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, said in own:
        Path("/proc/self", name).write_text(said)
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if _LIBC.mount(b"own", b"/mnt", b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    waits, says = os.pipe()
    os.dup2(waits, DEVICE_FD)
    if os.fork() == 0:
        while True:
            _, asked, unique = struct.unpack_from("IIQ", os.read(server, 1 << 17))
            if asked == _FUSE_INIT:
                body = struct.pack("IIIIHHIIHH28x", 7, 31, 0, 0, 0, 0, 4096, 1, 1, 0)
                os.write(server, struct.pack("IiQ", 16 + len(body), 0, unique) + body)
            elif asked == _FUSE_LOOKUP:
                os.write(says, b"x")
    os.close(server)


def own_server(fd: int) -> Answer:
    """Wait for what one serves oneself, by a child that has it mapped."""
    child = os.fork()
    if child == 0:
        intruder.mapped(fd)
        os.stat("/mnt/file")
    os.read(DEVICE_FD, 1)
    return lambda line: str(child)


TRICKS: dict[str, Callable[[int], Answer]] = {
    **intruder.TRICKS,
    **{
        trick.__name__: trick
        for trick in (
            stopped, ignores_signals, reopens, traced, in_flight, escapes, nests,
            leaves, uninterruptible, own_server,
        )
    },
}  # fmt: skip


# ---- the order of things -------------------------------------------------------------------------


def main(order: dict[str, Any]) -> None:
    """Acquire, join, play, answer."""
    where, _, name = order["trick"].rpartition(":")
    if device := order.get("device"):
        os.dup2(os.open(device, os.O_RDONLY | os.O_DIRECT), DEVICE_FD, inheritable=True)
    if name == "own_server":
        serve_oneself()
    things, words = socket.socketpair(), socket.socketpair()
    if where == "outside" and os.fork() == 0:
        play_outside(name, things[1], words[1])
        return
    connection = Connection()
    granted = connection.acquire(*order["asks"], ttl_s=120, bind="cgroup")
    lease_id = granted["lease"]["lease_id"]
    connection.close_fds()
    joined = connection.call("Lease.Join", lease_id=lease_id)
    purposes = [fd["purpose"] for fd in joined["fds"]]
    fd = connection.fds[purposes.index("memory")]
    facts = {"lease_id": lease_id, "pid": os.getpid()}
    if where == "outside":
        words[0].sendall(json.dumps(facts).encode())
        if name == "traced":
            things[0].send(str(os.getpid()).encode())
        else:
            socket.send_fds(things[0], [b"x"], [fd])
        os.close(fd)
        while True:
            signal.pause()
    serve(facts, TRICKS[name](fd))


def play_outside(name: str, things: socket.socket, words: socket.socket) -> None:
    """The second process: never in the leaf. What it plays with comes over a socket; the facts over
    another one, for a descriptor may have to stay in the queue until somebody asks."""
    os.setsid()
    if name in ("in_flight", "traced"):
        answer = TRICKS[name](things.fileno())
    else:
        answer = TRICKS[name](socket.recv_fds(things, 1, 1)[1][0])
    serve(json.loads(words.recv(4096)), answer)


def serve(facts: dict[str, Any], answer: Answer) -> None:
    """Say who is who, then answer whoever asks."""
    print(json.dumps({**facts, "other": os.getpid()}), flush=True)
    for line in sys.stdin:
        try:
            print(answer(line.strip()), flush=True)
        except OSError as error:
            print(error.strerror, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
