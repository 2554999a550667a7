# SPDX-License-Identifier: Apache-2.0
"""Properties: what C takes for plain is what the rules take, whatever the bytes; where it stops,
the finding is the same to the word as that of the verifier that goes step by step."""

from __future__ import annotations

import os
import struct
from array import array
from functools import cache
from hashlib import sha256
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.chain import native
from leased.chain.canonical import KNOWN, SCHEMA, SHAPES, Unknown, decode, encode, schema_of
from leased.chain.head import GENESIS, Head
from leased.chain.page import measure, split_page
from leased.chain.record import FLAG_LAST, FRAME_BYTES_MIN, HEADER, hash_prefix
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY, Frontier
from leased.terms import event as e
from leased.terms.errors import ChainError
from leased.terms.identity import EventId
from leased.terms.moment import Moment
from tests.doubles.logs import (
    BOOT,
    PRUNED_PAST_KEYS,
    REFUSED_OF_A_KIND,
    CountedEntropy,
    events_of_every_kind,
    moment_at,
    renewal,
    started,
)
from tests.doubles.step_by_step import both_say

STRIDES = settings(
    max_examples=int(os.environ.get("LEASED_EXAMPLES", "100")), derandomize=True, deadline=None
)
LOG = b"l" * 16
HEAVY = {e.InventoryChanged, e.KeyRotated, e.CheckpointSigned, e.EpochSealed, e.NodeStarted}
HEAVY |= {e.Pruned}
"""Not sealed here: rare, and looked at one by one anyway."""

EVERY = (*events_of_every_kind(), PRUNED_PAST_KEYS, REFUSED_OF_A_KIND)
EVENTS = [one for one in EVERY if type(one) not in HEAVY]
BODIES = [(e.KIND[type(one)], schema_of(one), encode(one)) for one in EVERY]


@cache
def chain() -> bytes:
    """Batches of one to seven records of all kinds, with a start in the middle."""
    sealer = Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    frames, count = [], 0
    events: list[e.Event] = [started(), *EVENTS, started(), renewal(1), renewal(2)]
    while events:
        part, events = events[: 1 + count % 7], events[1 + count % 7 :]
        frames.append(sealer.seal([(one, moment_at(count)) for one in part]).frames)
        count += 1
    return b"".join(frames)


def ends(data: bytes) -> list[int]:
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + int.from_bytes(data[found[-1] : found[-1] + 4], "little"))
    return found


def test_a_whole_chain_is_said_alike() -> None:
    data = chain()
    found, _, (offsets, _, _), refused = both_say(data, 0, len(data), LOG)
    assert refused is None and offsets == ends(data)[:-1] and found.head.size == len(offsets)


def test_nearly_all_of_it_is_plain() -> None:
    """Or the strides would be worth nothing, unnoticed."""
    data = chain()
    strider = native.Strider(data, 0, len(data), hash_prefix(LOG), b"\3" * native.KINDS)
    stride = strider.go(native.Stand(0, 0, GENESIS.hash, 1, False, 0, 2**64))
    assert stride.stand.offset == len(data) and not stride.more
    seen = {(kind, schema) for kind, schema, body in BODIES if plain(kind, body, schema)}
    shapeless = {(e.KIND[e.InventoryChanged], SCHEMA), (e.KIND[e.Pruned], 2)}
    assert KNOWN - seen <= shapeless, "an inventory and changes of keys have no shape"


def test_a_stride_goes_over_the_schemas_of_a_kind_that_need_no_thought() -> None:
    kind, schema, body = BODIES[-1]
    assert schema == 2
    for known, taken in ((2, 1), (3, 1), (1, 0), (0, 0)):
        for said, counts in ((schema, taken), (3, 0), (0, 0), (255, 0)):
            data = framed(kind, body, schema=said)
            plain_of = bytes(known if one == kind else 0 for one in range(native.KINDS))
            strider = native.Strider(data, 0, len(data), hash_prefix(LOG), plain_of, SHAPES)
            stride = strider.go(native.Stand(0, 0, GENESIS.hash, 1, False, 0, 2**64))
            assert (len(stride.bodies), sum(stride.bodies)) == (counts, counts)


@pytest.mark.parametrize("part", range(8))
def test_every_flipped_bit_is_said_alike(part: int) -> None:
    """Each record in the middle of the chain, with what follows it."""
    data, begins = chain(), ends(chain())
    for record, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
        after = begins[min(record + 3, len(begins) - 1)]
        before, *_ = both_say(data, 0, begin, LOG)
        run = data[begin:after]
        begun = (Head(record, before.head.hash), before.frontier)
        batch = before.batch - (0 if before.whole else 1)
        for at in range(part, end - begin, 8):
            for bit in range(8):
                changed = bytearray(run)
                changed[at] ^= 1 << bit
                both_say(bytes(changed), 0, len(run), LOG, *begun, batch=batch)


