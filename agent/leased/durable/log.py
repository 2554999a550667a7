# SPDX-License-Identifier: Apache-2.0
"""Opening a log: lock, checks, the recovery rule carried out, and what the rest of the agent is handed.

Rule: nothing is served from a log that does not hold. Every refusal names the file, where in it, and what to do; a refusal
changes nothing on disk. What recovery repairs lies beyond the anchor, and is told (`OpenedLog.recovered`).

Does not append events of its own: the service seals NodeStarted first and then Recovered, from what it is handed here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.canonical import Unknown, decode
from leased.chain.head import Head
from leased.chain.record import Record, hash_prefix, parse_frame
from leased.chain.recovery import SEGMENT_END, Image, Tail, choose_slot, read_tail
from leased.chain.sealer import Sealer
from leased.chain.segment import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    LogIdentity,
    geometry,
    machine_hash,
    parse_header,
    parse_log_id,
)
from leased.chain.signing import Signer
from leased.chain.tree import Frontier
from leased.chain.verdict import CORRUPT_HEAD, CORRUPT_SEGMENT
from leased.durable.anchor import ANCHOR, read_slots
from leased.durable.files import DirectoryDisk, Disk, write_whole
from leased.durable.filesystem import BEST_EFFORT, STRICT, Filesystem
from leased.durable.genesis import LOG_ID, create_log
from leased.durable.journal import Committer, FileJournal
from leased.durable.keyfile import KEY_FILE, load_key
from leased.durable.scan import Scan, scan_log, segment_names
from leased.durable.spares import Spares
from leased.durable.writer import Writer
from leased.ports import AnchorSlot, Entropy
from leased.terms.errors import ChainError, StateError
from leased.terms.event import Event, KeyRotated, NodeStarted
from leased.terms.identity import BootId
from leased.terms.moment import Moment

QUARANTINE: Final = "quarantine"
_ADVICE: Final = (
    "; nothing was changed. Keep a copy of the directory, then restore it from a backup or recover from the collector"
)


class RecoveredTail(msgspec.Struct, frozen=True):
    """What boot repaired: the fields of `event.Recovered`, and the grants among the records rolled forward."""

    kept_records: int
    torn_bytes: int
    torn_hash: bytes
    granted: tuple[int, ...]


class OpenedLog:
    """A log that holds, locked and open for one writer."""

    def __init__(
        self, disk: Disk, identity: LogIdentity, journal: FileJournal, writer: Writer, scan: Scan, tail: Tail,
        *, signer: Signer, entropy: Entropy, recovered: RecoveredTail | None, filesystem: Filesystem,
        places: list[tuple[int, str, int]],
    ) -> None:  # fmt: skip
        self._disk = disk
        self._writer = writer
        self._entropy = entropy
        self._places = places
        self.identity = identity
        self.journal = journal
        self.log_id = identity.log_id
        self.origin = identity.origin
        self.signer = signer
        self.recovered = recovered
        self.filesystem = filesystem.name
        self.durability = BEST_EFFORT if filesystem.why else STRICT
        self.head = Head(writer.slot.next_seq, writer.slot.head)
        self.frontier: Frontier = tail.frontier
        self.batch = writer.slot.generation + 1
        self.crc_damaged = scan.crc_damaged
        self.unknown_records = scan.unknown
        self.clock_breaks = scan.clock_breaks

    def sealer(self) -> Sealer:
        """The one sealer of this log, at its head. The journal asks it for the tree when a segment ends."""
        slot = self._writer.slot
        sealer = Sealer(
            self.log_id, self.head, self.frontier, self.batch,
            entropy=self._entropy, signer=self.signer, origin=self.origin,
            segment_no=slot.segment_no, end_offset=slot.end_offset, segment_bytes=self.identity.segment_bytes,
        )  # fmt: skip
        self._writer.frontier_at = sealer.frontier_at
        return sealer

    def history(self) -> Iterator[tuple[int, Event, Moment]]:
        """What a table is rebuilt from, in order: every event of no lease (checkpoints and segment ends left out), and
        every event of the leases that have no Reclaimed or Unfenced."""
        boot_id = BootId(bytes(16))
        for sequence, event, record in read_places(self._disk, self._places, self.log_id):
            if isinstance(event, NodeStarted):
                boot_id = event.boot_id
            yield sequence, event, Moment(boot_id, record.boot_ns, record.wall_ns)

    def close(self) -> None:
        """Close journal, files and lock. Idempotent."""
        self.journal.close()


def open_log(
    directory: Path,
    *,
    moment: Moment,
    entropy: Entropy,
    machine_id: bytes,
    origin: str,
    best_effort: bool = False,
    segment_bytes: int = SEGMENT_BYTES,
    background: bool = True,
    disk: Disk | None = None,
    committer: Callable[[], Committer] | None = None,
) -> OpenedLog:
    """Open the log in `directory` for writing; make it if there is none. Raises StateError or ChainError.

    `origin` (a prefix such as "lease-log.fleet/node") and `segment_bytes` count only when a log is made. `background` false
    prepares segments in line; `disk` and `committer` are for tests.
    """
    try:
        if disk is None:
            directory.mkdir(mode=0o700, exist_ok=True)
            disk = DirectoryDisk(directory)
        try:
            opening = _Opening(disk, moment=moment, entropy=entropy, machine_id=machine_id)
            return opening.open(
                origin, best_effort=best_effort, segment_bytes=segment_bytes, background=background, committer=committer
            )
        except BaseException:
            disk.close()
            raise
    except OSError as error:
        raise StateError(explain(error, directory)) from error


def explain(error: OSError, directory: Path) -> str:
    """Say what an error of the state directory means and what to do about it."""
    what = f"{directory}: {error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{what}; free some space (a new log needs two segments) and start again"
        case errno.EROFS:
            return f"{what}; the file system is mounted read-only: check the disk and the kernel log, then remount it"
        case errno.EACCES | errno.EPERM:
            return f"{what}; the agent must own the directory and be allowed to write in it"
        case errno.ENOENT:
            return f"{what}; make the parent directory (StateDirectory= of the unit does)"
        case errno.EIO:
            return f"{what}; the disk failed: check the kernel log, and copy the directory before anything else"
    return what


def read_places(
    disk: Disk, places: list[tuple[int, str, int]], log_id: bytes
) -> Iterator[tuple[int, Event, Record]]:
    """Yield the events at `places`; records of kinds this release does not know are left out (they were counted)."""
    prefix, mapped, data = hash_prefix(log_id), "", b""
    for sequence, name, offset in places:
        if name != mapped:
            mapped, data = name, disk.map(name)
        length = int.from_bytes(data[offset : offset + 4], "little")
        record = parse_frame(data[offset : offset + length], 0, prefix, file=name, base=offset)
        event = decode(record.kind, record.schema, record.body, sequence=sequence, offset=offset, file=name)
        if not isinstance(event, Unknown):
            yield sequence, event, record


class _Opening:
    """The steps of `open_log`, in order."""

    def __init__(self, disk: Disk, *, moment: Moment, entropy: Entropy, machine_id: bytes) -> None:
        self._disk = disk
        self._moment = moment
        self._entropy = entropy
        self._machine_id = machine_id

    def open(
        self, origin: str, *, best_effort: bool, segment_bytes: int, background: bool,
        committer: Callable[[], Committer] | None,
    ) -> OpenedLog:  # fmt: skip
        """Lock, check, recover, hand over."""
        disk = self._disk
        if not disk.lock():
            raise StateError(f"{disk.directory}: BUSY: another agent has this log open; stop it first")
        filesystem = disk.filesystem()
        if filesystem.why and not best_effort:
            raise StateError(
                f"{disk.directory}: {filesystem.why}; move the state directory, or set durability = \"best-effort\" to "
                "accept that a power cut may lose acknowledged records"
            )
        identity = self._identity(origin, segment_bytes, best_effort=bool(filesystem.why))
        signer = load_key(disk)
        slot, scan, tail, active = _examine(disk, identity)
        _check_key(disk, identity, signer, scan)
        for name in disk.names():
            if name.endswith(".new"):
                disk.unlink(name)
        spares = Spares(disk, identity.segment_bytes)
        spares.adopt()
        writer, recovered = self._recover(identity, slot, tail, active, spares)
        places = scan.places
        if tail.kept_records:
            # What was rolled forward is read again as part of the log: the next opening would do no less.
            _, scan, tail, _ = _examine(disk, identity)
            places = scan.places
        if not background:
            spares.fill()
        made = (committer or _native_committer)()
        journal = FileJournal(disk, writer, made)
        opened = OpenedLog(
            disk, identity, journal, writer, scan, tail, signer=signer, entropy=self._entropy, recovered=recovered,
            filesystem=filesystem, places=places,
        )  # fmt: skip
        if background:
            spares.start()
        return opened

    def _identity(self, origin: str, segment_bytes: int, *, best_effort: bool) -> LogIdentity:
        """The log's identity, made if there is no log. Raises ChainError, StateError."""
        disk = self._disk
        if LOG_ID not in disk.names():
            return create_log(
                disk, moment=self._moment, entropy=self._entropy, machine_id=self._machine_id, origin=origin,
                segment_bytes=segment_bytes, best_effort=best_effort,
            )  # fmt: skip
        identity = parse_log_id(disk.read(LOG_ID), str(disk.directory / LOG_ID))
        if identity.machine_hash != machine_hash(self._machine_id, identity.log_id):
            raise StateError(
                f"{disk.directory}: this log was begun on another machine; a log stays with its machine: move the "
                "directory away to begin a new one here"
            )
        return identity

    def _recover(
        self, identity: LogIdentity, slot: AnchorSlot, tail: Tail, active: list[Image], spares: Spares
    ) -> tuple[Writer, RecoveredTail | None]:
        """Carry out what `tail` says: make whole batches durable, cut the torn tail, write the slots, end a switch."""
        torn_hash = bytes(32)
        images = {slot.segment_no + index: image for index, image in enumerate(active)}
        kept_to = {step.segment_no: step.end_offset for step in tail.steps}
        for segment_no, end in kept_to.items():
            begin = slot.end_offset if segment_no == slot.segment_no else HEADER_BYTES
            # Written again, not only synced: after a failed fsync the page cache may call dirty pages clean.
            _overwrite(self._disk, images[segment_no].name, images[segment_no].data[begin:end], begin)
        if tail.torn is not None:
            image = images[tail.segment_no]
            bytes_torn = image.data[tail.torn.offset : tail.torn.end]
            torn_hash = sha256(bytes_torn).digest()
            self._quarantine(bytes_torn, tail.head.size)
            _overwrite(self._disk, image.name, bytes(len(bytes_torn)), tail.torn.offset)
        writer = Writer(
            self._disk, slot=slot, segment=images[tail.segment_no].name, geometry=geometry(identity.segment_bytes),
            spares=spares,
        )  # fmt: skip
        for step in tail.steps:
            writer.slot = msgspec.structs.replace(
                writer.slot, generation=step.generation, next_seq=step.head.size, segment_no=step.segment_no,
                end_offset=step.end_offset, head=step.head.hash, boottime_ns=self._moment.boot_ns,
                boot_id=self._moment.boot_id,
            )  # fmt: skip
            writer.anchor.write(writer.slot)
        if tail.unfinished_switch:
            writer.switch(self._moment)
        if not tail.kept_records and tail.torn is None:
            return writer, None
        torn_bytes = tail.torn.end - tail.torn.offset if tail.torn else 0
        return writer, RecoveredTail(tail.kept_records, torn_bytes, torn_hash, tail.granted)

    def _quarantine(self, torn: bytes, sequence: int) -> None:
        """Keep torn bytes for inspection, if there is room: their hash is sealed in any case."""
        disk = self._disk
        name = f"{QUARANTINE}/{max(0, self._moment.wall_ns) // 10**9}-{sequence}.tail"
        try:
            disk.make_directory(QUARANTINE)
            write_whole(disk, name, torn)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
                raise


