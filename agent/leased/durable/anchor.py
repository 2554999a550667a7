# SPDX-License-Identifier: Apache-2.0
"""FileAnchorStore: the durable copy of the head, in two slots written in place by turns.

Rule: generation g lies in slot g & 1, and generations follow each other, so the slot being
overwritten is never the newest. Each slot holds the same 512 bytes twice, so one rotten sector
cannot cost it. No rename: a full disk cannot stop it.

Does not decide which slot counts (`chain.recovery`).
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

from leased.durable.files import Disk, write_whole
from leased.ports import AnchorSlot
from leased.terms.identity import LogId

ANCHOR: Final = "anchor"
SLOT_BYTES: Final = 4096
COPY_BYTES: Final = 512
COPY_OFFSETS: Final = (0, 2048)

_SLOT = struct.Struct("<8sQ16sQQQ32sQQQQ16s")
_MAGIC = b"LANCHOR1"

_REST = bytes(COPY_BYTES - 32 - _SLOT.size)

assert _SLOT.size == 136


class FileAnchorStore:
    """The anchor file, open for writing."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.handle = disk.open(ANCHOR)

    def write(self, slot: AnchorSlot) -> None:
        """Write `slot` over the older one and make it durable."""
        self._disk.write(self.handle, encode_slot(slot), slot_offset(slot))
        self._disk.sync(self.handle)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self.handle >= 0:
            self._disk.close_handle(self.handle)
            self.handle = -1


def create_anchor(disk: Disk, first: AnchorSlot, second: AnchorSlot) -> None:
    """Make the anchor of a new log, both slots valid."""
    blocks = {slot_offset(slot): encode_slot(slot) for slot in (first, second)}
    write_whole(disk, ANCHOR, blocks[0] + blocks[SLOT_BYTES])


def read_slots(disk: Disk, *, direct: bool) -> tuple[AnchorSlot | None, AnchorSlot | None]:
    """Return both slots, None for what is not valid. A missing file is two invalid slots."""
    raw = _read(disk, direct=direct)
    return _newest_copy(raw, 0), _newest_copy(raw, 1)


def ragged_slots(disk: Disk, *, direct: bool) -> frozenset[int]:
    """Which slots do not have the same valid 512 bytes twice."""
    raw = _read(disk, direct=direct)
    ragged = set()
    for index in (0, 1):
        first, second = _copies(raw, index)
        if first is None or first != second:
            ragged.add(index)
    return frozenset(ragged)


def slot_offset(slot: AnchorSlot) -> int:
    """Where in the file a slot lies."""
    return SLOT_BYTES * (slot.generation & 1)


def encode_slot(slot: AnchorSlot) -> bytes:
    """Return the 4096 bytes of a slot."""
    fields = _SLOT.pack(
        _MAGIC,
        slot.generation,
        slot.log_id,
        slot.next_seq,
        slot.segment_no,
        slot.end_offset,
        slot.head,
        slot.min_seq,
        slot.acked_size,
        slot.tpm_counter,
        slot.boottime_ns,
        slot.boot_id,
    )
    body = fields.ljust(COPY_BYTES - 32, b"\0")
    copy = body + sha256(body).digest()
    return copy.ljust(COPY_OFFSETS[1], b"\0") + copy.ljust(SLOT_BYTES - COPY_OFFSETS[1], b"\0")


def decode_copy(raw: bytes, index: int) -> AnchorSlot | None:
    """Return the slot that 512 bytes state, None if they are not one or do not belong in slot
    `index`."""
    if (
        len(raw) != COPY_BYTES
        or sha256(raw[:-32]).digest() != raw[-32:]
        or raw[_SLOT.size : -32] != _REST
    ):
        return None
    magic, generation, log_id, *fields = _SLOT.unpack_from(raw)
    if magic != _MAGIC or generation & 1 != index:
        return None
    return AnchorSlot(generation, LogId(log_id), *fields)


def _newest_copy(raw: bytes, index: int) -> AnchorSlot | None:
    """Return the newer of a slot's valid copies: they differ when a crash fell between the two."""
    return max(
        (copy for copy in _copies(raw, index) if copy is not None),
        key=lambda slot: slot.generation,
        default=None,
    )


def _copies(raw: bytes, index: int) -> list[AnchorSlot | None]:
    base = SLOT_BYTES * index
    return [decode_copy(raw[base + at : base + at + COPY_BYTES], index) for at in COPY_OFFSETS]


def _read(disk: Disk, *, direct: bool) -> bytes:
    try:
        return disk.read(ANCHOR, direct=direct)
    except FileNotFoundError:
        return b""
