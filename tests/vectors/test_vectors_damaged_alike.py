# SPDX-License-Identifier: Apache-2.0
"""Files of a log damaged and exchanged in any order: both verifiers come to the same verdict, also
of what lies beyond the anchor."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from leased.durable.reader import read_log
from leased.terms.errors import LeasedError
from tests.doubles.logs import moment_at, open_in, renewal, started
from tests.vectors import verify_independent as independent

Files = dict[str, bytes]
BATCHES = 26
ROUNDS = 500


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """A log of several segments as it lay on disk after each of its batches."""
    directory = tmp_path_factory.mktemp("grown") / "log"
    log, number, found = open_in(directory), 0, []
    sealer = log.sealer()
    for count in range(BATCHES):
        items = [] if count else [(started(), moment_at(0))]
        for _ in range(1 + count * 5 % 11):
            items.append((renewal(number), moment_at(count)))
            number += 1
        batch = sealer.seal(items)
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(count))
        names = ("log.id", "anchor", *(path.name for path in directory.glob("seg-*")))
        found.append({name: (directory / name).read_bytes() for name in names})
    log.close()
    return found


class Hand:
    """Whoever damages the files of state `at`."""

    def __init__(self, states: list[Files], draw: random.Random) -> None:
        self.states, self.draw = states, draw
        self.at = draw.randrange(len(states))
        self.files = dict(states[self.at])

    def segments(self) -> list[str]:
        return sorted(name for name in self.files if name.startswith("seg-"))

    def another(self) -> Files:
        """The files as they were a little before or after."""
        at = self.at + self.draw.choice((-2, -1, 1, 2, 3))
        return self.states[max(0, min(at, BATCHES - 1))]

    def put(self, name: str, at: int, data: bytes) -> None:
        old = self.files[name]
        self.files[name] = (old[:at] + data + old[at + len(data) :])[: len(old)]

    def anchor(self) -> None:
        self.files["anchor"] = self.another()["anchor"]

    def slot(self) -> None:
        self.put("anchor", 4096 * self.draw.randrange(2), bytes(4096))

    def later_segments(self) -> None:
        self.files |= {name: data for name, data in self.another().items() if name != "anchor"}

    def bit(self) -> None:
        name = self.draw.choice(sorted(name for name, data in self.files.items() if data))
        at = self.draw.randrange(len(self.files[name]))
        self.put(name, at, bytes([self.files[name][at] ^ 1 << self.draw.randrange(8)]))

    def header(self) -> None:
        """A field of a header, with the hash that belongs to it."""
        name = self.draw.choice(self.segments())
        self.put(name, self.draw.randrange(97), bytes([self.draw.randrange(256)]))
        self.put(name, 4064, hashlib.sha256(self.files[name][:4064]).digest())

    def garbage(self) -> None:
        """Something beyond the frames."""
        name = self.draw.choice(self.segments())
        end = (len(self.files[name].rstrip(b"\0")) + 7) & -8
        far = self.draw.choice((0, 1, 4, 8, 16, 112, 400))
        self.put(name, end + far, self.draw.randbytes(self.draw.choice((1, 4, 16, 200))))

    def frames(self) -> None:
        """What came later, behind something torn."""
        name, then = self.segments()[-1], self.another()
        end = (len(self.files[name].rstrip(b"\0")) + 7) & -8
        torn = b"\xff" * self.draw.choice((0, 8, 64))
        if name in then:
            tail = then[name][end + 8 * self.draw.randrange(60) :].rstrip(b"\0")
            self.put(name, end, torn + tail)

    def length(self) -> None:
        name = self.draw.choice(self.segments())
        data = self.files[name]
        shorter = self.draw.choice((0, 100, 4095, 4096, 4100, 8000, len(data) - 1))
        self.files[name] = self.draw.choice(
            (data[:shorter], data + b"x", data + bytes(8), data + bytes(4096) + b"y")
        )

    def name(self) -> None:
        name = self.draw.choice(self.segments())
        data = self.files[name] if self.draw.random() < 0.5 else self.files.pop(name)
        if self.draw.random() < 0.7:
            self.files[f"seg-{self.draw.choice((1, 50, 2**40, 2**64 - 1)):016x}.log"] = data

    def acts(self) -> list[Callable[[], None]]:
        # One that takes the last segment away leaves nothing for most of the others.
        on_segments = [self.header, self.garbage, self.frames, self.length, self.name]
        return [self.anchor, self.slot, self.later_segments, self.bit] + (
            on_segments if self.segments() else []
        )


def ours(directory: Path) -> tuple[object, str]:
    try:
        opened = read_log(directory, signatures=False)
    except LeasedError as error:
        return None, str(error)
    opened.close()
    return (opened.head.size, opened.head.hash.hex()), "it holds"


def theirs(directory: Path) -> tuple[object, str]:
    try:
        return independent.verify(directory, signatures=False), "it holds"
    except independent.Broken as error:
        return None, str(error)


def test_both_say_the_same_of_a_damaged_log(states: list[Files], tmp_path: Path) -> None:
    seen = [0, 0]
    for number in range(ROUNDS):
        hand = Hand(states, random.Random(number))
        for _ in range(1 + number % 3):
            hand.draw.choice(hand.acts())()
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, data in hand.files.items():
            (directory / name).write_bytes(data)
        (found, why), (other, their_why) = ours(directory), theirs(directory)
        assert found == other, f"seed {number}: {why} | {their_why}"
        seen[found is not None] += 1
        for path in directory.iterdir():
            path.unlink()
    assert min(seen) > ROUNDS // 10


def test_what_was_appended_to_a_closed_segment_is_told_as_that(
    states: list[Files], tmp_path: Path
) -> None:
    for name, data in states[-1].items():
        (tmp_path / name).write_bytes(data)
    first = min(tmp_path.glob("seg-*"))
    first.write_bytes(first.read_bytes() + b"x")
    _, why = ours(tmp_path)
    assert "CORRUPT_RECORD" in why and "anchored end" not in why
