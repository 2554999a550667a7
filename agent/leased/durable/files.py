# SPDX-License-Identifier: Apache-2.0
"""One directory and the few things that are done to files in it.

Rule: everything durable goes through these verbs, so that the same writer runs on a real directory
and on the recording disk of the crash search. No write is retried: an fsync that failed has told
all it will ever tell. No file is mapped: what cannot be read is an error, and not a signal.

Does not know what the bytes mean.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from leased.chain.segment import SEGMENT_BYTES_MAX
from leased.durable.filesystem import Filesystem, examine
from leased.durable.reading import demand_file

DIRECT_ALIGNMENT: Final = 4096
FILE_MODE: Final = 0o600
FILE_BYTES_MAX: Final = SEGMENT_BYTES_MAX
"""What one read may take; nothing in a log is longer than a segment."""
_LOCK_PAUSES_S: Final = (0.001, 0.004, 0.016)


class Disk(Protocol):
    """What the log needs of a directory. A handle is an open descriptor for writing; names are
    relative."""

    directory: Path

    def names(self) -> list[str]: ...
    def size(self, name: str) -> int: ...
    def allocated(self, name: str) -> int: ...
    def mode(self, name: str) -> int: ...
    def read(self, name: str, *, direct: bool = False) -> bytes: ...
    def read_part(self, name: str, offset: int, length: int) -> bytes: ...
    def open(self, name: str) -> int: ...
    def create(self, name: str) -> int: ...
    def reserve(self, handle: int, length: int) -> None: ...
    def write(self, handle: int, data: bytes, offset: int) -> None: ...
    def sync(self, handle: int) -> None: ...
    def close_handle(self, handle: int) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, name: str) -> None: ...
    def sync_names(self) -> None: ...
    def make_directory(self, name: str) -> None: ...
    def lock(self) -> bool: ...
    def is_locked(self) -> bool: ...
    def filesystem(self) -> Filesystem: ...
    def close(self) -> None: ...


class DirectoryDisk:
    """A real directory, held open from the first moment: a rename of its parents changes
    nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def names(self) -> list[str]:
        """The entries of the directory, in order."""
        # Opened anew: btrfs shows a descriptor the entries that were there when it was opened or
        # rewound last, and a log that was just made would have no segments.
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def size(self, name: str) -> int:
        """The length of a file."""
        return os.stat(name, dir_fd=self._fd).st_size

    def allocated(self, name: str) -> int:
        """The bytes of a file that have a place on the disk."""
        return os.stat(name, dir_fd=self._fd).st_blocks * 512

    def mode(self, name: str) -> int:
        """The permission bits of a file."""
        return os.stat(name, dir_fd=self._fd).st_mode & 0o777

    def read(self, name: str, *, direct: bool = False) -> bytes:
        """The whole file. `direct` asks the disk and not the page cache, which after a failed
        fsync tells fairy tales."""
        fd = self._open_file(name, os.O_RDONLY)
        try:
            length = os.fstat(fd).st_size
            if length > FILE_BYTES_MAX:
                why = f"{length} bytes, more than any file here can have"
                raise OSError(errno.EFBIG, why, name)
            if direct:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                found = self._read_direct(name, length)
                if found is not None:
                    return found
            return _read_all(fd, length)
        finally:
            os.close(fd)

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on, fewer at the end of the file."""
        fd = self._open_file(name, os.O_RDONLY)
        try:
            return _read_all(fd, length, offset)
        finally:
            os.close(fd)

    def open(self, name: str) -> int:
        """Open an existing file for writing."""
        return self._open_file(name, os.O_RDWR)

    def create(self, name: str) -> int:
        """Make a new file and open it for writing."""
        return os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=self._fd
        )

    def reserve(self, handle: int, length: int) -> None:
        """Give a new file all its blocks, or fail at once and not after filling the disk to the
        brim."""
        os.posix_fallocate(handle, 0, length)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of `data`. A short write is continued; the kernel says why it cannot be."""
        view = memoryview(data)
        while view:
            done = os.pwrite(handle, view, offset)
            view, offset = view[done:], offset + done

    def sync(self, handle: int) -> None:
        """fdatasync: returns when everything written to the file, and its length, is durable."""
        os.fdatasync(handle)

    def close_handle(self, handle: int) -> None:
        """Close a descriptor."""
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Give a file its name. Durable only after `sync_names`."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def unlink(self, name: str) -> None:
        """Remove a name. Durable only after `sync_names`."""
        os.unlink(name, dir_fd=self._fd)

    def sync_names(self) -> None:
        """fsync of the directory."""
        os.fsync(self._fd)

    def make_directory(self, name: str) -> None:
        """Make a subdirectory unless it is there."""
        try:
            os.mkdir(name, 0o700, dir_fd=self._fd)
        except FileExistsError:
            pass

    def lock(self, pause: Callable[[float], object] = time.sleep) -> bool:
        """Take the one writer's lock, held until `close`. False if another process has it: tried
        again for a moment, as who only looks (`is_locked`) has it for an instant."""
        for pause_s in (*_LOCK_PAUSES_S, None):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if pause_s is not None:
                    pause(pause_s)
            else:
                return True
        return False

    def is_locked(self) -> bool:
        """Whether a writer has the log open."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def filesystem(self) -> Filesystem:
        """What the directory lies on, and whether its barriers are known to hold."""
        return examine(self.directory, self._fd)

    def close(self) -> None:
        """Let go of the directory and with it of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_file(self, name: str, how: int) -> int:
        """A descriptor of a file, and of nothing that would be waited for. Raises OSError."""
        fd = os.open(name, how | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=self._fd)
        try:
            demand_file(fd, name)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _read_direct(self, name: str, length: int) -> bytes | None:
        """Read by O_DIRECT; None where the file system cannot."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise
        try:
            room = max(DIRECT_ALIGNMENT, -(-length // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT)
            with mmap.mmap(-1, room) as buffer:
                filled = 0
                while filled < length and filled % DIRECT_ALIGNMENT == 0:
                    with memoryview(buffer) as whole, whole[filled:] as rest:
                        done = os.preadv(fd, [rest], filled)
                    if done == 0:
                        break
                    filled += done
                return buffer[: min(filled, length)]
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise
        finally:
            os.close(fd)


def make_directory(directory: Path) -> None:
    """Make it unless it is there. Its own name is durable when this returns, also where the power
    went after an earlier start had made it: else a log could be gone with all that is in it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private(path: Path) -> None:
    """Make an SQLite database that is not there, readable by its owner only: SQLite would make it
    readable by others. One that is there is not touched: closing a descriptor of it would drop the
    locks of this process' other connections, and the next program to end would take the write-ahead
    log away with it."""
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def make_durably(parent: Path, name: str) -> Path:
    """A directory in another, made unless it is there; what is written in it later is not lost
    with it."""
    disk = DirectoryDisk(parent)
    try:
        disk.make_directory(name)
        disk.sync_names()
    finally:
        disk.close()
    return parent / name


