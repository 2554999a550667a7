# SPDX-License-Identifier: Apache-2.0
"""The beginning of a log: key, first segment, anchor, and last of all `log.id`.

Rule: `log.id` is what makes a log; until it has its name nothing was acknowledged, so a beginning
that a crash cut short is cleared and made again. A directory that has records but no `log.id` is
never touched.

Does not open a log (`log`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from leased.chain.head import GENESIS
from leased.chain.note import log_origin
from leased.chain.segment import (
    FLAG_BEST_EFFORT,
    FLAG_SEALED_PROFILE,
    HEADER_BYTES,
    LogIdentity,
    SegmentHeader,
    machine_hash,
    segment_name,
    write_log_id,
)
from leased.chain.tree import EMPTY
from leased.chain.verdict import CORRUPT_ID
from leased.durable.anchor import ANCHOR, create_anchor, read_slots
from leased.durable.files import Disk, write_whole
from leased.durable.keyfile import KEY_FILE, create_key, load_key
from leased.durable.scan import segment_names
from leased.durable.sealkey import SEAL_KEY_FILE, create_seal_key
from leased.durable.spares import Spares
from leased.durable.writer import activate
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError
from leased.terms.identity import LogId
from leased.terms.moment import Moment

LOG_ID: Final = "log.id"


def create_log(
    disk: Disk,
    *,
    moment: Moment,
    entropy: Callable[[], bytes],
    machine_id: bytes,
    origin: str,
    segment_bytes: int,
    best_effort: bool,
    epoch_ns: int,
) -> LogIdentity:
    """Make a new log in the directory and return its identity. Raises ChainError if records
    without log.id lie there."""
    names = disk.names()
    _clear_unfinished(disk, names)
    signer = load_key(disk) if KEY_FILE in names else create_key(disk, entropy)
    log_id = LogId(entropy())
    spares = Spares(disk, segment_bytes)
    spares.adopt()
    activate(disk, spares, SegmentHeader(log_id, 0, GENESIS, EMPTY))
    slots = [
        AnchorSlot(
            generation,
            log_id,
            0,
            0,
            HEADER_BYTES,
            GENESIS.hash,
            boottime_ns=moment.boot_ns,
            boot_id=moment.boot_id,
        )
        for generation in (0, 1)
    ]
    create_anchor(disk, slots[0], slots[1])
    if epoch_ns:
        create_seal_key(disk, log_id, entropy)
    best = FLAG_BEST_EFFORT if best_effort else 0
    identity = LogIdentity(
        log_id,
        signer.public_key,
        machine_hash(machine_id, log_id),
        log_origin(origin, log_id),
        segment_bytes,
        flags=best | (FLAG_SEALED_PROFILE if epoch_ns else 0),
        epoch_ns=epoch_ns,
        created_wall_ns=max(0, moment.wall_ns),
    )
    write_whole(disk, LOG_ID, write_log_id(identity))
    return identity


def _clear_unfinished(disk: Disk, names: Sequence[str]) -> None:
    """Remove what a beginning without `log.id` left, if it surely was one. Raises ChainError
    (rule 2)."""
    segments = segment_names(names)
    begun = all(
        name == segment_name(0) and not disk.read(name)[HEADER_BYTES:].strip(b"\0")
        for name in segments
    )
    slots = read_slots(disk, direct=False)
    empty = all(slot is not None and slot.generation <= 1 and slot.next_seq == 0 for slot in slots)
    if not begun or not (empty or ANCHOR not in names):
        why = (
            "log.id is missing but the log has records; restore it from a backup or from the "
            "collector"
        )
        raise ChainError(CORRUPT_ID, why, file=str(disk.directory / LOG_ID))
    leftovers = [*segments, *(name for name in names if name in (ANCHOR, SEAL_KEY_FILE))]
    for name in leftovers:
        disk.unlink(name)
    if leftovers:
        disk.sync_names()
