# SPDX-License-Identifier: Apache-2.0
"""Disposal: what peers sent is closed where nobody waits for it.

Rule: a descriptor that somebody else made is never closed by the task that serves everybody. Its
close may be the last one, and then the kernel does there and then whatever is left to be done: a
TCP socket that lingers waits for its peer for as long as its owner liked, a file of FUSE for its
server, much memory is given back page by page. So is what a peer sent and nobody has read: it goes
with the socket. Each uid has a thread while it owes something, so that it holds up nobody else.

Nor is the last close one of this process's: whoever has the other end of a pipe may hold its lock
for good (`splice` from a socket that nothing comes from), and no SIGKILL ends who waits for that.
It is left to a process that has nothing else, whose end the thread waits for.

Does not decide what is closed (`connection`). Why threads, and a lock: decision 0097; why not in
this process: decision 0218.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Sequence

OWED_MAX = 256
"""Descriptors of one uid that may wait to be closed: it is not let in while there are as many."""

THREADS_MAX = 64
"""Of so many uids at once; the next one's wait. A thread costs 20 kB and ends when it is done."""

_WAITS = ("cat",)
"""Ends when we have closed our end, and takes 1 ms, where a Python takes 6."""

_FORKS = threading.Lock()
_PIDFDS = ("anon_inode:[pidfd]", "pidfd:[")
"""What users send where the kernel does not name them: nobody is asked about its close."""


class Disposal:
    """Takes descriptors, and closes them in its own time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, deque[int]] = {}
        self._unattended: deque[int] = deque()
        self._threads = 0

    def take(self, uid: int, fds: Iterable[int]) -> None:
        """Close what `uid` sent. Never waits."""
        fresh = deque(fds)
        if not fresh:
            return
        with self._lock:
            if uid in self._waiting:
                self._waiting[uid].extend(fresh)
            else:
                self._waiting[uid] = fresh
                self._unattended.append(uid)
            if not self._unattended or self._threads >= THREADS_MAX:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="disposal", daemon=True).start()
        except RuntimeError:  # the kernel gives us no thread: it is asked again with the next
            with self._lock:
                self._threads -= 1

    def part(self, uid: int, sock: socket.socket) -> None:
        """End a connection. Its peer learns of it now, though what it sent may take its time."""
        try:
            sock.shutdown(socket.SHUT_RDWR)  # nothing can be added to what waits there
            unread = bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            unread = True
        if unread:
            self.take(uid, (sock.detach(),))
        else:
            sock.close()

    def owed(self, uid: int) -> int:
        """How many are still to be closed."""
        waiting = self._waiting.get(uid)
        return 0 if waiting is None else len(waiting)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._unattended:
                    self._threads -= 1
                    return
                uid = self._unattended.popleft()
            self._close_all_of(uid)

    def _close_all_of(self, uid: int) -> None:
        waiting = self._waiting[uid]
        while True:
            with self._lock:
                batch = tuple(waiting)
            known = frozenset(filter(_is_pidfd, batch))
            for fd in known:
                os.close(fd)
            close_elsewhere([fd for fd in batch if fd not in known])
            with self._lock:
                for _ in batch:
                    waiting.popleft()
                if not waiting:
                    del self._waiting[uid]
                    return


def close_elsewhere(fds: Sequence[int]) -> None:
    """Close them so that the last of each is another process's, and wait for its end."""
    if not fds:
        return
    with _FORKS:  # who is forked has all that is here, until it begins
        try:
            last = subprocess.Popen(_WAITS, stdin=subprocess.PIPE, pass_fds=fds)
        except OSError:  # no room for one more: they are to go all the same
            last = None
        for fd in fds:
            os.close(fd)
    if last is not None:
        last.communicate()


def _is_pidfd(fd: int) -> bool:
    """By what the kernel calls it: the name of whatever has a path begins with a slash."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").startswith(_PIDFDS)
    return False
