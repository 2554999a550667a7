# SPDX-License-Identifier: Apache-2.0
"""Leaves with rooms: a lease's cgroup in which a process of ours lives beside the holder's.

An owner (of RDMA objects, say) is in the leaf so that whatever kills the leaf kills it; in a room
of its own, so that the leaf still tells when the last of the holder's processes has gone: those are
then in the room `inside`. A leaf without an owner has no rooms.

Rule: rooms have no controllers of their own; every limit and the device filter are the leaf's.

Does not make leaves (`cgroup`) and kills nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from leased.hardware.sysfs import list_names
from leased.terms.errors import DeviceError

INSIDE = "inside"


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
    rooms = [f"{leaf}/{name}" for name in list_names(Path(leaf)) if name != INSIDE]
    return [room for room in rooms if os.path.isdir(room)]


def remove(leaf: str) -> None:
    """Remove the leaf and its rooms. Raises OSError: somebody is left."""
    for room in [*owners(leaf), f"{leaf}/{INSIDE}"]:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(room)
    os.rmdir(leaf)
