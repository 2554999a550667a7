# SPDX-License-Identifier: Apache-2.0
"""MemoryDisk: a directory in memory that remembers what was done to it, and what a crash could
leave of it.

The model (chain.md section 8): `sync` of a file makes earlier writes to it durable (M1); between
barriers any subset of the pending pieces may persist, in any order (M2); names are durable only
after `sync_names` (M3). It argues back: capacity can run out, and any operation can be made to
fail, applied or not.

Does not model bit rot (the flip sweep changes bytes by hand).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from leased.durable.filesystem import Filesystem

Op = tuple  # (verb, *arguments): the verbs are those of `MemoryDisk`

Fault = Callable[[str, str], tuple[bool, OSError] | None]
"""Asked before each change (verb, name); (apply, error) raises the error after applying or
without."""


MEMORY = Filesystem("memory", "")
RECENT: deque[MemoryDisk] = deque(maxlen=8)
"""Those made last: what a test leaves on them is judged after it (`tests/conftest.py`)."""


class MemoryDisk:
    """`durable.files.Disk` in memory. Files are by inode number, and a handle is that number; one
    that was handed in stays the very bytes it was until it is written to."""

    def __init__(
        self,
        files: dict[str, bytes] | None = None,
        *,
        capacity: int | None = None,
        fault: Fault | None = None,
        filesystem: Filesystem = MEMORY,
        lying: frozenset[str] = frozenset(),
    ) -> None:
        self.directory = Path("/memory")
        self.inodes: dict[int, bytes | bytearray] = {}
        self.table: dict[str, int] = {}
        self.ops: list[Op] = []
        self.capacity = capacity
        self.fault = fault
        self.closed = False
        self.locked_by_other = False
        self._filesystem = filesystem
        self._lying = lying
        for name, data in (files or {}).items():
            self.table[name] = self._new_inode(bytes(data))
        self.initial = {name: bytes(self.inodes[inode]) for name, inode in self.table.items()}
        self.initial_inodes = dict(self.table)
        RECENT.append(self)

    def contents(self) -> dict[str, bytes]:
        """What a reader sees now."""
        return {name: bytes(self.inodes[inode]) for name, inode in self.table.items()}

    # ---- reading ----

    def names(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.table})

    def size(self, name: str) -> int:
        return len(self._file(name))

    def allocated(self, name: str) -> int:
        return len(self._file(name))

    def mode(self, name: str) -> int:
        return 0o600

    def read(self, name: str, *, direct: bool = False) -> bytes:
        return bytes(self._file(name))

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self._file(name)[offset : offset + length])

    # ---- changing ----

    def open(self, name: str) -> int:
        self._file(name)
        return self.table[name]

    def create(self, name: str) -> int:
        if name in self.table:
            raise FileExistsError(errno.EEXIST, "exists", name)

        def apply() -> None:
            inode = self._new_inode(bytearray())
            self.table[name] = inode
            self.ops.append(("create", name, inode))

        self._do("create", name, apply)
        return self.table[name]

    def reserve(self, handle: int, length: int) -> None:
        self.write(handle, bytes(length), 0)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        if self.capacity is not None:
            grown = offset + len(data) - len(self.inodes[handle])
            used = sum(len(inode) for inode in self.inodes.values())
            if grown > 0 and used + grown > self.capacity:
                raise OSError(errno.ENOSPC, "no space left", self._name(handle))

        def apply() -> None:
            _put(self._changeable(handle), offset, data)
            self.ops.append(("write", handle, offset, bytes(data)))

        self._do("write", self._name(handle), apply)

    def sync(self, handle: int) -> None:
        name = self._name(handle)

        def apply() -> None:
            if not any(name.startswith(prefix) for prefix in self._lying):
                self.ops.append(("sync", handle))

        self._do("sync", name, apply)

    def close_handle(self, handle: int) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        def apply() -> None:
            self.table[new] = self.table.pop(old)
            self.ops.append(("rename", old, new))

        self._file(old)
        self._do("rename", new, apply)

    def unlink(self, name: str) -> None:
        def apply() -> None:
            inode = self.table.pop(name)
            self.ops.append(("unlink", name))
            if self.capacity is not None:
                del self.inodes[inode]

        self._file(name)
        self._do("unlink", name, apply)

    def sync_names(self) -> None:
        def apply() -> None:
            if "names" not in self._lying:
                self.ops.append(("sync_names",))

        self._do("sync_names", "", apply)

    def make_directory(self, name: str) -> None:
        pass

    def lock(self) -> bool:
        return not self.locked_by_other

    def is_locked(self) -> bool:
        return self.locked_by_other

    def filesystem(self) -> Filesystem:
        return self._filesystem

    def close(self) -> None:
        self.closed = True

    def mark(self, value: object) -> None:
        """Note something among the operations: here `value` was acknowledged."""
        self.ops.append(("mark", value))

    def _do(self, verb: str, name: str, apply: Callable[[], None]) -> None:
        verdict = self.fault(verb, name) if self.fault else None
        if verdict is None or verdict[0]:
            apply()
        elif verb == "sync" and name in self.table:
            # As Linux does: what could not be written is dropped, and counts as clean from now on.
            self.ops.append(("lost", self.table[name]))
        if verdict is not None:
            raise verdict[1]

    def _changeable(self, inode: int) -> bytearray:
        file = self.inodes[inode]
        if isinstance(file, bytes):
            file = self.inodes[inode] = bytearray(file)
        return file

    def _file(self, name: str) -> bytes | bytearray:
        if name not in self.table:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return self.inodes[self.table[name]]

    def _name(self, handle: int) -> str:
        return next((name for name, inode in self.table.items() if inode == handle), "?")

    def _new_inode(self, data: bytes | bytearray) -> int:
        inode = len(self.inodes) + 1000
        while inode in self.inodes:
            inode += 1
        self.inodes[inode] = data
        return inode


class CrashPoint:
    """What is durable, and what is pending, after the first `count` operations of a disk."""

    def __init__(self, disk: MemoryDisk, count: int) -> None:
        self._names: dict[str, int] = dict(disk.initial_inodes)
        self._durable = {inode: disk.initial[name] for name, inode in disk.initial_inodes.items()}
        self._pending_writes: list[tuple[int, int, bytes]] = []
        self._pending_names: list[Op] = []
        self.marks: list[object] = []
        for op in disk.ops[:count]:
            self._take(op)

    def advance(self, op: Op) -> None:
        """Take one more operation."""
        self._take(op)

    def states(self, *, granule: int, random: Random, samples: int) -> Iterator[dict[str, bytes]]:
        """Yield directories that a crash here could leave: all subsets of the pending pieces if
        they are few, else nothing, everything, prefixes, one missing, one only, and random
        subsets."""
        pieces = list(self._pieces(granule))
        for names in self._name_states():
            for chosen in _subsets(len(pieces), random, samples):
                yield self._state(names, [pieces[index] for index in chosen])

    def _take(self, op: Op) -> None:
        match op:
            case ("create", _, inode):
                self._durable[inode] = b""
                self._pending_names.append(op)
            case ("write", inode, offset, data):
                self._pending_writes.append((inode, offset, data))
            case ("sync", inode):
                file = bytearray(self._durable[inode])
                for at, offset, data in self._pending_writes:
                    if at == inode:
                        _put(file, offset, data)
                self._durable[inode] = bytes(file)
                self._pending_writes = [
                    write for write in self._pending_writes if write[0] != inode
                ]
            case ("lost", inode):
                self._pending_writes = [
                    write for write in self._pending_writes if write[0] != inode
                ]
            case ("rename" | "unlink", *_):
                self._pending_names.append(op)
            case ("sync_names",):
                self._names = _renamed(self._names, self._pending_names)
                self._pending_names = []
            case ("mark", value):
                self.marks.append(value)

    def _pieces(self, granule: int) -> Iterator[tuple[int, int, bytes]]:
        """The pending writes cut at multiples of `granule`, leaving out what changes nothing."""
        for inode, offset, data in self._pending_writes:
            begin = 0
            while begin < len(data):
                end = min(len(data), begin + granule - (offset + begin) % granule)
                piece, at = data[begin:end], offset + begin
                if self._durable[inode][at : at + len(piece)] != piece:
                    yield inode, at, piece
                begin = end

    def _name_states(self) -> Iterator[dict[str, int]]:
        """The directory with every prefix of the pending changes, and with each single one
        missing."""
        pending = self._pending_names
        for count in range(len(pending) + 1):
            yield _renamed(self._names, pending[:count])
        for missing in range(len(pending) - 1):
            yield _renamed(self._names, pending[:missing] + pending[missing + 1 :])

    def _state(
        self, names: dict[str, int], pieces: Sequence[tuple[int, int, bytes]]
    ) -> dict[str, bytes]:
        # What nothing was chosen for stays the very bytes it is in every other state.
        changed: dict[int, bytearray] = {}
        named = frozenset(names.values())
        for inode, offset, data in pieces:
            file = changed.get(inode)
            if file is None:
                if inode not in named:
                    continue
                file = changed[inode] = bytearray(self._durable[inode])
            end = offset + len(data)
            if end > len(file):
                file.extend(bytes(end - len(file)))
            file[offset:end] = data
        return {
            name: bytes(changed[inode]) if inode in changed else self._durable[inode]
            for name, inode in names.items()
        }


def _renamed(names: dict[str, int], ops: Sequence[Op]) -> dict[str, int]:
    """Apply name changes, those whose precondition holds."""
    names = dict(names)
    for op in ops:
        match op:
            case ("create", name, inode):
                names[name] = inode
            case ("rename", old, new) if old in names:
                names[new] = names.pop(old)
            case ("unlink", name):
                names.pop(name, None)
    return names


def _put(file: bytearray, offset: int, data: bytes) -> None:
    end = offset + len(data)
    if end > len(file):
        file.extend(bytes(end - len(file)))
    file[offset:end] = data


def _subsets(count: int, random: Random, samples: int) -> Iterator[Sequence[int]]:
    """Which pieces persist."""
    if count <= 7:
        for bits in range(1 << count):
            yield [index for index in range(count) if bits >> index & 1]
        return
    yield ()
    yield range(count)
    for _ in range(samples):
        match random.randrange(4):
            case 0:
                yield range(random.randrange(count))
            case 1:
                missing = random.randrange(count)
                yield [index for index in range(count) if index != missing]
            case 2:
                yield (random.randrange(count),)
            case _:
                yield [index for index in range(count) if random.random() < 0.5]
