# SPDX-License-Identifier: Apache-2.0
"""Reading segments: every record verified, and what a table has to be rebuilt from remembered by
its place.

Rule: a segment's header says where it begins in chain and tree, so segments are verified apart from
each other (half of them by a second process) and then joined; a join that does not fit is a segment
that was exchanged.

Does not decode events (`log.OpenedLog.history` does, for the few that are asked for).
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from leased.chain.canonical import LEASE_ID_OFFSET
from leased.chain.findings import Verified, Walk
from leased.chain.head import GENESIS, Head
from leased.chain.record import HEADER_BYTES as RECORD_HEADER_BYTES
from leased.chain.recovery import SEGMENT_END
from leased.chain.segment import HEADER_BYTES, SegmentHeader, parse_header, written_end
from leased.chain.tree import Frontier
from leased.chain.verdict import CORRUPT_SEGMENT
from leased.chain.verifier import Verifier
from leased.durable.files import DirectoryDisk, Disk
from leased.terms.errors import ChainError
from leased.terms.event import (
    KIND,
    LEASE_KINDS,
    TERMINAL_KINDS,
    Allocated,
    CheckpointSigned,
    EpochSealed,
    KeyRotated,
    NodeStarted,
)

PARALLEL_SEGMENTS_MIN: Final = 4
"""Below this many segments a second process costs more to start than it saves."""

_SEGMENT_NAME = re.compile(r"seg-[0-9a-f]{16}\.log\Z")
_ALLOCATED = KIND[Allocated]
_ROTATED = KIND[KeyRotated]
_SEALED = KIND[EpochSealed]
_EPOCHS_MOVE = frozenset({_SEALED, KIND[NodeStarted]})
_NOT_REPLAYED = frozenset({KIND[CheckpointSigned], SEGMENT_END, _SEALED})
_OTHER_KINDS = frozenset(KIND.values()) - frozenset(LEASE_KINDS) - _NOT_REPLAYED
_LEASE_AT = RECORD_HEADER_BYTES + LEASE_ID_OFFSET

Place = tuple[int, int]
"""Sequence and offset of a record in its segment."""


class SegmentScan(msgspec.Struct, frozen=True):
    """One verified segment. `others` are the places of records of no lease, `open` those of
    leases that did not end in it, `closed` the leases that ended in it but began before;
    `rotations` the places of key rotations, `epochs` those of what the open epoch follows from:
    the last seal, if one is here (`sealed`), and the starts after it."""

    name: str
    header: SegmentHeader
    verified: Verified
    others: list[Place]
    open: list[tuple[bytes, list[Place]]]
    closed: list[bytes]
    rotations: list[Place]
    epochs: list[Place]
    sealed: bool


class Scan(msgspec.Struct, frozen=True):
    """The verified log up to the anchor, joined. `places` are (sequence, segment name, offset),
    in order."""

    head: Head
    frontier: Frontier
    batch: int
    whole: bool
    last_kind: int
    places: list[tuple[int, str, int]]
    rotations: list[tuple[int, str, int]]
    epochs: list[tuple[int, str, int]]
    crc_damaged: tuple[int, ...]


def segment_names(names: Sequence[str]) -> list[str]:
    """Return those that are segments, in the order of the chain."""
    return [name for name in names if _SEGMENT_NAME.match(name)]


def frames_end(data: bytes) -> int:
    """Return where the frames of a closed segment end: all after it is zero, and frames are
    8-aligned; no further than the data itself."""
    return min((written_end(data, HEADER_BYTES) + 7) & -8, len(data))


def scan_segment(data: bytes, name: str, log_id: bytes, *, end: int | None = None) -> SegmentScan:
    """Verify one segment, from its header on, to `end` (None: to its last frame). Raises
    ChainError."""
    header = parse_header(data, name)
    if header.log_id != log_id:
        raise ChainError(CORRUPT_SEGMENT, "the segment is of another log", file=name, offset=0)
    verifier = Verifier(log_id, header.head, header.frontier, file=name)
    walk = verifier.feed(data, start=HEADER_BYTES, stop=frames_end(data) if end is None else end)
    return SegmentScan(name, header, verifier.verified(), *_index(walk))


def scan_log(
    disk: Disk,
    names: Sequence[str],
    log_id: bytes,
    *,
    last: bytes,
    last_end: int,
    first_seq_max: int,
) -> Scan:
    """Verify the segments `names`, of which the last has the content `last` up to `last_end`, and
    join them.

    The first may begin no later than record `first_seq_max` (what is before it was pruned). Raises
    ChainError.
    """
    scans = _scan_closed(disk, names[:-1], log_id)
    scans.append(scan_segment(last, names[-1], log_id, end=last_end))
    for scan in scans[:-1]:
        if scan.verified.last_kind != SEGMENT_END or not scan.verified.whole:
            why = "the segment does not end with its closing record"
            raise ChainError(CORRUPT_SEGMENT, why, file=scan.name, sequence=scan.verified.head.size)
    first = scans[0].header
    if first.head.size > first_seq_max or (first.segment_no == 0) != (first.head == GENESIS):
        why = f"the log begins with record {first.head.size}: an earlier segment is missing"
        raise ChainError(CORRUPT_SEGMENT, why, file=scans[0].name, sequence=first_seq_max)
    for before, after in itertools.pairwise(scans):
        _check_join(before, after)
    return _join(scans)


def _check_join(before: SegmentScan, after: SegmentScan) -> None:
    """The header of a segment must state exactly where the one before ended. Raises ChainError."""
    header, verified = after.header, before.verified
    if header.segment_no != before.header.segment_no + 1 or header.head.size > verified.head.size:
        numbers = f"segment {header.segment_no} follows segment {before.header.segment_no}"
        why = f"{numbers}: one between is missing"
        raise ChainError(CORRUPT_SEGMENT, why, file=after.name, sequence=verified.head.size)
    if header.head != verified.head or header.frontier != verified.frontier:
        why = f"the header does not continue {before.name} (head {verified.head.text()})"
        raise ChainError(
            CORRUPT_SEGMENT, why, file=after.name, offset=0, sequence=verified.head.size
        )


def _join(scans: Sequence[SegmentScan]) -> Scan:
    """Put the segments' findings together."""
    places: list[tuple[int, str, int]] = []
    rotations: list[tuple[int, str, int]] = []
    epochs: list[tuple[int, str, int]] = []
    open_leases: dict[bytes, list[tuple[int, str, int]]] = {}
    for scan in scans:
        name = scan.name
        places.extend([(sequence, name, offset) for sequence, offset in scan.others])
        rotations.extend([(sequence, name, offset) for sequence, offset in scan.rotations])
        if scan.sealed:
            epochs.clear()
        epochs.extend([(sequence, name, offset) for sequence, offset in scan.epochs])
        for lease in scan.closed:
            open_leases.pop(lease, None)
        for lease, found in scan.open:
            begun = open_leases.setdefault(lease, [])
            begun.extend([(sequence, name, offset) for sequence, offset in found])
    for still_open in open_leases.values():
        places.extend(still_open)
    places.sort()
    last = scans[-1].verified
    batch = max(scan.verified.batch for scan in scans)
    damaged = tuple(sequence for scan in scans for sequence in scan.verified.crc_damaged_at)
    return Scan(
        last.head,
        last.frontier,
        batch,
        last.whole,
        last.last_kind,
        places,
        rotations,
        epochs,
        damaged,
    )


