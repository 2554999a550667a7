# SPDX-License-Identifier: Apache-2.0
"""The verifier: what it accepts, and how it names what it does not."""

from __future__ import annotations

import zlib
from hashlib import sha256

import pytest

from leased.chain.canonical import Unknown, decode
from leased.chain.head import GENESIS, Comparison, Head, compare, parse_head
from leased.chain.record import SEALED, hash_prefix, parse_frame
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer, rotation_message
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier, check_bodies, verify
from leased.terms import event as e
from leased.terms.errors import ChainError, InvalidParameter
from tests.doubles.logs import CountedEntropy, events_of_every_kind, moment_at, renewal

LOG, ORIGIN = b"l" * 16, "o/n"
SIGNER, OTHER = Signer(b"k" * 32), Signer(b"o" * 32)


def _sealer(signer: Signer | None = SIGNER) -> Sealer:
    return Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy(), signer=signer, origin=ORIGIN)


def _chain(batches: int = 5) -> list[bytes]:
    sealer = _sealer()
    return [
        sealer.seal([(renewal(n), moment_at(n * 10)) for _ in range(3)]).frames
        for n in range(batches)
    ]


def _verifier(key: bytes | None = SIGNER.public_key, **options) -> Verifier:
    return Verifier(LOG, origin=ORIGIN, public_key=key, **options)


def _frame(
    sequence: int,
    prev: bytes,
    body: bytes,
    *,
    kind: int = 2,
    schema: int = 1,
    batch: int = 2,
    flags: int = 1,
):
    content = SEALED.pack(sequence, batch, kind, schema, flags, len(body), 5, 6, prev) + body
    digest = sha256(hash_prefix(LOG) + content).digest()
    tail = content + bytes(-(len(body) + 112) % 8) + digest
    length = (8 + len(tail)).to_bytes(4, "little")
    return length + zlib.crc32(tail, zlib.crc32(length)).to_bytes(4, "little") + tail


def test_a_whole_chain_holds_and_says_what_it_is() -> None:
    chunks = _chain()
    verified = verify(chunks, _verifier())
    assert verified.count == verified.head.size == 20 and verified.whole and verified.batch == 6
    assert verified.signed_size == 19 and verified.public_key == SIGNER.public_key
    assert verify([b"".join(chunks)], _verifier()) == verified


def test_a_verifier_may_start_anywhere_it_knows_head_and_frontier() -> None:
    chunks = _chain()
    half = verify(chunks[:2], _verifier())
    rest = verify(chunks[2:], _verifier(head=half.head, frontier=half.frontier, batch=half.batch))
    assert rest.head == verify(chunks, _verifier()).head and rest.count == 12
    with pytest.raises(ChainError, match="previous hash"):
        verify(
            chunks[2:], _verifier(head=Head(half.head.size, b"\x01" * 32), frontier=half.frontier)
        )


def test_a_dropped_batch_is_named() -> None:
    chunks = _chain()
    with pytest.raises(ChainError, match="record 8 stands where record 4 belongs") as caught:
        verify([chunks[0], chunks[2]], _verifier(file="pulled"))
    assert (caught.value.sequence, caught.value.file) == (4, "pulled")
    assert caught.value.offset == len(chunks[0])


def test_another_logs_records_do_not_hold() -> None:
    with pytest.raises(ChainError, match="hash"):
        verify(_chain(), Verifier(b"m" * 16))


def test_a_frame_cut_short_is_named() -> None:
    data = b"".join(_chain())
    for cut in (1, 50, 111, 200):
        with pytest.raises(ChainError, match="cut short|does not fit") as caught:
            _verifier().feed(data[:-cut])
        assert caught.value.sequence == 19


def test_a_half_batch_is_not_whole() -> None:
    sealer = _sealer(None)
    frames = sealer.seal([(renewal(1), moment_at(0)), (renewal(2), moment_at(0))]).frames
    assert not verify([frames[: int.from_bytes(frames[:4], "little")]], _verifier()).whole


def test_batches_rise_and_do_not_mix() -> None:
    body = b"\x92\xc4\x10" + b"\x01" * 16 + b"\x00"
    first = _frame(0, bytes(32), body, flags=0)
    for batch in (1, 3):
        with pytest.raises(ChainError, match="batch"):
            _verifier().feed(first + _frame(1, first[-32:], body, batch=batch))
    closed = _frame(0, bytes(32), body)
    with pytest.raises(ChainError, match="batch"):
        _verifier().feed(closed + _frame(1, closed[-32:], body, batch=2))
    assert _verifier().feed(closed + _frame(1, closed[-32:], body, batch=9))


def test_a_wrong_crc_over_a_right_hash_is_counted_and_not_refused() -> None:
    data = bytearray(b"".join(_chain()))
    data[5] ^= 1
    verified = verify([bytes(data)], _verifier())
    assert verified.crc_damaged == 1 and verified.crc_damaged_at == (0,)


def test_reserved_bits_and_padding_are_zero() -> None:
    body = b"\x92\xc4\x10" + b"\x01" * 16 + b"\x00"
    with pytest.raises(ChainError, match="reserved"):
        _verifier().feed(_frame(0, bytes(32), body, flags=5))
    good = bytearray(_frame(0, bytes(32), body))
    good[80 + len(body)] = 1
    with pytest.raises(ChainError, match="padding"):
        _verifier().feed(bytes(good))


