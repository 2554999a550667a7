# SPDX-License-Identifier: Apache-2.0
"""The bytes that are written once: the log's identity (`log.id`) and the header of a segment; and a
segment's geometry.

Rule: integers are little-endian, reserved bytes are zero and checked to be zero, the last 32 bytes
of each block are the SHA-256 of the rest. A segment header carries prev_hash and tree frontier, so
a verifier may start at any segment.

Does not read or write files (`durable`).
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

import msgspec

from leased.chain.head import Head
from leased.chain.record import FRAME_BYTES_MAX
from leased.chain.tree import Frontier
from leased.chain.verdict import CORRUPT_ID, CORRUPT_SEGMENT
from leased.terms.errors import ChainError

VERSION: Final = 1
LOG_ID_BYTES: Final = 512
HEADER_BYTES: Final = 4096
SEGMENT_BYTES: Final = 16 * 1024 * 1024
SEGMENT_BYTES_MIN: Final = 16 * 1024
SEGMENT_BYTES_MAX: Final = 1024 * 1024 * 1024
ORIGIN_BYTES_MAX: Final = 255
_ZEROS: Final = (bytes(64 * 1024), bytes(512))
PEAKS_MAX: Final = 63
CLOSING_BYTES_MAX: Final = 512
"""Room for the CheckpointSigned and SegmentEnd records that may follow a batch's last event."""

FLAG_SEALED_PROFILE: Final = 1
FLAG_BEST_EFFORT: Final = 2

_ID = struct.Struct("<8sHHI16s32sQQ32s32sH")
_HEADER = struct.Struct("<8sHHI16sQQ32sQB")
_ID_MAGIC = b"LEASELOG"
_SEGMENT_MAGIC = b"LSEG\r\n\x1a\n"
_PEAKS_OFFSET = 96

assert _ID.size == 146 and _HEADER.size == 89


class LogIdentity(msgspec.Struct, frozen=True):
    """What `log.id` says. `epoch_ns` and `token_hash` are for epoch seals and enrolment (zero:
    not in use)."""

    log_id: bytes
    public_key: bytes
    machine_hash: bytes
    origin: str
    segment_bytes: int = SEGMENT_BYTES
    flags: int = 0
    epoch_ns: int = 0
    created_wall_ns: int = 0
    token_hash: bytes = bytes(32)


class SegmentHeader(msgspec.Struct, frozen=True):
    """Where a segment begins in the chain: the state before its first record."""

    log_id: bytes
    segment_no: int
    head: Head
    frontier: Frontier


class Geometry(msgspec.Struct, frozen=True):
    """What follows from the size of a segment: how large batches may be and when a segment ends.

    A batch is cut once it has `batch_bytes`; a segment whose end passes `ends_after` is closed by
    the batch that did so, which leaves room for one whole further batch, so a batch always fits.
    """

    segment_bytes: int
    batch_bytes: int
    frame_bytes_max: int
    ends_after: int


