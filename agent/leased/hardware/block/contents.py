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
    for offset in sorted({0, max(0, size_bytes - LOOK_BYTES)}):
        found = name_contents(read_direct(fd, offset, min(LOOK_BYTES, size_bytes)))
        if found:
            return found
    return ""


def name_contents(data: bytes) -> str:
    """What some part of a device looks like; "" if there is nothing in it."""
    if not data.strip(b"\0"):
        return ""
    for name, offset, magic in _KNOWN:
        if data[offset : offset + len(magic)] == magic:
            return name
    return "data of some kind"


def read_direct(fd: int, offset: int, size_bytes: int) -> bytes:
    """Read past every cache. Raises OSError."""
    with mmap.mmap(-1, size_bytes) as page:
        got = 0
        while got < size_bytes:
            count = os.preadv(fd, [memoryview(page)[got:]], offset + got)
            if count == 0:
                raise OSError(errno.EIO, "the device ends before its size")
            got += count
        return page[:]


def write_direct(fd: int, offset: int, data: bytes) -> None:
    """Write past every cache. Raises OSError."""
    with mmap.mmap(-1, len(data)) as page:
        page[:] = data
        done = 0
        while done < len(data):
            done += os.pwritev(fd, [memoryview(page)[done:]], offset + done)
