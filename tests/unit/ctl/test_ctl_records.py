# SPDX-License-Identifier: Apache-2.0
"""What `audit export` writes is there whole or not at all, and a lease whose id is digits alone is
a lease to `audit prove`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from leased.chain import canonical
from leased.ctl.console import Console
from leased.ctl.main import main
from leased.ctl.proofs import _sequence
from leased.ctl.whole_file import put_whole, write_whole
from leased.durable.anchor import SLOT_BYTES, slot_offset
from leased.durable.copied import copy_log
from leased.durable.files import DirectoryDisk
from leased.durable.reader import read_log
from leased.terms.errors import NoSuchLease, StateError
from leased.terms.event import KIND
from tests.doubles.logs import (
    allocation,
    moment_at,
    open_in,
    renewal,
    started,
    subject,
    write_batches,
)
from tests.vectors import rebuilt


def leasectl(*words: object) -> tuple[int, str]:
    console = Console(io.StringIO(), io.StringIO())
    status = main([str(word) for word in words], console)
    assert isinstance(console.err, io.StringIO)
    return status, console.err.getvalue()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Of several segments."""
    opened = open_in(tmp_path / "log")
    write_batches(opened, [20] * 10)
    opened.close()
    return tmp_path / "log"


def harmed(log: Path) -> None:
    segment = sorted(log.glob("seg-*"))[1]
    raw = bytearray(segment.read_bytes())
    raw[5000] ^= 1
    segment.write_bytes(raw)


@pytest.mark.parametrize("form", ["jsonl", "frames"])
def test_what_was_there_stays_unless_all_is_there(log: Path, tmp_path: Path, form: str) -> None:
    file, words = tmp_path / "out", ("audit", "export", "--log", log, "--format", form)
    file.write_text("of yesterday")
    assert leasectl(*words, "--from", "-1", file)[0] == 65
    assert leasectl(*words, "--lease", "zz", file)[0] == 65
    assert leasectl(*words, log / "anchor")[0] == 65, "the log is not written over"
    assert leasectl(*words, tmp_path / "no" / "where")[0] == 74
    assert file.read_text() == "of yesterday"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert leasectl(*words, link)[0] == 0 and link.is_symlink()
    assert file.stat().st_size > 1000
    whole = file.read_bytes()
    harmed(log)
    status, err = leasectl(*words, file)
    assert status == 65 and "CORRUPT" in err and file.read_bytes() == whole
    assert leasectl(*words, tmp_path / "new")[0] == 65
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "log", "out"]


@pytest.mark.parametrize("words", [("--lease", "f" * 32), ("--tenant", "nobody")])
@pytest.mark.parametrize("verb", [("log",), ("export", "-")])
def test_who_is_in_no_record_has_no_empty_history(
    log: Path, verb: tuple[str, ...], words: tuple[str, ...]
) -> None:
    status, err = leasectl("audit", *verb, "--log", log, *words)
    assert status == 66 and f"{words[1]} is in this log" in err
    assert leasectl("audit", *verb, "--log", log, "--tenant", "research", "--last", "0")[0] == 0


