# SPDX-License-Identifier: Apache-2.0
"""What a recording of a disk is made of: its entries, and images as the pieces that are not zero.

Does not record (`recorder`, which needs FUSE; `mapper`, which needs the device mapper).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

ENTRY = struct.Struct("<cQI")
WRITE, FLUSH, MARK = b"w", b"f", b"m"
DURABLE = b"d"
"""A write that is durable once it is answered (FUA): a loop device has none, a device mapper
has."""


def marks(path: Path) -> list[str]:
    """The whole lines that were marked so far. What was written between is not read, so that this
    may be asked again and again."""
    found = b""
    with path.open("rb") as file:
        while len(head := file.read(ENTRY.size)) == ENTRY.size:
            kind, _, length = ENTRY.unpack(head)
            if kind == MARK:
                found += file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
    return found.decode().split("\n")[:-1]


def used_pieces(image: Path, piece: int = 256 << 10) -> Iterator[tuple[int, bytes]]:
    """The pieces of a file that are not zero, by their offsets; its holes are not even read."""
    zero = bytes(piece)
    with image.open("rb", buffering=0) as file:
        fd, offset = file.fileno(), 0
        while (begin := _data_from(fd, offset)) is not None:
            end = os.lseek(fd, begin, os.SEEK_HOLE)
            for offset in range(begin, end, piece):
                data = os.pread(fd, min(piece, end - offset), offset)
                if data != zero[: len(data)]:
                    yield offset, data
            offset = end


def _data_from(fd: int, offset: int) -> int | None:
    """Where the next data begins; None where there is none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
