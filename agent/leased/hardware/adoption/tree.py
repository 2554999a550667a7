# SPDX-License-Identifier: Apache-2.0
"""A process tree: who descends from whom, as /proc tells it, and who must be left alone.

Rule: a number is no identity: each process is known by its start time too. Left alone are the
kernel's threads, pid 1, our own processes, and whoever is inside a lease already; one of them in
the tree refuses the whole tree, by name.

Does not move anybody (`carrying`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping

import msgspec

from leased.hardware.procfs import parent_of
from leased.terms.errors import DeviceError

_KERNEL_THREAD = 0x00200000
"""PF_KTHREAD of the flags in /proc/P/stat."""

_DEAD = (b"Z", b"X")


class Process(msgspec.Struct, frozen=True, array_like=True):
    """One process as one look saw it. `home` is its path in the cgroup v2 tree, of whatever bytes
    whoever made it liked."""

    pid: int
    started: int
    parent: int
    name: str
    kernel: bool
    ended: bool
    home: bytes


def look(pid: int) -> Process | None:
    """The process of that number now; None if there is none."""
    try:
        head, fields = _stat(f"/proc/{pid}")
        where, ended = f"/proc/{pid}", fields[0] in _DEAD
        if ended and int(fields[17]) > 1:  # the first thread has ended, and others go on
            where = next((one for one in _threads(pid) if _stat(one)[1][0] not in _DEAD), where)
            ended = where == f"/proc/{pid}"
        with open(f"{where}/cgroup", "rb") as file:
            homes = [line[3:].rstrip(b"\n") for line in file if line.startswith(b"0::")]
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    return Process(
        pid,
        int(fields[19]),
        int(fields[1]),
        name,
        bool(int(fields[6]) & _KERNEL_THREAD),
        ended,
        homes[0] if homes else b"/",
    )


def _stat(place: str) -> tuple[bytes, list[bytes]]:
    """What stands before and behind the end of the name, which may have anything in it."""
    with open(f"{place}/stat", "rb") as file:
        head, _, tail = file.read().rpartition(b")")
    return head, tail.split()


def _threads(pid: int) -> list[str]:
    return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]


def descendants(root: int, kin: Collection[int] = ()) -> list[Process]:
    """The process and everybody below it, or below one of `kin`, parents first. Empty if all of
    them are gone."""
    by_parent: dict[int, list[int]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        by_parent.setdefault(parent_of(pid), []).append(pid)
    # Only they are looked at: a stranger who hangs in an exec would be waited for.
    todo = list(dict.fromkeys((root, *kin)))
    known = set(todo)
    for pid in todo:  # grows while it is walked
        below = [one for one in by_parent.get(pid, ()) if one not in known]
        known.update(below)
        todo.extend(below)
    return [process for process in map(look, todo) if process is not None]


def refuse(process: Process, *, exempt: Mapping[int, int], leases: bytes, leaf: bytes) -> None:
    """Raise DeviceError for one that must be left alone. `leases` is the cgroup that every lease's
    leaf is in and `leaf` the one that it may be in, as paths of the v2 tree."""
    why = ""
    if process.pid == 1:
        why = "it is the init process"
    elif process.kernel:
        why = "it is a thread of the kernel"
    elif exempt.get(process.pid) == process.started:
        why = "it is the agent's own"
    elif process.home != leaf and (process.home + b"/").startswith(leases + b"/"):
        name = process.home.rpartition(b"/")[2].decode("utf-8", "replace")
        why = f"it is in lease {name[:8]} already"
    if why:
        detail = f"process {process.pid} ({process.name}) cannot be adopted: {why}"
        raise DeviceError("adopt", errno.EPERM, detail)
