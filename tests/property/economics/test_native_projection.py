# SPDX-License-Identifier: Apache-2.0
"""Frames projected in bulk give the rows that `Projector.observe` gives for each of their records:
to the byte, wherever chunks and blocks begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased._native import lib
from leased.chain.canonical import decode
from leased.chain.head import GENESIS
from leased.chain.record import Record, hash_prefix, parse_frame
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.demo import Node, Wish
from leased.collector.metering import blocks
from leased.collector.metering.columns import ColumnRows, FrameProjector
from leased.collector.metering.lives import settle
from leased.collector.metering.projection import ACT, Block, Carry, ListRows, Projector
from leased.terms import event as e
from leased.terms.errors import ChainError
from leased.terms.identity import BootId
from leased.terms.lease import AccountingTag
from leased.terms.moment import Moment
from leased.terms.resource import Allotment, ResourceKind, TierKind
from tests.doubles.logs import (
    REFUSED_OF_A_KIND,
    CountedEntropy,
    events_of_every_kind,
    lease_life,
    moment_at,
    renewal,
    started,
)
from tests.property.economics.test_economics_sql import Script

LOG_ID = b"l" * 16
NUMBER = -5


def sealed(records: list[tuple[e.Event, Moment]]) -> list[bytes]:
    """The frames, one batch each."""
    sealer = Sealer(LOG_ID, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    return [sealer.seal([one]).frames for one in records]


def events_of(frames: bytes) -> Iterator[tuple[int, object, Moment]]:
    """As `Archive.events` tells them."""
    prefix, offset, boot_id, boot_ns = hash_prefix(LOG_ID), 0, BootId(bytes(16)), 0
    while offset < len(frames):
        record = parse_frame(frames, offset, prefix)
        offset += record.frame_bytes
        event = decode(record.kind, record.schema, record.body)
        if isinstance(event, e.NodeStarted):
            boot_id = event.boot_id
        if not isinstance(event, e.EpochSealed):
            boot_ns = record.boot_ns
        yield record.sequence, event, Moment(boot_id, boot_ns, record.wall_ns)


def told(block: Block) -> tuple[object, ...]:
    tables = blocks.arrow_tables(block).values()
    rows = [table.to_pylist() for table in tables]
    files = [blocks.parquet_bytes(table) for table in tables]
    return rows, block.rare, block.carry, files


def compare(chunks: list[bytes], size: int) -> list[Block]:
    """Blocks of `size` records, both ways."""
    carry, stream, judged = Carry(), list(events_of(b"".join(chunks))), []
    for begin in range(0, len(stream), size):
        projector = Projector(NUMBER, carry)
        for one in stream[begin : begin + size]:
            projector.observe(*one)
        judged.append(projector.block())
        carry = judged[-1].carry
    carry, native, projector = Carry(), [], None
    for chunk in chunks:
        offset = 0
        while offset < len(chunk):
            projector = projector or FrameProjector(NUMBER, carry, LOG_ID)
            offset = projector.take(chunk, offset, carry.next_seq + size)
            if projector.next_seq == carry.next_seq + size:
                native.append(projector.block())
                carry, projector = native[-1].carry, None
    if projector is not None:
        native.append(projector.block())
    for ours, theirs in zip(native, judged, strict=True):
        assert told(ours) == told(theirs)
    return native


def cut(frames: list[bytes], size: int) -> list[bytes]:
    return [b"".join(frames[at : at + size]) for at in range(0, len(frames), size)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.integers(1, 50), st.integers(1, 20))
def test_what_nodes_seal_is_projected_alike(seed: int, steps: int, size: int, chunk: int) -> None:
    script = Script(seed)
    for _ in range(steps):
        script.step()
    # Its wall clock may be set to before 1970, which no record can say.
    records = [
        (event, msgspec.structs.replace(now, wall_ns=now.wall_ns + 10**18))
        for _, event, now in script.history.records
    ]
    compare(cut(sealed(records), chunk), size)


@pytest.mark.parametrize("number", [0, 4])
def test_a_demonstration_host_is_projected_alike(number: int) -> None:
    node = Node(Wish(5, days=40, until_ns=1_700_000_000 * 10**9), number)
    records = list(node.history())
    assert any(isinstance(event, e.Fenced) for event, _ in records)
    frames = cut(sealed(records), 500)
    found = compare(frames, 3_000)
    assert len(found) > 1 and all(one.lives.count for one in found)
    # Nearly all of it by C: what is judged by itself is a thirtieth at most.
    judged = [one for one in records if type(one[0]) in (e.Fenced, e.NodeStarted, e.ClockStepped)]
    assert len(judged) * 30 < len(records)


def test_refusals_are_no_reason_to_go_record_by_record() -> None:
    """They are as many as somebody asks for."""
    events = [started(), *[REFUSED_OF_A_KIND] * 50]
    frames = b"".join(sealed([(one, moment_at(at)) for at, one in enumerate(events)]))
    compare([frames], 100)
    judged = []

    class Watched(FrameProjector):
        def _judge(self, record: Record) -> None:
            judged.append(record.kind)
            super()._judge(record)

    projector = Watched(NUMBER, Carry(), LOG_ID)
    assert projector.take(frames, 0, 100) == len(frames)
    assert judged == [e.KIND[e.NodeStarted]]


def test_acts_have_the_same_numbers_in_c() -> None:
    named = {
        e.Allocated: lib.LEASED_GRANTED,
        e.Renewed: lib.LEASED_RENEWED,
        e.TeardownBegun: lib.LEASED_TORN,
        e.Reclaimed: lib.LEASED_RECLAIMED,
        e.Fenced: lib.LEASED_FENCED,
        e.Unfenced: lib.LEASED_UNFENCED,
        e.Voided: lib.LEASED_VOIDED,
        e.Released: lib.LEASED_RELEASED,
    }
    assert {kind: ACT[kind] for kind in named} == named


LETTERS = {"G": 1, "R": 2, "r": 2, "N": 3, "T": 4, "E": 5, "F": 6, "U": 7, "V": 8, "L": 9}
"""What becomes of one lease. r: renewed with other terms. V: its first grant is voided. B: the node
starts again."""


@pytest.mark.parametrize(
    ("told", "lives", "left"),
    [
        ("GTE", 1, ""),
        ("GE", 1, ""),
        ("GNRTLE", 1, ""),
        ("GU", 1, ""),
        ("GT", 0, "GT"),
        ("RTE", 0, "RTE"),
        ("GrTE", 0, "GrTE"),
        ("GTTE", 0, "GTTE"),
        ("GFU", 0, "GFU"),
        ("GVTE", 0, "GVTE"),
        ("GTEV", 1, "V"),
        ("GTBE", 0, "GTE"),
        ("GTERL", 1, "RL"),
        ("GTEGE", 2, ""),
        ("GTEGT", 1, "GT"),
        ("GGE", 0, "GGE"),
    ],
)
def test_what_is_put_together_as_lives(told: str, lives: int, left: str) -> None:
    for rows in (ListRows(), ColumnRows()):
        boot, letters = 0, {}
        for at, letter in enumerate(told):
            boot += letter == "B"
            what = LETTERS.get(letter)
            if what is None:
                continue
            letters[at + 7] = letter
            when = (100 * at, 100 * at + 1)
            lease = (0, 0) if letter == "V" else (1, -2)
            terms = None if what > 2 else 4 if letter == "r" else 3
            ref = 7 if letter == "V" else None
            rows.act((NUMBER, at + 7, boot, *lease, what, *when, None, terms, ref))
            if letter in "GrF":
                rows.hold((NUMBER, at + 7, 0, "acme", 1, -1, 0, "", 64))
                rows.hold((NUMBER, at + 7, 1, "acme", 3, 1, 0, "", 65))
        native = isinstance(rows, ColumnRows)
        found = rows.settle(NUMBER) if native else settle(rows.acts, rows.holds)
        block = Block(*found, [], Carry())
        acts, holds, made = (t.to_pylist() for t in blocks.arrow_tables(block).values())
        assert "".join(letters[row["seq"]] for row in acts) == left
        assert len(holds) == 2 * sum(letter in "GrF" for letter in left)
        assert [row["capacity"] for row in made] == [64, 65] * lives
        for row in made:
            assert letters[row["seq"]] == "G"
            assert row["granted_ns"] <= row["torn_ns"] <= row["ended_ns"]
            assert (row["released_ns"] is not None) == (told == "GNRTLE")


def test_every_kind_is_projected_alike() -> None:
    every = events_of_every_kind()
    starts = [one for one in every if isinstance(one, e.NodeStarted)]
    records = [*starts, *lease_life(1), *every, renewal(1), *starts, *every[::-1], renewal(9)]
    records += [REFUSED_OF_A_KIND, renewal(1), REFUSED_OF_A_KIND]
    frames = sealed([(one, moment_at(at)) for at, one in enumerate(records)])
    for size in (1, 7, 1000):
        compare(frames, size)
    compare(sealed([(renewal(1), moment_at(3)), (starts[0], moment_at(4))]), 1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_subject_is_projected_alike(draw: st.DataObject) -> None:
    """Names of any length and letters, many allotments, numbers at their edges."""
    numbers = st.sampled_from([0, 1, 127, 128, 255, 65_536, 2**32, 2**53, 2**56])
    names = st.text(max_size=40) | st.sampled_from(["", "a" * 15, "a" * 16, "a" * 31, "a" * 300])
    tags = st.none() | st.builds(AccountingTag, names, names, names, names, numbers)
    allotments = st.builds(
        Allotment,
        names,
        st.sampled_from(ResourceKind),
        st.none() | st.sampled_from(TierKind),
        numbers,
    )
    records = []
    for at in range(draw.draw(st.integers(1, 6))):
        event = renewal(draw.draw(st.integers(0, 3)))
        whose = msgspec.structs.replace(
            event.subject,
            tenant=draw.draw(names),
            tag=draw.draw(tags),
            allotments=tuple(draw.draw(st.lists(allotments, max_size=20))),
        )
        moved = {name: draw.draw(numbers | st.just(2**64 - 1)) for name in ("effective_ns",)}
        moved["deadline_ns"] = draw.draw(numbers | st.just(2**64 - 1))
        records.append((msgspec.structs.replace(event, subject=whose, **moved), moment_at(at)))
    compare(sealed(records), draw.draw(st.integers(1, 6)))


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.integers(1, 59), max_size=50),
    st.integers(1, 30),
    st.integers(1, 20),
    st.integers(-1, 9),
)
def test_removed_records_leave_gaps_and_blocks_their_places(
    gone: set[int], size: int, chunk: int, few: int
) -> None:
    """What is left after retention, in the very blocks that it had: as `observe` projects it. What
    is a `few` rows is in `.rare`, the rest in files."""
    started = [one for one in events_of_every_kind() if isinstance(one, e.NodeStarted)]
    records = [*started, *(renewal(at) for at in range(59))]
    frames = sealed([(one, moment_at(at)) for at, one in enumerate(records)])
    kept = [frame for at, frame in enumerate(frames) if at not in gone]
    with small_blocks(size, few), TemporaryDirectory() as made:
        log = blocks.LogBlocks(Path(made), "ab" * 16)
        log.log_id = LOG_ID.hex()
        sidecars = log.extend(cut(kept, chunk), [])
        carry, judged = Carry(), []
        stream = list(events_of(b"".join(kept)))
        while stream:
            end, projector = (len(judged) + 1) * size, Projector(log.number, carry)
            while stream and stream[0][0] < end:
                projector.observe(*stream.pop(0))
            block = projector.block()
            carry = msgspec.structs.replace(block.carry, next_seq=end) if stream else block.carry
            judged.append(msgspec.structs.replace(block, carry=carry))
        assert len(sidecars) == len(judged)
        for index, (ours, theirs) in enumerate(zip(sidecars, judged, strict=True)):
            assert (ours.rare, ours.carry) == (theirs.rare, theirs.carry)
            for name, table in blocks.arrow_tables(theirs).items():
                paths, batches = log.rows(sidecars[: index + 1])[name]
                if table.num_rows <= few:
                    assert batches[-1] == blocks.batch_bytes(table)
                    assert blocks.batched(name, batches[-1:]).equals(table)
                else:
                    assert paths[-1].read_bytes() == blocks.parquet_bytes(table)
        assert log.sidecars() == log.whole(log.sidecars()) == sidecars


@contextmanager
def small_blocks(size: int, few: int = blocks.SMALL_ROWS) -> Iterator[None]:
    """Blocks of another size, for a while, and another number of rows for `.rare`."""
    before = blocks.BLOCK_RECORDS, blocks.SMALL_ROWS
    blocks.BLOCK_RECORDS, blocks.SMALL_ROWS = size, few  # type: ignore[misc]
    try:
        yield
    finally:
        blocks.BLOCK_RECORDS, blocks.SMALL_ROWS = before  # type: ignore[misc]


def test_a_record_that_is_none_is_refused() -> None:
    frames = b"".join(sealed([(renewal(at), moment_at(at)) for at in range(4)]))
    length = len(frames) // 4
    for damaged in (
        frames[: 2 * length + 90],
        frames[: 2 * length] + b"\0" * length,
        frames[: 2 * length + 8] + b"\xff" + frames[2 * length + 9 :],
    ):
        with pytest.raises(ChainError):
            FrameProjector(NUMBER, Carry(), LOG_ID).take(damaged, 0, 100)
