# SPDX-License-Identifier: Apache-2.0
"""What the two verifiers once judged differently: logs in which several fields fit each other and
not the format, odd keys, odd policies."""

from __future__ import annotations

import random
from base64 import b64encode
from pathlib import Path

import pytest

from leased.chain import canonical
from leased.chain.note import COSIGNATURE_V1, ED25519, NoteKey
from leased.chain.quorum import parse_policy
from leased.chain.signing import Signer, verifies
from leased.terms.errors import ChainError
from tests.doubles.logs import open_in, started, write_batches
from tests.vectors import rebuilt
from tests.vectors import verify_independent as independent
from tests.vectors.c2sp_independent import P
from tests.vectors.test_vectors_refused_alike import again, agree, slots

START = canonical.encode(started())


def grown(directory: Path, batches: int = 12) -> Path:
    """A log of a few segments."""
    log = open_in(directory / "log")
    write_batches(log, [5] * batches)
    log.close()
    return directory / "log"


def put(path: Path, at: int, value: int, width: int) -> None:
    """A field of a file of which all hashes are made right again."""
    raw = path.read_bytes()
    raw = raw[:at] + value.to_bytes(width, "little") + raw[at + width :]
    if path.name == "anchor":
        other = 4096 - at // 4096 * 4096
        same = other + at % 4096
        raw = slots(raw[:same] + value.to_bytes(width, "little") + raw[same + width :])
    else:
        raw = again(raw) if path.name == "log.id" else again(raw[:4096]) + raw[4096:]
    path.write_bytes(raw)


def test_the_first_segment_is_number_0_whatever_the_anchor_says(tmp_path: Path) -> None:
    rebuilt.write(tmp_path, [(1, 1, START)])
    assert agree(tmp_path, signatures=False)
    put(tmp_path / rebuilt.SEGMENT, 32, 7, 8)
    put(tmp_path / "anchor", 40, 7, 8)
    assert not agree(tmp_path, signatures=False)
    put(tmp_path / rebuilt.SEGMENT, 48, 1, 8)
    assert not agree(tmp_path, signatures=False), "nothing comes before record 0"


@pytest.mark.parametrize(("flags", "epoch_ns"), [(0, 10), (1, 0)])
def test_the_profile_and_the_length_of_an_epoch_say_the_same(
    tmp_path: Path, flags: int, epoch_ns: int
) -> None:
    rebuilt.write(tmp_path, [(1, 1, START)], epoch_ns)
    assert agree(tmp_path, signatures=False)
    put(tmp_path / "log.id", 10, flags, 2)
    assert not agree(tmp_path, signatures=False)


def test_a_frame_at_the_very_end_of_a_segment_is_seen(tmp_path: Path) -> None:
    """A later batch of one record without a body, as the last bytes of the file."""
    rebuilt.write(tmp_path, [(1, 1, START)])
    path = tmp_path / rebuilt.SEGMENT
    later = rebuilt.frame(40, 9999, 1, b"", bytes(32))
    assert len(later) == 112
    path.write_bytes(path.read_bytes()[: -len(later)] + later)
    assert not agree(tmp_path, signatures=False)


@pytest.mark.parametrize("passed", [0, 1, 2])
def test_what_is_beyond_the_anchor_is_of_a_later_generation_than_the_anchor(
    tmp_path: Path, passed: int
) -> None:
    """Batches of numbers that the anchor has passed (its slots were written for the counter alone)
    lead to no segment."""
    directory = grown(tmp_path, 26)
    first, second, *later = sorted(directory.glob("seg-*"))
    for path in later:
        path.unlink()
    log_id, data = (directory / "log.id").read_bytes()[16:32], first.read_bytes()
    at, batches = 4096, []
    while any(data[at : at + 4]):
        size = int.from_bytes(data[at : at + 4], "little")
        frame, at = data[at : at + size], at + size
        if frame[27] & 1:
            sequence, batch = (int.from_bytes(frame[far:][:8], "little") for far in (8, 16))
            batches.append((batch, sequence + 1, at, frame[-32:]))
    second.write_bytes(second.read_bytes()[:4096].ljust(1 << 14, b"\0"))
    batch, next_seq, end, head = batches[-2]
    anchor(directory, batch + passed, (next_seq, 0, end), head, log_id)
    if not passed:  # the last batch is within rule 8, the switch behind it is one more
        put_slot_away(directory, batch - 1)
    assert agree(directory, signatures=False) == (not passed)


