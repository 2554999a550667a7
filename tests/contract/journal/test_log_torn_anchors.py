# SPDX-License-Identifier: Apache-2.0
"""An anchor that is torn by one crash after the other costs nothing: what is left of an earlier
generation in half a slot is gone before the next crash can bring it up."""

from __future__ import annotations

import pytest

from leased.durable.anchor import ANCHOR, COPY_BYTES, COPY_OFFSETS, SLOT_BYTES, ragged_slots
from leased.ports import AnchorSlot
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import open_on, write_batches

HALF = COPY_OFFSETS[1]
CUTS = (0, 100, COPY_BYTES, HALF, HALF + 100, HALF + COPY_BYTES, SLOT_BYTES)
"""How many bytes of the last slot reached the disk."""


def written(files: dict[str, bytes] | None, batches: list[int]) -> tuple[MemoryDisk, AnchorSlot]:
    """What a run of so many batches leaves, and its last anchor."""
    disk = MemoryDisk(files)
    log = open_on(disk)
    assert not ragged_slots(disk, direct=False)
    write_batches(log, batches)
    return disk, log.journal.anchored


def crashed(files: dict[str, bytes] | None, cut: int) -> tuple[dict[str, bytes], int]:
    """A run that dies while it anchors its last batch: what is on the disk, and how many records
    there are."""
    before = written(files, [2])[0].contents()[ANCHOR]
    disk, slot = written(files, [2, 3])
    after = disk.contents()
    begin = SLOT_BYTES * (slot.generation & 1)
    torn = bytearray(after[ANCHOR])
    torn[begin + cut : begin + SLOT_BYTES] = before[begin + cut : begin + SLOT_BYTES]
    return after | {ANCHOR: bytes(torn)}, slot.next_seq


@pytest.mark.parametrize("second", CUTS)
@pytest.mark.parametrize("first", CUTS)
def test_two_in_a_row_cost_nothing(first: int, second: int) -> None:
    files, size = crashed(None, first)
    files, more = crashed(files, second)
    assert more > size
    disk = MemoryDisk(files)
    log = open_on(disk)
    assert log.head.size == more and not ragged_slots(disk, direct=False)
