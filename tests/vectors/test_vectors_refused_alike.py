# SPDX-License-Identifier: Apache-2.0
"""What one verifier refuses the other refuses, too: every field of every body, of `log.id`, of a
segment's header and of the anchor put to its edges with all hashes made right again, and seals,
starts and leases in any order. FORMAT.md says each of these rules, or neither may have it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.chain import canonical
from leased.chain.epochs import EpochKey
from leased.durable.reader import Enrolled, read_log
from leased.terms import event as e
from leased.terms.errors import ChainError, LeasedError
from leased.terms.event import KIND
from tests.doubles.logs import (
    PRUNED_PAST_KEYS,
    REFUSED_OF_A_KIND,
    events_of_every_kind,
    open_in,
    started,
    write_batches,
)
from tests.vectors import rebuilt
from tests.vectors import verify_independent as independent
from tests.vectors.test_vectors_chain import _golden

EPOCH_NS = 10
KEY = b"k" * 32
FIELDS = ("epoch", "skipped", "begin", "end", "first", "size", "root", "tag")
LIVES = (
    (16, 19, 23, 24, 25, 26),
    (16, 31, 17, 18, 22, 17, 20, 23, 27, 28),
    (16, 29, 30, 21, 23, 24, 27),
)
INTEGERS = (-1, 0, 1, 31, 63, 64, 2**32, 2**56, 2**56 + 1, 2**63, 2**64 - 1, -(2**63))
KINDS = {number: event for event, number in KIND.items()}


def others(value: Any) -> Iterator[Any]:
    """What may stand in place of a value: others of its type at the edges, and of other types."""
    yield from (None, True, 5, b"", "x", [])
    if isinstance(value, int):
        yield from (*INTEGERS, value + 1 if value < 2**64 - 1 else value - 1)
    elif isinstance(value, bytes):
        yield from (value[:-1], value + b"\0", b"a" * 16, b"b" * 32, b"c" * 64, value.hex())
    elif isinstance(value, str):
        yield from ("", "\0", value + "x", "y" * 300, value.encode())
    elif isinstance(value, list):
        yield from (value[:-1], [*value, *value[-1:]], [*value, None], [*value, 0], value[::-1])


def mutated(value: Any) -> Iterator[Any]:
    """The value once for each that may stand in place of it, or of one within it."""
    yield from others(value)
    if isinstance(value, list):
        for at, one in enumerate(value):
            for other in mutated(one):
                yield [*value[:at], other, *value[at + 1 :]]


@pytest.mark.parametrize(
    "event",
    [*events_of_every_kind(), PRUNED_PAST_KEYS, REFUSED_OF_A_KIND],
    ids=lambda one: type(one).__name__,
)
def test_a_field_of_a_body(event: e.Event) -> None:
    kind, schema = KIND[type(event)], canonical.schema_of(event)
    refused = taken = 0
    for value in mutated(msgspec.msgpack.decode(canonical.encode(event))):
        body = msgspec.msgpack.encode(value)
        try:
            canonical.decode(kind, schema, body)
            ours = True
        except ChainError:
            ours = False
        found, end = independent.take(body, 0)
        theirs = end == len(body) and independent.fits(found, independent.SCHEMAS[schema][kind])
        assert ours == theirs, f"{value!r}: {'taken' if ours else 'refused'} by leasectl verify"
        refused, taken = refused + (not ours), taken + ours
    assert refused > 10 and (taken or kind == KIND[e.Released])


def agree(directory: Path, **checks: Any) -> bool:
    """Whether both say that it holds. AssertionError where they differ."""
    enrolled = Enrolled(seal_key=EpochKey(0, checks["seal_key"]) if "seal_key" in checks else None)
    words = {name: value for name, value in checks.items() if name != "seal_key"}
    try:
        read_log(directory, enrolled=enrolled, **words).close()
        ours = "it holds"
    except LeasedError as error:
        ours = str(error)
    try:
        independent.verify(directory, **checks)
        theirs = "it holds"
    except independent.Broken as error:
        theirs = str(error)
    assert (ours == "it holds") == (theirs == "it holds"), f"{ours} | {theirs}"
    return ours == "it holds"


def again(block: bytes) -> bytes:
    """With the hash of all before it as its last 32 bytes."""
    return block[:-32] + hashlib.sha256(block[:-32]).digest()


def slots(raw: bytes) -> bytes:
    """An anchor whose slots say twice what the first copy of each says."""
    copies = [again(raw[at : at + 512]) + raw[at + 512 : at + 2048] for at in (0, 4096)]
    return b"".join(copy * 2 for copy in copies)


BLOCKS: dict[str, tuple[Callable[[bytes], bytes], int, tuple[int, ...]]] = {
    # the hash made right, how far the fields go, and where each begins
    "log.id": (again, 480, (0, 8, 10, 12, 16, 32, 64, 72, 80, 112, 144, 146, 190, 472)),
    rebuilt.SEGMENT: (
        lambda raw: again(raw[:4096]) + raw[4096:],
        4064,
        (0, 8, 10, 12, 16, 32, 40, 48, 80, 88, 89, 96, 4056),
    ),
    "anchor": (
        slots,
        4096 + 520,
        (*range(0, 128, 8), 136, 472, 512, *range(4096, 4096 + 128, 8), 4096 + 136, 4096 + 512),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_field_of_what_is_written_once_or_in_place(tmp_path: Path, name: str) -> None:
    for file, content in _golden().items():
        (tmp_path / file).write_bytes(content)
    path, (mend, end, begins) = tmp_path / name, BLOCKS[name]
    good, seen = path.read_bytes(), set()
    assert agree(tmp_path, signatures=False)
    for at, following in zip(begins, [*begins[1:], end], strict=True):
        size = min(following - at, 8)
        value = int.from_bytes(good[at : at + size], "little")
        for other in (0, 1, 2, -1, value ^ 1, value + 1, value ^ 1 << 8 * size - 1):
            new = (other % (1 << 8 * size)).to_bytes(size, "little")
            path.write_bytes(mend(good[:at] + new + good[at + size :]))
            seen.add(agree(tmp_path, signatures=False))
    assert seen == {True, False}


def test_a_segment_has_the_name_that_its_header_says(tmp_path: Path) -> None:
    """Readers find records by the names: with another one they would be shown others than were
    verified."""
    log = open_in(tmp_path / "log")
    write_batches(log, [20] * 10)
    log.close()
    second = sorted((tmp_path / "log").glob("seg-*"))[1]
    assert agree(tmp_path / "log", signatures=False)
    earlier = second.with_name(f"seg-{int(second.name[4:20], 16) - 3:016x}.log")
    second.rename(earlier)
    assert not agree(tmp_path / "log", signatures=False)
    with pytest.raises(ChainError, match="the name is not that of a segment"):
        open_in(tmp_path / "log")


# ---- orders ----


def sealed_history(draw: random.Random) -> list[tuple[int, int, Any]]:
    """Two boots of a log whose epochs are sealed by the rules; a seal is a table of its fields."""
    now, boots = draw.randrange(5), [bytes([number]) * 16 for number in range(2)]
    this = {"epoch": 0, "boot": boots[0], "begin": now, "first": 0}
    end, told = now + EPOCH_NS, [(1, now, boots[0])]

    def seal(at: int) -> None:
        nonlocal end
        skipped = max(0, at - end) // EPOCH_NS
        end += skipped * EPOCH_NS
        told.append((66, at, {**this, "skipped": skipped, "end": end}))
        this.update(epoch=this["epoch"] + skipped + 1, begin=end, first=len(told) - 1)
        end += EPOCH_NS

    for _ in range(draw.randrange(3, 12)):
        now += draw.choice((0, 1, 6, 11, 25))
        if this["boot"] == boots[0] and draw.random() < 0.2:
            if draw.random() < 0.5:
                seal(end)
            now = draw.randrange(4)
            end = now + draw.randrange(1, EPOCH_NS + 1)
            this["boot"] = boots[1]
            told.append((1, now, boots[1]))
            continue
        if now >= end:
            seal(now)
        told.append((2, now, None))
    return told


def disturb(told: list[tuple[int, int, Any]], draw: random.Random) -> None:
    """One change."""
    at, how = draw.randrange(len(told)), draw.randrange(6)
    if how == 0 and len(told) > 1:
        told.pop(at)
    elif how == 1:
        told.insert(draw.randrange(len(told)), told[at])  # a NodeStarted or a seal, twice
    elif how == 2:
        told.insert(draw.randrange(len(told)), told.pop(at))
    elif how == 3:
        kind, when, what = told[at]
        told[at] = kind, max(0, when + draw.choice((-20, -1, 1, 20, 2**40))), what
    else:
        seals = [index for index, one in enumerate(told) if one[0] == 66]
        if seals:
            which, field = draw.choice(seals), draw.choice(FIELDS)
            kind, when, what = told[which]
            by = draw.choice((-1, 1, -EPOCH_NS, EPOCH_NS, 2**40))
            told[which] = kind, when, {**what, field: what.get(field, 0) + by}


def seal_body(what: dict[str, Any]) -> Callable[[int, bytes], bytes]:
    """The body, with the MAC that belongs to it unless `tag` says otherwise."""

    def body(sequence: int, root: bytes) -> bytes:
        order = (what["epoch"], what["skipped"], what["boot"], what["begin"], what["end"], 5, 6)
        size, root = sequence + what.get("size", 0), bytes(32) if "root" in what else root
        bare = e.EpochSealed(started().event_id, *order, what["first"], size, root, bytes(32))
        sayable = min(what["epoch"], what["skipped"], what["first"], size) >= 0
        if "tag" not in what and sayable and what["epoch"] < 500:
            key = EpochKey(0, KEY).evolved(what["epoch"])
            bare = msgspec.structs.replace(bare, tag=key.tag(rebuilt.LOG_ID, bare))
        return canonical.encode(bare)

    return body


def test_seals_and_starts_in_any_order(tmp_path: Path) -> None:
    draw, seen = random.Random(7), [0, 0]
    for number in range(300):
        told = sealed_history(draw)
        for _ in range(number % 3):
            disturb(told, draw)
        entries: list[rebuilt.Entry] = []
        for kind, when, what in told:
            start = msgspec.structs.replace(started(), boot_id=what) if kind == 1 else None
            plain = canonical.encode(start or e.NodeStopped(started().event_id, 1))
            entries.append((kind, when, seal_body(what) if kind == 66 else plain))
        rebuilt.write(tmp_path, entries, EPOCH_NS)
        for key in ({}, {"seal_key": KEY}):
            holds = agree(tmp_path, signatures=False, **key)
            assert holds or number % 3, "what follows the rules holds"
            seen[holds] += 1
    assert min(seen) > 100


def test_leases_countersignatures_and_later_kinds_in_any_order(tmp_path: Path) -> None:
    draw, seen = random.Random(11), [0, 0]
    sample = {KIND[type(event)]: event for event in events_of_every_kind()}
    for number in range(300):
        lives = [list(draw.choice(LIVES))[: draw.randrange(1, 11)] for _ in range(2)]
        for _ in range(number % 3):
            life = draw.choice(lives)
            at = draw.randrange(len(life) + 1)
            life[at : at + draw.randrange(2)] = [draw.randrange(16, 32)] * draw.randrange(2)
        entries: list[rebuilt.Entry] = [(1, 1, canonical.encode(started()))]
        while any(lives):
            which = draw.choice([index for index, life in enumerate(lives) if life])
            event = msgspec.structs.replace(
                sample[lives[which].pop(0)], lease_id=bytes([which]) * 16
            )
            entries.append((KIND[type(event)], 1, canonical.encode(event)))
        entries.insert(draw.randrange(1, len(entries) + 1), (9999, 1, b"\xff of a later release"))
        size = draw.choice((len(entries), len(entries), -1, len(entries) - 1, 2**40, -(2**63)))

        def countersigned(sequence: int, root: bytes, size: int = size) -> bytes:
            fields = (size, root, 7, -5, bytes(64))
            return canonical.encode(e.HeadCountersigned(started().event_id, *fields))

        entries.append((8, 1, countersigned))
        rebuilt.write(tmp_path, entries)
        for checks in ({"leases": True}, {"countersigned": True}):
            seen[agree(tmp_path, signatures=False, **checks)] += 1
    assert min(seen) > 100
