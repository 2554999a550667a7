# SPDX-License-Identifier: Apache-2.0
"""A tenant that does not want to let go: `python -m tests.doubles.intruder TRICK FD`.

It plays its trick with the memfd, prints "ready PID" (the process that remains when the first one
is killed; the same if there is none), and then answers one line of standard input with one line of
output: what it can still do. It runs as nobody.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable

NOBODY = 65534
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_CLONE_FILES = 0x400
_CLONE_NEWUSER = 0x10000000
_IO_URING_SETUP, _IO_URING_REGISTER = 425, 427
_REGISTER_BUFFERS, _REGISTER_FILES = 0, 2
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_SEIZE, _TRACE_EXIT, _SET_DUMPABLE = 0x4206, 0x40, 4

Answer = Callable[[str], str]


class _Iovec(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _map(fd: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> int:
    """A mapping without a descriptor of its own (Python's mmap keeps one). Of a device, which has
    no size, 2 MiB: what device-dax is aligned to."""
    size = os.fstat(fd).st_size or 2 << 20
    start = _LIBC.mmap(None, size, protection, mmap.MAP_SHARED, fd, 0)
    if start in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(start)


def _try_file(fd: int) -> str:
    """What an open descriptor is still good for."""
    status = os.fstat(fd)
    size = status.st_size
    if stat.S_ISCHR(status.st_mode):
        return f"read {ctypes.string_at(_map(fd), 6)!r}"
    try:
        os.ftruncate(fd, os.fstat(fd).st_blksize)
    except OSError as error:
        return f"size {size}, growing {errno.errorcode[error.errno or 0]}"
    return f"size {size}, grew"


# ---- the tricks: each returns what the remaining process answers ---------------------------------


def hold(fd: int) -> Answer:
    """Keep the descriptor."""
    return lambda line: _try_file(fd)


def reopen(fd: int) -> Answer:
    """Keep another open of it."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.close(fd)
    return lambda line: _try_file(again)


def path_only(fd: int) -> Answer:
    """Keep an O_PATH descriptor, which counts as no open, and open it when asked."""
    path = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
    os.close(fd)
    return lambda line: _try_file(os.open(f"/proc/self/fd/{path}", os.O_RDWR))


def reopens(fd: int) -> Answer:
    """Keep an O_PATH descriptor and open it again and again, never for long; say how often a
    second."""
    path = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
    os.close(fd)
    name, began, count = f"/proc/self/fd/{path}", time.monotonic(), 0

    def open_for_ever() -> None:
        nonlocal count
        while True:
            with contextlib.suppress(OSError):
                os.close(os.open(name, os.O_RDWR | os.O_NONBLOCK))
            count += 1

    threading.Thread(target=open_for_ever, daemon=True).start()
    return lambda line: str(int(count / (time.monotonic() - began)))


def mapped(fd: int) -> Answer:
    """Map it and close it."""
    start = _map(fd)
    os.close(fd)
    return lambda line: ctypes.string_at(start, 8).hex()


def cow(fd: int) -> Answer:
    """Map it privately, write to the copy, and close it."""
    size = os.fstat(fd).st_size or 2 << 20
    start = _LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    ctypes.memset(start, 0x5A, mmap.PAGESIZE)
    os.close(fd)
    return lambda line: ctypes.string_at(start, 8).hex()


def double_fork(fd: int) -> Answer:
    """Leave the session and the parents, as daemons do, with the memory mapped."""
    for _ in range(2):
        if os.fork() != 0:
            signal.pause()
        os.setsid()
    return mapped(fd)


def user_namespace(fd: int) -> Answer:
    """Be root, in a user namespace of its own."""
    _checked(_LIBC.unshare(_CLONE_NEWUSER))
    return mapped(fd)


def traced(fd: int) -> Answer:
    """Map it, with a tracer that will hold us at our exit and read what we had."""
    reading, writing = os.pipe()
    _checked(_LIBC.prctl(_SET_DUMPABLE, 1))  # lost with the change of user
    if os.fork() == 0:
        os.close(fd)
        traced_pid = os.getppid()
        _checked(_LIBC.ptrace(_SEIZE, traced_pid, None, ctypes.c_void_p(_TRACE_EXIT)))
        os.write(writing, b"x")
        while True:
            signal.pause()
    os.close(writing)
    if not os.read(reading, 1):
        raise OSError(errno.EPERM, "ptrace")
    return mapped(fd)


def thread(fd: int) -> Answer:
    """Keep it in a thread with descriptors of its own."""
    kept, done = threading.Event(), threading.Event()

    def live() -> None:
        _checked(_LIBC.unshare(_CLONE_FILES))
        kept.set()
        done.wait()

    threading.Thread(target=live, daemon=True).start()
    kept.wait()
    os.close(fd)
    return lambda line: "closed here"


def in_flight(fd: int) -> Answer:
    """Leave it in a socket's queue, to be received when asked."""
    near, far = socket.socketpair()
    rights = array.array("i", [fd])
    near.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    near.close()
    os.close(fd)
    return lambda line: _try_file(socket.recv_fds(far, 1, 1)[1][0])


def _ring() -> int:
    return _checked(_LIBC.syscall(_IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))


def ring_file(fd: int) -> Answer:
    """Register it with an io_uring and close it."""
    ring = _ring()
    table = (ctypes.c_int * 1)(fd)
    _checked(_LIBC.syscall(_IO_URING_REGISTER, ring, _REGISTER_FILES, table, 1))
    os.close(fd)
    return lambda line: f"ring {ring}"


def ring_buffer(fd: int) -> Answer:
    """Pin its pages as an io_uring buffer, unmap and close it."""
    size, ring, start = os.fstat(fd).st_size, _ring(), _map(fd)
    vector = _Iovec(start, mmap.PAGESIZE)
    register = _LIBC.syscall(_IO_URING_REGISTER, ring, _REGISTER_BUFFERS, ctypes.byref(vector), 1)
    _checked(register)
    _LIBC.munmap(start, size)
    os.close(fd)
    return lambda line: f"ring {ring}"


def pipe_page(fd: int) -> Answer:
    """Put a page into a pipe by reference, unmap and close it; read the pipe when asked."""
    size, start = os.fstat(fd).st_size, _map(fd)
    ctypes.memset(start, 0x5A, mmap.PAGESIZE)
    reading, writing = os.pipe()
    vector = _Iovec(start, mmap.PAGESIZE)
    _checked(_LIBC.vmsplice(writing, ctypes.byref(vector), 1, 0))
    _LIBC.munmap(start, size)
    os.close(fd)
    return lambda line: os.read(reading, 8).hex()


def shrink(fd: int) -> Answer:
    """Give the memory up early, before anybody overwrites it."""
    os.ftruncate(fd, 0)
    return lambda line: _try_file(fd)


def punch(fd: int) -> Answer:
    """Punch a hole into the first page (of whatever size its pages are)."""
    page_bytes = os.fstat(fd).st_blksize
    _checked(_LIBC.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 0, ctypes.c_long(page_bytes)))
    return lambda line: _try_file(fd)


