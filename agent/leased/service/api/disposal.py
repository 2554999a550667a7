# SPDX-License-Identifier: Apache-2.0
"""Disposal: what peers sent is closed where nobody waits for it.

Rule: a descriptor that somebody else made is never closed by the task that serves everybody. Its
close may be the last one, and then the kernel does there and then whatever is left to be done: a
TCP socket that lingers waits for its peer for as long as its owner liked, a file of FUSE for its
server, much memory is given back page by page. So is what a peer sent and nobody has read: it goes
with the socket. Each uid has a thread while it owes something, so that it holds up nobody else.

Nor is the last close one of this process's: whoever has the other end of a pipe may hold its lock
for good (`splice` from a socket that nothing comes from), and no SIGKILL ends who waits for that.
Each uid that owes something has a `closer`, and its thread waits for that.

Does not decide what is closed (`connection`). Why threads, and a lock: decision 0097; why not in
this process: decisions 0218 and 0234.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Iterable

from leased.service.api.closer import TOGETHER_MAX, Closer, close_here

OWED_MAX = 256
"""Descriptors of one uid that may wait to be closed: it is not let in while there are as many."""

THREADS_MAX = 64
"""Of so many uids at once; the next one's wait. A thread costs 20 kB and ends when it is done."""

_PIDFDS = ("anon_inode:[pidfd]", "pidfd:[")


class _Debt:
    """What a uid sent and is not closed: `here`, or `there` with its closer."""

    def __init__(self, fds: Iterable[int]) -> None:
        self.here = deque(fds)
        self.there = 0
        self.closer: Closer | None = None


class Disposal:
    """Takes descriptors, and closes them in its own time."""

    def __init__(self, cgroup_root: str | None = None) -> None:
        """`cgroup_root` is as `closer` takes it."""
        self._cgroup_root = cgroup_root
        self._lock = threading.Lock()
        self._owing: dict[int, _Debt] = {}
        self._unattended: deque[int] = deque()
        self._threads = 0

    def take(self, uid: int, fds: Iterable[int]) -> None:
        """Close what `uid` sent. Never waits."""
        fresh = tuple(fds)
        if not fresh:
            return
        with self._lock:
            debt = self._owing.get(uid)
            if debt is None:
                self._owing[uid] = _Debt(fresh)
                self._unattended.append(uid)
            else:
                debt.here.extend(fresh)
                if debt.closer is not None:
                    debt.closer.tell()
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
        debt = self._owing.get(uid)
        return 0 if debt is None else len(debt.here) + debt.there

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._unattended:
                    self._threads -= 1
                    return
                uid = self._unattended.popleft()
            self._settle(uid, self._owing[uid])

    def _settle(self, uid: int, debt: _Debt) -> None:
        while True:
            self._hand_over(debt)
            closer = debt.closer
            closed = 0 if closer is None or not debt.there else closer.wait()
            with self._lock:
                debt.there = 0 if closed is None else debt.there - closed
                settled = not debt.here and not debt.there
                if settled and closer is None:
                    del self._owing[uid]
                    return
                if settled or closed is None:
                    debt.closer = None
            if closer is not None and debt.closer is None:
                closer.end()

    def _hand_over(self, debt: _Debt) -> None:
        """All that is here, as far as there is room for it there."""
        while debt.here:
            with self._lock:
                batch = tuple(itertools.islice(debt.here, TOGETHER_MAX))
            strange = tuple(itertools.takewhile(lambda fd: not is_pidfd(fd), batch))
            there: int | None = 0
            if not strange:
                os.close(batch[0])
            else:
                closer = debt.closer or self._begin_closing(debt)
                there = close_here(strange) if closer is None else closer.take(strange)
            if there is None:
                return
            with self._lock:
                for _ in strange or batch[:1]:
                    debt.here.popleft()
                debt.there += there

    def _begin_closing(self, debt: _Debt) -> Closer | None:
        try:
            closer = Closer(self._cgroup_root)
        except OSError:
            return None
        with self._lock:
            debt.closer = closer
        return closer


def is_pidfd(fd: int) -> bool:
    """What operators send (`Adopt`), by what the kernel calls that: the name of whatever has a path
    begins with a slash. Nobody is asked about its close, so it needs no closer."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").startswith(_PIDFDS)
    return False
