# SPDX-License-Identifier: Apache-2.0
"""The real writer on a page cache that forgets what was not synced (T7): whichever call is the last
or fails, nothing that was acknowledged is lost and no log is called corrupt once the power is back.

The writer makes a log, or recovers one, and has it through all that is ever done to one; one call,
drawn by chance, goes wrong, and then the power goes in any case. `LEASED_LOSSY` is the number of
draws of each fault (the long form is 2000), `LEASED_CRASH_SEED` draws others. Two controls must be
reported: a disk that lies about fsync, and a writer that tries a failed barrier again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest
import trio

from leased.chain.head import Head, parse_head
from leased.durable.files import DirectoryDisk
from leased.durable.reader import read_log
from leased.terms.errors import ChainError, InvariantError, StateError
from tests.crash.living import Life
from tests.crash.sweep import missed
from tests.lossy.mounted import Mounted, forgetful

ROUNDS = int(os.environ.get("LEASED_LOSSY", "16"))
CONTROL_ROUNDS = 80
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
FAULTS = (
    ("any", "power"),
    ("fsync", "EIO"),
    ("fsyncdir", "EIO"),
    ("write", "EIO"),
    ("write", "ENOSPC"),
    ("write", "short"),
    ("create", "ENOSPC"),
    ("rename", "EIO"),
    ("unlink", "EIO"),
    ("read", "EIO"),
)
REFUSALS = (OSError, ChainError, StateError, InvariantError)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    folder = tmp_path_factory.mktemp("lossy")
    folder.chmod(0o700)
    with forgetful(folder) as mounted:
        yield mounted


class Round:
    """One life on the disk, with a fault; `acked` is what the writer was sure of."""

    def __init__(self, disk: Mounted, name: str) -> None:
        self.audit = disk.point / name
        self.writes: Callable[[], DirectoryDisk | None] = lambda: None
        self.acked: Head | None = None
        self.failure = ""

    def tell(self, line: str) -> None:
        """An acknowledgement."""
        self.acked = parse_head(line)

    def live(self, number: int) -> None:
        """To the end, or to the fault."""
        life: Life | None = None
        try:
            life = Life(self.audit, number, self.tell, disk=self.writes())
            trio.run(life.run)
        except BaseExceptionGroup as errors:
            self.failure = str(errors.exceptions[0])
        except REFUSALS as error:
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            if life is not None:
                with contextlib.suppress(*REFUSALS):
                    life.log.close()


def calls_of(disk: Mounted, prepare: Callable[[Round], None], name: str) -> Counter[str]:
    """How many calls of each kind a life takes."""
    healthy = Round(disk, name)
    prepare(healthy)
    before = disk.order("count")
    healthy.live(1)
    assert not healthy.failure
    after = disk.order("count")
    counted = Counter({call: after[call] - before.get(call, 0) for call in after})
    counted["any"] = sum(counted.values()) - counted["read"]
    return counted


def fill(one: Round) -> None:
    """A log of several segments."""
    life = Life(one.audit, 0)
    life.fill()
    life.log.close()


class Stubborn(DirectoryDisk):
    """A writer that takes a barrier for done when it succeeds at the second try."""

    def sync(self, handle: int) -> None:
        """The mistake."""
        try:
            super().sync(handle)
        except OSError:
            super().sync(handle)


def storm(
    disk: Mounted, call: str, fault: str, *, lie: bool = False, stubborn: bool = False
) -> tuple[list[str], Counter[str]]:
    """Lives with this fault somewhere; what was lost, and how they ended. A control ends with the
    first thing that it has to report."""
    control = lie or stubborn
    random, wrong, ends = Random(f"{SEED} {call} {fault}"), [], Counter[str]()
    scenes: dict[str, Callable[[Round], None]] = {
        "birth": lambda _: None,
        "life": fill,
    }
    counts = {
        scene: calls_of(disk, prepare, f"{scene}-{call}-{fault}")
        for scene, prepare in scenes.items()
    }
    for number in range(CONTROL_ROUNDS if control else ROUNDS):
        if control and wrong:
            break
        scene = random.choice([scene for scene in scenes if counts[scene][call]])
        one = Round(disk, f"{call}-{fault}-{number}")
        scenes[scene](one)
        when, seed = random.randint(1, counts[scene][call]), random.getrandbits(32)
        if lie:
            disk.order("lie")
        if stubborn and one.audit.exists():
            one.writes = lambda audit=one.audit: Stubborn(audit)  # type: ignore[misc]
        disk.order("fail", call, when, fault)
        one.live(1)
        disk.order("boot", seed)
        ends["ended" if one.failure else "went on"] += 1
        found = missed(one.audit, one.acked)
        if found:
            wrong.append(f"{scene}, {call} {when} {fault}, boot {seed}: {found} ({one.failure})")
        disk.order("well")
        shutil.rmtree(one.audit, ignore_errors=True)
    print(f"{call} {fault}, seed {SEED}: {dict(ends)}, {len(wrong)} wrong")
    return wrong, ends


@pytest.mark.parametrize(("call", "fault"), FAULTS)
def test_no_call_that_fails_costs_an_acknowledged_record(
    disk: Mounted, call: str, fault: str
) -> None:
    wrong, ends = storm(disk, call, fault)
    assert not wrong, "\n".join(wrong)
    if fault == "short":
        assert not ends["ended"], "a short write is gone on from"
    elif call in ("any", "fsync", "write", "read"):
        assert ends["ended"] >= ROUNDS // 2, ends


def test_a_reader_is_told_of_what_cannot_be_read(disk: Mounted) -> None:
    """From each read on the disk is gone: that is said, and nobody dies of it, as of a mapping."""
    one = Round(disk, "reader")
    fill(one)
    before = disk.order("count")["read"]
    read_all(one)
    reads = disk.order("count")["read"] - before
    for when in range(1, reads + 1):
        disk.order("fail", "read", when, "power")
        with pytest.raises(StateError, match="Input/output error"):
            read_all(one)
        disk.order("well")
    read_all(one)
    assert reads > 5, "the kernel kept it all"


def read_all(one: Round) -> None:
    """As `leasectl verify` and `leasectl audit` do, from the disk."""
    for path in one.audit.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    opened = read_log(one.audit, leases=True, countersigned=True)
    try:
        records = sum(1 for _ in opened.records())
        assert records == opened.head.size - opened.facts.slot.min_seq
    finally:
        opened.close()


def test_a_disk_that_lies_about_fsync_is_reported(disk: Mounted) -> None:
    wrong, _ = storm(disk, "any", "power", lie=True)
    assert wrong, "the suite is blind"


def test_a_writer_that_tries_a_failed_barrier_again_is_reported(disk: Mounted) -> None:
    wrong, _ = storm(disk, "fsync", "EIO", stubborn=True)
    assert wrong, "the suite is blind"
