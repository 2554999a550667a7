# SPDX-License-Identifier: Apache-2.0
"""A disk that remembers: a FUSE file system with one file to put a loop device on. Every write and
every flush that reaches it is told, in order, to a recording; every line written to `mark` too.

    python -m tests.powercut.recorder MOUNTPOINT BYTES RECORDING [IMAGE]

`disk` is the disk, with the content of IMAGE to begin with. `mark` takes marks. `control` takes one
word: `eio-flush` (every flush fails from now on), `eio-write` (every write), `well`. The process
ends when it is unmounted.

Rule: what is in the recording was asked of the disk in that order; a write is answered once it is
recorded, so whoever marks after an acknowledgement marks behind what was acknowledged.

Does not replay (`replaying`).
"""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

from tests.powercut.recording import ENTRY, FLUSH, MARK, WRITE, used_pieces

FILES = (b"disk", b"mark", b"control")


class Recorder(pyfuse3.Operations):
    """The three files. Inodes: the root is 1, then 2, 3, 4 in the order of FILES."""

    def __init__(self, size: int, recording: Path, image: Path | None) -> None:
        super().__init__()
        self._data = bytearray(size)
        if image is not None:
            for offset, piece in used_pieces(image):
                self._data[offset : offset + len(piece)] = piece
        self._recording = recording.open("wb", buffering=0)
        self._fault = "well"

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name not in FILES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(2 + FILES.index(name))

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        root = inode == pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o700 if root else stat.S_IFREG | 0o600
        entry.st_size = len(self._data) if inode == 2 else 0
        entry.st_nlink = 1
        return entry

    async def setattr(self, inode: int, *_: object, **__: object) -> pyfuse3.EntryAttributes:
        return await self.getattr(inode)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, direct_io=inode != 2)

    async def read(self, fh: int, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length]) if fh == 2 else b""

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        if fh == 3:
            self._tell(MARK, 0, data)
        elif fh == 4:
            self._fault = data.decode().strip()
        elif self._fault == "eio-write":
            raise pyfuse3.FUSEError(errno.EIO)
        else:
            self._data[offset : offset + len(data)] = data
            self._tell(WRITE, offset, data)
        return len(data)

    async def fsync(self, fh: int, datasync: bool) -> None:
        if self._fault == "eio-flush":
            raise pyfuse3.FUSEError(errno.EIO)
        if fh == 2:
            self._tell(FLUSH, 0, b"")

    def _tell(self, kind: bytes, offset: int, data: bytes) -> None:
        self._recording.write(ENTRY.pack(kind, offset, len(data)) + data)


def main() -> None:
    mountpoint, size, recording, *image = sys.argv[1:]
    disk = Recorder(int(size), Path(recording), Path(image[0]) if image else None)
    options = {*pyfuse3.default_options, "fsname=recorder"}
    options.discard("default_permissions")
    pyfuse3.init(disk, mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
