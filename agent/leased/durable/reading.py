# SPDX-License-Identifier: Apache-2.0
"""Reading: a whole file that somebody named, and no more of it than such a file can have.

Rule: nothing is waited for and nothing is read on and on: a pipe, a device, a socket or a directory
where a file should be is refused before it is read, and so is a file that is too long. Where a pipe
without a name can be meant (`<(...)` of a shell, `/dev/stdin`) it is read to its end, within the
same bound.

Does not know what the bytes mean. Files of the log's own directory are `files`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

FILE_BYTES_MAX: Final = 16 << 20
"""Far above every file that people write: configurations, policies, rate cards, keys."""

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PIECE_BYTES: Final = 1 << 20


def read_file(
    path: str | os.PathLike[str], *, most: int = FILE_BYTES_MAX, pipe: bool = False
) -> bytes:
    """The bytes of a file. Raises OSError, which says in words what is in its place."""
    fd = os.open(path, _FLAGS)
    try:
        demand_file(fd, path, pipe=pipe)
        os.set_blocking(fd, True)
        return _read(fd, path, most)
    finally:
        os.close(fd)


def read_text(
    path: str | os.PathLike[str], *, most: int = FILE_BYTES_MAX, pipe: bool = False
) -> str:
    """The text of a file in UTF-8. Raises OSError, UnicodeDecodeError."""
    return read_file(path, most=most, pipe=pipe).decode("utf-8")


def demand_file(fd: int, name: str | os.PathLike[str], *, pipe: bool = False) -> None:
    """Refuse what is no file. Raises OSError."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(name))
    if not stat.S_ISREG(mode) and not (pipe and _is_of_a_shell(fd)):
        raise OSError(errno.EINVAL, f"not a regular file but {_kind(mode)}", str(name))


def _read(fd: int, path: str | os.PathLike[str], most: int) -> bytes:
    pieces: list[bytes] = []
    left = most + 1
    while left and (piece := os.read(fd, min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise OSError(errno.EFBIG, f"more than {most} bytes, which no such file has", str(path))
    return b"".join(pieces)


def _is_of_a_shell(fd: int) -> bool:
    """Whether it is a pipe without a name, which has had its writer. One with a name may have none
    yet: it would be waited for, or be taken for an empty file.
    """
    found = os.fstat(fd)
    if not stat.S_ISFIFO(found.st_mode):
        return False
    ends = os.pipe()
    try:
        return os.fstat(ends[0]).st_dev == found.st_dev
    finally:
        for end in ends:
            os.close(end)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