def test_every_truncation_is_said_alike() -> None:
    data = chain()
    for length in range(0, len(data), 3):
        both_say(data[:length], 0, length, LOG)
        both_say(data, 0, length, LOG)


@STRIDES
@given(st.data())
def test_any_edit_is_said_alike(draw: st.DataObject) -> None:
    data = bytearray(chain())
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data) - 1))
        more = draw.draw(st.binary(max_size=200))
        match draw.draw(st.sampled_from(["write", "insert", "drop", "double"])):
            case "write":
                data[at : at + len(more)] = more
            case "insert":
                data[at:at] = more
            case "drop":
                del data[at : at + len(more)]
            case "double":
                data[at:at] = data[max(0, at - len(more)) : at]
    both_say(bytes(data), 0, len(data), LOG, epoch_ns=draw.draw(st.sampled_from([0, 10**9])))


@STRIDES
@given(
    st.lists(
        st.tuples(
            st.sampled_from([16, 18, 25, 66, 200, 255, 256, 300, 65_535]),
            st.sampled_from([0, 1, 2]),
            st.sampled_from([0, 1, 2, 3]),
            st.sampled_from([0, 1, 5, 2**63, 2**64 - 1]),
            st.sampled_from([0, 1, 2, 3, 2**64 - 1]),
            st.binary(max_size=40),
            st.sampled_from([0, 0, 0, 1]),
        ),
        max_size=5,
    ),
    st.sampled_from([0, 10**9, 2**64 - 1]),
)
def test_hashed_nonsense_is_said_alike(rows: list[tuple[int, ...]], epoch_ns: int) -> None:
    """Frames whose hashes, links and CRCs hold, and whatever else in them."""
    frames, head = [], GENESIS.hash
    for sequence, (kind, schema, flags, boot_ns, batch, body, pad) in enumerate(rows):
        place = (sequence, batch, boot_ns, head)
        frame = framed(kind, body, schema=schema, flags=flags, place=place, pad=pad)
        frames.append(frame)
        head = frame[-32:]
    data = b"".join(frames)
    both_say(data, 0, len(data), LOG, epoch_ns=epoch_ns)


def test_each_rule_alone_is_said_alike() -> None:
    """Two frames of which all holds but one thing: hashes, links and CRCs are made right."""
    first = framed(16, b"x" * 9, flags=0)
    head = first[-32:]
    good = (1, 2, 0, head)
    odd: list[dict[str, object]] = [
        *({"place": place} for place in ((2, 2, 0, head), (1, 3, 0, head), (1, 1, 0, head))),
        *({"place": (1, 2, 0, bytes(32))}, {"pad": 7}, {"flags": 4}, {"schema": 2}),
        *({"kind": kind} for kind in (1, 7, 66, 69, 255, 256, 65_535)),
    ]
    for one in odd:
        kind = one.pop("kind", 17)
        data = first + framed(kind, b"y" * 9, **{"place": good, **one})
        both_say(data, 0, len(data), LOG)
    for at in (30, 81, -1, -32):  # what the hash is over, and the hash, with a CRC that holds
        changed = bytearray(framed(17, b"y" * 9, place=good))
        changed[at] ^= 1
        changed[4:8] = crc32(changed[8:], crc32(changed[:4])).to_bytes(4, "little")
        both_say(first + changed, 0, len(first) + len(changed), LOG)
    closed = framed(16, b"x" * 9, place=(0, 2, 5, GENESIS.hash))
    for batch, boot_ns in ((2, 5), (1, 5), (3, 4), (3, 5), (3, 2**64 - 1)):
        data = closed + framed(17, b"y" * 9, place=(1, batch, boot_ns, closed[-32:]))
        both_say(data, 0, len(data), LOG)
        both_say(data, 0, len(data), LOG, epoch_ns=10**9)


def framed(
    kind: int,
    body: bytes,
    *,
    schema: int = SCHEMA,
    flags: int = FLAG_LAST,
    place: tuple[int, int, int, bytes] = (0, 2, 0, GENESIS.hash),
    pad: int = 0,
) -> bytes:
    """A frame as the sealer makes it, of anything; `pad` is what it is padded with."""
    sequence, batch, boot_ns, prev = place
    length = (len(body) + FRAME_BYTES_MIN + 7) & -8
    head = (length, 0, sequence, batch, kind, schema, flags, len(body), 0, boot_ns, prev)
    content = HEADER.pack(*head)[8:] + body
    tail = content + bytes([pad]) * (length - len(body) - FRAME_BYTES_MIN)
    tail += sha256(hash_prefix(LOG) + content).digest()
    crc = crc32(tail, crc32(length.to_bytes(4, "little")))
    return struct.pack("<II", length, crc) + tail


