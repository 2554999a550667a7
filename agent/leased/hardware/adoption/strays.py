# SPDX-License-Identifier: Apache-2.0
"""Strays: lease cgroups that no lease knows, ended.

Rule: only what has the name of a lease (32 hex digits) is a lease's cgroup; anything else below the
root is somebody's and is left alone. Whoever is inside is killed, for nothing would ever end their
access; a cgroup that does not empty in time is named with its errno and stays.

Does not know the leases: their names are handed in.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence

import msgspec

from leased.hardware import cgroup, leaves
from leased.terms.errors import DeviceError

_LEASE_NAME = re.compile(r"[0-9a-f]{32}", re.ASCII)
_POLL_S = 0.005


class Sweep(msgspec.Struct, frozen=True, array_like=True):
    """End every lease's cgroup below `root` but those of these names, within `budget_ns`."""

    root: str
    known: tuple[str, ...]
    budget_ns: int


class Stray(msgspec.Struct, frozen=True, array_like=True):
    """One that was ended: how many processes were in it, and 0 or why it is still there."""

    name: str
    processes: int
    errno: int


class Swept(msgspec.Struct, frozen=True, array_like=True):
    """Every one that was found."""

    strays: tuple[Stray, ...]


def sweep(asked: Sweep, fds: Sequence[int]) -> Swept:
    """Kill all of them first, then wait for all: they die side by side. Raises DeviceError."""
    del fds
    known = frozenset(asked.known)
    try:
        names = sorted(entry.name for entry in os.scandir(asked.root) if entry.is_dir())
    except OSError as error:
        raise DeviceError("stray_scan", error.errno or errno.EIO, asked.root) from error
    strays = [name for name in names if _LEASE_NAME.fullmatch(name) and name not in known]
    counts = {name: _kill(os.path.join(asked.root, name)) for name in strays}
    end_ns = time.monotonic_ns() + asked.budget_ns
    found = []
    for name, (processes, failed) in counts.items():
        path = os.path.join(asked.root, name)
        found.append(Stray(name, processes, failed or _remove(path, end_ns)))
    return Swept(tuple(found))


def _kill(path: str) -> tuple[int, int]:
    """(how many were in it, 0 or an errno)."""
    try:
        with open(os.path.join(path, "cgroup.procs"), encoding="ascii") as procs:
            processes = len(procs.read().split())
        cgroup.write(os.path.join(path, "cgroup.kill"), "1")
    except DeviceError as error:
        return processes, error.errno
    except OSError as error:
        return 0, error.errno or errno.EIO
    return processes, 0


def _remove(path: str, end_ns: int) -> int:
    """0 when it is gone, or why it is not."""
    while True:
        try:
            leaves.remove(path)
            return 0
        except FileNotFoundError:
            return 0
        except OSError as error:
            if time.monotonic_ns() >= end_ns:
                return error.errno or errno.EIO
        time.sleep(_POLL_S)
