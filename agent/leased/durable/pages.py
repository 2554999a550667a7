# SPDX-License-Identifier: Apache-2.0
"""Pages of the log that a writer has open: frames by sequence, and the tree at any size.

Rule: nothing beyond the anchor slot that the caller hands in is read. The bytes of frames pass
through untouched; a tree is built of the hashes in them only where each is held by the record
after it. A reader who goes on where it stopped costs one walk over what it gets: the ends of recent
pages are remembered. A page ends with its segment at the latest.

Does not sign and does not wait. Not for two threads at once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from leased.chain.page import Span, measure
from leased.chain.proof import inclusion_path
from leased.chain.record import FRAME_BYTES_MAX, HASH_BYTES
from leased.chain.segment import (
    CLOSING_BYTES_MAX,
    HEADER_BYTES,
    LogIdentity,
    SegmentHeader,
    geometry,
    parse_header,
    segment_name,
)
from leased.chain.tree import EMPTY, Frontier
from leased.chain.verdict import CORRUPT_SEGMENT
from leased.durable.files import Disk
from leased.durable.scan import segment_names
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError, StateError

PLACES_MAX: Final = 64
"""Ends of pages that are remembered: of a few readers, each with a few pages under way."""


class Pruned(StateError):
    """The record is not kept any more; `first_seq` is the first that is."""

    def __init__(self, sequence: int, first_seq: int) -> None:
        super().__init__(f"record {sequence} was pruned, as all before {first_seq}")
        self.first_seq = first_seq


class Page(msgspec.Struct, frozen=True):
    """Frames of the records from `first` up to, and without, `next_seq`, the hash before the first
    and that of the last, and the tree after it. `last`: the log ends there."""

    first: int
    next_seq: int
    frames: bytes
    prev: bytes
    head: bytes
    tree: Frontier
    last: bool


class Inclusion(msgspec.Struct, frozen=True):
    """That a record is in the tree of so many: its hash, the path, and that tree."""

    record_hash: bytes
    path: list[bytes]
    tree: Frontier


class _Place(msgspec.Struct, frozen=True):
    """Where a record begins: in which segment, at which offset, after which tree."""

    start: int
    offset: int
    tree: Frontier


def _after(place: _Place, span: Span) -> _Place:
    """The place behind a run that begins at `place`."""
    return _Place(place.start, place.offset + span.end, place.tree.grown(span.digests))


class PageReader:
    """Reads one log. Every call is told the slot that counts."""

    def __init__(self, disk: Disk, identity: LogIdentity) -> None:
        self._disk = disk
        self._log_id = identity.log_id
        self._segment_bytes = identity.segment_bytes
        shape = geometry(identity.segment_bytes)
        self._batch_bytes_max = shape.batch_bytes + shape.frame_bytes_max + CLOSING_BYTES_MAX
        self._places: OrderedDict[int, _Place] = OrderedDict()

    def first_seq(self) -> int:
        """The first record that is still there."""
        return self._starts()[0]

    def page(self, first: int, slot: AnchorSlot, bytes_max: int) -> Page:
        """A page from `first` (below the slot's next_seq) on. Raises ChainError, StateError."""
        place, stop = self._place(first, slot)
        # With one frame more than can be wanted, to see where to stop.
        length = max(bytes_max, self._batch_bytes_max) + FRAME_BYTES_MAX
        data = self._disk.read_part(segment_name(place.start), place.offset, length)
        span = self._measure(place, data, stop - first, bytes_max=bytes_max)
        next_seq = first + span.count
        after = _after(place, span)
        self._check(after, slot)
        self._remember(next_seq, after)
        return Page(
            first,
            next_seq,
            data[: span.end],
            span.prev,
            span.head,
            after.tree,
            next_seq == slot.next_seq,
        )

    def tree(self, size: int, slot: AnchorSlot) -> Frontier:
        """The tree of the first `size` records (at most the slot's next_seq). Raises ChainError,
        StateError."""
        if size == 0:
            return EMPTY
        found = self._places.get(size)
        if found is not None:
            return found.tree
        place, stop = self._place(size - 1, slot)
        data = self._disk.read_part(segment_name(place.start), place.offset, self._segment_bytes)
        span = self._measure(place, data, 1)
        after = _after(place, span)
        self._remember(size, after)
        return after.tree

    def inclusion(self, sequence: int, size: int, slot: AnchorSlot) -> Inclusion:
        """The proof of one record. Reads a segment for each of its siblings at most. Raises
        ChainError, StateError."""
        if sequence < self.first_seq():
            raise Pruned(sequence, self.first_seq())
        leaves = _Leaves(self, slot)
        path = inclusion_path(sequence, size, leaves.subtree)
        record_hash = leaves.range(sequence, sequence + 1)
        return Inclusion(record_hash, path, self.tree(size, slot))

    def leaves(self, start: int, slot: AnchorSlot) -> bytes:
        """The hashes of all records of the segment that begins with record `start`, one behind the
        other."""
        header, stop = self._header(start), self._stop(start, slot)
        data = self._disk.read_part(segment_name(start), HEADER_BYTES, self._segment_bytes)
        place = _Place(start, HEADER_BYTES, header.frontier)
        return self._measure(place, data, stop - start).digests

    def start_before(self, sequence: int) -> int:
        """The first record of the segment that holds `sequence`. Raises Pruned."""
        starts = self._starts()
        if sequence < starts[0]:
            raise Pruned(sequence, starts[0])
        return max(start for start in starts if start <= sequence)

    def tree_before(self, start: int) -> Frontier:
        """The tree of all records before the segment that begins with `start`."""
        return self._header(start).frontier

    # -- places ------------------------------------------------------------------------------------

    def _place(self, first: int, slot: AnchorSlot) -> tuple[_Place, int]:
        """Where record `first` begins, and the record that the segment ends before."""
        start = self.start_before(first)
        stop = self._stop(start, slot)
        place = self._nearest(start, first)
        known = place.tree.size
        if first > known:
            data = self._disk.read_part(segment_name(start), place.offset, self._segment_bytes)
            place = _after(place, self._measure(place, data, first - known))
        self._remember(first, place)
        return place, stop

    def _nearest(self, start: int, first: int) -> _Place:
        """The last place known in the segment that is not beyond `first`; its beginning at
        least."""
        within = [
            place for size, place in self._places.items() if place.start == start and size <= first
        ]
        if within:
            return max(within, key=lambda place: place.tree.size)
        return _Place(start, HEADER_BYTES, self._header(start).frontier)

    def _stop(self, start: int, slot: AnchorSlot) -> int:
        """The record after the last that may be read of the segment that begins with `start`."""
        later = [one for one in self._starts() if one > start]
        return min([*later[:1], slot.next_seq])

    def _starts(self) -> list[int]:
        starts = [int(name[4:20], 16) for name in segment_names(self._disk.names())]
        if not starts:
            raise StateError(f"{self._disk.directory}: no segment is there any more")
        return starts

    def _header(self, start: int) -> SegmentHeader:
        name = segment_name(start)
        header = parse_header(self._disk.read_part(name, 0, HEADER_BYTES), name)
        if header.log_id != self._log_id or header.head.size != start:
            raise ChainError(CORRUPT_SEGMENT, "the segment is of another place", file=name)
        return header

    def _measure(
        self,
        place: _Place,
        data: bytes,
        records: int,
        *,
        bytes_max: int | None = None,
    ) -> Span:
        try:
            return measure(data, 0, records, bytes_max=bytes_max)
        except ChainError as error:
            raise ChainError(
                error.verdict,
                error.why,
                file=segment_name(place.start),
                offset=place.offset + error.offset,
            ) from error

    def _check(self, place: _Place, slot: AnchorSlot) -> None:
        """A tree that the log states itself must be the one that was built. Raises ChainError."""
        size = place.tree.size
        if size == slot.next_seq or size not in self._starts():
            return
        if self._header(size).frontier != place.tree:
            raise ChainError(
                CORRUPT_SEGMENT, "its records are not those of its tree", file=segment_name(size)
            )

    def _remember(self, sequence: int, place: _Place) -> None:
        self._places[sequence] = place
        self._places.move_to_end(sequence)
        while len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)


