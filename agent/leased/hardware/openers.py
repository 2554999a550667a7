# SPDX-License-Identifier: Apache-2.0
"""Openers: which processes have a device node open, mapped or registered with an io_uring,
wherever on the host they are.

Rule: a node is its number, never its path: a tenant may see it under any name. Only of a registered
file does the kernel tell no more than the name; it is looked up where the process would look it up,
and one that leads nowhere counts if it ends like one of the nodes. No file system is waited for.
Nobody is killed by number (`occupants.kill_those`).

Sees the same hiding places as `occupants`. Does not see a descriptor in flight: what the driver
says of its clients, and of its memory, does.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from leased.hardware.execs import Kept, devices_among, doubt, kept_by, registered_in
from leased.hardware.occupants import Occupant, kill_those, mapped_files, memory_of, tables
from leased.hardware.passes import ask_each, everybody
from leased.hardware.procfs import (
    GONE,
    birth_of,
    cgroup_of,
    lines_or_none,
    listed,
    parent_of,
    read_or_empty,
)
from leased.hardware.verbs import (
    block_device,
    char_device,
    device_named,
    make_search,
    search_nodes,
)
from leased.terms.errors import DeviceError

Node = tuple[int, int]
"""(major, minor)."""

_COMM_BYTES_MAX = 15
_MAPPED = re.compile(rb"^(\w+)-(\w+) \S+ \S+ ((?!00:00 0 ).+)$", re.MULTILINE)
"""Where a file is mapped, and which."""

_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")
_UNREACHED = (errno.EAGAIN, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE)
"""What a path may end in that the kernel cannot follow by itself."""

_KNOWN_MAX = 1 << 13


class Opener(msgspec.Struct, frozen=True, array_like=True):
    """A process that has a node, as one pass saw it. `via` is how: fd, map, ring. `cgroup` is where
    it is in the v2 tree, `parent` who started it."""

    pid: int
    birth: int
    node: Node
    via: str
    uid: int = -1
    name: str = ""
    cgroup: str = ""
    parent: int = 0

    @property
    def occupant(self) -> Occupant:
        """The process itself."""
        return Occupant(self.pid, self.birth)


class Sought(msgspec.Struct, frozen=True, array_like=True):
    """The nodes that are looked for, and the last parts of the paths that they usually have;
    `block`: they are block devices."""

    nodes: tuple[Node, ...]
    names: tuple[str, ...] = ()
    block: bool = False


def scan(sought: Sought, *, exempt: Mapping[int, int], deadline_ns: int) -> tuple[Opener, ...]:
    """Who has which of the nodes. `exempt` maps our own pids to their start times.

    Raises DeviceError when /proc could not be read to its end by `deadline_ns` (CLOCK_BOOTTIME),
    or not all of it: an answer for half the host is none.
    """
    told = ask_each(
        "opener_scan",
        _Look(sought),
        everybody("opener_scan"),
        exempt=exempt,
        deadline_ns=deadline_ns,
    )
    seen: list[Opener] = []
    for pid, found in told.items():
        birth = birth_of(pid) if found else None
        if birth is not None:
            described = _describe(pid)
            seen += [Opener(pid, birth, node, via, *described) for node, via in found]
    return tuple(sorted(seen, key=lambda one: (one.pid, one.node)))


def evict(openers: Iterable[Opener], sought: Sought, *, budget_ns: int) -> tuple[int, int]:
    """Kill each opener that still is one; (processes killed, processes that would not die)."""
    return kill_those([one.occupant for one in openers], _Look(sought), budget_ns=budget_ns)


class _Look:
    """One pass. Files that many processes map (libraries) are looked at once."""

    def __init__(self, sought: Sought) -> None:
        self._nodes = frozenset(sought.nodes)
        self._names = frozenset(name.encode() for name in sought.names)
        self._mapped: dict[bytes, Node | None] = {}
        self._block = sought.block
        self._number = block_device if sought.block else char_device
        self._search = make_search(sought.nodes, block=sought.block)

    def look(self, pid: int) -> list[tuple[Node, str]]:
        """The nodes that a process has, each once, and how."""
        return self._naming(pid, self._had)

    def glimpse(self, pid: int) -> list[tuple[Node, str]]:
        """The same, of a bare one."""
        return self._naming(pid, self._kept)

    def _naming(
        self, pid: int, ways: Callable[[int], Iterator[tuple[Node, str]]]
    ) -> list[tuple[Node, str]]:
        found: dict[Node, str] = {}
        try:
            for node, via in ways(pid):
                found.setdefault(node, via)
        except DeviceError as error:
            uid, name, *_ = _describe(pid)
            detail = f"{error.detail} of {name!r}, uid {uid}"
            raise DeviceError(error.verb, error.errno, detail) from error
        return sorted(found.items())

    def _had(self, pid: int) -> Iterator[tuple[Node, str]]:
        for task in tables(pid):
            yield from self._by_descriptor(pid, task)
        for node in self._by_mapping(*memory_of(pid)):
            yield node, "map"

    def _kept(self, pid: int) -> Iterator[tuple[Node, str]]:
        kept = list(kept_by(pid))
        for node in devices_among(pid, kept, block=self._block):
            if node in self._nodes:
                yield node, "fd"
        for one in kept:
            if one.ring:
                yield from ((node, "ring") for node in self._known_in(pid, one))

    def _known_in(self, pid: int, ring: Kept) -> Iterator[Node]:
        """Where its name leads would have to be asked of the process."""
        for line in registered_in(pid, ring):
            _, _, name = line.strip().partition(b": ")
            if name.rpartition(b"/")[2] in self._names:
                yield min(self._nodes)
            elif name.startswith(b"/") and not name.startswith(b"/memfd:"):
                raise doubt(pid, ring.number)

    def _by_descriptor(self, pid: int, task: str) -> Iterator[tuple[Node, str]]:
        try:
            had, rings = search_nodes(self._search, f"{task}/fd")
        except DeviceError as error:
            raise self._say_which(f"{task}/fd", error) from error
        for node in had:
            yield node, "fd"
        for number in rings:
            for node in self._registered(pid, f"{task}/fdinfo/{number}"):
                yield node, "ring"

    def _say_which(self, folder: str, error: DeviceError) -> DeviceError:
        """The same error, of one descriptor."""
        for name in listed(folder):
            try:
                self._number_there(f"{folder}/{name}")
            except DeviceError as found:
                if found.errno == error.errno:
                    return found
        return error

    def _registered(self, pid: int, path: str) -> Iterator[Node]:
        for line in lines_or_none(path):
            _, _, name = line.strip().partition(b": ")
            if name in self._names:
                # Up to Linux 6.1 only the last part of the path is told.
                yield min(self._nodes)
            if not name.startswith(b"/") or name.startswith(b"/memfd:"):
                continue
            plain = _ESCAPED.sub(lambda escaped: bytes([int(escaped[1], 8)]), name)
            node = self._named(pid, plain)
            if node is None and plain.rpartition(b"/")[2] in self._names:
                node = min(self._nodes)
            if node in self._nodes:
                yield node

    def _by_mapping(self, process: str, told: Iterable[bytes | None]) -> Iterator[Node]:
        for text in told:
            if text is None:
                found = (self._number_there(path) for path in mapped_files(process))
                yield from (node for node in found if node in self._nodes)
                return
            if len(self._mapped) > _KNOWN_MAX:
                self._mapped.clear()
            for begin, end, key in _MAPPED.findall(text):
                # Device and inode alone do not name a file on every file system; with the path
                # they do.
                try:
                    node = self._mapped[key]
                except KeyError:
                    path = f"{process}/map_files/{int(begin, 16):x}-{int(end, 16):x}"
                    node = self._number_there(path, key)
                if node in self._nodes:
                    yield node

    def _number_there(self, path: str, key: bytes = b"") -> Node | None:
        """The node that is open or mapped there; None where it is anything else, or gone."""
        try:
            node = self._number(path)
        except DeviceError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):
                return None
            detail = f"{path}, which is {_target(path)}"
            raise DeviceError(error.verb, error.errno, detail) from error
        if key:
            self._mapped[key] = node
        return node

    def _named(self, pid: int, path: bytes) -> Node | None:
        """The node's number; None for anything else, and for what is not found without waiting."""
        try:
            return device_named(self._search, f"/proc/{pid}/root", path)
        except DeviceError as error:
            if error.errno in (*GONE, *_UNREACHED):
                return None
            raise


def _target(path: str) -> str:
    """Where a link of /proc leads, for people."""
    try:
        return repr(os.readlink(path))
    except OSError as error:
        return f"not told ({error.strerror})"


def _describe(pid: int) -> tuple[int, str, str, int]:
    """(uid, name, cgroup, parent) of a process, as far as it is still there."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        uid = -1
    name = read_or_empty(f"/proc/{pid}/comm")[:_COMM_BYTES_MAX].decode("utf-8", "replace")
    return uid, name.strip(), cgroup_of(pid), parent_of(pid)
