# SPDX-License-Identifier: Apache-2.0
"""The archive: every record the collector has verified, in raw segments, and where each log stands.

Rule: a page is stored by writing its segment durably and then, in one transaction, naming the
segment and moving the log's cursor by compare-and-swap. A crash leaves the state before or the
state after; a file that no manifest names is what the crash cut short, and is removed at the next
start. Only a file that such a crash explains is removed: any other stops the start, named, because
it may be the only copy of something.

Who reads (`ArchiveReader`) needs no lock and may read while the collector writes: by sequence, not
by file, because small files are put together (`consolidate`).

Does not verify: what is handed in was (`ingest`).
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.canonical import Unknown, decode
from leased.chain.head import Head
from leased.chain.record import Record, hash_prefix, parse_frame
from leased.collector.archive.floor import Kept
from leased.collector.archive.manifest import CursorMoved, LogEntry
from leased.collector.archive.manifests import is_shared, open_manifest, own_directory
from leased.collector.archive.parts import part_of
from leased.collector.archive.segments import (
    SEGMENTS,
    OpenDisk,
    Segment,
    SegmentDamaged,
    SegmentFiles,
)
from leased.durable.files import DirectoryDisk, make_durably
from leased.terms.errors import StateError
from leased.terms.event import EpochSealed, Event, NodeStarted
from leased.terms.identity import BootId
from leased.terms.moment import Moment

__all__ = ["Archive", "ArchiveReader", "CursorMoved", "LogEntry", "Page", "SegmentDamaged"]

MERGE_COUNT: Final = 16
"""So many neighbours of one size class become one file: each byte is written again once per class,
and a node that is pulled every second makes hundreds of files a day and not 86,400."""

MERGED_BYTES_MAX: Final = 16 * 1024 * 1024
"""A node's own segment; larger files would make a reader wait for what it did not ask."""

_READ_ATTEMPTS: Final = 3


class Page(msgspec.Struct, frozen=True):
    """Verified frames of one log, ready to be stored. `before` and `after` are the cursor,
    `state` what the verifier carries on, `note` the node's signed note of `signed_size` records.
    Without frames it says that the node was heard."""

    log_id: str
    before: Head
    after: Head
    frames: bytes
    state: bytes
    signed_size: int
    note: str
    contact_ns: int
    verdict: str = "OK"


class ArchiveReader:
    """The archive, open for reading."""

    def __init__(self, directory: Path) -> None:
        """Raises StateError if there is none."""
        self.directory = directory
        self.manifest = open_manifest(directory, read_only=True)
        self.files = SegmentFiles(directory)
        self.kept = Kept(directory)

    def logs(self) -> list[LogEntry]:
        """Every log, as it stands now."""
        return self.manifest.logs()

    def log(self, log_id: str) -> LogEntry | None:
        """One log, as it stands now."""
        return self.manifest.log(log_id)

    def frames(self, log_id: str, from_seq: int = 0) -> Iterator[bytes]:
        """Frames from record `from_seq` on, in chunks of whole frames, up to the cursor at the
        call. Raises SegmentDamaged, and StateError where records are missing between."""
        entry = self.log(log_id)
        stop = entry.head.size if entry is not None else 0
        while from_seq < stop:
            segment, data = self._read(log_id, from_seq)
            yield data[_before(data, from_seq) :]
            from_seq = segment.last_seq + 1

    def chunks(self, log_id: str, from_seq: int = 0) -> Iterator[bytes]:
        """The frames of `framed`, in chunks."""
        begin = self.kept.floor().records(log_id)
        if from_seq < begin:
            kept = self.kept.frames(log_id)
            yield kept[_before(kept, from_seq) :]
        yield from self.frames(log_id, max(from_seq, begin))

    def framed(self, log_id: str, from_seq: int = 0) -> Iterator[tuple[Record, bytes]]:
        """Every record from `from_seq` on, with its frame. Of what was removed by the rule of
        retention only those are there that something later follows from (`floor`)."""
        prefix = hash_prefix(bytes.fromhex(log_id))
        for chunk in self.chunks(log_id, from_seq):
            offset = 0
            while offset < len(chunk):
                record = parse_frame(chunk, offset, prefix)
                start, offset = offset, offset + record.frame_bytes
                yield record, chunk[start:offset]

    def records(self, log_id: str, from_seq: int = 0) -> Iterator[Record]:
        """The same, without frames."""
        return (record for record, _ in self.framed(log_id, from_seq))

    def hashes(self, log_id: str, from_seq: int = 0) -> Iterator[bytes]:
        """The hash of every record from `from_seq` on, of removed ones too."""
        begin = self.kept.floor().records(log_id)
        if from_seq < begin:
            yield from islice(self.kept.leaves(log_id), from_seq, None)
        for record in self.records(log_id, max(from_seq, begin)):
            yield record.hash

    def events(
        self, log_id: str, from_seq: int = 0, *, boot_id: bytes = bytes(16)
    ) -> Iterator[tuple[int, Event | Unknown, Moment]]:
        """Every event from `from_seq` on, with when it was sealed. `boot_id` is that of the last
        NodeStarted before."""
        boot, boot_ns = BootId(boot_id), 0
        for record in self.records(log_id, from_seq):
            event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
            if isinstance(event, NodeStarted):
                boot = event.boot_id
            if not isinstance(event, EpochSealed):
                # A seal may have been written by the boot that the next NodeStarted names.
                boot_ns = record.boot_ns
            yield record.sequence, event, Moment(boot, boot_ns, record.wall_ns)

    def check(self) -> Iterator[tuple[Segment, SegmentDamaged | None]]:
        """Read every file; what is wrong with each."""
        for segment in self.manifest.segments():
            try:
                self.files.read(segment)
            except SegmentDamaged as error:
                yield segment, error
            else:
                yield segment, None

    def close(self) -> None:
        """Close everything. Idempotent."""
        self.files.close()
        self.manifest.close()

    def _read(self, log_id: str, from_seq: int) -> tuple[Segment, bytes]:
        """The segment that holds a record, read. It may be put together with others meanwhile."""
        for attempt in range(_READ_ATTEMPTS):
            segments = self.manifest.segments(log_id, from_seq)
            if not segments or segments[0].first_seq > from_seq:
                raise StateError(
                    f"{self.directory}: record {from_seq} of log {log_id} is in no segment"
                )
            try:
                return segments[0], self.files.read(segments[0])
            except SegmentDamaged:
                if attempt + 1 == _READ_ATTEMPTS:
                    raise
        raise AssertionError("the loop returns or raises")


