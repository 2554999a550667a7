# SPDX-License-Identifier: Apache-2.0
"""Frames as they lie in the segments, read a piece at a time.

Rule: a segment is read and never mapped. Under a mapping a sector that cannot be read, or a file
that was cut meanwhile, is a signal that ends the process; here it is an error that says where.

Does not verify: what is read was verified, or is by whoever gets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from leased.chain.record import FRAME_BYTES_MAX, FRAME_BYTES_MIN
from leased.chain.segment import HEADER_BYTES
from leased.chain.verdict import CORRUPT_SEGMENT
from leased.durable.files import Disk, explain
from leased.durable.retention import live_segments
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError, RecordsPruned, StateError

PIECE_BYTES: Final = 256 * 1024
"""What is read at once: more than any frame has."""

_LENGTH_BYTES: Final = 4


class Frames:
    """The frames of one segment, by their offsets; near each other they cost one read."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.name = name
        self._disk = disk
        self._begin, self._piece = 0, b""

    def at(self, offset: int) -> bytes:
        """The frame that begins there. Raises StateError where the disk cannot read it, ChainError
        where there is none."""
        found = self._within(offset)
        if found is None:
            self._begin, self._piece = offset, _read(self._disk, self.name, offset)
            found = self._within(offset)
        if found is None:
            why = "the file ends, or is not what was verified, where a record was"
            raise ChainError(CORRUPT_SEGMENT, why, file=self.name, offset=offset)
        return found

    def _within(self, offset: int) -> bytes | None:
        """Of what was read last; None: it is not all there."""
        at = offset - self._begin
        if at < 0:
            return None
        end = at + _frame_length(self._piece, at)
        return self._piece[at:end] if at < end <= len(self._piece) else None


def read_frames(disk: Disk, first_seq: int, slot: AnchorSlot) -> Iterator[bytes]:
    """Frames [first_seq, slot.next_seq) in chunks of whole frames, as they lie on disk. Raises
    StateError where the disk cannot read them, RecordsPruned where they were pruned meanwhile,
    ChainError where they are not there."""
    names = live_segments(disk.names(), slot.min_seq)
    starts = [int(name[4:20], 16) for name in names]
    if first_seq < starts[0]:
        raise RecordsPruned(
            f"{disk.directory}: record {first_seq} was pruned, as all before {starts[0]}"
        )
    for name, start, following in zip(names, starts, [*starts[1:], slot.next_seq], strict=True):
        stop = min(following, slot.next_seq)
        if first_seq < stop:
            yield from _segment_frames(disk, name, start, max(start, first_seq), stop)


def _segment_frames(
    disk: Disk, name: str, sequence: int, first_seq: int, stop: int
) -> Iterator[bytes]:
    """Frames [first_seq, stop) of the segment that begins with record `sequence`."""
    offset = HEADER_BYTES
    while sequence < stop:
        piece = _read(disk, name, offset)
        begin = end = 0
        while sequence < stop:
            length = int.from_bytes(piece[end : end + _LENGTH_BYTES], "little")
            # One that is cut short ends behind the piece, too: no frame has less than a length.
            if not FRAME_BYTES_MIN <= length <= FRAME_BYTES_MAX or end + length > len(piece):
                break
            end += length
            sequence += 1
            if sequence <= first_seq:
                begin = end
        if not end:
            why = "the file ends, or is not what was verified, where a record was"
            raise ChainError(CORRUPT_SEGMENT, why, file=name, offset=offset, sequence=sequence)
        if begin < end:
            yield piece[begin:end]
        offset += end


def _frame_length(piece: bytes, at: int) -> int:
    """What a frame says of its length; 0 where it does not, or cannot mean it."""
    length = int.from_bytes(piece[at : at + _LENGTH_BYTES], "little")
    cut = at + _LENGTH_BYTES > len(piece)
    return 0 if cut or not FRAME_BYTES_MIN <= length <= FRAME_BYTES_MAX else length


def _read(disk: Disk, name: str, offset: int) -> bytes:
    """A piece of a segment. Raises StateError."""
    try:
        return disk.read_part(name, offset, PIECE_BYTES)
    except FileNotFoundError as error:
        raise StateError(f"{disk.directory}: {name} was removed meanwhile: ask again") from error
    except OSError as error:
        raise StateError(explain(error, disk.directory / name)) from error
