# SPDX-License-Identifier: Apache-2.0
"""Keepers: who has the lock of a pipe that processes wait for which were killed.

`splice` between a pipe and a socket sleeps with the pipe's lock for as long as nothing comes, or
nothing is taken. Whoever reads from the pipe, writes to it or closes it waits for that lock in a
way that no SIGKILL ends, also within its own end.

Rule: nobody is killed but who sleeps in `splice` and has the uid of a process that was killed and
waits for a pipe: by what another does nobody else loses anything. Root's are not touched. Which
pipe it is is not asked: within its end a process has it in no table any more.

Does not say who is stuck (`servers`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Collection, Iterator

from leased.hardware.execs import is_bare
from leased.hardware.procfs import birth_of, listed, read_or_empty

_ON_PIPE = re.compile(rb" (?:\w*pipe_(?:read|write|release)|\w*splice\w*)\+")
_SPLICES = re.compile(rb" \w*do_splice\w*\+")


def waits_for_pipe(tid: int) -> bool:
    """Whether a thread sleeps over a pipe. One that hangs in an exec does not, and whoever asks for
    its stack waits with it."""
    return not is_bare(tid) and _ON_PIPE.search(read_or_empty(f"/proc/{tid}/stack")) is not None


def end_keepers(uids: Collection[int], end_ns: int) -> Iterator[tuple[int, int]]:
    """Kill whoever sleeps in `splice` with one of these uids; (pid, uid) of each."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if time.monotonic_ns() > end_ns:
            return
        uid = _uid(pid)
        if uid in uids and uid != 0 and _splices(pid, end_ns) and _end(pid, uid, end_ns):
            yield pid, uid


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return 0  # it is gone


def _splices(pid: int, end_ns: int) -> bool:
    return any(
        _SPLICES.search(read_or_empty(f"/proc/{pid}/task/{tid}/stack"))
        for tid in listed(f"/proc/{pid}/task")
        if time.monotonic_ns() < end_ns and not is_bare(int(tid))
    )


def _end(pid: int, uid: int, end_ns: int) -> bool:
    """Whether it was there to kill: the number is nobody else's meanwhile."""
    birth = birth_of(pid)
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if birth_of(pid) == birth and _uid(pid) == uid and _splices(pid, end_ns):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False
