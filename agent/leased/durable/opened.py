# SPDX-License-Identifier: Apache-2.0
"""An opened log: what the rest of the agent is handed when the log holds.

Rule: exactly one sealer is made of it, and only records that were verified at opening are replayed.

Does not open (`log`) and does not write (`journal`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from leased.chain.canonical import Unknown, decode
from leased.chain.epochs import Ratchet
from leased.chain.head import Head
from leased.chain.keys import change_of, changes_max
from leased.chain.record import Record, hash_prefix, parse_frame
from leased.chain.sealer import Sealer
from leased.chain.segment import LogIdentity, geometry
from leased.chain.signing import Signer
from leased.chain.tree import Frontier
from leased.durable.binding import Binding
from leased.durable.files import Disk, write_whole
from leased.durable.filesystem import BEST_EFFORT, STRICT, Filesystem
from leased.durable.frames import Frames
from leased.durable.journal import FileJournal
from leased.durable.keyfile import adopt_key, stage_key
from leased.durable.pages import PageReader
from leased.durable.retention import Needs, Removal, plan_removal, remove
from leased.durable.scan import Scan
from leased.durable.sealkey import replace_seal_key
from leased.durable.writer import Writer
from leased.ports import Entropy
from leased.terms.event import (
    Event,
    HeadCountersigned,
    KeyChange,
    KeyRotated,
    LeaseEvent,
    NodeStarted,
)
from leased.terms.identity import BootId
from leased.terms.moment import Moment

CHECKPOINT: Final = "checkpoint"
COUNTERSIGNED_MAX: Final = 256
"""So many of the newest countersignatures are remembered: of a few collectors, 64 trees each."""


class RecoveredTail(msgspec.Struct, frozen=True):
    """What boot repaired: the fields of `event.Recovered`, and the grants among the records
    rolled forward."""

    kept_records: int
    torn_bytes: int
    torn_hash: bytes
    granted: tuple[int, ...]


class OpenedLog:
    """A log that holds, locked and open for one writer."""

    def __init__(
        self,
        disk: Disk,
        identity: LogIdentity,
        journal: FileJournal,
        writer: Writer,
        scan: Scan,
        frontier: Frontier,
        *,
        signer: Signer,
        ratchet: Ratchet | None,
        entropy: Entropy,
        recovered: RecoveredTail | None,
        filesystem: Filesystem,
        key_changes: Sequence[tuple[int, KeyChange]] = (),
        binding: Binding | None = None,
    ) -> None:
        self._disk = disk
        self.directory = disk.directory
        self._writer = writer
        self._entropy = entropy
        self._places = scan.places
        self.identity = identity
        self.journal = journal
        self.log_id = identity.log_id
        self.origin = identity.origin
        self.signer = signer
        self.ratchet = ratchet
        self.recovered = recovered
        self.binding = binding
        self.filesystem = filesystem.name
        self.durability = BEST_EFFORT if filesystem.why else STRICT
        self.head = Head(writer.slot.next_seq, writer.slot.head)
        self.frontier = frontier
        self.batch = writer.slot.generation + 1
        self.crc_damaged = scan.crc_damaged
        self.acknowledged: dict[int, int] = {}
        """The largest tree that each key has countersigned, as far as `history` was read, and what
        was noted since."""
        self.countersigned: deque[HeadCountersigned] = deque(maxlen=COUNTERSIGNED_MAX)
        """The newest of these records, for proofs."""
        self._key_changes = list(key_changes)
        self._changes_max = changes_max(geometry(identity.segment_bytes).frame_bytes_max)
        self._needs = Needs()
        self._noted_to = 0

    def sealer(self) -> Sealer:
        """The one sealer of this log, at its head. The journal asks it for the tree when a
        segment ends."""
        slot = self._writer.slot
        sealer = Sealer(
            self.log_id,
            self.head,
            self.frontier,
            self.batch,
            entropy=self._entropy,
            signer=self.signer,
            origin=self.origin,
            ratchet=self.ratchet,
            segment_no=slot.segment_no,
            end_offset=slot.end_offset,
            segment_bytes=self.identity.segment_bytes,
        )
        self._writer.frontier_at = sealer.frontier_at
        return sealer

    def history(self) -> Iterator[tuple[int, Event, Moment]]:
        """What a table is rebuilt from, in order: every event of no lease (checkpoints and
        segment ends left out), and every event of the leases that have no Reclaimed or Unfenced."""
        boot_id = BootId(bytes(16))
        for sequence, event, record in read_places(self._disk, self._places, self.log_id):
            if isinstance(event, NodeStarted):
                boot_id = event.boot_id
            if sequence >= self._noted_to:
                self.note([event], [sequence])
            yield sequence, event, Moment(boot_id, record.boot_ns, record.wall_ns)

    def last_moment(self, boot_id: BootId) -> Moment | None:
        """When the last record was sealed, in the boot `boot_id` (that of the last NodeStarted);
        None in an empty log."""
        if not self.head.size:
            return None
        frame = b"".join(self.journal.frames(self.head.size - 1))
        record = parse_frame(frame, 0, hash_prefix(self.log_id))
        return Moment(boot_id, record.boot_ns, record.wall_ns)

    def forget_epoch(self) -> None:
        """The key of the epoch that was sealed last is gone from the disk when this returns. Blocks
        as long as the disk does. Raises OSError."""
        assert self.ratchet is not None
        replace_seal_key(self._disk, self.log_id, self.ratchet.key)

    def note(self, events: Sequence[Event], sequences: Sequence[int]) -> None:
        """These were sealed, and tell what has to be kept: all that a replay would be shown, in
        order."""
        note = self._needs.note
        for event, sequence in zip(events, sequences, strict=True):
            note(sequence, event)
            if isinstance(event, LeaseEvent):
                continue
            if isinstance(event, HeadCountersigned):
                held = self.acknowledged.get(event.key_id, 0)
                self.acknowledged[event.key_id] = max(held, event.size)
                self.countersigned.append(event)
            elif isinstance(event, KeyRotated) and sequence >= self.head.size:
                self._key_changes.append((sequence, change_of(event)))
        self._noted_to = sequences[-1] + 1

    def needed_from(self, *, periods: bool = True) -> int:
        """The oldest record that a replay of what was noted cannot do without, or that says which
        epoch is open. If there is none, all of it may go once what each start says anew has been
        said; without `periods`, that and what budgets rest on."""
        if self._noted_to < self.head.size:
            for _ in self.history():
                continue
            self._noted_to = max(self._noted_to, self.head.size)
        needed = self._needs.oldest(self._noted_to, periods=periods)
        # From the seal before it (or record 0) on it is known when the open epoch ends.
        opened = self.ratchet.open if self.ratchet is not None else None
        return needed if opened is None else min(needed, opened.first_seq)

    def removal(
        self,
        *,
        acked_size: int,
        older_than_wall_ns: int,
        pressed: bool,
        keep_from: int | None = None,
    ) -> Removal | None:
        """What may be pruned now. None: nothing. With `keep_from` (of `needed_from`) it may be
        asked in a thread of its own."""
        return plan_removal(
            self._disk,
            self._writer.slot.min_seq,
            acked_size=acked_size,
            keep_from=self.needed_from() if keep_from is None else keep_from,
            older_than_wall_ns=older_than_wall_ns,
            pressed=pressed,
            key_changes=tuple(self._key_changes),
            changes_max=self._changes_max,
        )

    @property
    def kept_from(self) -> int | None:
        """The KeyRotated from which on nothing may ever be pruned, for no Pruned can say so many
        anew. None: there is none yet."""
        beyond = self._key_changes[self._changes_max :]
        return beyond[0][0] if beyond else None

    def acknowledge(self, size: int) -> None:
        """From the next batch on the anchor says that so many records are acknowledged."""
        self._writer.acked_size = size

    def stage(self, removal: Removal) -> None:
        """From the batch on that holds the next Pruned record, and not before, the anchor says that
        the log begins with `removal.min_seq`."""
        self._writer.next_min_seq = removal.min_seq

    def remove(self, removal: Removal) -> None:
        """Unlink what was pruned, once the batch that says so is anchored. Raises OSError."""
        assert self._writer.slot.min_seq == removal.min_seq, "anchored first"
        remove(self._disk, removal.names)

    def bind(self, moment: Moment) -> bool:
        """Once nothing is sealed any more: from here on no copy that was made before is opened
        again. False: not now, or no counter. Raises OSError, StateError."""
        return self.binding is not None and self.binding.advance(self._writer, moment)

    def stage_count(self) -> int:
        """From the next batch on the anchor says that the counter has one more, and this is it. It
        is to have it (`binding.complete`) once both slots say so."""
        self._writer.tpm_counter = self._writer.slot.tpm_counter + 1
        return self._writer.tpm_counter

    def publish(self, note: str) -> None:
        """Put the node's signed note of its head beside the log. Raises OSError."""
        write_whole(self._disk, CHECKPOINT, note.encode())

    def stage_key(self, signer: Signer) -> None:
        """The key that is to follow is on disk when this returns. Raises OSError."""
        stage_key(self._disk, signer)

    def adopt_key(self) -> None:
        """The staged key is the key. Raises OSError."""
        adopt_key(self._disk)

    def pages(self) -> PageReader:
        """A reader of what is anchored, beside the writer."""
        return PageReader(self._disk, self.identity)

    def close(self) -> None:
        """Close journal, files and lock. Idempotent."""
        self.journal.close()


def read_places(
    disk: Disk, places: Sequence[tuple[int, str, int]], log_id: bytes
) -> Iterator[tuple[int, Event, Record]]:
    """Yield the events at `places`; records of kinds this release does not know are left out
    (they were counted)."""
    prefix, frames = hash_prefix(log_id), Frames(disk, "")
    for sequence, name, offset in places:
        if name != frames.name:
            frames = Frames(disk, name)
        record = parse_frame(frames.at(offset), 0, prefix, file=name, base=offset)
        event = decode(
            record.kind, record.schema, record.body, sequence=sequence, offset=offset, file=name
        )
        if not isinstance(event, Unknown):
            yield sequence, event, record
