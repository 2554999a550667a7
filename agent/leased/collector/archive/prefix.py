# SPDX-License-Identifier: Apache-2.0
"""The prefix: what stands for the first records of a log once they are gone.

Rule: enough that everything about what comes later follows as if they were there: the frames of
leases that had not ended, or had about the time of the floor, and of what is no lease's, as they
were sealed; and the hash of every record.

Does not choose what goes (`retention`) and does not remove it.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from leased.chain.canonical import decode
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.floor import KeptLog
from leased.terms import event as events
from leased.terms.moment import DAY_NS, HOUR_NS

MARGIN_NS: Final = 25 * HOUR_NS
"""Labels follow the boot clock and may be off from the clock on the wall by a drift; a stretch of
quiet that begins an hour before the floor must be found again."""

_KEPT_KINDS: Final = (
    *(events.NodeStarted, events.NodeStopped, events.ClockStepped, events.InventoryChanged),
    *(events.ResourceFenced, events.CordonChanged, events.HealthChanged, events.KeyRotated),
    *(events.PolicyChanged, events.PolicyTurned, events.PeriodBegan),
    *(events.OverageBegan, events.OverageEnded, events.Voided),
)
"""What is no lease's, and says something of what comes after."""

_TURNS: Final = (
    *(events.NodeStarted, events.ClockStepped, events.InventoryChanged),
    *(events.ResourceFenced, events.CordonChanged),
)
"""Whose record before is kept too: it is the last moment of what ended there."""


def stand_in(
    archive: ArchiveReader, log_id: str, records: int, node: str, floor_ns: int
) -> KeptLog:
    """Write what stands for the first `records` records of a log, durably."""
    wanted = _leases(archive, log_id, records, floor_ns)
    frames: list[bytes] = []
    tail: list[tuple[int, bytes]] = []
    seen = -1
    for record, frame in archive.framed(log_id):
        if record.sequence >= records:
            break
        event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
        mine = isinstance(event, events.LeaseEvent) and event.lease_id in wanted
        if mine or isinstance(event, _KEPT_KINDS) or record.sequence == 0:
            if isinstance(event, _TURNS):
                frames.extend(one for at, one in tail if at > seen)
            frames.append(frame)
            seen = record.sequence
        # A seal says the moment of the record before it: the last record, and that one if it is a
        # seal.
        tail = tail[:1] if isinstance(event, events.EpochSealed) else []
        tail.append((record.sequence, frame))
    frames.extend(one for at, one in tail if at > seen)
    leaves = b"".join(islice(archive.hashes(log_id), records))
    stem = f"{log_id}-{records:020d}"
    return KeptLog(
        node,
        records,
        leaves[-32:].hex(),
        archive.kept.write(f"{stem}.frames", b"".join(frames)),
        archive.kept.write(f"{stem}.leaves", leaves),
    )


def _leases(archive: ArchiveReader, log_id: str, records: int, floor_ns: int) -> frozenset[bytes]:
    """The leases among what goes that something later follows from: they had not ended, or were
    still there about the time of the floor."""
    ended: set[bytes] = set()
    seen: set[bytes] = set()
    late: set[bytes] = set()
    for record in archive.records(log_id):
        if record.sequence >= records:
            break
        event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
        if not isinstance(event, events.LeaseEvent):
            continue
        seen.add(event.lease_id)
        if isinstance(event, (events.Reclaimed, events.Unfenced)):
            ended.add(event.lease_id)
        if record.wall_ns >= floor_ns - DAY_NS - MARGIN_NS:
            late.add(event.lease_id)
    return frozenset((seen - ended) | late)
