# SPDX-License-Identifier: Apache-2.0
"""Carrying: what a worker does for the question who uses memory.

Rule: one pass over /proc for all that is asked. The exempt are our own processes, known by pid and
start time.

Does not judge who may.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import msgspec

from leased.hardware import occupants
from leased.hardware.calls import Pool
from leased.hardware.occupants import Sought
from leased.hardware.procfs import start_time
from leased.hardware.usage.pages import users_of

SYSTEMD = 1


class Search(msgspec.Struct, frozen=True, array_like=True):
    """What is looked for: memfds as (st_dev, st_ino, name), and hugepages of these pools."""

    memfds: tuple[tuple[int, int, str], ...]
    pools: tuple[Pool, ...]
    exempt: tuple[tuple[int, int], ...]
    budget_ns: int


class User(msgspec.Struct, frozen=True, array_like=True):
    """One process, and what it has: the memfd of that name, or pages of that pool."""

    pid: int
    uid: int
    name: str
    memfd: str = ""
    pool: Pool | None = None


class Users(msgspec.Struct, frozen=True, array_like=True):
    """Everybody who was found."""

    users: tuple[User, ...]


def find(search: Search, fds: Sequence[int]) -> Users:
    """Look once. Raises DeviceError when /proc could not be read in time."""
    del fds
    found: list[User] = []
    # systemd keeps the reaper's memfds for it: no more a holder than the reaper is.
    ours = (os.getpid(), SYSTEMD) if search.memfds else (os.getpid(),)
    exempt = dict(search.exempt) | {pid: start_time(pid) or 0 for pid in ours}
    if search.memfds:
        sought = [Sought((device, inode), name) for device, inode, name in search.memfds]
        deadline_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + search.budget_ns
        seen = occupants.scan(sought, exempt=exempt, deadline_ns=deadline_ns)
        for one in sought:
            for occupant in seen.get(one.inode, ()):
                found.extend(_described(occupant.pid, memfd=one.name))
    for pid, pool in users_of(search.pools):
        if pid not in exempt:
            found.extend(_described(pid, pool=pool))
    return Users(tuple(found))


def _described(pid: int, *, memfd: str = "", pool: Pool | None = None) -> list[User]:
    """The process as an operator knows it; nothing if it has exited meanwhile."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return [User(pid, uid, comm.read().rstrip("\n"), memfd, pool)]
    except OSError:
        return []


VERBS = {"find": (Search, find)}