EDGES = (0, 1, 0x1F, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0x90, 0xA0, *range(0xC0, 0xE1), 0xFF)
_HERE, _KINDS = array("Q", [0]), {kind: array("H", [kind]) for kind in e.KIND.values()}


def plain(kind: int, body: bytes, schema: int = SCHEMA) -> bool:
    """What C says of a body; it looks at nothing of the frame but schema and length, and says the
    same where there is none, of each of several."""
    head = HEADER.pack(0, 0, 0, 0, kind, schema, 0, len(body), 0, 0, b"")
    said = bool(SHAPES.plain_bodies(head + body, _HERE, _KINDS[kind], 0))
    several = ((body, body), (kind, kind), (schema, schema))
    assert SHAPES.plain_unframed(*several) == 2 * said
    return said


@settings(STRIDES, max_examples=4 * STRIDES.max_examples)
@given(st.data())
def test_a_plain_body_is_one_that_decodes(draw: st.DataObject) -> None:
    kind, schema, body = draw.draw(st.sampled_from(BODIES))
    changed = bytearray(body)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(changed) - 1))
        head = st.sampled_from([0xC0, 0xC2, 0xC4, 0xC5, 0xCA, 0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD3])
        new = draw.draw(st.binary(max_size=9) | head.map(lambda one: bytes([one])))
        changed[at : at + draw.draw(st.integers(0, 9))] = new
        if not changed:
            return
    for said in (schema, draw.draw(st.integers(0, 255))):
        if plain(kind, bytes(changed), said):
            assert not isinstance(decode(kind, said, bytes(changed)), Unknown)


def test_every_flip_and_cut_of_every_body() -> None:
    for kind, schema, body in BODIES:
        for at in range(len(body)):
            assert not plain(kind, body[:at], schema)
            for value in {*EDGES, body[at] ^ 1, (body[at] + 1) % 256, (body[at] - 1) % 256}:
                changed = body[:at] + bytes([value]) + body[at + 1 :]
                if plain(kind, changed, schema):
                    decode(kind, schema, changed)
        assert not plain(kind, body + b"\0", schema)


@STRIDES
@given(st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, 32, 127, 128, 2**8, 2**16, 2**32]))
def test_integers_of_all_lengths_are_plain_in_their_shortest_form_only(
    value: int, edge: int
) -> None:
    kind = e.KIND[e.ClockStepped]
    for number in (value, edge, edge - 1, -edge, -edge - 1):
        good = encode(e.ClockStepped(EventId(BOOT), number))
        assert plain(kind, good)
        for code, form in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")) + (
            (0xD0, ">b"),
            (0xD1, ">h"),
            (0xD2, ">i"),
            (0xD3, ">q"),
        ):
            try:
                other = good[:19] + bytes([code]) + struct.pack(form, number)
            except struct.error:
                continue
            assert plain(kind, other) == (other == good)


@STRIDES
@given(st.sampled_from([0, 1, 31, 32, 33, 255, 256, 257, 65_535, 65_536, 65_400]))
def test_texts_of_all_lengths_are_plain(length: int) -> None:
    event = e.HealthChanged(EventId(BOOT), "x" * length, "sick", 5)
    body = encode(event)
    if len(body) <= 65_424:
        assert plain(e.KIND[e.HealthChanged], body)


