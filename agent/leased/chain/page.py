# SPDX-License-Identifier: Apache-2.0
"""A page of a pulled log: whole frames to the end of a batch, and the trailer that says where it
ends (PULL.md section 2).

Rule: the frames of a page are the bytes on disk, untouched. The trailer is framed as a record is,
so that one parser reads both, but it is none: its hash is a checksum and its kind is of no event.

Does not verify records (`verifier`) and does not read files (`durable.pages`).
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final
from zlib import crc32

import msgspec

from leased.chain import native
from leased.chain.record import (
    FRAME_BYTES_MIN,
    HASH_BYTES,
    HEADER_BYTES,
    PADDING,
    PREFIX,
    PREV_AT,
    SEALED,
    frame_bytes,
    hash_prefix,
    parse_frame,
)
from leased.chain.verdict import BAD_PAGE, CORRUPT_RECORD
from leased.terms.errors import ChainError

TRAILER_KIND: Final = 0xFFFF
TRAILER_SCHEMA: Final = 1
PAGE_BYTES_MAX: Final = 4 << 20
"""Of frames. A batch may be larger, and is never cut."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[int, bytes, str])


class Trailer(msgspec.Struct, frozen=True):
    """Where a page ends: the sequence that follows, the hash before it, the node's signed note of
    the tree up to there, and the node's clocks (0 in a page that never changes)."""

    next_seq: int
    head: bytes
    note: str
    wall_ns: int = 0
    boot_ns: int = 0


class Span(msgspec.Struct, frozen=True):
    """A run of whole frames: where it ends in the data, the hash before it and those of its
    records, one behind the other."""

    end: int
    prev: bytes
    digests: bytes

    @property
    def count(self) -> int:
        """How many records."""
        return len(self.digests) // HASH_BYTES

    @property
    def head(self) -> bytes:
        """The hash of its last record."""
        return self.digests[-HASH_BYTES:] or self.prev


def measure(data: bytes, offset: int, records: int, *, bytes_max: int | None = None) -> Span:
    """Walk `records` frames from `offset` on. With `bytes_max`: as many whole batches of them as
    fit into so many bytes, but at least one. Raises ChainError (CORRUPT_RECORD) where a frame does
    not hold the hash of the one before: what is asked of the tree is answered with these hashes,
    and one that the disk has changed must not be signed."""
    try:
        _, length, digests = native.links(data, offset, records, bytes_max=bytes_max)
    except native.NotLinked as error:
        why = "the frame does not continue the chain"
        raise ChainError(CORRUPT_RECORD, why, offset=error.at) from error
    except native.CutShort as error:
        raise ChainError(CORRUPT_RECORD, "the frame is cut short", offset=error.at) from error
    return Span(offset + length, data[offset + PREV_AT : offset + HEADER_BYTES], digests)


def write_trailer(trailer: Trailer, log_id: bytes) -> bytes:
    """Return the frame of a trailer."""
    body = _ENCODER.encode((trailer.next_seq, trailer.head, trailer.note))
    content = (
        SEALED.pack(
            trailer.next_seq,
            0,
            TRAILER_KIND,
            TRAILER_SCHEMA,
            0,
            len(body),
            trailer.wall_ns,
            trailer.boot_ns,
            trailer.head,
        )
        + body
    )
    length = frame_bytes(len(body))
    padding = PADDING[length - len(body) - FRAME_BYTES_MIN]
    tail = content + padding + sha256(hash_prefix(log_id) + content).digest()
    return PREFIX.pack(length, crc32(tail, crc32(length.to_bytes(4, "little")))) + tail


def split_page(page: bytes, log_id: bytes) -> tuple[int, Trailer]:
    """Return where the trailer of `page` begins (its frames are before that) and what it says.
    Raises ChainError (BAD_PAGE). The frames are not looked into: the verifier does that."""
    try:
        offset = native.last_frame(page)
    except native.NotLinked as error:
        length = int.from_bytes(page[error.at : error.at + 4], "little")
        why = f"{length} is no length of a frame"
        raise ChainError(BAD_PAGE, why, offset=error.at) from error
    except native.CutShort as error:
        raise ChainError(BAD_PAGE, "the page has no trailer", offset=error.at) from error
    return offset, _parse_trailer(page, offset, log_id)


def _parse_trailer(page: bytes, offset: int, log_id: bytes) -> Trailer:
    """The last frame as a trailer. Raises ChainError."""
    frame = parse_frame(page, offset, hash_prefix(log_id))
    if frame.kind != TRAILER_KIND or frame.schema != TRAILER_SCHEMA or frame.flags or frame.batch:
        raise ChainError(BAD_PAGE, "the last frame is no trailer", offset=offset)
    if offset + frame.frame_bytes != len(page) or not frame.crc_ok:
        raise ChainError(BAD_PAGE, "the trailer was damaged on the way", offset=offset)
    try:
        body = _DECODER.decode(frame.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ChainError(BAD_PAGE, f"the trailer: {error}", offset=offset) from error
    next_seq, head, note = body
    if _ENCODER.encode(body) != frame.body:
        raise ChainError(BAD_PAGE, "the trailer is not in canonical form", offset=offset)
    if next_seq != frame.sequence or head != frame.prev_hash:
        raise ChainError(BAD_PAGE, "the trailer says two things at once", offset=offset)
    return Trailer(next_seq, head, note, frame.wall_ns, frame.boot_ns)
