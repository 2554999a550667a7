# SPDX-License-Identifier: Apache-2.0
"""A log with records of all kinds, every single bit of it flipped and every length of it cut: each
gets a verdict that names the right record at the right place, never another exception and never
"holds" (T9).

Two readers judge: the verifier, every bit and every length; and `read_log` on files, every 61st bit
of every file (`LEASED_FLIPS=all`: every one; hours).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from functools import cache
from typing import NamedTuple

import pytest

from leased.chain.epochs import EpochKey
from leased.chain.segment import HEADER_BYTES, parse_log_id
from leased.chain.signing import Signer, parse_pem, rotation_message
from leased.chain.verifier import Verifier, check_bodies
from leased.durable.reader import Enrolled, read_log
from leased.terms import event as e
from leased.terms.errors import ChainError, StateError
from leased.terms.identity import EventId
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import commit_and_forget, events_of_every_kind, moment_at, open_on, started

SEGMENT = "seg-0000000000000000.log"
STRIDE = 1 if os.environ.get("LEASED_FLIPS") == "all" else 61
MADE_BY_THE_SEALER = (e.NodeStarted, e.KeyRotated, e.EpochSealed, e.CheckpointSigned, e.SegmentEnd)


class Log(NamedTuple):
    """The files, where each frame begins (and the last ends), and what an auditor has."""

    files: dict[str, bytes]
    begins: list[int]
    enrolled: Enrolled

    def verifier(self) -> Verifier:
        """One that knows key and seals."""
        identity = parse_log_id(self.files["log.id"], "log.id")
        return Verifier(
            identity.log_id,
            origin=identity.origin,
            public_key=identity.public_key,
            epoch_ns=identity.epoch_ns,
            seal_key=self.enrolled.seal_key,
            file=SEGMENT,
        )


@cache
def whole() -> Log:
    """One segment: every kind that an agent emits, a rotation of the key that both keys signed,
    checkpoints and seals."""
    disk = MemoryDisk()
    log = open_on(disk, segment_bytes=64 * 1024, epoch_ns=10**9)
    assert log.ratchet is not None
    enrolled = Enrolled(log.log_id, log.signer.public_key, log.ratchet.key)
    sealer = log.sealer()
    events = [one for one in events_of_every_kind() if not isinstance(one, MADE_BY_THE_SEALER)]
    new = Signer(bytes(range(32)))
    message = rotation_message(log.log_id, log.signer.public_key, new.public_key)
    signed = (new.public_key, log.signer.sign(message), new.sign(message))
    for count, event in enumerate([started(), *events, e.KeyRotated(EventId(b"r" * 16), *signed)]):
        at = moment_at(count)
        batch = sealer.seal([(event, at)])
        commit_and_forget(log, batch, at)
    begins, data = [HEADER_BYTES], disk.contents()[SEGMENT]
    while begins[-1] < log.journal.anchored.end_offset:
        begins.append(begins[-1] + int.from_bytes(data[begins[-1] : begins[-1] + 4], "little"))
    return Log(disk.contents(), begins, enrolled)


def test_the_log_has_all_kinds_and_holds() -> None:
    log = whole()
    opened = read_log(MemoryDisk().directory, disk=MemoryDisk(log.files), enrolled=log.enrolled)
    kinds = {type(event) for _, event, _ in opened.events()}
    assert kinds == set(e.KIND) - {e.SegmentEnd}
    assert opened.facts.verified.seals_proven >= 2 and opened.facts.verified.signed_size > 0


def test_every_flipped_bit_of_every_record_is_named() -> None:
    log = whole()
    data, end = log.files[SEGMENT], log.begins[-1]
    crc_only = 0
    for at in range(HEADER_BYTES, end):
        record = bisect_right(log.begins, at) - 1
        for bit in range(8):
            changed = bytearray(data[:end])
            changed[at] ^= 1 << bit
            verifier = log.verifier()
            try:
                # To the record that was hit, and no further: what follows is not in question.
                walk = verifier.feed(changed, start=HEADER_BYTES, stop=log.begins[record + 1])
                check_bodies(walk, file=SEGMENT)
            except ChainError as error:
                named = (error.file, error.sequence, error.offset)
                assert named == (SEGMENT, record, log.begins[record]), f"{at}.{bit}: {error}"
            else:
                found = verifier.verified()
                assert found.crc_damaged_at == (record,), f"bit {bit} of byte {at} is not found"
                assert 4 <= at - log.begins[record] < 8
                crc_only += 1
    assert crc_only == 32 * (len(log.begins) - 1)


def test_every_length_of_the_records_is_named() -> None:
    log = whole()
    data, end = log.files[SEGMENT], log.begins[-1]
    for length in range(HEADER_BYTES, end):
        with pytest.raises(ChainError) as cut:
            log.verifier().feed(data[:length], start=HEADER_BYTES, stop=end)
        assert cut.value.file == SEGMENT and cut.value.offset == length
        record = bisect_right(log.begins, length) - 1
        if length == log.begins[record]:
            continue
        with pytest.raises(ChainError) as torn:
            log.verifier().feed(data, start=HEADER_BYTES, stop=length)
        assert (torn.value.sequence, torn.value.offset) == (record, log.begins[record])


def _told(log: Log, name: str, changed: bytes) -> str:
    """What `read_log` says of the directory with one file changed: the verdict and what it names,
    or how it holds."""
    disk = MemoryDisk({**log.files, name: changed})
    try:
        opened = read_log(disk.directory, disk=disk, enrolled=log.enrolled)
    except ChainError as error:
        assert error.file, f"a verdict names its file: {error}"
        return f"{error.verdict} {error.file.rpartition('/')[2]}"
    except StateError:
        return "refused"
    facts = opened.facts
    if facts.head.size != len(log.begins) - 1 or facts.verified.seals_proven < 2:
        return "SILENT"
    return "damaged" if facts.verified.crc_damaged else "torn" if facts.torn_bytes else "holds"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log.id", {"CORRUPT_ID log.id"}),
        # Either slot, in either copy, is enough to go on.
        ("anchor", {"holds"}),
        (
            SEGMENT,
            {
                f"CORRUPT_RECORD {SEGMENT}",
                f"CORRUPT_SEGMENT {SEGMENT}",
                "damaged",
                "torn",
            },
        ),
    ],
)
def test_every_file_is_named_when_a_bit_of_it_flips(name: str, expected: set[str]) -> None:
    log = whole()
    told = set()
    for position in range(0, 8 * len(log.files[name]), STRIDE if len(log.files[name]) > 512 else 1):
        at, bit = divmod(position, 8)
        if name == SEGMENT and at > log.begins[-1] + 4096 and position % (STRIDE * 64):
            continue
        changed = bytearray(log.files[name])
        changed[at] ^= 1 << bit
        said = _told(log, name, bytes(changed))
        assert said in expected, f"bit {bit} of byte {at} of {name}: {said}"
        told.add(said)
    assert told == expected


@pytest.mark.parametrize("name", ["log.id", "anchor", SEGMENT])
def test_every_file_is_named_when_it_is_cut(name: str) -> None:
    log = whole()
    size = len(log.files[name])
    end = log.begins[-1] if name == SEGMENT else size
    for length in range(0, end, 1 if size <= 512 else STRIDE):
        said = _told(log, name, log.files[name][:length])
        # The anchor may lose its second slot and still say all there is.
        assert said.startswith("CORRUPT") or (name == "anchor" and said == "holds"), (
            f"{name} cut to {length}: {said}"
        )


def test_the_key_of_another_log_proves_nothing() -> None:
    log = whole()
    other = Enrolled(log.enrolled.log_id, log.enrolled.public_key, EpochKey(0, bytes(32)))
    assert parse_pem(log.files["node.key"]).public_key == log.enrolled.public_key
    with pytest.raises(ChainError) as refused:
        read_log(MemoryDisk().directory, disk=MemoryDisk(log.files), enrolled=other)
    assert refused.value.verdict == "BAD_SEAL" and refused.value.sequence > 0