@settings(STRIDES, max_examples=10 * STRIDES.max_examples)
@given(
    st.lists(
        st.text(min_size=1, max_size=9).map(str.encode)
        | st.binary(max_size=4)
        | st.sampled_from(
            [b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf"]
            + [b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xef\xbf\xbf", b"\xc2", b"\xe2\x82"]
        ),
        max_size=5,
    )
)
def test_text_is_plain_where_it_is_utf8(parts: list[bytes]) -> None:
    text = b"".join(parts)[:31]
    body = encode(e.HealthChanged(EventId(BOOT), "", "sick", 5))
    changed = body.replace(b"\xa0", bytes([0xA0 + len(text)]) + text, 1)
    try:
        text.decode()
    except UnicodeDecodeError:
        assert not plain(e.KIND[e.HealthChanged], changed)
    else:
        assert plain(e.KIND[e.HealthChanged], changed)
        decode(e.KIND[e.HealthChanged], SCHEMA, changed)


def test_longer_heads_than_are_needed_are_not_plain() -> None:
    text = e.KIND[e.HealthChanged], encode(e.HealthChanged(EventId(BOOT), "abc", "sick", 5))
    data = e.KIND[e.Recovered], encode(e.Recovered(EventId(BOOT), 1, 2, b"\x77" * 32))
    array_of = e.KIND[e.PolicyTurned], encode(e.PolicyTurned(EventId(BOOT), b"h" * 32, ("w",)))
    for (kind, body), short, longer in (
        (text, b"\xa3abc", (b"\xd9\x03abc", b"\xda\0\x03abc", b"\xdb\0\0\0\x03abc")),
        (data, b"\xc4\x20w", (b"\xc5\0\x20w", b"\xc6\0\0\0\x20w")),
        (array_of, b"\x91\xa1w", (b"\xdc\0\1\xa1w", b"\xdd\0\0\0\1\xa1w")),
    ):
        assert plain(kind, body) and body.count(short) == 1
        for one in longer:
            assert not plain(kind, body.replace(short, one))


def test_ids_and_wide_integers_have_sixteen_bytes() -> None:
    for kind, schema, body in BODIES:
        at = body.find(b"\xc4\x10")
        while at >= 0:
            value = body[at + 2 : at + 18]
            for other in (b"\xc4\x0f" + value[1:], b"\xc4\x11\0" + value):
                changed = body[:at] + other + body[at + 18 :]
                if plain(kind, changed, schema):
                    decode(kind, schema, changed)
            at = body.find(b"\xc4\x10", at + 1)


# ---- links and the tree --------------------------------------------------------------------------


def links(data: bytes, offset: int, records: int, bytes_max: int | None) -> object:
    """What `measure` must say, in so many words."""
    if len(data) - offset < FRAME_BYTES_MIN:
        return "the frame is cut short", offset
    first = prev = data[offset + 48 : offset + 80]
    whole, end, hashes, kept = offset, offset, [], []
    for _ in range(records):
        if len(data) - end < FRAME_BYTES_MIN:
            return "the frame is cut short", end
        length = int.from_bytes(data[end : end + 4], "little")
        if data[end + 48 : end + 80] != prev or length < FRAME_BYTES_MIN:
            return "the frame does not continue the chain", end
        if bytes_max is not None and kept and end + length > offset + bytes_max:
            break
        if end + length > len(data):
            return "the frame is cut short", end
        flags = data[end + 27]
        end += length
        prev = data[end - 32 : end]
        hashes.append(prev)
        if bytes_max is None or flags & FLAG_LAST:
            whole, kept = end, list(hashes)
            if bytes_max is not None and end >= offset + bytes_max:
                break
    return whole, first, b"".join(kept)


@STRIDES
@given(st.data())
def test_links_are_measured_as_they_are_said_to_be(draw: st.DataObject) -> None:
    data, begins = bytearray(chain()), ends(chain())
    for _ in range(draw.draw(st.integers(0, 2))):
        at = draw.draw(st.sampled_from(begins[:-1])) + draw.draw(st.sampled_from([0, 1, 2, 27, 50]))
        data[at] ^= draw.draw(st.integers(1, 255))
    data = data[: draw.draw(st.integers(0, len(data)) | st.just(len(data)))]
    offset = draw.draw(st.sampled_from([one for one in begins if one <= len(data)]))
    records = draw.draw(st.integers(0, 60) | st.just(2**40))
    bytes_max = draw.draw(st.none() | st.integers(1, len(chain())))
    said: object
    try:
        span = measure(bytes(data), offset, records, bytes_max=bytes_max)
        said = (span.end, span.prev, span.digests)
    except ChainError as error:
        said = (error.why, error.offset)
    assert said == links(bytes(data), offset, records, bytes_max)


@STRIDES
@given(st.binary(max_size=600))
def test_a_page_of_anything_is_refused_without_reading_beyond_it(page: bytes) -> None:
    with pytest.raises(ChainError):
        split_page(page, LOG)


@STRIDES
@given(st.integers(0, 2**64 - 1000), st.integers(0, 300))
def test_a_tree_of_any_size_grows_at_once_as_one_by_one(size: int, count: int) -> None:
    peaks = tuple(bytes([n]) * 32 for n in range(size.bit_count()))
    leaves = [n.to_bytes(32, "big") for n in range(count)]
    one_by_one = Frontier(size, peaks)
    for leaf in leaves:
        one_by_one = one_by_one.extended([leaf])
    assert Frontier(size, peaks).grown(b"".join(leaves)) == one_by_one


def test_a_stand_that_no_record_has_makes_nothing_plain() -> None:
    data = chain()
    both_say(data, 0, len(data), LOG, Head(2**64, bytes(32)), EMPTY)
    both_say(data, 0, len(data), LOG, batch=2**64)
    both_say(data, 0, len(data), LOG, batch=-1)


def test_moments_are_those_of_the_boot() -> None:
    """A record at the end of time is judged, not taken for plain."""
    sealer = Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    frames = sealer.seal([(renewal(0), Moment(BOOT, 2**64 - 1, 0))]).frames
    both_say(frames, 0, len(frames), LOG, epoch_ns=10**9)
