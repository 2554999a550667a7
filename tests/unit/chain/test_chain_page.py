# SPDX-License-Identifier: Apache-2.0
"""Pages and their trailers: where a page is cut, and what is refused of one that was touched."""

from __future__ import annotations

import pytest

from leased.chain.note import COSIGNATURE_V1, NoteKey, parse_key
from leased.chain.page import Trailer, measure, split_page, write_trailer
from leased.chain.record import FLAG_LAST, hash_prefix, parse_frame
from leased.chain.signing import Signer
from leased.terms.errors import ChainError
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import open_on, write_batches

LOG = bytes(range(16))


@pytest.fixture(scope="module")
def batches() -> list[bytes]:
    """Frames by batch: the sealer cuts what does not fit into one."""
    data = b"".join(write_batches(open_on(MemoryDisk()), [3, 1, 4, 1, 5]))
    found, begin, offset = [], 0, 0
    while offset < len(data):
        record = parse_frame(data, offset, hash_prefix(open_on(MemoryDisk()).log_id))
        offset += record.frame_bytes
        if record.flags & FLAG_LAST:
            found.append(data[begin:offset])
            begin = offset
    assert begin == len(data)
    return found


def _counts(batches: list[bytes]) -> list[int]:
    """How many records each batch has."""
    return [len(_lengths(batch)) for batch in batches]


def _lengths(data: bytes) -> list[int]:
    lengths = []
    while sum(lengths) < len(data):
        at = sum(lengths)
        lengths.append(int.from_bytes(data[at : at + 4], "little"))
    return lengths


def test_a_page_is_whole_batches(batches: list[bytes]) -> None:
    data, records = b"".join(batches), sum(_counts(batches))
    assert measure(data, 0, records, bytes_max=1 << 20).end == len(data)
    for most in range(len(batches[0]), len(data), 8):
        span = measure(data, 0, records, bytes_max=most)
        ends = [sum(map(len, batches[: n + 1])) for n in range(len(batches))]
        assert span.end == max(end for end in ends if end <= most)
        assert span.count == len(_lengths(data[: span.end]))


def test_a_batch_above_the_limit_comes_whole(batches: list[bytes]) -> None:
    data, records = b"".join(batches), sum(_counts(batches))
    assert measure(data, 0, records, bytes_max=1).end == len(batches[0])
    # From within a batch: to its end.
    first = _lengths(data)[0]
    assert measure(data, first, records - 1, bytes_max=1).end == len(batches[0])


def test_without_a_limit_a_run_ends_anywhere(batches: list[bytes]) -> None:
    data = b"".join(batches)
    span = measure(data, 0, 2)
    assert span.end == sum(_lengths(data)[:2])
    assert (span.prev, span.head) == (bytes(32), data[span.end - 32 : span.end])


def test_a_hash_that_the_disk_changed_is_not_passed_on(batches: list[bytes]) -> None:
    data, records = b"".join(batches), sum(_counts(batches))
    end = _lengths(data)[0]
    for at in (end - 1, end + 48, end, end + 3):
        touched = bytearray(data)
        touched[at] ^= 1
        with pytest.raises(ChainError, match="CORRUPT_RECORD"):
            measure(bytes(touched), 0, records)
    with pytest.raises(ChainError, match="cut short"):
        measure(data[:-8], 0, records)


def test_a_trailer_is_read_back(batches: list[bytes]) -> None:
    trailer = Trailer(7, b"\x07" * 32, "origin\n7\n...\n\n", 17, 18)
    frame = write_trailer(trailer, LOG)
    assert len(frame) % 8 == 0
    assert split_page(frame, LOG) == (0, trailer)
    page = batches[0] + frame
    assert split_page(page, LOG) == (len(batches[0]), trailer)
    record = parse_frame(frame, 0, hash_prefix(LOG))
    assert (record.kind, record.sequence, record.crc_ok) == (0xFFFF, 7, True)


@pytest.mark.parametrize("at", range(0, 200, 3))
def test_a_bit_flipped_in_a_trailer_is_found(at: int) -> None:
    frame = bytearray(write_trailer(Trailer(7, b"\x07" * 32, "n" * 60), LOG))
    at %= len(frame)
    frame[at] ^= 0x10
    with pytest.raises(ChainError):
        split_page(bytes(frame), LOG)


def test_pages_that_are_none(batches: list[bytes]) -> None:
    frame = write_trailer(Trailer(7, b"\x07" * 32, "note"), LOG)
    for page in (b"", b"\0" * 200, frame[:-8], frame + b"\0" * 8, batches[0]):
        with pytest.raises(ChainError):
            split_page(page, LOG)
    with pytest.raises(ChainError):  # of another log
        split_page(frame, bytes(16))


def test_keys_are_read_as_they_are_written() -> None:
    for kind in (1, COSIGNATURE_V1):
        key = NoteKey("west.example", Signer(b"k" * 32).public_key, kind)
        assert parse_key(key.text()) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "west",
        "west+00000000+" + NoteKey("west", b"k" * 32).text().rpartition("+")[2],
        NoteKey("we st", b"k" * 32).text(),
        NoteKey("west", b"k" * 31).text(),
        NoteKey("west", b"k" * 32, 9).text(),
        NoteKey("west", b"k" * 32).text() + "=",
    ],
)
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(ChainError, match="BAD_NOTE"):
        parse_key(text)
