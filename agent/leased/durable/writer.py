# SPDX-License-Identifier: Apache-2.0
"""The writer: the order in which a batch and its anchor reach the disk, and the switch to the next
segment.

Rule: append, fdatasync, anchor slot in place, fdatasync; only then does the batch count. Nothing
below the anchored end is ever written again. After a failure nothing more is written: what is on
disk is then for recovery to say.

Does not wait for anything (`journal` awaits the committer) and is used as it stands, blocking, at
boot and in tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from leased.chain.head import Head
from leased.chain.record import FLAG_LAST, HASH_BYTES, HEADER
from leased.chain.recovery import SEGMENT_END
from leased.chain.segment import (
    CLOSING_BYTES_MAX,
    HEADER_BYTES,
    Geometry,
    SegmentHeader,
    parse_header,
    segment_name,
    write_header,
)
from leased.chain.tree import Frontier
from leased.chain.verifier import Verifier
from leased.durable.anchor import FileAnchorStore, encode_slot, slot_offset
from leased.durable.files import Disk
from leased.durable.spares import Spares
from leased.ports import AnchorSlot
from leased.terms.errors import InvariantError, StateError
from leased.terms.event import KIND, Pruned
from leased.terms.moment import Moment

PRUNED: Final = KIND[Pruned]
_FIRST: Final = struct.Struct("<QQ")


class Part(msgspec.Struct, frozen=True):
    """One batch on its way to the disk: where it goes and the slot that makes it count."""

    data: bytes
    offset: int
    slot: AnchorSlot
    ends_segment: bool


class Writes(msgspec.Struct, frozen=True, gc=False):
    """The same as a disk has it: data and then a block, each in its file and with a sync behind
    it."""

    segment: int
    data: bytes
    offset: int
    anchor: int
    block: bytes
    block_offset: int


class Writer:
    """The open log: the current segment, the anchor, and where both stand."""

    def __init__(
        self, disk: Disk, *, slot: AnchorSlot, segment: str, geometry: Geometry, spares: Spares
    ) -> None:
        self._disk = disk
        self._geometry = geometry
        self._segment_name = segment
        self.spares = spares
        self.frontier_at: Callable[[int], Frontier | None] = _unknown
        self.slot = slot
        self.min_seq = slot.min_seq
        """What the next slots say: records below are pruned."""
        self.next_min_seq: int | None = None
        """What the slot is to say that anchors the next Pruned record, and all after it."""
        self.acked_size = slot.acked_size
        """And so many are acknowledged by every collector that has to."""
        self.tpm_counter = slot.tpm_counter
        """What the next slots say: the counter is to have this value."""
        self.anchor = FileAnchorStore(disk)
        self.segment = disk.open(segment)
        self.failed = False

    def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        """Append and anchor a sealed batch, blocking. As `ports.Journal.commit`."""
        for part in self.parts(frames, count, head, moment):
            self.begin()
            self.append(part)
            self.anchor.write(part.slot)
            self.settle(part)
            if part.ends_segment:
                self.switch(moment)

    def parts(self, frames: bytes, count: int, head: bytes, moment: Moment) -> Iterator[Part]:
        """Cut sealed frames into their batches. Each is computed when the one before has been
        settled."""
        self._refuse_if_failed()
        if self.fits(frames):
            if frames[-HASH_BYTES:] != head:
                raise InvariantError("frames handed to the journal do not end with the head stated")
            yield self._part(frames, count, head, moment, ends_segment=False)
            return
        start = offset = records = total = 0
        while offset < len(frames):
            length, _, _, _, kind, _, flags, *_ = HEADER.unpack_from(frames, offset)
            offset, records, total = offset + length, records + 1, total + 1
            if flags & FLAG_LAST:
                last = frames[offset - HASH_BYTES : offset]
                yield self._part(
                    frames[start:offset], records, last, moment, ends_segment=kind == SEGMENT_END
                )
                start, records = offset, 0
        if start != len(frames) or total != count or self.slot.head != head:
            raise InvariantError(
                "frames handed to the journal are not whole batches with the count and head stated"
            )

    def writes(self, part: Part) -> Writes:
        """What a committer has to do for it."""
        slot = part.slot
        where = (self.anchor.handle, encode_slot(slot), slot_offset(slot))
        return Writes(self.segment, part.data, part.offset, *where)

    def fits(self, frames: bytes) -> bool:
        """Whether the frames are one batch that ends no segment."""
        room = self._geometry.ends_after - CLOSING_BYTES_MAX - self.slot.end_offset
        return len(frames) <= min(self._geometry.batch_bytes, room)

    def begin(self) -> None:
        """Note that the disk is being changed: until `settle`, an exception leaves the log
        failed."""
        self._refuse_if_failed()
        self.failed = True

    def append(self, part: Part) -> None:
        """Write the batch beyond the anchored end and make it durable."""
        assert part.offset >= self.slot.end_offset, (
            "nothing below the anchored end is written again"
        )
        self._disk.write(self.segment, part.data, part.offset)
        self._disk.sync(self.segment)

    def settle(self, part: Part) -> None:
        """The batch is durable and anchored."""
        self.slot = part.slot
        self.failed = False

    def switch(self, moment: Moment) -> None:
        """Go on in a new segment (FORMAT.md section 7): header, durable; name, durable; slot,
        durable."""
        self.begin()
        slot = self.slot
        head = Head(slot.next_seq, slot.head)
        frontier = self.frontier_at(head.size) or self._read_frontier(head)
        header = SegmentHeader(slot.log_id, slot.segment_no + 1, head, frontier)
        name = activate(self._disk, self.spares, header)
        handle = self._disk.open(name)
        self._disk.close_handle(self.segment)
        self.segment, self._segment_name = handle, name
        self.slot = self._next_slot(
            slot.next_seq, slot.head, slot.segment_no + 1, HEADER_BYTES, moment
        )
        self.anchor.write(self.slot)
        self.failed = False

    def restate(self, tpm_counter: int, moment: Moment) -> None:
        """Write both slots anew, with another value of the counter. They take generations of their
        own, so this is for before the first batch is sealed and after the last."""
        self.tpm_counter, slot = tpm_counter, self.slot
        for _ in range(2):
            self.begin()
            self.slot = self._next_slot(
                slot.next_seq, slot.head, slot.segment_no, slot.end_offset, moment
            )
            self.anchor.write(self.slot)
            self.failed = False

    def free_bytes(self) -> int:
        """How many bytes of frames fit without allocating a block."""
        whole = self._geometry.ends_after - HEADER_BYTES
        return max(0, self._geometry.ends_after - self.slot.end_offset) + whole * self.spares.ready

    @property
    def largest_bytes(self) -> int:
        """What a batch takes at most, with what ends its segment."""
        return self._geometry.segment_bytes - self._geometry.ends_after

    def spares_for(self, needed: int) -> int:
        """How many spares make sure that `needed` bytes fit, even right after a switch."""
        return -(-needed // (self._geometry.ends_after - HEADER_BYTES)) + 1

    def close(self) -> None:
        """Close the files. Idempotent."""
        self.anchor.close()
        if self.segment >= 0:
            self._disk.close_handle(self.segment)
            self.segment = -1

    def _refuse_if_failed(self) -> None:
        """Raise StateError once a write has failed: what is on disk is then for recovery to say."""
        if self.failed:
            raise StateError(
                f"{self._disk.directory}: an earlier write to the log failed; nothing more is "
                "written until a restart has recovered it"
            )

    def _part(
        self, data: bytes, count: int, head: bytes, moment: Moment, *, ends_segment: bool
    ) -> Part:
        sequence, batch = _FIRST.unpack_from(data, 8)
        slot = self.slot
        if self.next_min_seq is not None and PRUNED in kinds(data):
            self.min_seq, self.next_min_seq = self.next_min_seq, None
        if sequence != slot.next_seq or batch != slot.generation + 1:
            raise InvariantError(
                f"batch {batch} from record {sequence} handed to a journal that is at batch "
                f"{slot.generation}, record {slot.next_seq}"
            )
        end = slot.end_offset + len(data)
        if end > self._geometry.segment_bytes:
            raise InvariantError(f"a batch of {len(data)} bytes does not fit at {slot.end_offset}")
        after = self._next_slot(slot.next_seq + count, head, slot.segment_no, end, moment)
        return Part(data, slot.end_offset, after, ends_segment)

    def _next_slot(
        self, next_seq: int, head: bytes, segment_no: int, end_offset: int, moment: Moment
    ) -> AnchorSlot:
        """The slot that follows the current one; what it does not change it carries on."""
        old = self.slot
        return AnchorSlot(
            old.generation + 1,
            old.log_id,
            next_seq,
            segment_no,
            end_offset,
            head,
            self.min_seq,
            self.acked_size,
            self.tpm_counter,
            moment.boot_ns,
            moment.boot_id,
        )

    def _read_frontier(self, head: Head) -> Frontier:
        """The tree at the end of the current segment, from its header and its records (nobody
        could tell)."""
        data = self._disk.read(self._segment_name)[: self.slot.end_offset]
        start = parse_header(data, self._segment_name)
        verifier = Verifier(self.slot.log_id, start.head, start.frontier, file=self._segment_name)
        verifier.feed(data, start=HEADER_BYTES)
        verified = verifier.verified()
        assert verified.head == head, "the segment ends where its anchor says"
        return verified.frontier


def kinds(frames: bytes) -> set[int]:
    """The kinds of the records in whole frames."""
    found, offset = set(), 0
    while offset < len(frames):
        length, _, _, _, kind, *_ = HEADER.unpack_from(frames, offset)
        found.add(kind)
        offset += length
    return found


def activate(disk: Disk, spares: Spares, header: SegmentHeader) -> str:
    """Turn a spare into the segment that begins with `header`; return its name."""
    spare, name = spares.take(), segment_name(header.head.size)
    handle = disk.open(spare)
    try:
        disk.write(handle, write_header(header), 0)
        disk.sync(handle)
    finally:
        disk.close_handle(handle)
    disk.rename(spare, name)
    disk.sync_names()
    return name


def _unknown(size: int) -> None:
    """No sealer is attached that could tell the tree at `size`."""