def _index(
    walk: Walk,
) -> tuple[
    list[Place], list[tuple[bytes, list[Place]]], list[bytes], list[Place], list[Place], bool
]:
    """Sort the walked records: of no lease, of leases still open, ended leases that began
    before, key rotations, seals and starts."""
    data = walk.data
    others: list[Place] = []
    rotations: list[Place] = []
    epochs: list[Place] = []
    sealed = False
    closed: list[bytes] = []
    opened: dict[bytes, list[Place]] = {}
    began_before: set[bytes] = set()
    pairs = zip(walk.kinds, walk.offsets, strict=True)
    for sequence, (kind, offset) in enumerate(pairs, walk.first_seq):
        if kind not in LEASE_KINDS:
            if kind in _OTHER_KINDS:
                others.append((sequence, offset))
                if kind == _ROTATED:
                    rotations.append((sequence, offset))
            if kind == _SEALED:
                epochs, sealed = [], True
            if kind in _EPOCHS_MOVE:
                epochs.append((sequence, offset))
            continue
        lease = data[offset + _LEASE_AT : offset + _LEASE_AT + 16]
        if kind == _ALLOCATED:
            opened[lease] = [(sequence, offset)]
            continue
        found = opened.get(lease)
        if found is None:
            found = opened[lease] = []
            began_before.add(lease)
        found.append((sequence, offset))
        if kind in TERMINAL_KINDS:
            del opened[lease]
            if lease in began_before:
                closed.append(lease)
    return others, list(opened.items()), closed, rotations, epochs, sealed


def _scan_closed(disk: Disk, names: Sequence[str], log_id: bytes) -> list[SegmentScan]:
    """Verify closed segments, the later half in a second process if that pays."""
    parallel = (
        isinstance(disk, DirectoryDisk)
        and len(names) >= PARALLEL_SEGMENTS_MIN
        and (os.cpu_count() or 1) > 1
    )
    if not parallel:
        return [scan_segment(disk.read(name), name, log_id) for name in names]
    half = (len(names) + 1) // 2
    command = [
        sys.executable,
        "-m",
        "leased.durable.second",
        str(disk.directory),
        log_id.hex(),
        *names[half:],
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
    ) as second:
        first_half = [scan_segment(disk.read(name), name, log_id) for name in names[:half]]
        assert second.stdout is not None
        answer = second.stdout.read()
    if second.returncode == 0:
        second_half: list[SegmentScan] = pickle.loads(answer)
        return first_half + second_half
    # It found something, or could not run: the same work here says what, by the same exception as
    # ever.
    return first_half + [scan_segment(disk.read(name), name, log_id) for name in names[half:]]