def seal(fd: int) -> Answer:
    """Try every seal that would stop the truncation."""
    said = []
    for seals in (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL):
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            said.append("sealed")
        except OSError as error:
            said.append(errno.errorcode[error.errno or 0])
    return lambda line: " ".join(said)


def spend(fd: int) -> Answer:
    """Touch as much memory of its own as the file is large, when asked; say where it lies."""
    size = os.fstat(fd).st_size
    kept: list[mmap.mmap] = []

    def touch(line: str) -> str:
        view = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, size, mmap.PAGESIZE):
            view[at] = 1
        kept.append(view)
        with open("/proc/self/numa_maps", encoding="ascii") as maps:
            words = [word for line in maps if "anon=" in line for word in line.split()]
        pages: dict[str, int] = {}
        for word in words:
            node, equals, count = word.partition("=")
            if equals and node[0] == "N" and node[1:].isdigit():
                pages[node] = pages.get(node, 0) + int(count)
        return max(pages, key=lambda node: pages[node], default="")

    return touch


def leave_file(fd: int) -> Answer:
    """Write a file as large as ours to where the line says, when asked, and leave it there."""
    size = os.fstat(fd).st_size

    def write(line: str) -> str:
        with open(line, "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
        return "written"

    return write


def fork_bomb(fd: int) -> Answer:
    """Fork as fast as the limits allow, each child keeping the descriptor and forking on."""

    def explode(line: str) -> str:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            while True:
                try:
                    os.fork()
                except OSError:
                    os.sched_yield()
        return "exploding"

    return explode


TRICKS: dict[str, Callable[[int], Answer]] = {
    trick.__name__: trick
    for trick in (
        hold, reopen, reopens, path_only, mapped, cow, double_fork, user_namespace, traced, thread,
        in_flight, ring_file, ring_buffer, pipe_page, shrink, punch, seal, spend, leave_file,
        fork_bomb,
    )
}  # fmt: skip


def main(name: str, fd: int) -> None:
    """Play the trick; where it says `second:`, in a child that survives the holder."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    second = name.startswith("second:")
    trick = TRICKS[name.removeprefix("second:")]
    if second and os.fork() != 0:
        # The holder that the lease is bound to, and that the cut will kill.
        signal.pause()
    if second:
        os.setsid()
    answer = trick(fd)
    print(f"ready {os.getpid()}", flush=True)
    for line in sys.stdin:
        try:
            print(answer(line.strip()), flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno or 0], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