def geometry(segment_bytes: int) -> Geometry:
    """Return the geometry of segments of `segment_bytes`: 1/16 of it is a batch, at most 1/8 a
    frame."""
    batch_bytes = segment_bytes // 16
    frame_max = min(FRAME_BYTES_MAX, segment_bytes // 8)
    return Geometry(
        segment_bytes,
        batch_bytes,
        frame_max,
        segment_bytes - batch_bytes - frame_max - CLOSING_BYTES_MAX,
    )


def machine_hash(machine_id: bytes, log_id: bytes) -> bytes:
    """Return what `log.id` keeps of the machine id: tells machines apart without naming them."""
    return sha256(machine_id + log_id).digest()


def written_end(data: bytes, begin: int) -> int:
    """Where the bytes from `begin` on that are not zero end. By blocks: most of a segment may never
    have been written."""
    end = len(data)
    for zeros in _ZEROS:
        while end - begin >= len(zeros) and data.endswith(zeros, begin, end):
            end -= len(zeros)
    last = max(begin, end - len(_ZEROS[-1]))
    return last + len(data[last:end].rstrip(b"\0"))


def segment_name(first_seq: int) -> str:
    """Return the file name of the segment that begins with record `first_seq`."""
    return f"seg-{first_seq:016x}.log"


def write_log_id(identity: LogIdentity) -> bytes:
    """Return the 512 bytes of `log.id`."""
    origin = identity.origin.encode()
    assert 0 < len(origin) <= ORIGIN_BYTES_MAX, "the origin was checked when it was configured"
    fields = _ID.pack(
        _ID_MAGIC,
        VERSION,
        identity.flags,
        identity.segment_bytes,
        identity.log_id,
        identity.public_key,
        identity.epoch_ns,
        identity.created_wall_ns,
        identity.token_hash,
        identity.machine_hash,
        len(origin),
    )
    return _closed(fields + origin, LOG_ID_BYTES)


def parse_log_id(raw: bytes, file: str) -> LogIdentity:
    """Return what `log.id` says. Raises ChainError (CORRUPT_ID)."""

    def refuse(why: str) -> ChainError:
        return ChainError(
            CORRUPT_ID,
            why + "; restore log.id from a backup or from the collector",
            file=file,
            offset=0,
        )

    if len(raw) != LOG_ID_BYTES or raw[:8] != _ID_MAGIC:
        raise refuse("not a log.id")
    if sha256(raw[:-32]).digest() != raw[-32:]:
        raise refuse("its hash does not hold")
    _, version, flags, size, log_id, key, epoch, created, token, machine, origin_bytes = (
        _ID.unpack_from(raw)
    )
    if version != VERSION:
        raise refuse(f"format version {version} is not known to this release")
    end = _ID.size + origin_bytes
    if size & (size - 1) or not SEGMENT_BYTES_MIN <= size <= SEGMENT_BYTES_MAX:
        raise refuse(f"segment size {size} cannot be meant")
    if not 0 < origin_bytes <= ORIGIN_BYTES_MAX or raw[end:-32].strip(b"\0") or flags & ~3:
        raise refuse("a reserved byte is not zero")
    if bool(flags & FLAG_SEALED_PROFILE) != bool(epoch):
        raise refuse(f"epochs of {epoch} ns do not go with flags {flags}")
    try:
        origin = raw[_ID.size : end].decode()
    except UnicodeDecodeError:
        raise refuse("the origin is not text") from None
    return LogIdentity(log_id, key, machine, origin, size, flags, epoch, created, token)


def write_header(header: SegmentHeader) -> bytes:
    """Return the first 4096 bytes of a segment."""
    peaks = header.frontier.peaks
    assert header.frontier.size == header.head.size and len(peaks) <= PEAKS_MAX
    fields = _HEADER.pack(
        _SEGMENT_MAGIC,
        VERSION,
        0,
        HEADER_BYTES,
        header.log_id,
        header.segment_no,
        header.head.size,
        header.head.hash,
        header.frontier.size,
        len(peaks),
    )
    return _closed(fields.ljust(_PEAKS_OFFSET, b"\0") + b"".join(peaks), HEADER_BYTES)


def parse_header(raw: bytes, file: str) -> SegmentHeader:
    """Return what the header of the segment `file` says. Raises ChainError (CORRUPT_SEGMENT)."""

    def refuse(why: str) -> ChainError:
        return ChainError(CORRUPT_SEGMENT, why, file=file, offset=0)

    if len(raw) < HEADER_BYTES or raw[:8] != _SEGMENT_MAGIC:
        raise refuse("not a segment: the first bytes are not the magic")
    raw = raw[:HEADER_BYTES]
    if sha256(raw[:-32]).digest() != raw[-32:]:
        raise refuse("the header's hash does not hold")
    _, version, flags, length, log_id, segment_no, first_seq, prev, size, count = (
        _HEADER.unpack_from(raw)
    )
    if version != VERSION or flags or length != HEADER_BYTES:
        raise refuse(f"format version {version}, flags {flags} are not known to this release")
    end = _PEAKS_OFFSET + 32 * count
    if count > PEAKS_MAX or size != first_seq or count != first_seq.bit_count():
        raise refuse("the frontier does not fit the first sequence")
    if any(raw[_HEADER.size : _PEAKS_OFFSET]) or raw[end:-32] != bytes(HEADER_BYTES - 32 - end):
        raise refuse("a reserved byte is not zero")
    if file != segment_name(first_seq):
        # Readers find records by the names: one that says otherwise would show them others.
        raise refuse(f"the name is not that of a segment that begins with record {first_seq}")
    peaks = tuple(raw[at : at + 32] for at in range(_PEAKS_OFFSET, end, 32))
    return SegmentHeader(log_id, segment_no, Head(first_seq, prev), Frontier(size, peaks))


def _closed(fields: bytes, length: int) -> bytes:
    """Return `fields` padded to `length` with the SHA-256 of the rest as the last 32 bytes."""
    body = fields.ljust(length - 32, b"\0")
    assert len(body) == length - 32, "fields overlap the closing hash"
    return body + sha256(body).digest()
