# SPDX-License-Identifier: Apache-2.0
"""The recovery rule carried out: read everything, judge it, and repair what lies beyond the anchor.

Rule: `examine` changes nothing, and what it refuses stays as it is. `repair` writes only beyond the
anchored end, and every step of it may be cut short by another crash.

Does not decide (`chain.recovery`) and does not lock (`log`).
"""

from __future__ import annotations

import errno
from hashlib import sha256
from typing import Final

import msgspec

from leased.chain.head import Head
from leased.chain.recovery import SEGMENT_END, Image, Tail, choose_slot, read_tail
from leased.chain.segment import HEADER_BYTES, LogIdentity, geometry, parse_header
from leased.chain.verdict import CORRUPT_HEAD, CORRUPT_SEGMENT
from leased.durable.anchor import ANCHOR, ragged_slots, read_slots
from leased.durable.files import Disk, write_whole
from leased.durable.opened import RecoveredTail
from leased.durable.retention import live_segments
from leased.durable.scan import Scan, scan_log
from leased.durable.spares import FILL_BYTES, Spares
from leased.durable.writer import Writer
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError
from leased.terms.moment import Moment

QUARANTINE: Final = "quarantine"
ADVICE: Final = (
    "; nothing was changed. Keep a copy of the directory, then restore it from a backup or recover "
    "from the collector"
)


class Examined(msgspec.Struct, frozen=True):
    """What lies on disk: the slot that counts, all that it anchors, verified, and what lies beyond.
    `images` are the slot's segment and those after; `ragged` are slots (0 or 1) that are not there
    twice."""

    slot: AnchorSlot
    ragged: frozenset[int]
    scan: Scan
    tail: Tail
    images: tuple[Image, ...]


def examine(disk: Disk, identity: LogIdentity) -> Examined:
    """Read and verify everything; say what lies beyond the anchor. Changes nothing. Raises
    ChainError."""
    directory = disk.directory
    try:
        slots, ragged = read_slots(disk, direct=True), ragged_slots(disk, direct=True)
        slot, both = choose_slot(slots, identity.log_id, str(directory / ANCHOR))
        scan, active = read_anchored(disk, identity, slot)
        ended = scan.last_kind == SEGMENT_END and slot.end_offset > HEADER_BYTES
        tail = read_tail(slot, both=both, frontier=scan.frontier, ended=ended, images=active)
    except ChainError as error:
        file = (
            error.file
            if error.file.startswith("/") or not error.file
            else str(directory / error.file)
        )
        raise ChainError(
            error.verdict,
            error.why + ADVICE,
            sequence=error.sequence,
            offset=error.offset,
            file=file,
        ) from error
    return Examined(slot, ragged, scan, tail, tuple(active))


def read_anchored(disk: Disk, identity: LogIdentity, slot: AnchorSlot) -> tuple[Scan, list[Image]]:
    """Verify all that `slot` anchors; return it and the images of its segment and of those
    after. Raises ChainError."""
    names = live_segments(disk.names(), slot.min_seq)
    index = next(
        (at for at, name in enumerate(names) if _segment_no(disk, name) == slot.segment_no), None
    )
    if index is None:
        why = f"segment {slot.segment_no}, which the anchor names, is missing"
        raise ChainError(CORRUPT_SEGMENT, why, file=str(disk.directory), sequence=slot.next_seq)
    active = [Image(name, disk.read(name, direct=True)) for name in names[index:]]
    if len(active[0].data) != identity.segment_bytes or slot.end_offset > identity.segment_bytes:
        why = f"the segment has {len(active[0].data)} bytes and not {identity.segment_bytes}"
        raise ChainError(CORRUPT_SEGMENT, why, file=names[index], offset=len(active[0].data))
    scan = scan_log(
        disk,
        names[: index + 1],
        identity.log_id,
        last=active[0].data,
        last_end=slot.end_offset,
        first_seq_max=slot.min_seq,
    )
    if scan.head != Head(slot.next_seq, slot.head) or not scan.whole:
        anchored = Head(slot.next_seq, slot.head).text()
        why = f"the chain ends with {scan.head.text()} where the anchor has {anchored}"
        raise ChainError(
            CORRUPT_HEAD, why, file=names[index], offset=slot.end_offset, sequence=slot.next_seq
        )
    return scan, active