def anchor(
    directory: Path, generation: int, place: tuple[int, int, int], head: bytes, log_id: bytes
) -> None:
    """An anchor whose slots stand there."""
    raw = [b"", b""]
    for one in (generation - 1, generation):
        fields = b"LANCHOR1" + one.to_bytes(8, "little") + log_id
        fields += b"".join(value.to_bytes(8, "little") for value in place) + head
        raw[one % 2] = rebuilt.closed(fields, 512).ljust(2048, b"\0") * 2
    (directory / "anchor").write_bytes(b"".join(raw))


def put_slot_away(directory: Path, generation: int) -> None:
    raw = bytearray((directory / "anchor").read_bytes())
    begin = 4096 * (generation % 2)
    raw[begin : begin + 4096] = bytes(4096)
    (directory / "anchor").write_bytes(bytes(raw))


def test_the_segment_that_the_anchor_names_is_there_though_nothing_is_in_it(tmp_path: Path) -> None:
    """As after a restore that has left it out: what opens a log refuses it."""
    directory = grown(tmp_path, 26)
    first, second, *later = sorted(directory.glob("seg-*"))
    header = second.read_bytes()[:4096]
    for path in later:
        path.unlink()
    second.write_bytes(header.ljust(1 << 14, b"\0"))
    place = (int.from_bytes(header[40:48], "little"), 1, 4096)
    anchor(directory, 40, place, header[48:80], header[16:32])
    assert agree(directory, signatures=False)
    second.unlink()
    assert not agree(directory, signatures=False)
    with pytest.raises(ChainError, match="segment 1, which the anchor names, is missing"):
        open_in(directory)


@pytest.mark.parametrize("y", [0, 1, P - 1, P, P + 1, 3, P + 3])
@pytest.mark.parametrize("sign", [0, 1])
def test_an_odd_key_verifies_for_both_or_neither(y: int, sign: int) -> None:
    """Points of small order, and encodings that RFC 8032 calls none: with the first anything is
    signed, so a library that takes the second takes them for other keys than they are."""
    key = (y | sign << 255).to_bytes(32, "little")
    signature = (1).to_bytes(32, "little") + bytes(32)
    for number in range(16):
        message = b"message %d" % number
        ours = verifies(key, message, signature)
        assert ours == independent.signature_holds(key, message, signature)
        assert not (ours and (y >= P or (sign and y in (1, P - 1)))), "no such key"


def key_text(name: str, number: int, kind: int) -> str:
    return NoteKey(name, Signer(bytes([number]) * 32).public_key, kind).text()


PIECES = (
    *(f"witness w{n} {key_text('w', n, COSIGNATURE_V1)}" for n in range(3)),
    *(f"log {key_text('o/n', n, ED25519)}" for n in range(2)),
    f"log {key_text('o/n', 1, ED25519)} https://example.com",
    f"log {key_text('o/n', 1, COSIGNATURE_V1)}",
    f"witness w9 {key_text('w', 1, COSIGNATURE_V1)}",
    f"witness none {key_text('w', 7, COSIGNATURE_V1)}",
    f"witness w1\xa0 {key_text('w', 8, COSIGNATURE_V1)}",
    f"witness w8 {key_text('w', 8, ED25519)}",
    "witness w7 w+00000000+" + b64encode(bytes(33)).decode(),
    f"witness w6 {key_text('w', 6, COSIGNATURE_V1)} https://example.com/w",
    "group g all w0 w1",
    "group g any w0 w1 w2",
    "group g 2 w0 w1 w2",
    "group h 1 g",
    "group h any g w2",
    "group g 02 w0 w1",
    "group g +1 w0 w1",
    "group g 1_0 w0 w1",
    "group g 0 w0",
    "group g 3 w0 w1",
    "group w0 1 w1",
    "group g all",
    "group none 1 w0",
    "quorum g",
    "quorum h",
    "quorum w0",
    "quorum none",
    "quorum g h",
    "quorum",
    "# a comment",
    "#comment",
    "",
    "  \t",
    "\tquorum\tg",
    "quorum g\r",
    "quorum g\x85",
    "quorum\xa0g",
    "something else",
)


def test_policies_of_any_lines_are_read_alike() -> None:
    draw, seen = random.Random(5), [0, 0]
    for number in range(4000):
        lines = [*PIECES[:3], draw.choice(PIECES[13:17]), "quorum g"] if number % 2 else []
        for _ in range(draw.randrange(0, 4)):
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(PIECES))
        raw = "\n".join(lines).encode("latin-1")
        try:
            ours: object = parse_policy(raw)
        except ChainError as error:
            ours = error
        try:
            theirs: object = independent.read_policy(raw)
        except independent.Broken as error:
            theirs = error
        taken = not isinstance(ours, ChainError)
        assert taken == (not isinstance(theirs, independent.Broken)), f"{raw!r}: {ours} | {theirs}"
        seen[taken] += 1
    assert min(seen) > 100