def write_whole(disk: Disk, name: str, data: bytes) -> None:
    """Put a file in place at once: `<name>.new`, sync, rename, sync of the names. The writer's
    lock is held."""
    write_aside(disk, name, data)
    disk.rename(name + ".new", name)
    disk.sync_names()


def write_aside(disk: Disk, name: str, data: bytes, *, synced: bool = True) -> None:
    """Write what is to become `name` beside it, as `<name>.new`, and make it durable."""
    try:
        handle = disk.create(name + ".new")
    except FileExistsError:
        # Left by a crash between the two names; nothing ever reads it.
        disk.unlink(name + ".new")
        handle = disk.create(name + ".new")
    try:
        disk.write(handle, data, 0)
        if synced:
            disk.sync(handle)
    finally:
        disk.close_handle(handle)


def explain(error: OSError, path: Path) -> str:
    """Say what an error of the state directory means and what to do about it."""
    what = f"{path}: {error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{what}; free some space (a new log needs two segments) and start again"
        case errno.EROFS:
            return f"{what}; mounted read-only: check the disk and the kernel log, then remount it"
        case errno.EACCES | errno.EPERM:
            return f"{what}; the agent must own the directory and be allowed to write in it"
        case errno.ENOENT:
            return f"{what}; make the parent directory (StateDirectory= of the unit does)"
        case errno.EEXIST | errno.ENOTDIR:
            return f"{what}; something that is no directory is in its place: move it away"
        case errno.EIO:
            return f"{what}; the disk failed: read the kernel log, and copy the directory first"
    return what


def _read_all(fd: int, length: int, offset: int = 0) -> bytes:
    """Read `length` bytes from `offset` on."""
    found = os.pread(fd, length, offset)
    if len(found) == length:
        return found
    parts = [found]
    while sum(map(len, parts)) < length:
        done = sum(map(len, parts))
        part = os.pread(fd, length - done, offset + done)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)
