# SPDX-License-Identifier: Apache-2.0
"""The sealer: links, flags, cuts, segment ends and checkpoints."""

from __future__ import annotations

import pytest

from leased.chain.canonical import decode
from leased.chain.head import GENESIS, Head
from leased.chain.note import Checkpoint
from leased.chain.record import FLAG_LAST, Record, hash_prefix, parse_frame
from leased.chain.sealer import CHECKPOINT_NS, Sealer
from leased.chain.segment import HEADER_BYTES, geometry
from leased.chain.signing import Signer, verifies
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier
from leased.terms import event as e
from leased.terms.errors import InvariantError
from leased.terms.moment import Moment
from tests.doubles.logs import BOOT, SMALL_SEGMENT, CountedEntropy, moment_at, renewal, started

LOG = b"l" * 16
SIGNER = Signer(b"k" * 32)


def _sealer(**options) -> Sealer:
    return Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy(), origin="o/n", **options)


def _records(frames: bytes) -> list[Record]:
    found, offset = [], 0
    while offset < len(frames):
        found.append(parse_frame(frames, offset, hash_prefix(LOG)))
        offset += found[-1].frame_bytes
    return found


def test_records_are_linked_and_the_last_of_a_batch_says_so() -> None:
    sealer = _sealer()
    first = sealer.seal([(started(), moment_at(0)), (renewal(1), moment_at(1))])
    second = sealer.seal([(renewal(2), moment_at(2))])
    records = _records(first.frames + second.frames)
    assert [record.sequence for record in records] == [0, 1, 2]
    assert [record.batch for record in records] == [2, 2, 3]
    assert [record.flags & FLAG_LAST for record in records] == [0, 1, 1]
    assert records[0].prev_hash == bytes(32)
    assert [r.prev_hash for r in records[1:]] == [r.hash for r in records[:-1]]
    assert first.hashes == (records[0].hash, records[1].hash) and second.first_seq == 2
    assert (
        second.new_head == sealer.head == Head(3, records[2].hash)
        and second.head == records[2].hash
    )
    assert (records[1].wall_ns, records[1].boot_ns) == (moment_at(1).wall_ns, moment_at(1).boot_ns)
    assert decode(records[2].kind, records[2].schema, records[2].body) == renewal(2)


def test_a_checkpoint_is_signed_at_most_once_a_second_unless_asked_for() -> None:
    sealer = _sealer(signer=SIGNER)
    moment = Moment(BOOT, 5 * 10**9, 0)
    kinds = []
    for after in (0, CHECKPOINT_NS - 1, CHECKPOINT_NS):
        at = Moment(BOOT, moment.boot_ns + after, 0)
        kinds.append([record.kind for record in _records(sealer.seal([(renewal(1), at)]).frames)])
    assert kinds == [[18, 69], [18], [18, 69]]
    asked = sealer.seal([], sign=True, moment=moment)
    assert asked.count == 1 and asked.hashes == ()
    (record,) = _records(asked.frames)
    event = decode(record.kind, record.schema, record.body)
    assert (
        isinstance(event, e.CheckpointSigned) and event.size == record.sequence == asked.first_seq
    )
    text = Checkpoint("o/n", event.size, event.root).text().encode()
    assert verifies(SIGNER.public_key, text, event.signature)


def test_without_a_signer_nothing_is_signed() -> None:
    assert _sealer().seal([(renewal(1), moment_at(0))], sign=True).count == 1


def test_a_segment_ends_in_time_and_the_switch_takes_a_generation() -> None:
    sealer = _sealer(segment_bytes=SMALL_SEGMENT)
    rules, offset, ends = geometry(SMALL_SEGMENT), HEADER_BYTES, 0
    verifier = Verifier(LOG)
    for number in range(120):
        batch = sealer.seal([(renewal(number), moment_at(number))])
        records = _records(batch.frames)
        verifier.feed(batch.frames)
        offset += len(batch.frames)
        assert offset <= SMALL_SEGMENT
        if records[-1].kind == e.KIND[e.SegmentEnd]:
            assert offset > rules.ends_after - 512 and len(batch.hashes) == 1
            assert sealer.frontier_at(batch.new_head.size) == verifier.verified().frontier
            ends, offset = ends + 1, HEADER_BYTES
    assert ends >= 3
    assert sealer.frontier_at(1) is None
    assert verifier.verified().batch == 2 + 120 - 1 + ends


def test_a_large_batch_is_cut_but_not_inside_a_lease() -> None:
    sealer = _sealer(segment_bytes=SMALL_SEGMENT)
    pair = [(renewal(1), moment_at(0)), (renewal(9), moment_at(0))]
    other = [(renewal(2), moment_at(0)), (renewal(10), moment_at(0))]
    batch = sealer.seal((pair + other) * 20)
    records = _records(batch.frames)
    ends = [record for record in records if record.kind == e.KIND[e.SegmentEnd]]
    assert (
        len(batch.hashes) == 80
        and batch.count == 80 + len(ends)
        and len({r.batch for r in records}) > 10
    )
    assert [records[s].hash for s in batch.sequences] == list(batch.hashes)
    renewals = [r for r in records if r.kind == 18]
    for first, second in zip(renewals[::2], renewals[1::2], strict=True):
        assert first.batch == second.batch, "two events of one lease are in one batch"
    assert Verifier(LOG).feed(batch.frames)


def test_one_lease_that_fills_more_than_a_batch_is_cut_all_the_same() -> None:
    sealer = _sealer(segment_bytes=SMALL_SEGMENT)
    batch = sealer.seal([(renewal(8 * n), moment_at(0)) for n in range(60)])
    sizes: dict[int, int] = {}
    for record in _records(batch.frames):
        sizes[record.batch] = sizes.get(record.batch, 0) + record.frame_bytes
    rules = geometry(SMALL_SEGMENT)
    assert len(sizes) > 3 and max(sizes.values()) <= rules.batch_bytes + rules.frame_bytes_max + 512


def test_what_cannot_be_read_back_is_never_sealed() -> None:
    sealer = _sealer()
    before = sealer.head
    for event in (
        e.NodeStopped(b"\x01" * 16, 1.5),  # type: ignore[arg-type]
        e.NodeStopped(b"\x01" * 16, True),
        e.NodeStopped(b"\x01" * 15, 1),
        e.Released(b"\x01" * 16, b"\x02" * 17, renewal(1).subject, 1, 2),
        e.ClockStepped(b"\x01" * 16, 2**64),
        e.HealthChanged(b"\x01" * 16, "\ud800", "ok", 0),
    ):
        for others in (1, 9):  # one by one, and natively
            with pytest.raises(InvariantError, match=type(event).__name__):
                items = [renewal(n) for n in range(others)] + [event, renewal(others)]
                sealer.seal([(one, moment_at(0)) for one in items])
            assert sealer.head == before


def test_a_record_that_no_frame_holds_is_our_mistake() -> None:
    event = e.HealthChanged(b"\x01" * 16, "x" * 70_000, "ok", 0)
    with pytest.raises(InvariantError, match="70"):
        _sealer().seal([(event, moment_at(0))])
