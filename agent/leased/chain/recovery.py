# SPDX-License-Identifier: Apache-2.0
"""The recovery rule as pure functions: which slot counts, what lies beyond it, and what follows
from that.

Rule (FORMAT.md section 8): at most one batch may lie beyond the anchor when both its slots are
whole, at most two when one is lost; more means that an older anchor was put back. Whole batches
beyond the anchor are kept, anything else beyond it is a torn tail. Slots are written for every
generation in turn, so the one overwritten is never the newest.

Does not read or write (`durable.log` carries out what is decided here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from leased.chain.canonical import decode
from leased.chain.head import Head
from leased.chain.record import (
    FLAG_LAST,
    FLAGS_KNOWN,
    FRAME_BYTES_MIN,
    HEADER,
    Record,
    frame_bytes,
    hash_prefix,
    parse_frame,
)
from leased.chain.segment import HEADER_BYTES, SegmentHeader, parse_header, written_end
from leased.chain.tree import Frontier
from leased.chain.verdict import ANCHOR_ROLLED_BACK, CORRUPT_ANCHOR, CORRUPT_SEGMENT
from leased.terms.errors import ChainError
from leased.terms.event import KIND, Allocated, Pruned, SegmentEnd

SEGMENT_END: Final = KIND[SegmentEnd]
_ALLOCATED: Final = KIND[Allocated]
_PRUNED: Final = KIND[Pruned]


class Slot(Protocol):
    """What is asked of an anchor slot here (`ports.AnchorSlot` has it)."""

    @property
    def generation(self) -> int: ...
    @property
    def log_id(self) -> bytes: ...
    @property
    def next_seq(self) -> int: ...
    @property
    def segment_no(self) -> int: ...
    @property
    def end_offset(self) -> int: ...
    @property
    def head(self) -> bytes: ...
    @property
    def min_seq(self) -> int: ...


S = TypeVar("S", bound=Slot)


class Step(msgspec.Struct, frozen=True):
    """One slot to write, in order: the anchor after one more batch, or after the switch to the
    next segment. A Pruned among them moves the beginning (`min_seq`), as it would have."""

    generation: int
    segment_no: int
    end_offset: int
    head: Head
    min_seq: int


class Image(msgspec.Struct, frozen=True):
    """A segment file as it lies on disk."""

    name: str
    data: bytes


class Torn(msgspec.Struct, frozen=True):
    """Bytes beyond the last whole batch: in `name`, from `offset` to `end` (after which all is
    zero)."""

    name: str
    offset: int
    end: int


class Tail(msgspec.Struct, frozen=True):
    """What lies beyond the anchor, and the state after keeping it.

    `steps` are the slots to write. `kept` are the records rolled forward, `granted` those of them
    that are grants. `unfinished_switch`: the last record ends its segment and the next one is not
    there yet.
    """

    steps: tuple[Step, ...]
    kept_records: int
    granted: tuple[int, ...]
    torn: Torn | None
    unfinished_switch: bool
    generation: int
    segment_no: int
    end_offset: int
    head: Head
    frontier: Frontier


def choose_slot(slots: Sequence[S | None], log_id: bytes, file: str) -> tuple[S, bool]:
    """Return the newest valid slot, and whether both are whole. Raises ChainError (rules 3 and
    4)."""
    whole = [slot for slot in slots if slot is not None]
    if not whole:
        raise ChainError(CORRUPT_ANCHOR, "neither slot is valid", file=file, offset=0)
    if any(slot.log_id != log_id for slot in whole):
        raise ChainError(CORRUPT_ANCHOR, "the anchor is of another log", file=file, offset=0)
    newest = max(whole, key=lambda slot: slot.generation)
    if len(whole) == 2 and min(slot.generation for slot in whole) != newest.generation - 1:
        raise ChainError(
            CORRUPT_ANCHOR,
            "the slots' generations do not follow each other",
            file=file,
            offset=0,
        )
    if newest.end_offset < HEADER_BYTES:
        why = f"the frames cannot end at {newest.end_offset}, within the header"
        raise ChainError(CORRUPT_ANCHOR, why, file=file, offset=0)
    return newest, len(whole) == 2


def read_tail(
    slot: Slot, *, both: bool, frontier: Frontier, ended: bool, images: Sequence[Image]
) -> Tail:
    """Walk what lies beyond `slot`. `images` are the slot's segment and all that come after it, in
    order.

    `frontier` is the tree at the slot, `ended` whether its last record ended its segment. Raises
    ChainError (rule 8).
    """
    reader = _TailReader(slot, both=both, frontier=frontier, images=images)
    index, offset = 0, slot.end_offset
    while True:
        if not ended:
            offset, ended = reader.read_batches(images[index], offset)
        torn = _torn(images[index], offset)
        if not ended or index + 1 == len(images):
            break
        header = parse_header(images[index + 1].data, images[index + 1].name)
        reader.switch(header, images[index + 1].name)
        index, offset, ended = index + 1, HEADER_BYTES, False
    if index + 1 < len(images):
        raise reader.rolled_back(f"segment {images[index + 1].name} lies beyond the anchor", offset)
    if torn is not None:
        reader.refuse_later_batches(images[index], torn)
    return reader.tail(offset, torn, unfinished_switch=ended)


class _TailReader:
    """The walk of `read_tail`: state that moves on with every batch kept."""

    def __init__(
        self, slot: Slot, *, both: bool, frontier: Frontier, images: Sequence[Image]
    ) -> None:
        self._slot = slot
        self._limit = slot.generation + (1 if both else 2)
        self._prefix = hash_prefix(slot.log_id)
        self._generation = slot.generation
        self._segment_no = slot.segment_no
        self._end_offset = slot.end_offset
        self._head = Head(slot.next_seq, slot.head)
        self._frontier = frontier
        self._min_seq = slot.min_seq
        self._steps: list[Step] = []
        self._granted: list[int] = []
        self._file = images[0].name

    def read_batches(self, image: Image, offset: int) -> tuple[int, bool]:
        """Keep every whole batch from `offset` on; return where they end, and whether the last
        ends its segment."""
        self._file = image.name
        while True:
            records, end = _whole_batch(
                image.data, offset, self._prefix, self._head, self._generation
            )
            if not records:
                return offset, False
            if records[0].batch > self._limit:
                raise self.rolled_back(f"batch {records[0].batch} lies beyond the anchor", offset)
            self._fill(records[0].batch)
            self._head = Head(self._head.size + len(records), records[-1].hash)
            self._frontier = self._frontier.extended([record.hash for record in records])
            self._granted.extend(record.sequence for record in records if record.kind == _ALLOCATED)
            self._min_seq = _begins(records, self._min_seq)
            self._step(records[0].batch, end)
            offset = end
            if records[-1].kind == SEGMENT_END:
                return offset, True

    def switch(self, header: SegmentHeader, name: str) -> None:
        """Go on in the next segment, which must begin exactly where this one ended."""
        self._file = name
        follows = header.log_id == self._slot.log_id and header.segment_no == self._segment_no + 1
        if not follows or header.head != self._head or header.frontier != self._frontier:
            raise ChainError(
                CORRUPT_SEGMENT,
                "the header does not continue the segment before",
                file=name,
                offset=0,
            )
        if self._generation + 1 > self._limit:
            raise self.rolled_back(f"segment {name} lies beyond the anchor", 0)
        self._segment_no += 1
        self._step(self._generation + 1, HEADER_BYTES)

    def refuse_later_batches(self, image: Image, torn: Torn) -> None:
        """A torn tail is the rest of one batch; a record of a batch after it was anchored once,
        and its anchor is gone."""
        stop = min(torn.end, len(image.data) - FRAME_BYTES_MIN + 1)
        for offset in range((torn.offset + 7) & -8, stop, 8):
            length, _, _, batch, _, _, flags, body_bytes, *_ = HEADER.unpack_from(
                image.data, offset
            )
            if length == frame_bytes(body_bytes) and flags <= FLAGS_KNOWN and batch > self._limit:
                try:
                    parse_frame(image.data, offset, self._prefix)
                except ChainError:
                    continue
                self._file = image.name
                raise self.rolled_back(f"a record of batch {batch} lies beyond the anchor", offset)

    def rolled_back(self, why: str, offset: int) -> ChainError:
        """Rule 8: more lies beyond the anchor than a crash can leave."""
        slot = self._slot
        why = f"{why} of generation {slot.generation} at record {slot.next_seq}"
        return ChainError(
            ANCHOR_ROLLED_BACK,
            why + ": an older anchor was put back",
            file=self._file,
            offset=offset,
            sequence=self._head.size,
        )

    def tail(self, offset: int, torn: Torn | None, *, unfinished_switch: bool) -> Tail:
        """The result."""
        kept = self._head.size - self._slot.next_seq
        return Tail(
            tuple(self._steps),
            kept,
            tuple(self._granted),
            torn,
            unfinished_switch,
            self._generation,
            self._segment_no,
            offset,
            self._head,
            self._frontier,
        )

    def _fill(self, batch: int) -> None:
        """A generation that had no batch (a lost slot-only write) still gets its slot, to keep
        the two alternating."""
        while self._generation + 1 < batch:
            self._step(self._generation + 1, self._end_offset)

    def _step(self, generation: int, end_offset: int) -> None:
        self._generation, self._end_offset = generation, end_offset
        where = (generation, self._segment_no, end_offset, self._head)
        self._steps.append(Step(*where, self._min_seq))


def _whole_batch(
    data: bytes, offset: int, prefix: bytes, head: Head, generation: int
) -> tuple[list[Record], int]:
    """Return the records of the batch at `offset` and its end; no records if it is not whole or
    does not follow."""
    records: list[Record] = []
    previous = head.hash
    while True:
        try:
            record = parse_frame(data, offset, prefix)
        except ChainError:
            return [], offset
        batch = records[0].batch if records else record.batch
        follows = record.sequence == head.size + len(records) and record.prev_hash == previous
        if not follows or record.batch != batch or batch <= generation:
            return [], offset
        records.append(record)
        previous = record.hash
        offset += record.frame_bytes
        if record.flags & FLAG_LAST:
            return records, offset


def _begins(records: Sequence[Record], min_seq: int) -> int:
    """Which record the log begins with once these are anchored."""
    for record in records:
        if record.kind == _PRUNED:
            event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
            min_seq = event.min_seq if isinstance(event, Pruned) else min_seq
    return min_seq


def _torn(image: Image, offset: int) -> Torn | None:
    """Whatever is not zero beyond `offset`."""
    end = written_end(image.data, offset)
    return Torn(image.name, offset, end) if end > offset else None
