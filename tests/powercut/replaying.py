# SPDX-License-Identifier: Apache-2.0
"""What a power cut could have left: images made from a recording, and the real recovery as their
judge.

The model: a flush makes every write before it durable; of the writes since then any subset of
512-byte sectors may have been kept, in any order. A file system under it is the kernel's own, and
mounting replays its journal.

Does not record (`recorder`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from leased.chain.head import Head, parse_head
from leased.terms.errors import ChainError, InvariantError, StateError
from tests.doubles.logs import open_in
from tests.powercut.machine import Layout, attached, mounted
from tests.powercut.recording import DURABLE, ENTRY, FLUSH, MARK, WRITE, used_pieces

SECTOR = 512


class Entry(NamedTuple):
    """One thing that the disk was asked, or a mark."""

    kind: bytes
    offset: int
    data: bytes


class Findings:
    """What a replay came across; `lost` and `alarms` keep what was wrong."""

    def __init__(self) -> None:
        self.images = 0
        self.acked = 0
        self.recovered = 0
        self.lost: list[str] = []
        self.alarms: list[str] = []
        self.unmountable: list[str] = []

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.acked} with acknowledged records, {self.recovered} "
            f"repaired, lost in {len(self.lost)} {self.lost[:2]}, alarms in {len(self.alarms)} "
            f"{self.alarms[:2]}, not mountable {len(self.unmountable)} {self.unmountable[:2]}"
        )


def read_recording(path: Path) -> list[Entry]:
    """The entries, in order. The last may have been cut short."""
    raw, at, found = path.read_bytes(), 0, []
    while at + ENTRY.size <= len(raw):
        kind, offset, length = ENTRY.unpack_from(raw, at)
        at += ENTRY.size
        found.append(Entry(kind, offset, raw[at : at + length]))
        at += length
    return found


class Disk:
    """What a disk has for certain: a file of its own, which begins as a copy of an image."""

    def __init__(self, image: Path, own: Path) -> None:
        self._own = own
        copy_used(image, own, image.stat().st_size)

    def put(self, offset: int, data: bytes) -> None:
        """What it has now."""
        with self._own.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, offset)

    def write(self, path: Path, size: int, extra: dict[int, bytes]) -> None:
        """An image file of what it has, with these sectors over it."""
        copy_used(self._own, path, size)
        with path.open("r+b", buffering=0) as file:
            for sector, data in _runs(extra):
                os.pwrite(file.fileno(), data, sector * SECTOR)


def copy_used(image: Path, path: Path, size: int) -> None:
    """A copy that is as sparse as it can be."""
    with path.open("wb", buffering=0) as file:
        file.truncate(size)
        for offset, data in used_pieces(image):
            os.pwrite(file.fileno(), data, offset)


def _runs(sectors: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Sectors that follow each other, as one."""
    first, held = 0, bytearray()
    for sector in sorted(sectors):
        if held and sector * SECTOR != first * SECTOR + len(held):
            yield first, bytes(held)
            held.clear()
        first = first if held else sector
        held += sectors[sector]
    if held:
        yield first, bytes(held)


def cuts(
    entries: list[Entry], base: Disk, random: Random, images: int, *, lying: bool = False
) -> Iterator[tuple[int, Head | None, dict[int, bytes]]]:
    """Yield (place, last acknowledged head, sectors kept beyond the base) at random places, in
    order; `base` moves on with what is durable. `lying`: a flush makes nothing durable."""
    first = next(at for at, entry in enumerate(entries) if entry.kind == MARK)
    places = sorted(random.randrange(first // 2, len(entries) + 1) for _ in range(images))
    pending: list[Entry] = []
    acked: Head | None = None
    said, at = "", 0
    for place in places:
        for entry in entries[at:place]:
            if entry.kind == WRITE:
                pending.append(entry)
            elif entry.kind == DURABLE:
                pending = [write for write in pending if write.offset != entry.offset]
                base.put(entry.offset, entry.data)
            elif entry.kind == FLUSH and not lying:
                for write in pending:
                    base.put(write.offset, write.data)
                pending.clear()
            elif entry.kind == MARK:
                said += entry.data.decode()
                *lines, said = said.split("\n")
                acked = parse_head(lines[-1]) if lines else acked
        at = place
        yield place, acked, _kept(pending, random, lying=lying)


def _kept(pending: list[Entry], random: Random, *, lying: bool) -> dict[int, bytes]:
    """Some of the sectors that were on their way: none, all, a prefix, a subset, one torn write."""
    sectors = [
        ((write.offset + at) // SECTOR, write.data[at : at + SECTOR])
        for write in pending
        for at in range(0, len(write.data), SECTOR)
    ]
    match random.randrange(1, 5) if lying else random.randrange(5):
        case 0:
            chosen = sectors
        case 1:
            chosen = sectors[: random.randrange(len(sectors) + 1)]
        case 2:
            chosen = [one for one in sectors if random.random() < 0.5]
        case 3:
            chosen = [one for one in sectors if random.random() < 0.95]
        case _:
            torn = random.randrange(len(pending)) if pending else 0
            chosen = [
                ((write.offset + at) // SECTOR, write.data[at : at + SECTOR])
                for number, write in enumerate(pending)
                for at in range(0, len(write.data), SECTOR)
                if number != torn or random.random() < 0.5
            ]
    return dict(chosen)


def judge(
    findings: Findings, image: Path, layout: Layout, folder: Path, acked: Head | None, where: str
) -> None:
    """Mount, recover, compare with what was acknowledged."""
    findings.images += 1
    findings.acked += acked is not None
    try:
        with attached(image) as device, mounted(device, folder / "cut", layout.options) as point:
            _recover(findings, point / "audit", acked, where)
    except OSError as error:
        findings.unmountable.append(f"{where}: {error}")


def _recover(findings: Findings, directory: Path, acked: Head | None, where: str) -> None:
    try:
        log = open_in(directory)
    except (ChainError, StateError, InvariantError) as error:
        findings.alarms.append(f"{where}: {error}")
        return
    try:
        findings.recovered += log.recovered is not None
        if acked is None:
            return
        if log.head.size < acked.size:
            findings.lost.append(f"{where}: {acked.size} acknowledged, {log.head.size} found")
            return
        frames = b"".join(log.journal.frames(acked.size - 1))
        length = int.from_bytes(frames[:4], "little")
        if frames[length - 32 : length] != acked.hash:
            findings.lost.append(f"{where}: record {acked.size - 1} differs")
    finally:
        log.close()
