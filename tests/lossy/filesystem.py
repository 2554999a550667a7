# SPDX-License-Identifier: Apache-2.0
"""A file system whose page cache forgets, tears, fails and lies: what was not synced is gone with
the power, or half of it.

    python -m tests.lossy.filesystem MOUNTPOINT CONTROL

It takes orders on the socket CONTROL, one JSON array each, and answers with what it has counted:

    ["fail", CALL, N, FAULT]   the N-th CALL from now on has the fault: an errno's name, "short"
                               (half of a write is taken) or "power" (this and every later call
                               of any kind fails: the machine is off). N 0: every one of them
    ["full"]                   there is no block left: what has one can be overwritten, no more
    ["lie"]                    fsync does nothing and says that it did
    ["well"]                   no fault any more
    ["boot", SEED]             the power comes back: what of the unsynced the disk has is drawn
                               by SEED (none, all, a prefix, any subset, torn writes)

CALL is write, fsync, fsyncdir, create, rename, unlink, read, or any.

Rule: fsync of a file makes its bytes and its length durable; a name is durable after fsync of its
directory and no sooner. After a failed fsync the pages are clean: what they hold can be read, the
next fsync succeeds, and the disk never gets them (as ext4, xfs and btrfs have it).

Does not judge (`test_lossy_log`, `test_lossy_agent`).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from random import Random

import pyfuse3
import trio

BLOCK = 4096
SECTOR = 512
NOW_NS = 1_790_000_000 * 10**9


class Node:
    """What files and directories have in common. `live` is what the machine sees, `kept` what the
    disk has, `pending` how the one becomes the other."""

    def __init__(self, inode: int, mode: int) -> None:
        self.inode = inode
        self.mode = mode
        self.uid = os.getuid()
        self.gid = os.getgid()


class File(Node):
    """Bytes. A pending change is (offset, bytes), or (length, None) where it was cut or grown."""

    def __init__(self, inode: int, mode: int) -> None:
        super().__init__(inode, mode)
        self.live = bytearray()
        self.kept = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []

    def change(self, offset: int, data: bytes | None) -> None:
        """In the page cache only."""
        put(self.live, offset, data)
        self.pending.append((offset, data))

    def sync(self) -> None:
        """All of it is on the disk."""
        for offset, data in self.pending:
            put(self.kept, offset, data)
        self.pending.clear()

    def lose(self, random: Random) -> None:
        """The machine was off."""
        for offset, data in drawn(self.pending, random):
            put(self.kept, offset, data)
        self.pending.clear()
        self.live = bytearray(self.kept)


class Directory(Node):
    """Names. A pending change is a dictionary of what it makes of some names (None: removed)."""

    def __init__(self, inode: int, mode: int, parent: int) -> None:
        super().__init__(inode, mode)
        self.parent = parent
        self.live: dict[bytes, int] = {}
        self.kept: dict[bytes, int] = {}
        self.pending: list[dict[bytes, int | None]] = []

    def change(self, names: dict[bytes, int | None]) -> None:
        """In memory only."""
        rename(self.live, names)
        self.pending.append(names)

    def sync(self) -> None:
        """All of it is on the disk."""
        for names in self.pending:
            rename(self.kept, names)
        self.pending.clear()

    def lose(self, random: Random) -> None:
        """A journal keeps the order of names: some first part of the changes is there."""
        for names in self.pending[: random.randint(0, len(self.pending))]:
            rename(self.kept, names)
        self.pending.clear()
        self.live = dict(self.kept)


def put(content: bytearray, offset: int, data: bytes | None) -> None:
    """Apply a change to a file's bytes."""
    length = offset if data is None else max(len(content), offset + len(data))
    if len(content) < length:
        content.extend(bytes(length - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


def rename(names: dict[bytes, int], changed: dict[bytes, int | None]) -> None:
    """Apply a change to a directory's names."""
    for name, inode in changed.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def drawn(
    pending: list[tuple[int, bytes | None]], random: Random
) -> Iterator[tuple[int, bytes | None]]:
    """What the disk has of changes that nobody synced."""
    share = random.choice((0.0, 0.0, 0.5, 0.9, 1.0))
    torn = random.random() < 0.5
    for offset, data in pending[: random.randint(0, len(pending))] if torn else pending:
        if data is None:
            if random.random() < share:
                yield offset, None
            continue
        for at in range(0, len(data), SECTOR):
            if random.random() < share:
                yield offset + at, data[at : at + SECTOR]


class Faults:
    """What is to go wrong, and what was called so far."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.hit = 0
        self.off = self.full = self.lies = False
        self._call = self._fault = ""
        self._left = 0

    def arm(self, call: str, left: int, fault: str) -> None:
        """The `left`-th of these calls."""
        self._call, self._left, self._fault = call, left, fault

    def clear(self) -> None:
        """None of it any more."""
        self._fault, self.off, self.full, self.lies = "", False, False, False

    def meet(self, call: str) -> str:
        """Count a call; "short" if it must be. Raises FUSEError."""
        if self.off:
            raise pyfuse3.FUSEError(errno.EIO)
        self.calls[call] += 1
        if not self._fault or self._call not in (call, "any"):
            return ""
        if self._left:
            self._left -= 1
            if self._left:
                return ""
            fault, self._fault = self._fault, ""
        else:
            fault = self._fault
        self.hit += 1
        if fault == "power":
            self.off = True
            raise pyfuse3.FUSEError(errno.EIO)
        if fault != "short":
            raise pyfuse3.FUSEError(getattr(errno, fault))
        return fault


class Forgetful(pyfuse3.Operations):
    """Files in memory, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = Faults()
        self.nodes: dict[int, Node] = {}
        self._next = pyfuse3.ROOT_INODE
        self._root = self._new(Directory, 0o40755, pyfuse3.ROOT_INODE)

    def boot(self, seed: int) -> None:
        """What is left when the power is back."""
        random = Random(seed)
        for inode in sorted(self.nodes):
            self.nodes[inode].lose(random)  # type: ignore[attr-defined]

    # -- names -------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        return await self.getattr(self._inode(parent, name))

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._meet("create")
        if self.faults.full:
            raise pyfuse3.FUSEError(errno.ENOSPC)
        node = self._new(File, mode)
        self._directory(parent).change({name: node.inode})
        return pyfuse3.FileInfo(fh=node.inode), await self.getattr(node.inode)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: object
    ) -> pyfuse3.EntryAttributes:
        self._meet("create")
        node = self._new(File, mode)
        self._directory(parent).change({name: node.inode})
        return await self.getattr(node.inode)

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: object
    ) -> pyfuse3.EntryAttributes:
        self._meet("create")
        node = self._new(Directory, stat.S_IFDIR | mode, parent)
        self._directory(parent).change({name: node.inode})
        return await self.getattr(node.inode)

    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        self._meet("unlink")
        self._inode(parent, name)
        self._directory(parent).change({name: None})

    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        self._meet("unlink")
        if self._directory(self._inode(parent, name)).live:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        self._directory(parent).change({name: None})

    async def rename(
        self, parent: int, old: bytes, new_parent: int, new: bytes, flags: int, ctx: object
    ) -> None:
        self._meet("rename")
        inode = self._inode(parent, old)
        if parent == new_parent:
            self._directory(parent).change({old: None, new: inode})
        else:
            self._directory(new_parent).change({new: inode})
            self._directory(parent).change({old: None})

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: object) -> None:
        listed = sorted(self._directory(fh).live.items())
        for number, (name, inode) in enumerate(listed[start:], start + 1):
            found = await self.getattr(inode)
            if not pyfuse3.readdir_reply(token, name, found, number):
                return

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._sync("fsyncdir", self._directory(fh))

    # -- files -------------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        if self.faults.off:
            raise pyfuse3.FUSEError(errno.EIO)
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, offset: int, length: int) -> bytes:
        self._meet("read")
        return bytes(self._file(fh).live[offset : offset + length])

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        short = self._meet("write") == "short" and len(data) > 1
        file = self._file(fh)
        if self.faults.full and offset + len(data) > -(-len(file.live) // BLOCK) * BLOCK:
            raise pyfuse3.FUSEError(errno.ENOSPC)
        taken = data[: len(data) // 2] if short else data
        file.change(offset, taken)
        return len(taken)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._sync("fsync", self._file(fh))

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        node = self.nodes.get(inode)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = inode, node.mode
        entry.st_uid, entry.st_gid, entry.st_nlink = node.uid, node.gid, 1
        entry.st_size = len(node.live) if isinstance(node, File) else 0
        entry.st_blksize, entry.st_blocks = BLOCK, -(-entry.st_size // SECTOR)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = NOW_NS
        # What the kernel remembers of a file outlives a power cut that only we have seen.
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: object, fh: object, ctx: object
    ) -> pyfuse3.EntryAttributes:
        node = self.nodes[inode]
        if fields.update_size and isinstance(node, File):  # type: ignore[attr-defined]
            self._meet("write")
            node.change(attr.st_size, None)
        if fields.update_mode:  # type: ignore[attr-defined]
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:  # type: ignore[attr-defined]
            node.uid = attr.st_uid
        if fields.update_gid:  # type: ignore[attr-defined]
            node.gid = attr.st_gid
        return await self.getattr(inode)

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = BLOCK
        found.f_blocks = 1 << 20
        found.f_bfree = found.f_bavail = 0 if self.faults.full else 1 << 19
        found.f_files = found.f_ffree = found.f_favail = 1 << 20
        found.f_namemax = 255
        return found

    # -- within ------------------------------------------------------------------------------------

    def _new(self, kind: type, mode: int, *more: int) -> Node:
        node: Node = kind(self._next, mode, *more)
        self.nodes[self._next] = node
        self._next += 1
        return node

    def _meet(self, call: str) -> str:
        return self.faults.meet(call)

    def _sync(self, call: str, node: File | Directory) -> None:
        try:
            self._meet(call)
        except pyfuse3.FUSEError:
            if not self.faults.off:
                node.pending.clear()
            raise
        if not self.faults.lies:
            node.sync()

    def _file(self, inode: int) -> File:
        node = self.nodes[inode]
        if not isinstance(node, File):
            raise pyfuse3.FUSEError(errno.EISDIR)
        return node

    def _directory(self, inode: int) -> Directory:
        node = self.nodes[inode]
        if not isinstance(node, Directory):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return node

    def _inode(self, parent: int, name: bytes) -> int:
        within = self._directory(parent)
        if name == b"..":
            return within.parent
        found = within.inode if name == b"." else within.live.get(name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return found


async def take_orders(disk: Forgetful, path: str) -> None:
    """From whoever connects, one line after the other."""
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as door:
        await door.bind(path)
        door.listen(1)
        while True:
            caller, _ = await door.accept()
            with caller:
                while said := await caller.recv(1 << 16):
                    obey(disk, *json.loads(said))
                    counted = {**disk.faults.calls, "hit": disk.faults.hit}
                    await caller.send(json.dumps(counted).encode())


def obey(disk: Forgetful, order: str, *words: object) -> None:
    """One order."""
    faults = disk.faults
    if order == "fail":
        faults.arm(*words)  # type: ignore[arg-type]
    elif order == "full":
        faults.full = True
    elif order == "lie":
        faults.lies = True
    elif order == "well":
        faults.clear()
    elif order == "boot":
        faults.clear()
        disk.boot(int(str(words[0])))
    elif order != "count":
        raise ValueError(order)


async def serve(disk: Forgetful, control: str) -> None:
    """Until it is unmounted."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_orders, disk, control)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main() -> None:
    mountpoint, control = sys.argv[1:]
    disk = Forgetful()
    pyfuse3.init(disk, mountpoint, {*pyfuse3.default_options, "fsname=forgetful", "allow_other"})
    try:
        trio.run(serve, disk, control)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
