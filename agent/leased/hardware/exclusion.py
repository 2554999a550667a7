# SPDX-License-Identifier: Apache-2.0
"""Exclusion: the kernel's own answer to "does anybody else still have this memfd?".

A tenant is never handed the open file that the agent and the reaper keep, but one opened anew from
it (`reopen`). The kernel counts opens of an inode, and every way to keep a file keeps its open
alive: a descriptor, a duplicate, a mapping made through it, an io_uring registration, a descriptor
queued in a socket that nobody reads. `hold` asks for a write lease (fcntl F_SETLEASE), which is
given only when no other open of the inode is left; the file that memfd_create returned does not
count, so the keepers do not disturb. While the hold lasts whoever tries to open the inode anew
(through an O_PATH descriptor, say) waits, and `held` tells that somebody tried.

Rule: only "yes" is believed. A refusal, or a kernel that counts otherwise (`kernel_counts_opens`),
sends the lease the long way through /proc (`occupants`).

Page pins (RDMA, pipes, io_uring buffers) are not opens: the pools' counters show those.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os


def reopen(fd: int) -> int:
    """A new open of the same inode, for somebody else. Never waits: BlockingIOError while it is
    held."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def hold(fd: int) -> int | None:
    """A descriptor that keeps everybody else out until it is closed, or None: somebody is in.

    Breaking the hold sends SIGIO to this process, which must ignore it.
    """
    try:
        kept = reopen(fd)
    except OSError:
        return None
    try:
        fcntl.fcntl(kept, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        os.close(kept)
        return None
    return kept


def held(kept: int) -> bool:
    """Whether nobody has tried to come in since `hold`."""
    return fcntl.fcntl(kept, fcntl.F_GETLEASE) == fcntl.F_WRLCK


def kernel_counts_opens() -> bool:
    """Try it: whether this kernel gives the hold when alone, and refuses it to a second open and
    to a mapping whose descriptor is closed."""
    with contextlib.ExitStack() as stack:
        keeper = os.memfd_create("leased-exclusion", os.MFD_CLOEXEC)
        stack.callback(os.close, keeper)
        os.ftruncate(keeper, mmap.PAGESIZE)
        if not _holds(keeper):
            return False
        other = reopen(keeper)
        refused_open = not _holds(keeper)
        mapping = mmap.mmap(other, mmap.PAGESIZE)
        os.close(other)
        refused_mapping = not _holds(keeper)
        mapping.close()
        return refused_open and refused_mapping and _holds(keeper)


def _holds(fd: int) -> bool:
    kept = hold(fd)
    if kept is None:
        return False
    os.close(kept)
    return True
