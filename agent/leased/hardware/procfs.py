# SPDX-License-Identifier: Apache-2.0
"""Processes as /proc tells of them: small readings, of one that may be gone.

Rule: who is gone has nothing. Waits for whoever hangs in an exec where the kernel does (`execs`).

Does not look for anything.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Iterator

from leased.terms.errors import DeviceError

GONE = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENOTDIR)

_PARENT = re.compile(rb"^PPid:\t([0-9]+)$", re.MULTILINE)


def start_time(pid: int) -> int | None:
    """When the process started, in the kernel's ticks since boot; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def birth_of(pid: int) -> int | None:
    """What makes the pid an identity: the inode of its pidfd, which no later process has (Linux
    6.9), or when it started; None if there is none. `stat` is read only where there is no inode: of
    whoever hangs in an exec we would wait for the end of that. Raises DeviceError."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise DeviceError("proc_read", error.errno or errno.EIO, f"process {pid}") from error
    try:
        file = os.fstat(pidfd)
    finally:
        os.close(pidfd)
    return start_time(pid) if file.st_dev == _anonymous_device() else file.st_ino


@functools.cache
def _anonymous_device() -> int:
    """Where all pidfds were one file before they had a file system of their own."""
    fd = os.eventfd(0)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def parent_of(pid: int) -> int:
    """Who started it; 0 where it is gone."""
    found = _PARENT.search(read_or_empty(f"/proc/{pid}/status"))
    return int(found[1]) if found else 0


def cgroup_of(pid: int) -> str:
    """Where a process is in the v2 tree; "" where it is gone. A name there, and of v1's trees on
    lines before it, may have anything but a newline in it."""
    lines = read_or_empty(f"/proc/{pid}/cgroup").split(b"\n")
    home = next((line[3:] for line in lines if line.startswith(b"0::")), b"")
    return home.decode("utf-8", "replace")


def listed(path: str) -> list[str]:
    """What a directory of /proc lists; nothing where the process is gone. Raises DeviceError."""
    try:
        return os.listdir(path)
    except OSError as error:
        if error.errno in GONE:
            return []
        raise DeviceError("proc_read", error.errno or errno.EIO, path) from error


def lines_or_none(path: str) -> Iterator[bytes]:
    """The lines of a file of /proc one by one, for they may be a million; none where the process is
    gone. Raises DeviceError."""
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        if error.errno not in GONE:
            raise DeviceError("proc_read", error.errno or errno.EIO, path) from error


def read_or_empty(path: str) -> bytes:
    """A file of /proc; nothing where the process is gone. Raises DeviceError."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        if error.errno in GONE:
            return b""
        raise DeviceError("proc_read", error.errno or errno.EIO, path) from error