def _examine(disk: Disk, identity: LogIdentity) -> tuple[AnchorSlot, Scan, Tail, list[Image]]:
    """Read and verify everything; say what lies beyond the anchor. Changes nothing. Raises ChainError."""
    directory = disk.directory
    try:
        slot, both = choose_slot(read_slots(disk, direct=True), identity.log_id, str(directory / ANCHOR))
        scan, active = read_anchored(disk, identity, slot)
        ended = scan.last_kind == SEGMENT_END and slot.end_offset > HEADER_BYTES
        tail = read_tail(slot, both=both, frontier=scan.frontier, ended=ended, images=active)
    except ChainError as error:
        file = error.file if error.file.startswith("/") or not error.file else str(directory / error.file)
        raise ChainError(
            error.verdict, error.why + _ADVICE, sequence=error.sequence, offset=error.offset, file=file
        ) from error
    return slot, scan, tail, active


def read_anchored(disk: Disk, identity: LogIdentity, slot: AnchorSlot) -> tuple[Scan, list[Image]]:
    """Verify all that `slot` anchors; return it and the images of its segment and of those after. Raises ChainError."""
    names = segment_names(disk.names())
    index = next((at for at, name in enumerate(names) if _segment_no(disk, name) == slot.segment_no), None)
    if index is None:
        why = f"segment {slot.segment_no}, which the anchor names, is missing"
        raise ChainError(CORRUPT_SEGMENT, why, file=str(disk.directory), sequence=slot.next_seq)
    active = [Image(name, disk.read(name, direct=True)) for name in names[index:]]
    if len(active[0].data) != identity.segment_bytes or slot.end_offset > identity.segment_bytes:
        why = f"the segment has {len(active[0].data)} bytes and not {identity.segment_bytes}"
        raise ChainError(CORRUPT_SEGMENT, why, file=names[index], offset=len(active[0].data))
    scan = scan_log(
        disk, names[: index + 1], identity.log_id, last=active[0].data, last_end=slot.end_offset,
        first_seq_max=slot.min_seq,
    )  # fmt: skip
    if scan.head != Head(slot.next_seq, slot.head) or not scan.whole:
        why = f"the chain ends with {scan.head.text()} where the anchor has {slot.next_seq}:{slot.head.hex()}"
        raise ChainError(CORRUPT_HEAD, why, file=names[index], offset=slot.end_offset, sequence=slot.next_seq)
    return scan, active


