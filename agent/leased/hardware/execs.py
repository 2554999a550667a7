# SPDX-License-Identifier: Apache-2.0
"""Execs: of a process that hangs in an exec, what can be told without waiting for the end of that.

Within an exec a process closes files, and whoever serves one (FUSE, NFS) may never answer. It holds
a lock meanwhile, and whoever asks what it maps waits for that; on Linux 6.18 also whoever asks
where its descriptors lead. Its memory is new then: all of it is stack, and the kernel maps no file
as one. `status` and `fdinfo` wait for nothing; the latter names each file by its mount and inode,
which is enough to know a memfd, and of most others that they are no device.

Rule: nothing here waits. What cannot be told raises DeviceError(EBUSY), and nobody is proven clean
by it.

Does not look at anybody else (`passes`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from leased.hardware.procfs import lines_or_none, read_or_empty
from leased.hardware.sysfs import list_names
from leased.terms.errors import DeviceError

_SAID = re.compile(rb"^(VmSize|VmStk|Threads):\s+([0-9]+)", re.MULTILINE)
_KEPT = re.compile(rb"pos:\t[0-9]+\nflags:\t[0-9]+\nmnt_id:\t([0-9]+)\nino:\t([0-9]+)\n")
_KEPT_BYTES = 4096
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
_MOUNTS_BYTES = 1 << 20
"""Of somebody who has more of them than that no file on a file system is told from a device."""

_MOUNTED = re.compile(rb"^([0-9]+) [0-9]+ ([0-9]+):([0-9]+) .* - (\S+) ", re.MULTILINE)


_OF_MEMORY = (b"devtmpfs", b"tmpfs")
"""Where the inode that fdinfo tells is the one that stat does."""


class Kept(NamedTuple):
    """A descriptor: its file's mount (of whoever opened it) and inode; whether it is an
    io_uring's."""

    number: str
    mount: int
    inode: int
    ring: bool


class _Internal(NamedTuple):
    """The kernel's own mounts, which nobody can mount anew: of memfds by the device they are on;
    all that have no device on them; the one of anonymous inodes, and the inode that most share."""

    memory: dict[int, int]
    plain: frozenset[int]
    anonymous: int
    shared: int


def is_bare(pid: int) -> bool:
    """Whether it is one thread, and its memory has no file mapped: so is whoever is in an exec, and
    hardly anybody else."""
    sizes = read_or_empty(f"/proc/{pid}/statm").split()
    if len(sizes) < 6 or sizes[0] != sizes[5] or sizes[0] == b"0":
        return False  # not all of it is data or stack; read first, for it is read of everybody
    said = dict(_SAID.findall(read_or_empty(f"/proc/{pid}/status")))
    size = said.get(b"VmSize")
    return size is not None and size == said.get(b"VmStk") and said.get(b"Threads") == b"1"


def kept_by(pid: int) -> Iterator[Kept]:
    """What a bare process has open. Raises DeviceError."""
    internal = _internal()
    try:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError as error:  # of one that is gone, too, which is bare no more
        raise DeviceError("exec_look", errno.EBUSY, f"descriptors of process {pid}") from error
    for number in numbers:
        told = _beginning(f"/proc/{pid}/fdinfo/{number}")
        found = _KEPT.match(told)
        if found is None:
            if told:
                raise doubt(pid, number)
            continue  # closed meanwhile
        mount, inode, more = int(found[1]), int(found[2]), told[found.end() :]
        # An io_uring has an inode of its own, and tells nothing while somebody is at work in it.
        if mount == internal.anonymous and inode != internal.shared and not more:
            raise doubt(pid, number)
        yield Kept(number, mount, inode, mount == internal.anonymous and b"SqMask:" in more)


def registered_in(pid: int, one: Kept) -> Iterator[bytes]:
    """The lines in which an io_uring tells what is registered with it. Raises DeviceError where it
    does not, as while somebody is at work in it (up to 6.1 it tells how many there are then)."""
    files, named, within = -1, 0, False
    for line in lines_or_none(f"/proc/{pid}/fdinfo/{one.number}"):
        if line.startswith(b"UserFiles:"):
            files, within = int(line.split()[1]), True
        elif line.startswith(b"UserBufs:"):
            within = False
        named += within and b": " in line
        yield line
    if files < 0 or files > 0 == named:
        raise doubt(pid, one.number)


