# SPDX-License-Identifier: Apache-2.0
"""A record and its frame: the bytes of one sealed event on disk and on the wire.

Rule: `record_hash = SHA-256(0x00 || "LEASEREC1\\0" || log_id || frame[8 : 80 + body_len])`. The log
id in it stops splicing between logs; the framing (length, CRC, padding) is outside it. The hash
decides; the CRC only tells media damage from careful edits.

Does not walk chains (`verifier`) and does not know what a body means (`canonical`).
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final
from zlib import crc32

import msgspec

from leased.chain.verdict import CORRUPT_RECORD
from leased.terms.errors import ChainError

HEADER: Final = struct.Struct("<IIQQHBBIQQ32s")
SEALED: Final = struct.Struct("<QQHBBIQQ32s")
PREFIX: Final = struct.Struct("<II")
HEADER_BYTES: Final = HEADER.size
HASH_BYTES: Final = 32
PREV_AT: Final = HEADER_BYTES - HASH_BYTES
FRAME_BYTES_MIN: Final = HEADER_BYTES + HASH_BYTES
FRAME_BYTES_MAX: Final = 65_536
BODY_BYTES_MAX: Final = FRAME_BYTES_MAX - FRAME_BYTES_MIN

FLAG_LAST: Final = 1
FLAG_REPLAYED: Final = 2
FLAGS_KNOWN: Final = FLAG_LAST | FLAG_REPLAYED

PADDING: Final = tuple(bytes(n) for n in range(8))
_DOMAIN = b"\x00LEASEREC1\x00"

assert HEADER_BYTES == 80 and SEALED.size == 72


class Record(msgspec.Struct, frozen=True):
    """One frame, taken apart. `crc_ok` false with a right hash means that the medium, not a
    hand, changed a bit."""

    sequence: int
    batch: int
    kind: int
    schema: int
    flags: int
    wall_ns: int
    boot_ns: int
    prev_hash: bytes
    body: bytes
    hash: bytes
    frame_bytes: int
    crc_ok: bool


def hash_prefix(log_id: bytes) -> bytes:
    """Return what is hashed before the record's own bytes."""
    return _DOMAIN + log_id


def frame_bytes(body_bytes: int) -> int:
    """Return the length of the frame of a body: padded so that frames stay 8-aligned."""
    return (body_bytes + FRAME_BYTES_MIN + 7) & -8


def parse_frame(
    data: bytes, offset: int, prefix: bytes, *, file: str = "", base: int = 0
) -> Record:
    """Return the record whose frame begins at `data[offset]`; all but its place in the chain is
    checked.

    `base` is added to `offset` in errors. Raises ChainError (CORRUPT_RECORD).
    """

    def refuse(why: str, sequence: int = -1) -> ChainError:
        return ChainError(CORRUPT_RECORD, why, sequence=sequence, offset=base + offset, file=file)

    if len(data) - offset < FRAME_BYTES_MIN:
        raise refuse("the frame is cut short")
    length, crc, sequence, batch, kind, schema, flags, body_bytes, wall_ns, boot_ns, prev = (
        HEADER.unpack_from(data, offset)
    )
    body_end, end = offset + HEADER_BYTES + body_bytes, offset + length
    if length > FRAME_BYTES_MAX or length != frame_bytes(body_bytes):
        raise refuse(f"frame length {length} does not fit a body of {body_bytes} bytes")
    if end > len(data):
        raise refuse("the frame is cut short")
    if flags & ~FLAGS_KNOWN or data[body_end : end - HASH_BYTES].strip(b"\0"):
        raise refuse("a reserved bit or a padding byte is not zero", sequence)
    digest = sha256(prefix + data[offset + 8 : body_end]).digest()
    if digest != data[end - HASH_BYTES : end]:
        raise refuse(f"the record hash is not {digest.hex()}", sequence)
    crc_ok = crc32(data[offset + 8 : end], crc32(data[offset : offset + 4])) == crc
    body = data[offset + HEADER_BYTES : body_end]
    return Record(
        sequence, batch, kind, schema, flags, wall_ns, boot_ns, prev, body, digest, length, crc_ok
    )