def _segment_no(disk: Disk, name: str) -> int:
    """The number in a segment's header. Raises ChainError."""
    return parse_header(disk.map(name)[:HEADER_BYTES], name).segment_no


def _overwrite(disk: Disk, name: str, data: bytes, offset: int) -> None:
    """Write beyond the anchored end and make it durable."""
    handle = disk.open(name)
    try:
        disk.write(handle, data, offset)
        disk.sync(handle)
    finally:
        disk.close_handle(handle)


def _check_key(disk: Disk, identity: LogIdentity, signer: Signer, scan: Scan) -> None:
    """The key on disk must be the log's: the first one, or the one of the last rotation. Raises StateError."""
    key = identity.public_key
    for _, event, _ in read_places(disk, scan.rotations[-1:], identity.log_id):
        assert isinstance(event, KeyRotated)
        key = event.public_key
    if signer.public_key != key:
        path = disk.directory / KEY_FILE
        raise StateError(f"{path}: this is not the key of this log ({key.hex()}); restore the right one from a backup")


def _native_committer() -> Committer:
    """The C disk thread. Imported here, so that reading a log needs no compiled part. Raises StateError."""
    try:
        from leased.durable.committer import NativeCommitter
    except ImportError as error:
        raise StateError(f"the compiled part of leased is missing ({error}); reinstall the package") from error
    return NativeCommitter()
