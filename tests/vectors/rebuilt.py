# SPDX-License-Identifier: Apache-2.0
"""A log put together by hand from bodies, as FORMAT.md has it: whatever they say, hashes, links,
tree and anchor are right. For mutations that only a reader of bodies, seals or leases can find.

Rule: shares no code with `leased`; nothing is refused here.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.vectors.verify_independent import Tree

LOG_ID = b"rebuilt log id.."
ORIGIN = b"lease-log.test/" + LOG_ID.hex()[:8].encode()
SEGMENT = "seg-0000000000000000.log"
SEGMENT_BYTES = 1 << 16

Body = bytes | Callable[[int, bytes], bytes]
"""Or what makes it of the record's sequence and the root of the tree before it."""
Entry = tuple[int, int, Body]
"""Kind, boot clock, body."""


def closed(fields: bytes, length: int) -> bytes:
    """Padded, with its hash as the last 32 bytes."""
    body = fields.ljust(length - 32, b"\0")
    return body + hashlib.sha256(body).digest()


def frame(sequence: int, kind: int, boot_ns: int, body: bytes, prev: bytes) -> bytes:
    """A batch of one record."""
    size = (112 + len(body) + 7) // 8 * 8
    fields = (sequence, sequence + 2, kind, 1, 1, len(body), 1, boot_ns % 2**64, prev)
    head = struct.pack("<QQHBBIQQ32s", *fields)
    digest = hashlib.sha256(b"\0LEASEREC1\0" + LOG_ID + head + body).digest()
    rest = (head + body).ljust(size - 40, b"\0") + digest
    length = struct.pack("<I", size)
    return length + struct.pack("<I", zlib.crc32(rest, zlib.crc32(length))) + rest


def write(directory: Path, entries: Sequence[Entry], epoch_ns: int = 0) -> None:
    """All files of the log."""
    made = struct.pack("<8sHHI16s", b"LEASELOG", 1, int(epoch_ns > 0), SEGMENT_BYTES, LOG_ID)
    made += bytes(32) + struct.pack("<QQ32s32sH", epoch_ns, 0, bytes(32), bytes(32), len(ORIGIN))
    (directory / "log.id").write_bytes(closed(made + ORIGIN, 512))
    tree, head, frames = Tree(), bytes(32), b""
    for sequence, (kind, boot_ns, body) in enumerate(entries):
        raw = body if isinstance(body, bytes) else body(sequence, tree.root())
        frames += frame(sequence, kind, boot_ns, raw, head)
        head = frames[-32:]
        tree.add(head)
    header = struct.pack("<8sHHI16s", b"LSEG\r\n\x1a\n", 1, 0, 4096, LOG_ID)
    data = (closed(header, 4096) + frames).ljust(SEGMENT_BYTES, b"\0")
    assert len(data) == SEGMENT_BYTES
    (directory / SEGMENT).write_bytes(data)
    slots = [b"", b""]
    for generation in (len(entries), len(entries) + 1):
        place = (len(entries), 0, 4096 + len(frames))
        slot = struct.pack("<8sQ16sQQQ32s", b"LANCHOR1", generation, LOG_ID, *place, head)
        slots[generation % 2] = closed(slot, 512).ljust(2048, b"\0") * 2
    (directory / "anchor").write_bytes(b"".join(slots))