def is_memfd(one: Kept, device: int, inode: int) -> bool:
    """Whether it is the memfd of that st_dev and st_ino."""
    return one.inode == inode and _internal().memory.get(device, one.mount) == one.mount


def devices_among(
    pid: int, kept: Iterable[Kept], *, block: bool
) -> Iterator[tuple[int, int]]:
    """The numbers of those that are devices of that kind, io_urings left out. Raises DeviceError
    where one may be any device."""
    internal = _internal()
    places: dict[int, tuple[int, bytes]] | None = None
    for one in kept:
        if one.mount in internal.plain or one.mount == internal.anonymous:
            continue
        places = _places(pid) if places is None else places
        device, kind = places.get(one.mount, (0, b""))
        if kind == b"devpts":
            continue
        node = _nodes().get((device, one.inode)) if kind in _OF_MEMORY else None
        if node is None:
            raise doubt(pid, one.number)
        if node[0] == (stat.S_IFBLK if block else stat.S_IFCHR):
            yield node[1:]


def doubt(pid: int, number: str) -> DeviceError:
    """That it is not told what a descriptor is."""
    detail = f"process {pid} hangs in an exec, and what its descriptor {number} is cannot be told"
    return DeviceError("exec_look", errno.EBUSY, detail)


def _beginning(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _KEPT_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    except OSError as error:
        raise DeviceError("exec_look", error.errno or errno.EIO, path) from error


def _places(pid: int) -> dict[int, tuple[int, bytes]]:
    """Where the process's mounts are: (st_dev, type)."""
    text = b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        while (chunk := file.read(_MOUNTS_BYTES)) and len(text) < _MOUNTS_BYTES:
            text += chunk
    return {
        int(mount): (os.makedev(int(major), int(minor)), kind)
        for mount, major, minor, kind in _MOUNTED.findall(text)
    }


@functools.cache
def _internal() -> _Internal:
    flags = [0]
    for name in list_names(_HUGEPAGES):
        kib = int(name.removeprefix("hugepages-").removesuffix("kB"))
        flags.append(os.MFD_HUGETLB | ((kib << 10).bit_length() - 1) << os.MFD_HUGE_SHIFT)
    try:
        memory = dict(_memory_mount(flag) for flag in flags)
        anonymous, shared = _own(os.eventfd(0))
        pipes = os.pipe2(os.O_CLOEXEC)
        others = [*pipes, socket.socket(socket.AF_UNIX).detach(), os.pidfd_open(os.getpid())]
        plain = {_own(fd)[0] for fd in others} | set(memory.values())
    except OSError as error:
        raise DeviceError("exec_look", error.errno or errno.EIO, "mounts of the kernel") from error
    return _Internal(memory, frozenset(plain - {anonymous}), anonymous, shared)


def _memory_mount(flag: int) -> tuple[int, int]:
    fd = os.memfd_create("leased-mount", os.MFD_CLOEXEC | flag)
    return os.fstat(fd).st_dev, _own(fd)[0]


def _own(fd: int) -> tuple[int, int]:
    """(mount, inode) of what is open here, and is closed by this."""
    try:
        found = _KEPT.match(_beginning(f"/proc/self/fdinfo/{fd}"))
    finally:
        os.close(fd)
    if found is None:
        raise DeviceError("exec_look", errno.ENOTSUP, "fdinfo does not tell inodes")
    return int(found[1]), int(found[2])


def _nodes() -> dict[tuple[int, int], tuple[int, int, int]]:
    """What the inodes of /dev are: (type, major, minor). One that is there now is no other's."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    with os.scandir("/dev") as entries:
        for entry in entries:
            try:
                seen = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone, or somebody's mount
            number = seen.st_rdev
            kind = (stat.S_IFMT(seen.st_mode), os.major(number), os.minor(number))
            found[seen.st_dev, seen.st_ino] = kind
    return found