class Archive(ArchiveReader):
    """The archive, open for its one writer; where the manifest is shared (`manifests`), for the one
    of this `name`, which writes what belongs to the parts that it has and no more. Blocks as long
    as the disk does."""

    def __init__(
        self, directory: Path, *, name: str = "", open_disk: OpenDisk = DirectoryDisk
    ) -> None:
        """Lock, make what is missing, and clear what a crash left. Raises StateError."""
        self.shared = is_shared(directory)
        self.own = own_directory(directory, name)
        if self.shared and not name:
            raise StateError(f"{directory}: several collectors share it: `leased-collector pull`")
        try:
            self.own.mkdir(mode=0o700, parents=self.shared, exist_ok=True)
            self._root = DirectoryDisk(self.own)
        except OSError as error:
            raise StateError(f"{directory}: {error}; make its parent, owned by you") from error
        try:
            if self.own.stat().st_mode & stat.S_IWOTH:
                raise StateError(f"{self.own}: anybody may write there: chmod o-w {self.own}")
            if not self._root.lock():
                raise StateError(f"{self.own}: another collector has it open; stop that first")
            make_durably(directory, SEGMENTS)
            self.directory = directory
            self.manifest = open_manifest(directory, open_disk=open_disk)
            self.files = SegmentFiles(directory, open_disk, writer=name if self.shared else "")
            self.kept = Kept(directory)
            if not self.shared:
                self._recover()
        except BaseException:
            self._root.close()
            raise

    def add_log(self, entry: LogEntry) -> None:
        """Take a log in."""
        self.manifest.add_log(entry)

    def persist(self, pages: Sequence[Page]) -> list[CursorMoved | None]:
        """Store verified pages of different logs, durably, in one transaction. In the place of
        each: None, or that its cursor had moved and nothing of it was stored."""
        written: list[Segment | CursorMoved | None] = []
        for page in pages:
            entry = self.log(page.log_id)
            is_next = entry is not None and entry.head == page.before
            written.append(self._write(entry, page) if entry and is_next and page.frames else None)
        outcome: list[CursorMoved | None] = []
        with self.manifest.transaction():
            for page, made in zip(pages, written, strict=True):
                outcome.append(made if isinstance(made, CursorMoved) else self._name(page, made))
        for made, moved in zip(written, outcome, strict=True):
            # In a shared archive the file may be, byte for byte, what another has named by now: it
            # is looked at again when the part is taken over.
            if isinstance(made, Segment) and moved is not None and not self.shared:
                self.files.remove(made.path)
        return outcome

    def consolidate(self, log_id: str) -> int:
        """Put small neighbours together, until there is no run of them; how many files went."""
        gone = 0
        while run := _run(self.manifest.segments(log_id)):
            data = b"".join(self.files.read(one) for one in run)
            first, last = run[0], run[-1]
            merged = self.files.write(
                first.node, log_id, first.first_seq, last.last_seq, last.head, data
            )
            with self.manifest.transaction():
                self.manifest.forget_segments(run)
                self.manifest.add_segment(merged)
            for one in run:
                self.files.remove(one.path)
            self.files.sync(first.node)
            gone += len(run) - 1
        return gone

    def recover_parts(self, parts: Collection[int]) -> None:
        """Clear what a collector left that had these parts before. Nobody else writes them now.
        Raises SegmentDamaged, StateError."""
        mine = [entry for entry in self.logs() if part_of(entry.node) in parts]
        sizes: dict[str, int] = {}
        named = set()
        for entry in mine:
            sizes[entry.node] = max(sizes.get(entry.node, 0), entry.head.size)
            for segment in self.manifest.segments(entry.log_id):
                self.files.check_size(segment)
                named.add(segment.path)
        left = []
        for path, node, first_seq, _ in self.files.found(frozenset(sizes), besides=named):
            if first_seq > sizes[node]:
                raise StateError(
                    f"{self.directory / path}: begins beyond the {sizes[node]} records that the "
                    "manifest knows of: an older database was put back? Move the file away to go "
                    "on without it"
                )
            left.append((path, node))
        self.files.remove_all(left)

    def close(self) -> None:
        """Close everything and let go of the lock. Idempotent."""
        super().close()
        self._root.close()

    def _write(self, entry: LogEntry, page: Page) -> Segment | CursorMoved:
        """Put a page's file in place; or that it is another's now to do so."""
        span, head = (page.before.size, page.after.size - 1), page.after.hash.hex()
        try:
            return self.files.write(entry.node, entry.log_id, *span, head, page.frames)
        except FileNotFoundError:
            # Cleared, half written, by who took the part over while this one stood still?
            try:
                with self.manifest.transaction():
                    self.manifest.hold(part_of(entry.node))
            except CursorMoved as moved:
                return moved
            raise

    def _name(self, page: Page, segment: Segment | None) -> CursorMoved | None:
        fields = {
            "state": page.state,
            "signed_size": page.signed_size,
            "note": page.note,
            "contact_ns": page.contact_ns,
            "verdict": page.verdict,
            "why": "",
        }
        try:
            self.manifest.move(page.log_id, page.before, page.after, **fields)
        except CursorMoved as moved:
            return moved
        if segment is not None:
            self.manifest.add_segment(segment)
        return None

    def _recover(self) -> None:
        """Check that what is named is there; remove what a crash left unnamed. Raises
        SegmentDamaged, StateError."""
        segments = self.manifest.segments()
        for segment in segments:
            self.files.check_size(segment)
        named = frozenset(segment.path for segment in segments)
        cursors = {(entry.node, entry.head.size) for entry in self.logs()}
        floors = [(one.node, one.records) for one in self.kept.floor().logs.values()]
        ends = {(one.node, one.first_seq): one for one in segments}
        lasts = frozenset((one.node, one.last_seq) for one in segments)
        left = []
        for path, node, first_seq, last_seq in self.files.found(besides=named):
            unnamed_page = (node, first_seq) in cursors
            put_together = (node, first_seq) in ends and (node, last_seq) in lasts
            within = any(
                one.node == node and one.first_seq <= first_seq and last_seq <= one.last_seq
                for one in segments
            )
            removed = any(node == whose and last_seq < records for whose, records in floors)
            if not (unnamed_page or put_together or within or removed):
                raise StateError(
                    f"{self.directory / path}: the manifest does not name this segment, and no "
                    "crash explains it: an older collector.sqlite was put back? Move the file away "
                    "to go on without it"
                )
            left.append((path, node))
        self.files.remove_all(left)


def _before(data: bytes, sequence: int) -> int:
    """Where the first frame of that sequence or a later one begins."""
    offset = 0
    while offset < len(data):
        if int.from_bytes(data[offset + 8 : offset + 16], "little") >= sequence:
            break
        offset += int.from_bytes(data[offset : offset + 4], "little")
    return offset


def _run(segments: Sequence[Segment]) -> list[Segment]:
    """The first run of neighbours of a size class or smaller that is long enough to be put
    together, the smallest class first."""
    small = [one for one in segments if one.bytes * MERGE_COUNT <= MERGED_BYTES_MAX]
    for size_class in sorted({_size_class(one) for one in small}):
        run: list[Segment] = []
        for one in small:
            if _size_class(one) > size_class or (run and one.first_seq != run[-1].last_seq + 1):
                run = []
            if _size_class(one) <= size_class:
                run.append(one)
            if len(run) == MERGE_COUNT:
                return run
    return []


def _size_class(segment: Segment) -> int:
    """Sizes of one class differ by less than the merge count: a merged file is of the next."""
    return (segment.bytes.bit_length() - 1) // (MERGE_COUNT.bit_length() - 1)
