# SPDX-License-Identifier: Apache-2.0
"""Golden bytes of format version 1, and a second verifier that shares no code with the first."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from leased.chain import canonical, note, segment
from leased.chain.epochs import EPOCH_NS
from leased.chain.head import GENESIS, Head, parse_head
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY, Frontier
from leased.durable.anchor import encode_slot
from leased.durable.reader import Enrolled, read_log
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError
from leased.terms.event import KIND
from leased.terms.moment import NS_PER_MS
from leased.terms.resource import ResourceKind
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import (
    BOOT,
    MACHINE,
    PRUNED_PAST_KEYS,
    CountedEntropy,
    events_of_every_kind,
    moment_at,
    open_in,
    open_on,
    renewal,
    started,
)
from tests.vectors import verify_independent as independent

HERE = Path(__file__).parent
BODIES = json.loads((HERE / "bodies.json").read_text())
FORMATS = json.loads((HERE / "formats.json").read_text())
CHAIN = json.loads((HERE / "chain.json").read_text())
ORIGIN = "lease-log.test/node-1/10111213"
LOG = bytes.fromhex(FORMATS["log_id"])
SIGNER = Signer(bytes.fromhex(FORMATS["seed"]))


def spread(block: dict) -> bytes:
    """Undo the rows."""
    raw = bytearray(block["bytes"])
    for at, row in block["rows"].items():
        raw[int(at) : int(at) + 32] = bytes.fromhex(row)
    return bytes(raw)


def test_every_kind_has_a_vector() -> None:
    assert {name: entry["kind"] for name, entry in BODIES.items()} == {
        t.__name__: kind for t, kind in KIND.items()
    }


@pytest.mark.parametrize("event", events_of_every_kind(), ids=lambda event: type(event).__name__)
def test_body(event) -> None:
    entry = BODIES[type(event).__name__]
    assert canonical.encode(event).hex() == entry["body"]
    assert canonical.decode(entry["kind"], entry["schema"], bytes.fromhex(entry["body"])) == event


SECOND = json.loads((HERE / "bodies-second.json").read_text())


def test_body_of_a_pruning_that_says_keys_anew() -> None:
    """`test_log_rotated` seals such ones."""
    entry = SECOND["Pruned"]
    body = bytes.fromhex(entry["body"])
    first = msgspec.structs.replace(PRUNED_PAST_KEYS, key_changes=())
    assert canonical.encode(PRUNED_PAST_KEYS) == body and canonical.schema_of(first) == 1
    assert canonical.decode(entry["kind"], entry["schema"], body) == PRUNED_PAST_KEYS
    at = body.index(b"\x92\x93\xc4\x20")
    # Not without the changes, and not with none.
    for bad in (b"\x95" + body[1:at], body[:at] + b"\x90", body[:at] + b"\xc0"):
        with pytest.raises(ChainError):
            canonical.decode(entry["kind"], entry["schema"], bad)
        with pytest.raises(independent.Broken):
            found, _ = independent.take(bad, 0)
            independent.need(independent.fits(found, independent.SECOND[entry["kind"]]), "body")


def test_body_of_a_second_schema(tmp_path: Path) -> None:
    """It is decoded, encoded and sealed as that, both verifiers take it, and a first goes on."""
    name = "Refused"
    entry = SECOND[name]
    first = next(one for one in events_of_every_kind() if type(one).__name__ == name)
    second = msgspec.structs.replace(first, resource_kind=ResourceKind.GPU)
    body = bytes.fromhex(entry["body"])
    assert canonical.encode(second) == body and canonical.schema_of(first) == 1
    assert canonical.decode(entry["kind"], entry["schema"], body) == second
    # Nothing else is a legal body of it: without the kind, with none, with one that there is not.
    for bad in (b"\x98" + body[1:-1], body[:-1] + b"\xc0", body[:-1] + b"\x3f"):
        with pytest.raises(ChainError):
            canonical.decode(entry["kind"], entry["schema"], bad)
    with pytest.raises(ChainError):
        canonical.decode(entry["kind"], 1, body)
    disk = MemoryDisk()
    log = open_on(disk, entropy=CountedEntropy())
    sealer = log.sealer()
    for count, events in enumerate(([started()], [second, first], [second, first] * 4), 1):
        batch = sealer.seal([(event, moment_at(count)) for event in events])
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(count))
    found = read_log(disk.directory, disk=MemoryDisk(disk.contents()))
    assert found.facts.verified.unknown == 0 and found.head == batch.new_head
    told = [event for _, event, _ in found.events() if type(event).__name__ == name]
    assert told == [second, first] * 5
    for file, data in disk.contents().items():
        (tmp_path / file).write_bytes(data)
    assert independent.verify(tmp_path) == (batch.new_head.size, batch.new_head.hash.hex())


def test_frames() -> None:
    sealer = Sealer(
        LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy(b"vector"), signer=SIGNER, origin=ORIGIN
    )
    batch = sealer.seal([(started(), moment_at(0)), (renewal(1), moment_at(1))])
    assert batch.frames.hex() == FORMATS["frames"]
    assert [digest.hex() for digest in batch.hashes] == FORMATS["hashes"]
    assert batch.new_head == parse_head(FORMATS["head"])


def test_roots() -> None:
    leaves = [bytes([n]) * 32 for n in range(7)]
    for size, root in FORMATS["roots"].items():
        assert EMPTY.extended(leaves[: int(size)]).root().hex() == root
        assert independent.tree_root(leaves[: int(size)]).hex() == root


def test_anchor_slot() -> None:
    slot = AnchorSlot(
        7,
        LOG,
        1234,
        3,
        567_890,
        b"\x77" * 32,
        min_seq=16,
        acked_size=1000,
        tpm_counter=9,
        boottime_ns=123_456_789,
        boot_id=BOOT,
    )
    assert encode_slot(slot) == spread(FORMATS["anchor_slot"])


def test_log_id() -> None:
    identity = segment.LogIdentity(
        LOG,
        SIGNER.public_key,
        segment.machine_hash(MACHINE, LOG),
        ORIGIN,
        created_wall_ns=1_790_000_000_000_000_000,
    )
    assert segment.write_log_id(identity) == spread(FORMATS["log_id_file"])
    assert segment.parse_log_id(spread(FORMATS["log_id_file"]), "log.id") == identity


def test_segment_header() -> None:
    peaks = tuple(bytes([k]) * 32 for k in (1, 2, 3))
    header = segment.SegmentHeader(LOG, 5, Head(0b10110, b"\x66" * 32), Frontier(0b10110, peaks))
    assert segment.write_header(header) == spread(FORMATS["segment_header"])
    name = segment.segment_name(22)
    assert segment.parse_header(spread(FORMATS["segment_header"]), name) == header


def test_note() -> None:
    keys = [
        note.NoteKey(ORIGIN, SIGNER.public_key),
        note.NoteKey("witness.test", SIGNER.public_key, note.COSIGNATURE_V1),
    ]
    assert [key.text() for key in keys] == FORMATS["verifier_keys"]
    opened = note.open_note(FORMATS["note"], keys)
    assert len(opened.signatures) == 2
    assert note.parse_checkpoint(opened.text) == note.Checkpoint(ORIGIN, 1234, b"\x42" * 32)


def _golden() -> dict[str, bytes]:
    return {
        name: content.encode() if isinstance(content, str) else spread(content)
        for name, content in CHAIN["files"].items()
    }


def test_the_golden_chain_verifies() -> None:
    disk = MemoryDisk(_golden())
    log = read_log(disk.directory, disk=disk)
    assert log.head == parse_head(CHAIN["head"])
    assert {type(event) for _, event, _ in log.events()} | {
        type(e) for e in events_of_every_kind()
    } == set(KIND)
    assert open_on(disk).head == log.head


@pytest.fixture
def golden_directory(tmp_path: Path) -> Path:
    for name, content in _golden().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_second_verifier_agrees(golden_directory: Path) -> None:
    head = parse_head(CHAIN["head"])
    assert independent.verify(golden_directory) == (head.size, head.hash.hex())


def test_the_second_verifier_finds_what_is_wrong(golden_directory: Path) -> None:
    path = golden_directory / "seg-0000000000000000.log"
    good = path.read_bytes()
    used = len(good.rstrip(b"\0"))
    for at in range(0, used, 41):
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bytes(bad))
        try:
            found = independent.verify(golden_directory, signatures=False)
        except independent.Broken:
            continue
        # Only a checksum outside the hash may differ, and the first verifier counts it.
        assert found == (parse_head(CHAIN["head"]).size, parse_head(CHAIN["head"]).hash.hex())
        opened = read_log(golden_directory, signatures=False)
        opened.close()
        assert opened.facts.verified.crc_damaged == 1


def test_both_verifiers_know_when_an_epoch_cannot_have_ended_yet(tmp_path: Path) -> None:
    opened = open_in(tmp_path / "log")
    assert opened.ratchet is not None
    key, sealer, tenths = opened.ratchet.key, opened.sealer(), EPOCH_NS // (100 * NS_PER_MS)
    for time in (0, tenths, 9 * tenths):
        event = renewal(time) if time else started()
        batch = sealer.seal([(event, moment_at(time))])
        opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(time))
    opened.close()
    checks = {"signatures": False, "seal_key": key.key}
    for latest, holds in ((9, True), (8, False), (1, False)):
        enrolled = Enrolled(seal_key=key, latest_epoch=latest)
        if holds:
            read = read_log(tmp_path / "log", signatures=False, enrolled=enrolled)
            assert read.facts.verified.seals_proven == 2
            found = independent.verify(tmp_path / "log", latest_epoch=latest, **checks)
            assert found == (read.head.size, read.head.hash.hex())
            read.close()
            continue
        with pytest.raises(ChainError, match="by the reader's clock"):
            read_log(tmp_path / "log", signatures=False, enrolled=enrolled)
        with pytest.raises(independent.Broken, match="ends after today"):
            independent.verify(tmp_path / "log", latest_epoch=latest, **checks)


def test_the_second_verifiers_signatures_are_those_of_rfc_8032() -> None:
    message, signature = b"checkpoint", SIGNER.sign(b"checkpoint")
    assert independent.signature_holds(SIGNER.public_key, message, signature)
    for bad in (signature[:-1], signature[:20] + b"x" + signature[21:], bytes(64)):
        assert not independent.signature_holds(SIGNER.public_key, message, bad)
    assert not independent.signature_holds(Signer(b"\1" * 32).public_key, message, signature)


def test_the_second_verifier_reads_notes_and_cosignatures() -> None:
    expected = (ORIGIN, 1234, b"\x42" * 32)
    assert independent.note_holds(FORMATS["note"], ORIGIN, SIGNER.public_key) == expected
    cosigned = independent.note_holds(FORMATS["note"], "witness.test", SIGNER.public_key, 4)
    assert cosigned == expected
    with pytest.raises(independent.Broken):
        independent.note_holds(FORMATS["note"].replace("1234", "1235"), ORIGIN, SIGNER.public_key)
