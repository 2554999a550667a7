# SPDX-License-Identifier: Apache-2.0
"""Contents: whether a namespace is blank, and what else seems to be on it.

Rule: blank means that its first and its last 256 KiB are zeroes, which is where everything that
anybody keeps on a disk announces itself. Whatever is not blank is somebody's until an operator says
otherwise; the name that is given to it here is a courtesy.

Does not write.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator

LOOK_BYTES = 256 << 10
_KNOWN = (
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM volume", 512, b"LABELONE"),
    ("an XFS file system", 0, b"XFSB"),
    ("an ext file system", 1080, b"\x53\xef"),
    ("a Btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an md array's member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a partition table", 510, b"\x55\xaa"),
)


def describe_contents(fd: int, size_bytes: int) -> str:
    """What the device (open for direct reading) holds; "" if it is blank. Raises OSError."""
    offsets = sorted({0, max(0, size_bytes - LOOK_BYTES)})
    for _, data in read_each(fd, offsets, min(LOOK_BYTES, size_bytes)):
        found = name_contents(data)
        if found:
            return found
    return ""


def name_contents(data: bytes) -> str:
    """What some part of a device looks like; "" if there is nothing in it."""
    if is_zero(data):
        return ""
    for name, offset, magic in _KNOWN:
        if data[offset : offset + len(magic)] == magic:
            return name
    return "data of some kind"


def is_zero(data: bytes) -> bool:
    """Whether there is nothing else in it."""
    return data == bytes(len(data))


def read_each(fd: int, offsets: Iterable[int], size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """So much at each place, past every cache: (offset, data). Raises OSError."""
    with mmap.mmap(-1, size_bytes) as page:
        for offset in offsets:
            got = 0
            while got < size_bytes:
                count = os.preadv(fd, [memoryview(page)[got:]], offset + got)
                if count == 0:
                    raise OSError(errno.EIO, "the device ends before its size")
                got += count
            yield offset, page[:]


def write_each(fd: int, writes: Iterable[tuple[int, bytes]], size_bytes: int) -> None:
    """Each (offset, data of that size), past every cache. Raises OSError."""
    with mmap.mmap(-1, size_bytes) as page:
        for offset, data in writes:
            page[:] = data
            done = 0
            while done < size_bytes:
                done += os.pwritev(fd, [memoryview(page)[done:]], offset + done)
