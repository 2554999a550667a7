# SPDX-License-Identifier: Apache-2.0
"""Carrying: what a worker does to bring a process tree into a lease's cgroup, and to put it back;
to end what is in one that no lease knows (`strays`), and who keeps the killed (`servers`).

Rule: all of the tree or none of it. Whoever is forked by one that has been moved is born inside; so
the tree is read again until nobody of it is outside, and the kernel has told of nobody else who was
born of it (`births`; where it does not, until two looks agree, and who lost his parent between them
may be left out). Each is moved by the pidfd that was opened before it was looked at. Pages that it
has already stay charged where they were.

Does not decide whether the lease may have it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from leased.hardware import cgroup, leaves
from leased.hardware.adoption.births import Births, following
from leased.hardware.adoption.servers import Loosen, loosen
from leased.hardware.adoption.strays import Sweep, sweep
from leased.hardware.adoption.tree import Process, descendants, look, refuse
from leased.terms.errors import DeviceError

PASSES_MAX = 16
"""A tree that still has somebody outside after so many looks forks faster than it can be moved."""


class Move(msgspec.Struct, frozen=True, array_like=True):
    """Whom to move where. `leaf` is the leaf's directory, `root` that of all leaves. `only_look`:
    whether it could be moved, and whose it is."""

    pid: int
    leaf: str
    root: str
    exempt: tuple[tuple[int, int], ...]
    only_look: bool = False


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """Who is inside now that was not, and where each came from; and whose the first of them is."""

    processes: tuple[Process, ...]
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()


class Undo(msgspec.Struct, frozen=True, array_like=True):
    """Put back whoever of these is still in the leaf. `alone`: nobody else is in it but who was
    born of them; who has lost his parent since goes where the first of them came from."""

    leaf: str
    processes: tuple[Process, ...]
    alone: bool = False


def move(asked: Move, fds: Sequence[int]) -> Moved:
    """Move the tree of the process whose pidfd comes with the call. Raises DeviceError."""
    if asked.only_look:
        return bring(asked, fds[0], None)
    with following(asked.pid) as births:
        return bring(asked, fds[0], births)


def bring(asked: Move, pidfd: int, births: Births | None) -> Moved:
    """The same, while births are followed, if they can be. Raises DeviceError."""
    cgroup.check_pid(asked.pid, pidfd)
    mount = cgroup.mount_of(asked.root)
    home = leaves.inside(asked.leaf)
    leases, leaf = (path.removeprefix(mount).encode() for path in (asked.root, home))
    moved: dict[tuple[int, int], Process] = {}
    alone = not asked.only_look and not _inside(asked.leaf)
    grown = True
    try:
        for _ in range(PASSES_MAX):
            before = frozenset(births.loose) if births is not None else frozenset()
            family = descendants(asked.pid, before)
            if births is not None:
                births.saw(process.pid for process in family)
                grown = births.take()
                away = {one.pid for one in family if one.home != leaf and not one.ended}
                births.settle({*before, *(one.pid for one in family)} - away)
            outside = [
                process
                for process in family
                if (process.pid, process.started) not in moved and not process.ended
            ]
            for process in outside:
                refuse(process, exempt=dict(asked.exempt), leases=leases, leaf=leaf)
            outside = [process for process in outside if process.home != leaf]
            if asked.only_look:
                return _moved(asked.pid, outside)
            if not outside and not grown:
                return _moved(asked.pid, moved.values())
            if births is None:
                grown = bool(outside)  # then two looks must agree
            for process in outside:
                if _enter(asked.leaf, process):
                    moved[process.pid, process.started] = process
        raise DeviceError("adopt", errno.EAGAIN, "it forks faster than it can be moved")
    except (DeviceError, OSError):
        undo(Undo(asked.leaf, tuple(moved.values()), alone), ())
        raise


def undo(asked: Undo, fds: Sequence[int]) -> Moved:
    """Put them back; those forked meanwhile go where their parents go. A cgroup that went when it
    was empty (systemd's scopes do) is made anew: who stayed here would be killed."""
    del fds
    mount = cgroup.mount_of(asked.leaf)
    homes = {process.pid: process.home for process in asked.processes}
    rest = next(iter(homes.values()), b"") if asked.alone else b""
    leaf = leaves.inside(asked.leaf).removeprefix(mount).encode()
    # Whose first thread has ended is in no list of a cgroup's processes.
    unlisted = [one.pid for one in asked.processes if _is_in(one, leaf)]
    back: list[Process] = []
    for _ in range(PASSES_MAX):
        here = dict.fromkeys([*_inside(asked.leaf), *unlisted])
        gone = [one for pid in here if (one := _go_back(pid, homes, rest, mount)) is not None]
        if not gone:
            break
        back, unlisted = [*back, *gone], []
    return Moved(tuple(back))


def _go_back(pid: int, homes: Mapping[int, bytes], rest: bytes, mount: str) -> Process | None:
    """Move one to where it, or who it was born of, came from; None if it stays."""
    process, ancestor = look(pid), pid
    while ancestor not in homes and ancestor > 1:
        above = look(ancestor)
        ancestor = above.parent if above is not None else 0
    home = homes.get(ancestor, rest)
    if process is None or not home:
        return None
    try:
        where = mount + os.fsdecode(home)
        os.makedirs(where, exist_ok=True)
        cgroup.write(f"{where}/cgroup.procs", str(pid))
    except (DeviceError, OSError):
        return None
    return process


def _enter(leaf: str, process: Process) -> bool:
    """Move one; False if it has exited meanwhile. Raises DeviceError."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)
        if now is None or now.started != process.started:
            return False
        cgroup.join(leaf, process.pid, pidfd)
    except DeviceError as error:
        if error.errno == errno.ESRCH:
            return False
        raise
    finally:
        os.close(pidfd)
    return True


def _is_in(process: Process, leaf: bytes) -> bool:
    now = look(process.pid)
    return now is not None and (now.started, now.home) == (process.started, leaf)


def _inside(leaf: str) -> list[int]:
    try:
        with open(f"{leaves.inside(leaf)}/cgroup.procs", encoding="ascii") as procs:
            return [int(line) for line in procs]
    except OSError:
        return []


def _moved(pid: int, processes: Iterable[Process]) -> Moved:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            said = dict(line.split(":", 1) for line in status if ":" in line)
    except OSError as error:
        raise DeviceError("adopt", errno.ESRCH, f"process {pid} has exited") from error
    uid, gid = (int(said[name].split()[0]) for name in ("Uid", "Gid"))
    groups = tuple(int(word) for word in said.get("Groups", "").split())
    return Moved(tuple(processes), uid, gid, groups)


VERBS = {
    "move": (Move, move),
    "undo": (Undo, undo),
    "sweep": (Sweep, sweep),
    "loosen": (Loosen, loosen),
}