class _Leaves:
    """The leaves of one proof: each segment is read once. A subtree is built upon what the last
    segment header within it says of the tree before."""

    def __init__(self, reader: PageReader, slot: AnchorSlot) -> None:
        self._reader = reader
        self._slot = slot
        self._start = -1
        self._held = b""

    def range(self, start: int, stop: int) -> bytes:
        """The hashes of the records [start, stop), one behind the other."""
        found = b""
        while start < stop:
            begin = self._reader.start_before(start)
            if begin != self._start:
                self._start, self._held = begin, self._reader.leaves(begin, self._slot)
            part = self._held[(start - begin) * HASH_BYTES : (stop - begin) * HASH_BYTES]
            if not part:
                raise StateError(f"record {start} is not there")
            found += part
            start += len(part) // HASH_BYTES
        return found

    def subtree(self, start: int, stop: int) -> bytes:
        """The hash over [start, stop), where `start` is a multiple of the power of two that the
        range does not exceed."""
        begins = self._reader.first_seq()
        if stop <= begins:
            return self._reader.tree_before(begins).subtree(start, stop) or self._gone(start)
        base = self._reader.start_before(stop - 1)
        if base <= start:
            return EMPTY.grown(self.range(start, stop)).root()
        # The peaks of the tree before `base` that lie beyond `start`: one for each bit of what is
        # between, for `start` has none of these bits.
        between = base - start
        peaks = self._reader.tree_before(base).peaks[-between.bit_count() :]
        return Frontier(between, peaks).grown(self.range(base, stop)).root()

    def _gone(self, start: int) -> bytes:
        raise Pruned(start, self._reader.first_seq())
