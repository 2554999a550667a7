# SPDX-License-Identifier: Apache-2.0
"""Every flipped bit of a clean log is found, or does no harm: never a shorter or another log in
silence.

Harmless is: the same head and the same records as before. The short form flips every bit of what is
in use and one bit of every 64th unused byte; `LEASED_FLIPS=all` flips every bit of every file.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from leased.chain.head import Head
from leased.durable.reader import read_log
from leased.terms.errors import ChainError, StateError
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import CountedEntropy, open_on, write_batches

ALL = os.environ.get("LEASED_FLIPS") == "all"
UNUSED_STRIDE = 1 if ALL else 64


def _clean() -> tuple[dict[str, bytes], Head, bytes]:
    """A log of one segment that was closed cleanly: its files, head and frames."""
    disk = MemoryDisk()
    log = open_on(disk)
    write_batches(log, [2, 1, 2])
    log.journal.spares.fill()
    frames = b"".join(log.journal.frames(0))
    return disk.contents(), Head(log.journal.anchored.next_seq, log.journal.anchored.head), frames


def _verdict(files: dict[str, bytes], head: Head, frames: bytes) -> str:
    """Open the log and say what became of it."""
    disk = MemoryDisk(files)
    try:
        log = open_on(disk, entropy=CountedEntropy(b"another run"))
    except ChainError as error:
        assert error.file, f"a verdict names its file: {error}"
        return error.verdict
    except StateError:
        return "refused"
    if log.head != head or b"".join(log.journal.frames(0))[8:] != frames[8:]:
        return "crc" if log.crc_damaged and log.head == head else "SILENT"
    return "harmless"


def _bits(data: bytes) -> list[tuple[int, int]]:
    """(byte, bit) to flip: all bits near anything that is not zero, few of the rest."""
    used = {at + near for at, byte in enumerate(data) if byte for near in range(-8, 9)}
    every = [(at, bit) for at in sorted(used) if 0 <= at < len(data) for bit in range(8)]
    unused = [
        (at, at // UNUSED_STRIDE % 8) for at in range(0, len(data), UNUSED_STRIDE) if at not in used
    ]
    if ALL:
        return [(at, bit) for at in range(len(data)) for bit in range(8)]
    return every + unused


@pytest.mark.parametrize(
    "name", ["anchor", "log.id", "seg-0000000000000000.log", "node.key", "next-00000000.tmp"]
)
def test_no_flip_goes_unnoticed(name: str) -> None:
    files, head, frames = _clean()
    verdicts: Counter[str] = Counter()
    for at, bit in _bits(files[name]):
        changed = bytearray(files[name])
        changed[at] ^= 1 << bit
        verdict = _verdict({**files, name: bytes(changed)}, head, frames)
        assert verdict != "SILENT", f"{name}: bit {bit} of byte {at}"
        verdicts[verdict] += 1
    print(name, dict(verdicts))
    if name == "anchor":
        assert set(verdicts) == {"harmless"}, "either slot, in either copy, is enough to go on"
    if name.startswith("seg-"):
        assert verdicts["CORRUPT_RECORD"] > 10_000 and verdicts["crc"] >= 32 * 6


@pytest.mark.parametrize("name", ["anchor", "log.id", "seg-0000000000000000.log", "node.key"])
def test_no_cut_goes_unnoticed(name: str) -> None:
    files, head, frames = _clean()
    for length in range(0, len(files[name]), 1 if len(files[name]) < 1024 or ALL else 37):
        verdict = _verdict({**files, name: files[name][:length]}, head, frames)
        # The anchor may lose its second slot (and the first copy's padding); everything else is
        # refused.
        assert verdict != "SILENT", f"{name} cut to {length}"
        assert name in ("anchor", "node.key") or verdict not in ("harmless", "crc"), (
            f"{name} cut to {length}: {verdict}"
        )


@pytest.mark.parametrize("slot", [0, 1])
def test_a_lost_slot_shortens_nothing(slot: int) -> None:
    files, head, frames = _clean()
    anchor = bytearray(files["anchor"])
    anchor[4096 * slot : 4096 * slot + 4096] = bytes(4096)
    assert _verdict({**files, "anchor": bytes(anchor)}, head, frames) == "harmless"


def test_a_flip_is_named_by_the_offline_reader_too() -> None:
    files, _, frames = _clean()
    name = "seg-0000000000000000.log"
    for at in range(4096, 4096 + len(frames), 97):
        changed = bytearray(files[name])
        changed[at] ^= 0x10
        disk = MemoryDisk({**files, name: bytes(changed)})
        try:
            log = read_log(disk.directory, disk=disk)
        except ChainError as error:
            assert error.file == name and error.sequence >= 0 and error.offset >= 4096, str(error)
        else:
            assert log.facts.verified.crc_damaged == 1


def test_no_flip_in_a_log_of_several_segments_goes_unnoticed() -> None:
    disk = MemoryDisk()
    log = open_on(disk)
    write_batches(log, [9] * 8)
    files, frames = disk.contents(), b"".join(log.journal.frames(0))
    head = Head(log.journal.anchored.next_seq, log.journal.anchored.head)
    names = [name for name in files if name.startswith("seg-")]
    assert len(names) >= 3
    for name in names:
        for at in range(0, len(files[name]), 8 if ALL else 61):
            changed = bytearray(files[name])
            changed[at] ^= 1 << at % 8
            assert _verdict({**files, name: bytes(changed)}, head, frames) != "SILENT", (
                f"{name}: byte {at}"
            )
        assert _verdict({key: files[key] for key in files if key != name}, head, frames).startswith(
            "CORRUPT"
        )
    first, second = names[:2]
    assert _verdict({**files, first: files[second], second: files[first]}, head, frames).startswith(
        "CORRUPT"
    )