def _segment_no(disk: Disk, name: str) -> int:
    """The number in a segment's header. Raises ChainError."""
    return parse_header(disk.read_part(name, 0, HEADER_BYTES), name).segment_no


def _overwrite(disk: Disk, name: str, data: bytes, offset: int) -> None:
    """Write beyond the anchored end and make it durable."""
    handle = disk.open(name)
    try:
        disk.write(handle, data, offset)
        disk.sync(handle)
    finally:
        disk.close_handle(handle)


def repair(
    disk: Disk, identity: LogIdentity, found: Examined, spares: Spares, moment: Moment
) -> tuple[Writer, RecoveredTail | None]:
    """Carry out what `tail` says: make whole batches durable, cut the torn tail, write the
    slots, end a switch."""
    slot, tail, torn_hash = found.slot, found.tail, bytes(32)
    images = {slot.segment_no + index: image for index, image in enumerate(found.images)}
    written = tail.torn.end if tail.torn is not None else tail.end_offset
    fill_holes(disk, images[tail.segment_no].name, written, identity.segment_bytes)
    kept_to = {step.segment_no: step.end_offset for step in tail.steps}
    for segment_no, end in kept_to.items():
        begin = slot.end_offset if segment_no == slot.segment_no else HEADER_BYTES
        # Written again, not only synced: after a failed fsync the page cache may call dirty
        # pages clean.
        _overwrite(disk, images[segment_no].name, images[segment_no].data[begin:end], begin)
    if tail.torn is not None:
        image = images[tail.segment_no]
        bytes_torn = image.data[tail.torn.offset : tail.torn.end]
        torn_hash = sha256(bytes_torn).digest()
        _quarantine(disk, bytes_torn, tail.head.size, moment)
        _overwrite(disk, image.name, bytes(len(bytes_torn)), tail.torn.offset)
    writer = Writer(
        disk,
        slot=slot,
        segment=images[tail.segment_no].name,
        geometry=geometry(identity.segment_bytes),
        spares=spares,
    )
    for step in tail.steps:
        writer.slot = msgspec.structs.replace(
            writer.slot,
            generation=step.generation,
            next_seq=step.head.size,
            segment_no=step.segment_no,
            end_offset=step.end_offset,
            head=step.head.hash,
            min_seq=step.min_seq,
            boottime_ns=moment.boot_ns,
            boot_id=moment.boot_id,
        )
        writer.anchor.write(writer.slot)
    writer.min_seq = writer.slot.min_seq
    ragged = found.ragged - {step.generation & 1 for step in tail.steps}
    while ragged:
        # The lost slot, or half of one, is written anew, so that the next fault is again a single
        # one: what is left there of earlier generations would be found when the other half tears.
        generation = writer.slot.generation + 1
        writer.slot = msgspec.structs.replace(writer.slot, generation=generation)
        writer.anchor.write(writer.slot)
        ragged -= {generation & 1}
    if tail.unfinished_switch:
        writer.switch(moment)
    if not tail.kept_records and tail.torn is None:
        return writer, None
    torn_bytes = tail.torn.end - tail.torn.offset if tail.torn else 0
    return writer, RecoveredTail(tail.kept_records, torn_bytes, torn_hash, tail.granted)


def fill_holes(disk: Disk, name: str, end: int, segment_bytes: int) -> None:
    """Give a segment that a restore made sparse its blocks again, from where nothing is
    written: the records that end leases must fit on a full disk. Raises OSError."""
    if disk.allocated(name) >= segment_bytes:
        return
    handle = disk.open(name)
    try:
        disk.reserve(handle, segment_bytes)
        for offset in range(end, segment_bytes, FILL_BYTES):
            disk.write(handle, bytes(min(FILL_BYTES, segment_bytes - offset)), offset)
        disk.sync(handle)
    except OSError as error:
        why = f"{error.strerror}: {name} has no blocks for all of it, as after a sparse restore"
        raise OSError(error.errno, why) from error
    finally:
        disk.close_handle(handle)


def _quarantine(disk: Disk, torn: bytes, sequence: int, moment: Moment) -> None:
    """Keep torn bytes for inspection, if there is room: their hash is sealed in any case."""
    name = f"{QUARANTINE}/{max(0, moment.wall_ns) // 10**9}-{sequence}.tail"
    try:
        disk.make_directory(QUARANTINE)
        write_whole(disk, name, torn)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
            raise