def test_an_interrupt_leaves_nothing_behind(log: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("of yesterday")
    with pytest.raises(KeyboardInterrupt), put_whole(tmp_path / "out") as file:
        file.write(b"half of it")
        raise KeyboardInterrupt
    assert (tmp_path / "out").read_text() == "of yesterday"
    assert not (tmp_path / "out.new").exists()


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("of somebody else")
    (tmp_path / "out.new").symlink_to(tmp_path / "victim")
    write_whole(tmp_path / "out", b"a bill")
    assert (tmp_path / "victim").read_text() == "of somebody else"
    assert (tmp_path / "out").read_bytes() == b"a bill" and not (tmp_path / "out").is_symlink()


@contextmanager
def opened(log: Path, disk: DirectoryDisk) -> Iterator[Any]:
    found = read_log(log)
    try:
        yield found.facts
    finally:
        found.close()
        disk.close()


class Going(DirectoryDisk):
    """A disk whose second segment is pruned while it is copied, or whose reader is interrupted."""

    def __init__(self, directory: Path, error: BaseException) -> None:
        super().__init__(directory)
        self.error, self.left = error, 2

    def read(self, name: str, *, direct: bool = False) -> bytes:
        if name.startswith("seg-"):
            self.left -= 1
            if not self.left:
                raise self.error
        return super().read(name, direct=direct)


@pytest.mark.parametrize("there", [False, True])
def test_a_copy_that_cannot_be_finished_is_taken_away(
    log: Path, tmp_path: Path, there: bool
) -> None:
    copy = tmp_path / "copy"
    if there:
        copy.mkdir()
    for error, told in (
        (FileNotFoundError(2, "No such file or directory"), StateError),
        (OSError(28, "No space left on device"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        disk = Going(log, error)
        with opened(log, disk) as facts, pytest.raises(told):
            copy_log(disk, facts, copy)
        assert copy.exists() == there and not (there and list(copy.iterdir()))
    assert leasectl("audit", "export", "--log", log, "--format", "log", copy)[0] == 0
    read_log(copy).close()


def test_a_copy_of_a_log_that_is_just_switching_segments_holds(tmp_path: Path) -> None:
    """The next segment has its name before the anchor says so, and grows while it is copied."""
    log, number = open_in(tmp_path / "log"), 0
    sealer, anchor = log.sealer(), tmp_path / "log" / "anchor"

    def go_on() -> None:
        nonlocal number
        at, event = moment_at(number), renewal(number) if number else started()
        batch = sealer.seal([(event, at)])
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
        number += 1

    while not log.journal.anchored.segment_no:
        go_on()
    raw, newest = anchor.read_bytes(), slot_offset(log.journal.anchored)
    anchor.write_bytes(raw[:newest] + bytes(SLOT_BYTES) + raw[newest + SLOT_BYTES :])
    read = read_log(tmp_path / "log")
    anchor.write_bytes(raw)
    assert read.facts.live and read.facts.slot.segment_no == 0
    for _ in range(4):
        go_on()
    copy_log(DirectoryDisk(tmp_path / "log"), read.facts, tmp_path / "copy")
    copied = read_log(tmp_path / "copy")
    assert copied.head == read.head and copied.facts.segments == read.facts.segments
    for one in (copied, read, log):
        one.close()


def test_a_log_that_switches_segments_while_it_is_verified_holds(tmp_path: Path) -> None:
    log = open_in(tmp_path / "log")
    sealer, numbers = log.sealer(), iter(range(1, 1000))

    class Going(DirectoryDisk):
        """The writer goes on, into the next segment, just before the anchor is read."""

        def read(self, name: str, *, direct: bool = False) -> bytes:
            while name == "anchor" and log.journal.anchored.next_seq < 60:
                number = next(numbers)
                batch = sealer.seal([(renewal(number), moment_at(number))])
                at = moment_at(number)
                log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
            return super().read(name, direct=direct)

    read = read_log(tmp_path / "log", disk=Going(tmp_path / "log"))
    assert read.facts.slot.segment_no > 0 and read.head == log.journal.head
    read.close()
    log.close()


def test_a_segment_that_goes_while_it_is_verified_is_told(log: Path) -> None:
    disk = Going(log, FileNotFoundError(2, "No such file or directory", "seg-1"))
    with pytest.raises(StateError, match="seg-1 was removed meanwhile: ask again"):
        read_log(log, disk=disk)


class Agent:
    """It has two leases and knows what granted them."""

    known = {"12345678" + "ab" * 12: 7, "ffee0011" + "cd" * 12: 9}

    async def leases(self, *, closed: bool) -> Any:
        assert closed
        return SimpleNamespace(
            leases=[SimpleNamespace(lease_id=one) for one in self.known], waiting=[]
        )

    async def describe(self, lease_id: str) -> Any:
        return SimpleNamespace(runtime=SimpleNamespace(granted_sequence=self.known[lease_id]))


@pytest.mark.parametrize(
    ("text", "sequence"),
    [("12345678", 7), ("12345679", 12345679), ("1234", 1234), ("ffee", 9), ("0", 0)],
)
async def test_digits_that_are_shown_of_a_lease_are_one(text: str, sequence: int) -> None:
    assert await _sequence(Agent(), text) == sequence  # type: ignore[arg-type]


async def test_what_is_neither(text: str = "1234567890123456") -> None:
    with pytest.raises(NoSuchLease):
        await _sequence(Agent(), text)  # type: ignore[arg-type]


def test_no_name_of_a_log_begins_a_line(tmp_path: Path) -> None:
    """Whoever has the node writes what he likes: not what an auditor takes for our words."""
    forged = "x\n      99  2026-01-01T00:00:00.000Z  Released"
    granted = msgspec.structs.replace(
        allocation(1), subject=msgspec.structs.replace(subject(), tenant=forged, cgroup=forged)
    )
    rebuilt.write(
        tmp_path, [(KIND[type(one)], 1, canonical.encode(one)) for one in (started(), granted)]
    )
    identity = (tmp_path / "log.id").read_bytes()
    origin = b"x\nquorum  the first 2 records"
    fields = identity[:144] + len(origin).to_bytes(2, "little") + origin
    (tmp_path / "log.id").write_bytes(rebuilt.closed(fields, 512))
    for words, lines in ((("audit", "log"), 2), (("verify",), 4)):
        console = Console(io.StringIO(), io.StringIO())
        assert main([*words, "--log", str(tmp_path)], console) == 0
        assert isinstance(console.out, io.StringIO)
        said = console.out.getvalue().splitlines()
        assert len(said) == lines
        assert not any(one.startswith(("quorum", "      99")) for one in said)
