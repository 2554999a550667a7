# SPDX-License-Identifier: Apache-2.0
"""What a recording of a disk is made of: its entries, and images as the pieces that are not zero.

Does not record (`recorder`, which needs FUSE; `mapper`, which needs the device mapper).
"""

from __future__ import annotations

import struct
from pathlib import Path

ENTRY = struct.Struct("<cQI")
WRITE, FLUSH, MARK = b"w", b"f", b"m"
DURABLE = b"d"
"""A write that is durable once it is answered (FUA): a loop device has none, a device mapper
has."""


def used_pieces(image: Path, piece: int = 4096) -> list[tuple[int, bytes]]:
    """The pieces of a file that are not zero, by their offsets."""
    found, zero = [], bytes(piece)
    with image.open("rb") as file:
        offset = 0
        while data := file.read(piece):
            if data != zero:
                found.append((offset, data))
            offset += len(data)
    return found
