# SPDX-License-Identifier: Apache-2.0
"""Processes that keep others, who were killed, from ending: tracers, parents that wait for nobody,
and who has the lock of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TRACER = """
import ctypes, os, sys, signal
libc, seize, interrupt, trace_exit = ctypes.CDLL(None), 0x4206, 0x4207, 0x40
for pid in map(int, sys.argv[1:]):
    assert libc.ptrace(seize, pid, None, ctypes.c_void_p(trace_exit)) == 0
    libc.ptrace(interrupt, pid, None, None)
    os.waitpid(pid, os.WUNTRACED)
print(flush=True)
while True:
    signal.pause()
"""
"""Holds whom it traces at its exit, and never lets it go."""


def tracer_of(*pids: int) -> subprocess.Popen[bytes]:
    """A process outside that traces these."""
    words = [sys.executable, "-c", TRACER, *map(str, pids)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    process.stdout.close()
    return process


PARENT = """
import ctypes, os, signal, sys, threading
libc = ctypes.CDLL(None)
def pause():
    while True:
        signal.pause()
def child(how):
    if how in ("thread", "two"):
        made = threading.Event()
        def other():
            assert how == "two" or libc.ptrace(0, 0, None, None) == 0
            made.set()
            threading.Event().wait()
        threading.Thread(target=other, daemon=True).start()
        made.wait()
    elif how == "init":
        assert libc.ptrace(0, 0, None, None) == 0
    os.write(ready[1], b"x")
    pause()
how, ready = sys.argv[1], os.pipe()
if how == "init":
    assert libc.unshare(0x20000000) == 0  # CLONE_NEWPID: the next child is an init
pid = os.fork()
if pid == 0:
    child(how)
os.read(ready[0], 1)
if how == "init" and os.fork() == 0:
    os._exit(0)  # dead in the room of that init, and waited for by nobody
print(pid, flush=True)
pause()
"""
"""Never waits for its child. `two`: it has two threads. `thread`: and the second says that its
parent traces it. `init`: so says the child, which is the init of a pid namespace; there is a dead
process in it that is its parent's, and before that is waited for it does not end."""


@contextlib.contextmanager
def parent_of(how: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The parent and its child's pid."""
    words = [sys.executable, "-S", "-c", PARENT, how]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            yield parent, pid
        finally:
            if parent.poll() is None:  # then the number is its child's, dead or alive
                os.kill(pid, signal.SIGKILL)
            parent.kill()


HOLDS = """
import os, socket, sys
ours, theirs = socket.socketpair()
uid = int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
os.splice(ours.fileno(), int(sys.argv[1]), 1)
"""
_SPLICE = b"275 "


@contextlib.contextmanager
def held_pipe(uid: int) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe. Whoever writes to it, or closes one of them last, waits for a process of
    this uid in a way that no SIGKILL ends."""
    reading, writing = os.pipe()
    words = [sys.executable, "-c", HOLDS, str(writing), str(uid)]
    with subprocess.Popen(words, pass_fds=(writing,)) as holder:
        try:
            while not Path(f"/proc/{holder.pid}/syscall").read_bytes().startswith(_SPLICE):
                assert holder.poll() is None
                os.sched_yield()
            yield reading, writing
        finally:
            holder.kill()
