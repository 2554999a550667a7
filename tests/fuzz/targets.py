# SPDX-License-Identifier: Apache-2.0
"""Parsers of what comes from a disk or a wire, under a coverage-guided fuzzer:

    python -m tests.fuzz.targets TARGET [CORPUS...] [-max_total_time=60] [-seed=1]

Rule: whatever the bytes, a parser returns or raises the one error that it documents; what it
accepts has one encoding, so writing it again gives the same bytes.

Does not choose how long (`test_fuzz_parsers`); the options are libFuzzer's.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator

import atheris

with atheris.instrument_imports(include=["leased.chain", "leased.durable.anchor"]):
    from leased.chain import canonical, note, page, record, segment
    from leased.chain.head import Head
    from leased.chain.verifier import Verifier, check_bodies
    from leased.durable import anchor
from leased.chain.signing import Signer
from leased.terms.errors import ChainError
from leased.terms.event import KIND
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import events_of_every_kind, open_on, write_batches
from tests.doubles.step_by_step import both_say

LOG_ID = bytes(range(16))
PREFIX = record.hash_prefix(LOG_ID)
KNOWN = sorted(canonical.KNOWN)
SIGNER = Signer(bytes(32))
KEY = note.NoteKey("lease-log.test/node", SIGNER.public_key)


def frame(data: bytes) -> None:
    """One frame; also with its hash and CRC made right, so that what is behind them is reached."""
    for raw in (data, _made_right(data)):
        found = record.parse_frame(raw, 0, PREFIX)
        assert record.frame_bytes(len(found.body)) == found.frame_bytes <= len(raw)


def body(data: bytes) -> None:
    """The body of any kind and schema. What C takes for plain is taken."""
    if data:
        kind, schema = KNOWN[data[0] % len(KNOWN)]
        head = record.HEADER.pack(0, 0, 0, 0, kind, schema, 0, len(data) - 1, 0, 0, b"")
        place = (array("Q", [0]), array("H", [kind]))
        plain = canonical.SHAPES.plain_bodies(head + data[1:], *place, 0)
        try:
            event = canonical.decode(kind, schema, data[1:])
        except ChainError:
            assert not plain
            raise
        assert not isinstance(event, canonical.Unknown)
        assert canonical.encode(event) == data[1:]


def chain(data: bytes) -> None:
    """A run of frames, as a segment has them, in strides and step by step."""
    options = {"epoch_ns": 10**9, "origin": "o", "public_key": SIGNER.public_key}
    both_say(data, 0, len(data), LOG_ID, **options)
    check_bodies(Verifier(LOG_ID, **options).feed(data))


def slot(data: bytes) -> None:
    """A copy of an anchor slot, and one with its hash made right."""
    whole = data[:480].ljust(480, b"\0")
    for raw in (data, whole + anchor.sha256(whole).digest()):
        for index in (0, 1):
            found = anchor.decode_copy(raw, index)
            assert found is None or anchor.encode_slot(found)[:512] == raw


def signed_note(data: bytes) -> None:
    """A signed note and its checkpoint."""
    text = data.decode("utf-8", "replace")
    found = note.parse_note(text)
    note.parse_checkpoint(found.text)
    note.open_note(text, [KEY])


def verifier_key(data: bytes) -> None:
    """A C2SP verifier key."""
    key = note.parse_key(data.decode("utf-8", "replace"))
    assert note.parse_key(key.text()) == key


def pulled_page(data: bytes) -> None:
    """A page of a pull."""
    end, trailer = page.split_page(data, LOG_ID)
    assert page.write_trailer(trailer, LOG_ID) == data[end:]


def identity(data: bytes) -> None:
    """`log.id`, and one with its hash made right."""
    whole = data[:480].ljust(480, b"\0")
    for raw in (data, whole + anchor.sha256(whole).digest()):
        assert segment.write_log_id(segment.parse_log_id(raw, "log.id")) == raw


def header(data: bytes) -> None:
    """A segment's header, and one with its hash made right."""
    whole = data[:4064].ljust(4064, b"\0")
    for raw in (data, whole + anchor.sha256(whole).digest()):
        name = segment.segment_name(int.from_bytes(raw[40:48], "little"))
        found = segment.parse_header(raw, name)
        assert segment.write_header(found) == raw[: segment.HEADER_BYTES]


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        frame,
        body,
        chain,
        slot,
        signed_note,
        verifier_key,
        pulled_page,
        identity,
        header,
    )
}


def seeds(target: str) -> Iterator[bytes]:
    """Honest bytes to begin with."""
    disk = MemoryDisk()
    log = open_on(disk)
    write_batches(log, [2, 1])
    files, frames = disk.contents(), b"".join(log.journal.frames(0))
    text = note.Checkpoint(KEY.name, 3, bytes(32)).text()
    signed = note.write_note(text, [(KEY, SIGNER.sign(text.encode()))])
    match target:
        case "frame" | "chain":
            yield frames
            yield frames[: int.from_bytes(frames[:4], "little")]
        case "body":
            for event in events_of_every_kind():
                number = KNOWN.index((KIND[type(event)], canonical.schema_of(event)))
                yield bytes([number]) + canonical.encode(event)
        case "slot":
            yield files["anchor"][:512]
            yield files["anchor"][4096 : 4096 + 512]
        case "signed_note":
            yield signed.encode()
        case "verifier_key":
            yield KEY.text().encode()
        case "pulled_page":
            head = Head(3, bytes(32))
            trailer = page.Trailer(head.size, head.hash, signed)
            yield page.write_trailer(trailer, LOG_ID)
            yield frames + page.write_trailer(trailer, LOG_ID)
        case "identity":
            yield files["log.id"]
        case "header":
            yield files["seg-0000000000000000.log"][:4096]


def _made_right(data: bytes) -> bytes:
    """The same frame with length, hash and CRC as they must be."""
    if len(data) < record.HEADER_BYTES:
        return data
    content = data[8:72] + data[72:80]
    body_bytes = len(data) - record.HEADER_BYTES
    content = content[:20] + body_bytes.to_bytes(4, "little") + content[24:]
    content += data[record.HEADER_BYTES :]
    length = record.frame_bytes(body_bytes)
    digest = record.sha256(PREFIX + content).digest()
    tail = content + bytes(length - 112 - body_bytes) + digest
    size = length.to_bytes(4, "little")
    return size + record.crc32(tail, record.crc32(size)).to_bytes(4, "little") + tail


def main() -> None:
    target = TARGETS[sys.argv[1]]

    def one(data: bytes) -> None:
        try:
            target(data)
        except ChainError:
            pass

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
