# SPDX-License-Identifier: Apache-2.0
"""Leaves with rooms: a lease's cgroup in which a process of ours lives beside the holder's.

An owner (of RDMA objects, say) is in the leaf so that whatever kills the leaf kills it; in a room
of its own, so that the leaf still tells when the last of the holder's processes has gone: those are
then in the room `inside`. A leaf without an owner has no rooms.

Rule: rooms have no controllers of their own; every limit and the device filter are the leaf's. A
room is ours by its name; a holder who is root may make others, one in another, and they go with the
leaf if nobody is in them: an empty cgroup that only a name keeps is no reason to fence.

A limit on RDMA objects must be lifted before its cgroup is removed: Linux (seen in 6.1) frees a
limit that nobody is charged under only when it is set to max, and otherwise crashes when the RDMA
device goes, be that weeks later (`decisions/0014`).

Does not make leaves (`cgroup`) and kills nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from leased.hardware.sysfs import list_names, read_text
from leased.terms.errors import DeviceError

INSIDE = "inside"
OURS = "rdma-"
"""What the name of a room begins with in which a process of ours lives."""

ROOMS_MAX = 64
"""Rooms of a leaf that are removed with it: whoever makes more of them is not worth the time."""


def make_room(leaf: str, name: str) -> str:
    """The path of the room, made if need be; with it, the one for the holder. Raises
    DeviceError."""
    for room in (f"{leaf}/{INSIDE}", f"{leaf}/{name}"):
        try:
            os.mkdir(room, 0o755)
        except FileExistsError:
            continue
        except OSError as error:
            raise DeviceError("cgroup_make", error.errno or errno.EIO, room) from error
    return f"{leaf}/{name}"


def inside(leaf: str) -> str:
    """Where the holder's processes are."""
    room = os.path.join(leaf, INSIDE)
    return room if os.path.isdir(room) else leaf


def owners(leaf: str) -> list[str]:
    """The rooms of our own processes."""
    return [f"{leaf}/{name}" for name in list_names(Path(leaf)) if name.startswith(OURS)]


def remove(leaf: str) -> None:
    """Remove the leaf and its rooms. Raises OSError: somebody is left."""
    lift_object_limits(leaf)
    for room in _rooms(leaf):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(room)
    os.rmdir(leaf)


def _rooms(leaf: str) -> list[str]:
    """Every cgroup below the leaf, the lower before those that they are in. Not by recursion: how
    deep they go is the holder's choice."""
    found: list[str] = []
    look_into = [leaf]
    while look_into:
        with os.scandir(look_into.pop()) as entries:
            rooms = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        found += rooms
        look_into += rooms
        if len(found) > ROOMS_MAX:
            raise OSError(errno.EBUSY, f"more than {ROOMS_MAX} rooms", leaf)
    return found[::-1]


def lift_object_limits(leaf: str) -> None:
    """Let the kernel free what it keeps of limits on RDMA objects. Idempotent."""
    text = read_text(Path(leaf, "rdma.max")) or ""
    limited = [line.split()[0] for line in text.splitlines() if line.count("=max") < 2]
    if limited:
        fd = os.open(f"{leaf}/rdma.max", os.O_WRONLY | os.O_CLOEXEC)
        try:
            for device in limited:
                with contextlib.suppress(OSError):  # the device has just gone, and its limit too
                    os.write(fd, f"{device} hca_handle=max hca_object=max".encode("ascii"))
        finally:
            os.close(fd)
