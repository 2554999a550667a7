# SPDX-License-Identifier: Apache-2.0
"""Reading a log without writing it: for `leasectl verify`, bills and copies from elsewhere.

Rule: the same checks as at opening, and all that opening leaves out: every body decoded strictly,
every lease followed from its beginning to its end, every signature checked. Nothing is locked and
nothing is changed; while an agent has the log open, only what is anchored is read.

Does not repair (`log.open_log` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.bodies import check_bodies
from leased.chain.canonical import Unknown, decode
from leased.chain.epochs import EpochKey
from leased.chain.findings import Verified, Walk
from leased.chain.grammar import Grammar
from leased.chain.head import GENESIS, Head
from leased.chain.record import Record, hash_prefix, parse_frame
from leased.chain.recovery import SEGMENT_END, Image, Tail, choose_slot, read_tail
from leased.chain.segment import HEADER_BYTES, LogIdentity, parse_header, parse_log_id
from leased.chain.tree import EMPTY
from leased.chain.verdict import (
    BAD_SEAL,
    BAD_SIGNATURE,
    CORRUPT_HEAD,
    CORRUPT_ID,
    CORRUPT_SEGMENT,
    NEW_LOG,
)
from leased.chain.verifier import Verifier
from leased.durable.anchor import ANCHOR, read_slots
from leased.durable.carried import carried_changes
from leased.durable.countersigned import Countersignatures, Shown
from leased.durable.files import DirectoryDisk, Disk
from leased.durable.frames import read_frames
from leased.durable.genesis import LOG_ID
from leased.durable.retention import live_segments
from leased.durable.scan import frames_end, segment_names
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError, StateError
from leased.terms.event import EpochSealed, Event, NodeStarted
from leased.terms.identity import BootId
from leased.terms.moment import Moment


class Enrolled(msgspec.Struct, frozen=True):
    """What a reader knew of the log before: its id, the key it began with, the key of an epoch's
    seal, and the last epoch that can be open by now. None: not known."""

    log_id: bytes | None = None
    public_key: bytes | None = None
    seal_key: EpochKey | None = None
    latest_epoch: int | None = None


UNKNOWN: Final = Enrolled()


class LogFacts(msgspec.Struct, frozen=True):
    """What a verification found. `segments` are those up to the anchor; `live`: an agent has the
    log open. `unanchored_records` and `torn_bytes` lie beyond the anchor after a crash, and the
    next opening will keep or cut them."""

    identity: LogIdentity
    slot: AnchorSlot
    verified: Verified
    segments: tuple[str, ...]
    live: bool
    unanchored_records: int
    torn_bytes: int
    shown: Shown = Shown()
    """Only where it was asked for."""

    @property
    def head(self) -> Head:
        """The anchored head."""
        return self.verified.head


class ReadLog:
    """A verified log, open for reading."""

    def __init__(self, disk: Disk, facts: LogFacts) -> None:
        self._disk = disk
        self.facts = facts
        self.head = facts.head
        self.log_id = facts.identity.log_id
        self.origin = facts.identity.origin

    def frames(self, first_seq: int = 0) -> Iterator[bytes]:
        """Chunks of whole frames from `first_seq` on (0: from the first that is kept)."""
        return read_frames(self._disk, first_seq or self.facts.slot.min_seq, self.facts.slot)

    def records(self, first_seq: int = 0) -> Iterator[Record]:
        """Every record from `first_seq` on (0: from the first that is kept)."""
        prefix = hash_prefix(self.log_id)
        for chunk in self.frames(first_seq):
            offset = 0
            while offset < len(chunk):
                record = parse_frame(chunk, offset, prefix)
                offset += record.frame_bytes
                yield record

    def events(self) -> Iterator[tuple[int, Event | Unknown, Moment]]:
        """Every event from the first record on, with when it was sealed; the boot id is that of
        the last NodeStarted."""
        boot_id, boot_ns = BootId(bytes(16)), 0
        for record in self.records(self.facts.slot.min_seq):
            event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
            if isinstance(event, NodeStarted):
                boot_id = event.boot_id
            if not isinstance(event, EpochSealed):
                # A seal may have been written by the boot that the next NodeStarted names.
                boot_ns = record.boot_ns
            yield record.sequence, event, Moment(boot_id, boot_ns, record.wall_ns)

    def close(self) -> None:
        """Close the directory. Idempotent."""
        self._disk.close()


def read_log(
    directory: Path,
    *,
    bodies: bool = True,
    signatures: bool = True,
    leases: bool = False,
    countersigned: bool = False,
    enrolled: Enrolled = UNKNOWN,
    disk: Disk | None = None,
) -> ReadLog:
    """Verify the log in `directory` up to its anchor and open it for reading. `leases` follows each
    from its beginning to its end; `countersigned` compares what collectors have cosigned, and asks
    for the proof of what was pruned. Raises StateError or ChainError."""
    try:
        disk = disk or DirectoryDisk(directory)
        try:
            acks = Countersignatures() if countersigned else None
            checks = {"bodies": bodies, "signatures": signatures, "leases": leases}
            facts = _verify(disk, **checks, acks=acks, enrolled=enrolled)
            if acks is not None:
                facts = _weigh(disk, facts, acks)
            return ReadLog(disk, facts)
        except BaseException:
            disk.close()
            raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and directory.is_dir():
            why = f"{error.filename} was removed meanwhile: ask again"
            raise StateError(f"{directory}: {why}") from error
        within = "" if str(error.filename) in ("None", str(directory)) else f"{error.filename}: "
        raise StateError(
            f"{directory}: {within}{error.strerror}; give the directory of a log that you may read"
            " (a host's own is root's)"
        ) from error


def _weigh(disk: Disk, facts: LogFacts, acks: Countersignatures) -> LogFacts:
    """The same facts, with what the log shows of its collectors. Raises ChainError."""
    name = facts.segments[0]
    begins = parse_header(disk.read_part(name, 0, HEADER_BYTES), name).head
    shown = acks.compare(disk, facts.identity, facts.slot, begins.size, begins.hash)
    return msgspec.structs.replace(facts, shown=shown)


def _verify(
    disk: Disk,
    *,
    bodies: bool,
    signatures: bool,
    leases: bool,
    acks: Countersignatures | None,
    enrolled: Enrolled,
) -> LogFacts:
    """Everything `read_log` checks."""
    names = disk.names()
    identity = _identity(disk, names, enrolled)
    live = disk.is_locked()
    slot, both = _slot(disk, identity, live=live)
    # Once more: a segment has its name before the anchor names it, which has been read since.
    segments = live_segments(sorted({*names, *disk.names()}), slot.min_seq)
    verify_from = partial(
        Verifier,
        identity.log_id,
        origin=identity.origin,
        public_key=identity.public_key if signatures else None,
        epoch_ns=identity.epoch_ns,
        seal_key=enrolled.seal_key,
        latest_epoch=enrolled.latest_epoch,
        bodies=bodies,
    )
    verifier, grammar = verify_from(), Grammar()
    head, frontier, index, number, last = GENESIS, EMPTY, -1, 0, False
    for index, name in enumerate(segments):
        data = disk.read(name)
        header = parse_header(data, name)
        if index == 0 and 0 < header.head.size <= slot.min_seq and header.segment_no:
            # Pruned before here: the header is what the log vouches for; a collector compares it
            # with what it holds.
            head, frontier, number = header.head, header.frontier, header.segment_no
            before = partial(carried_changes, disk, segments, slot, identity, head.size)
            verifier = verify_from(head, frontier, key_changes=before() if signatures else ())
            grammar = Grammar(from_genesis=False)
        where = (header.log_id, header.segment_no, header.head, header.frontier)
        if where != (identity.log_id, number + index, head, frontier):
            why = f"the segment does not continue the log, which stands at {head.text()}"
            raise ChainError(CORRUPT_SEGMENT, why, file=name, offset=0, sequence=head.size)
        last = header.segment_no == slot.segment_no
        verifier.file = name
        stop = slot.end_offset if last else frames_end(data)
        walk = verifier.feed(data, start=HEADER_BYTES, stop=stop)
        _judge(walk, name, bodies=bodies, grammar=grammar if leases else None, acks=acks)
        verified = verifier.verified()
        head, frontier = verified.head, verified.frontier
        if last:
            break
        _check_closed(verified, name)
    verified = verifier.verified()
    _check_end(verified, slot, segments[index] if segments else ANCHOR, reached=last)
    tail = None if live else _tail(disk, slot, segments[index:], data, verified, both=both)
    return LogFacts(
        identity,
        slot,
        verified,
        tuple(segments[: index + 1]),
        live,
        tail.kept_records if tail else 0,
        tail.torn.end - tail.torn.offset if tail and tail.torn else 0,
    )


def _identity(disk: Disk, names: list[str], enrolled: Enrolled) -> LogIdentity:
    """Which log it is, and that it is the one known. Raises StateError, ChainError."""
    file = str(disk.directory / LOG_ID)
    if LOG_ID not in names:
        if not segment_names(names) and ANCHOR not in names:
            raise StateError(
                f"{disk.directory}: there is no log here; give the directory that holds log.id"
            )
        raise ChainError(CORRUPT_ID, "log.id is missing", file=file)
    identity = parse_log_id(disk.read(LOG_ID), file)
    _check_enrolled(identity, enrolled, file)
    return identity


def _judge(
    walk: Walk,
    name: str,
    *,
    bodies: bool,
    grammar: Grammar | None,
    acks: Countersignatures | None,
) -> None:
    """What was asked for beyond the chain itself. Raises ChainError."""
    if bodies:
        check_bodies(walk, file=name)
    if grammar is not None:
        grammar.follow(walk, file=name)
    if acks is not None:
        acks.follow(walk)


def _check_enrolled(identity: LogIdentity, enrolled: Enrolled, file: str) -> None:
    """What the log says of itself must be what the reader was told; above all a log of seals does
    not become one without by saying so. Raises ChainError."""
    if enrolled.log_id is not None and identity.log_id != enrolled.log_id:
        why = f"this is log {identity.log_id.hex()} and not {enrolled.log_id.hex()}, the one known"
        raise ChainError(NEW_LOG, why, file=file)
    if enrolled.public_key is not None and identity.public_key != enrolled.public_key:
        raise ChainError(BAD_SIGNATURE, "the log names another first key than is known", file=file)
    if enrolled.seal_key is not None and not identity.epoch_ns:
        why = "the log says that its epochs are not sealed, and a key of its seals is known"
        raise ChainError(BAD_SEAL, why, file=file)


def _check_closed(verified: Verified, name: str) -> None:
    """A segment that another follows ends with its closing record. Raises ChainError."""
    if verified.last_kind != SEGMENT_END or not verified.whole:
        why = "the segment does not end with its closing record"
        raise ChainError(CORRUPT_SEGMENT, why, file=name, sequence=verified.head.size)


def _check_end(verified: Verified, slot: AnchorSlot, file: str, *, reached: bool) -> None:
    """The chain ends where the anchor says, in the segment that it names (`reached`), though that
    may have no record yet. Raises ChainError."""
    if verified.head != Head(slot.next_seq, slot.head) or not verified.whole:
        anchored = Head(slot.next_seq, slot.head).text()
        why = f"the chain ends with {verified.head.text()} where the anchor has {anchored}"
        raise ChainError(CORRUPT_HEAD, why, file=file, sequence=verified.head.size)
    if not reached:
        why = f"segment {slot.segment_no}, which the anchor names, is missing"
        raise ChainError(CORRUPT_SEGMENT, why, file=file, sequence=slot.next_seq)


def _slot(disk: Disk, identity: LogIdentity, *, live: bool) -> tuple[AnchorSlot, bool]:
    """The slot that counts. While an agent writes, the two may be read apart, so only the newest
    is asked for."""
    slots = read_slots(disk, direct=False)
    if live:
        newest = max(
            (slot for slot in slots if slot), key=lambda slot: slot.generation, default=None
        )
        slots = (newest, None)
    return choose_slot(slots, identity.log_id, str(disk.directory / ANCHOR))


def _tail(
    disk: Disk,
    slot: AnchorSlot,
    names: list[str],
    data: bytes,
    verified: Verified,
    *,
    both: bool,
) -> Tail:
    """What lies beyond the anchor of a log that nobody has open. Raises ChainError (rule 8)."""
    images = [Image(names[0], data)]  # the first is taken as it was verified
    images += [Image(name, disk.read(name)) for name in names[1:]]
    ended = verified.last_kind == SEGMENT_END and slot.end_offset > HEADER_BYTES
    return read_tail(slot, both=both, frontier=verified.frontier, ended=ended, images=images)