def test_unknown_kinds_and_schemas_are_carried_and_counted() -> None:
    first = _frame(0, bytes(32), b"\x90", kind=900)
    second = _frame(1, first[-32:], b"\x90", kind=2, schema=2, batch=3)
    verified = verify([first + second], _verifier())
    assert verified.unknown == 2 and verified.count == 2
    assert decode(2, 2, b"\x90") == Unknown(2, 2, b"\x90")


@pytest.mark.parametrize(
    "body",
    [
        b"\x92\xc4\x10" + b"\x01" * 16 + b"\xcc\x02",  # not the shortest integer
        b"\x92\xc5\x00\x10" + b"\x01" * 16 + b"\x02",  # not the shortest head
        b"\xdc\x00\x02\xc4\x10" + b"\x01" * 16 + b"\x02",  # not the shortest array
        b"\x93\xc4\x10" + b"\x01" * 16 + b"\x02\x02",  # one element too many
        b"\x91\xc4\x10" + b"\x01" * 16,  # one too few
        b"\x92\xc4\x10" + b"\x01" * 16 + b"\xcb" + bytes(8),  # a float
        b"\x92\xc4\x0f" + b"\x01" * 15 + b"\x02",  # a short id
        b"\x92\xc4\x10" + b"\x01" * 16 + b"\x02\x00",  # something behind
        b"\x82\x00\xc4\x10" + b"\x01" * 16 + b"\x01\x02",  # a map
        b"",
    ],
)
def test_a_body_has_one_form(body: bytes) -> None:
    walk = _verifier().feed(_frame(0, bytes(32), body))
    with pytest.raises(ChainError) as caught:
        check_bodies(walk, file="f")
    assert (caught.value.verdict, caught.value.sequence, caught.value.file) == ("BAD_BODY", 0, "f")


def test_a_checkpoint_with_another_root_or_by_another_key_does_not_hold() -> None:
    frames = _sealer().seal([(renewal(1), moment_at(0))]).frames
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        verify([frames], _verifier(OTHER.public_key))
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        verify([frames], Verifier(LOG, origin="another", public_key=SIGNER.public_key))
    assert verify([frames], _verifier(None)).signed_size == 1
    false = e.CheckpointSigned(b"\x01" * 16, 1, b"\x02" * 32, b"\x03" * 64)
    sealer = _sealer(None)
    frames = sealer.seal([(renewal(1), moment_at(0)), (false, moment_at(0))]).frames
    with pytest.raises(ChainError, match="BAD_ROOT") as caught:
        verify([frames], _verifier(None))
    assert caught.value.sequence == 1


def test_a_rotated_key_is_followed_and_a_usurped_one_is_not() -> None:
    message = rotation_message(LOG, SIGNER.public_key, OTHER.public_key)
    for old, holds in ((SIGNER, True), (OTHER, False)):
        sealer = _sealer(OTHER)
        rotation = e.KeyRotated(
            b"\x01" * 16, OTHER.public_key, old.sign(message), OTHER.sign(message)
        )
        frames = sealer.seal([(rotation, moment_at(0))]).frames
        if holds:
            assert verify([frames], _verifier()).public_key == OTHER.public_key
        else:
            with pytest.raises(ChainError, match="BAD_SIGNATURE"):
                verify([frames], _verifier())


def test_a_boot_clock_that_goes_back_is_counted() -> None:
    sealer = _sealer(None)
    items = [
        (renewal(1), moment_at(9)),
        (renewal(2), moment_at(3)),
        (events_of_every_kind()[0], moment_at(0)),
    ]
    assert verify([sealer.seal(items).frames], _verifier()).clock_breaks == 1


def test_every_single_bit_of_a_frame_counts() -> None:
    (frames,) = _chain(1)
    length = int.from_bytes(frames[:4], "little")
    for bit in range(8 * length):
        changed = bytearray(frames)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            damaged = verify([bytes(changed)], _verifier()).crc_damaged
        except ChainError:
            continue
        assert damaged == 1 and 4 <= bit // 8 < 8, f"bit {bit}"


def test_parse_frame_gives_back_the_record() -> None:
    frame = _frame(0, bytes(32), b"\x01\x02")
    record = parse_frame(b"junk" + frame, 4, hash_prefix(LOG))
    assert (record.sequence, record.body, record.frame_bytes, record.crc_ok) == (
        0,
        b"\x01\x02",
        len(frame),
        True,
    )


def test_heads_compare_as_four_answers() -> None:
    one, other = Head(3, b"\x01" * 32), Head(3, b"\x02" * 32)
    assert compare(one, one) is Comparison.SAME and compare(one, other) is Comparison.FORK
    assert compare(one, GENESIS) is Comparison.AHEAD and compare(GENESIS, one) is Comparison.BEHIND
    assert parse_head(one.text()) == one
    for text in ("", "3", "3:xx", "-1:" + "00" * 32, "3:" + "0G" * 32, "\u0663:" + "00" * 32):
        with pytest.raises(InvalidParameter):
            parse_head(text)
