# SPDX-License-Identifier: Apache-2.0
"""A log whose key was replaced is pruned like any other: what goes is said anew, so whoever begins
to read there comes to the key in force from the first one on; and whatever else is said is refused,
by the agent at its start, by both verifiers and by a collector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from leased.chain.keys import changes_max
from leased.chain.sealer import SealedBatch
from leased.chain.segment import HEADER_BYTES, geometry
from leased.chain.signing import Signer, rotation_message
from leased.chain.verifier import Verifier, verify
from leased.durable.reader import ReadLog, read_log
from leased.durable.retention import Removal
from leased.durable.scan import segment_names
from leased.durable.writer import PRUNED, kinds
from leased.terms import event as e
from leased.terms.errors import ChainError, StateError
from leased.terms.moment import Moment
from tests.crash.living import ID, SEGMENT_BYTES, Life
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import acknowledged, started
from tests.vectors import verify_independent
from tests.vectors.c2sp_independent import Broken

Changes = tuple[e.KeyChange, ...]


class Rotated(Life):
    """A life that remembers all that it sealed, as a collector does."""

    def __init__(self) -> None:
        self.memory, self.runs = MemoryDisk(), 0
        self.pulled = b""
        self.rotations: list[int] = []
        super().__init__(self.memory.directory, 0, disk=self.memory)
        self.first_key = self.log.signer.public_key
        self.commit([started()])

    def seal(self, events: list[e.Event], moment: Moment) -> SealedBatch:
        self.events = events
        return super().seal(events, moment)

    def settle(self, batch: SealedBatch) -> None:
        self.log.note(self.events, batch.sequences)
        super().settle(batch)
        self.pulled += batch.frames

    def rotate(self) -> None:
        self.rotations.append(self.sealer.head.size)
        super().rotate()

    def grow(self) -> None:
        """By some segments."""
        for _ in range(9):
            self.commit(self.lives(5))

    def again(self) -> None:
        """A clean stop, and a start."""
        self.log.close()
        self.memory.closed = False
        self.runs += 1
        super().__init__(self.memory.directory, self.runs, disk=self.memory)
        self.commit([started()])

    def removal(self, begins: int = 1 << 62) -> Removal | None:
        """What may go, of what is before record `begins`."""
        log, size = self.log, min(self.sealer.head.size, begins)
        return log.removal(acked_size=size, older_than_wall_ns=2**62, pressed=True)

    def prune(self, begins: int = 1 << 62, said: Callable[[Changes], Changes] = tuple) -> int:
        """Let go what may go, and say something of the keys; where the log begins then."""
        removal, events = self.said(begins, said)
        self.commit(events)
        self.log.remove(removal)
        return removal.min_seq

    def said(
        self, begins: int = 1 << 62, said: Callable[[Changes], Changes] = tuple
    ) -> tuple[Removal, list[e.Event]]:
        """What is to go, and what is sealed of it."""
        removal, size = self.removal(begins), self.sealer.head.size
        assert removal is not None
        self.log.stage(removal)
        fields = (removal.min_seq, removal.head, len(removal.names), size)
        pruned = e.Pruned(ID, *fields, said(removal.key_changes))
        return removal, [started(), acknowledged(self.log, size), pruned]

    def killed_before_the_anchor(self) -> int:
        """While it prunes: the record is on the disk, and no slot says so. Where the log was to
        begin."""
        removal, events = self.said()
        moment = self.now()
        batch, writer = self.seal(events, moment), self.log._writer
        for part in writer.parts(batch.frames, batch.count, batch.head, moment):
            writer.begin()
            writer.append(part)
            if PRUNED in kinds(part.data):  # the last of them
                break
            writer.anchor.write(part.slot)
            writer.settle(part)
            if part.ends_segment:
                writer.switch(moment)
        self.pulled += batch.frames
        return removal.min_seq

    def collected(self) -> Verifier:
        """What a collector makes of it, which has pulled everything."""
        options = {"origin": self.log.origin, "public_key": self.first_key}
        verifier = Verifier(self.log.log_id, **options, epoch_ns=self.log.identity.epoch_ns)
        verify([self.pulled], verifier)
        return verifier

    def copied(self, directory: Path) -> Path:
        """The directory of the log, on a disk."""
        directory.mkdir()
        for name, data in self.memory.contents().items():
            (directory / name).write_bytes(data)
        return directory

    def read(self) -> ReadLog:
        copy = MemoryDisk(self.memory.contents())
        return read_log(copy.directory, disk=copy, leases=True, countersigned=True)

    def holds(self, directory: Path) -> None:
        """For everybody."""
        found = self.read()
        assert found.facts.verified.public_key == self.log.signer.public_key
        assert found.facts.verified.signed_size > self.rotations[-1]
        assert found.facts.verified.unknown == 0
        copy = self.copied(directory)
        told = verify_independent.verify(copy, leases=True, countersigned=True)
        assert told == (found.head.size, found.head.hash.hex())
        verified = self.collected().verified()
        assert verified.head == found.head and verified.public_key == self.log.signer.public_key


def test_a_log_is_pruned_past_its_rotations(tmp_path: Path) -> None:
    life = Rotated()
    for _ in range(2):
        life.grow()
        life.rotate()
    life.grow()
    begins = life.prune()
    assert begins > life.rotations[-1], "an older release kept everything from the first on"
    life.holds(tmp_path / "pruned")
    life.again()
    life.holds(tmp_path / "opened again")
    # And on: what is said anew is said anew again, with what came since.
    life.rotate()
    life.grow()
    life.again()
    life.grow()
    assert begins < life.rotations[-1] < life.prune()
    life.holds(tmp_path / "pruned again")
    life.again()
    life.grow()
    life.prune()
    life.holds(tmp_path / "and again")


def test_a_crash_before_the_anchor_of_a_pruning_costs_nothing(tmp_path: Path) -> None:
    """Its record is kept, so the log begins where that says. It went on to begin where it had,
    which its last Pruned denied: the next start refused it (GAP), unless this one pruned again."""
    life = Rotated()
    for number in range(2):
        life.rotate()
        life.grow()
        begins = life.killed_before_the_anchor()
        assert life.log.journal.anchored.min_seq < begins
        for _ in range(2):
            life.again()
            assert life.log.journal.anchored.min_seq == begins > life.rotations[-1]
        assert min(segment_names(life.memory.names())) == f"seg-{begins:016x}.log"
        life.holds(tmp_path / str(number))


def test_what_has_its_first_key_says_nothing_anew() -> None:
    """It is sealed as every release did."""
    life = Rotated()
    life.grow()
    life.rotate()
    begins = life.prune(life.rotations[0])
    assert begins <= life.rotations[0]
    [pruned] = [one for one in life.read().records() if one.kind == e.KIND[e.Pruned]]
    assert pruned.schema == 1
    life.collected()


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_log_may_begin_right_at_a_rotation(where: str, tmp_path: Path) -> None:
    life = Rotated()
    life.grow()
    life.rotate()
    to = {"first": lambda slot: slot.end_offset == HEADER_BYTES}
    to["last"] = lambda slot: slot.end_offset > SEGMENT_BYTES - 5000
    for _ in range(100):
        if to[where](life.log.journal.anchored):
            break
        life.commit([started()])
    number = life.log.journal.anchored.segment_no
    life.rotate()
    for _ in range(9 if where == "last" else 0):
        if life.log.journal.anchored.segment_no != number:
            break
        life.rotate()
    ended = life.log.journal.anchored.next_seq
    life.grow()
    at = life.rotations[-1]
    begins = life.prune(at if where == "first" else ended)
    assert begins == (at if where == "first" else ended)
    if where == "last":
        assert begins - at <= 3, "with a checkpoint and the end of the segment"
    life.holds(tmp_path / "log")
    life.again()
    life.holds(tmp_path / "again")


def signed(log_id: bytes, old: Signer, new: Signer) -> e.KeyChange:
    message = rotation_message(log_id, old.public_key, new.public_key)
    return e.KeyChange(new.public_key, old.sign(message), new.sign(message))


def flipped(change: e.KeyChange, field: str) -> e.KeyChange:
    value = bytearray(getattr(change, field))
    value[5] ^= 1
    return msgspec.structs.replace(change, **{field: bytes(value)})


THIEF = Signer(b"t" * 32)
ATTACKS: dict[str, Callable[[Changes], Changes]] = {
    "dropped": lambda _: (),
    "an older key": lambda said: said[:-1],
    "not from the first": lambda said: said[1:],
    "in another order": lambda said: said[::-1],
    "one twice": lambda said: (*said, said[-1]),
    "the old key did not sign": lambda said: (*said[:-1], flipped(said[-1], "signature_old")),
    "the new key did not sign": lambda said: (*said[:-1], flipped(said[-1], "signature_new")),
    "another key": lambda said: (*said[:-1], flipped(said[-1], "public_key")),
    "one that was never": lambda said: (*said, signed(b"l" * 16, THIEF, THIEF)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_else_is_said_of_the_keys_is_refused_by_all(attack: str, tmp_path: Path) -> None:
    life = Rotated()
    life.rotate()
    life.rotate()
    life.grow()
    life.prune(said=ATTACKS[attack])
    refused_by_all(life, tmp_path / "log")


def test_a_change_signed_for_another_log_is_refused_by_all(tmp_path: Path) -> None:
    life = Rotated()
    first = life.log.signer
    life.rotate()
    of_another = signed(b"another log's id", first, life.log.signer)
    life.grow()
    life.prune(said=lambda _: (of_another,))
    refused_by_all(life, tmp_path / "log")


def test_one_that_comes_after_the_beginning_is_refused_by_all(tmp_path: Path) -> None:
    """The log would be said to have had its newest key there."""
    life = Rotated()
    life.rotate()
    life.grow()
    life.rotate()
    change = life.log._key_changes[-1][1]
    begins = life.prune(life.rotations[-1], said=lambda said: (*said, change))
    assert begins <= life.rotations[-1]
    refused_by_all(life, tmp_path / "log")


def refused_by_all(life: Rotated, directory: Path) -> None:
    """By a reader of what is left, by a start, and by who has everything."""
    with pytest.raises(ChainError) as read:
        life.read()
    assert read.value.verdict == "BAD_SIGNATURE", read.value
    with pytest.raises(Broken):
        verify_independent.verify(life.copied(directory))
    with pytest.raises(ChainError) as collected:
        life.collected()
    assert collected.value.verdict == "BAD_SIGNATURE" and collected.value.sequence > 0
    files = life.memory.contents()
    life.log.close()
    life.memory.closed = False
    with pytest.raises((ChainError, StateError)):
        life.again()
    assert life.memory.contents() == files, "a refusal changes nothing"


def test_of_more_rotations_than_fit_a_record_what_fits_goes(tmp_path: Path) -> None:
    most = changes_max(geometry(SEGMENT_BYTES).frame_bytes_max)
    assert most == 11, "and 391 where segments have their usual size"
    life = Rotated()
    for count in range(most + 3):
        life.rotate()
        if count % 3 == 0:
            life.commit(life.lives(2))
    life.grow()
    begins = life.prune()
    assert life.rotations[1] < begins <= life.rotations[most]
    life.holds(tmp_path / "log")
    life.again()
    again = life.removal()
    assert again is None or again.min_seq <= life.rotations[most]


def test_as_many_as_fit_do(tmp_path: Path) -> None:
    most = changes_max(geometry(SEGMENT_BYTES).frame_bytes_max)
    life = Rotated()
    for _ in range(most):
        life.rotate()
    life.grow()
    assert life.prune() > life.rotations[-1]
    life.holds(tmp_path / "log")
