# SPDX-License-Identifier: Apache-2.0
"""A second opinion on power cuts and failing disks, from the kernel's device mapper (T6): a log of
all that the disk was asked (dm-log-writes), a disk that drops every write from one instant on, and
one that fails them (dm-flakey), under ext4, xfs and btrfs.

Runs in the machine of tests/vm. `LEASED_POWER_CUTS` is the number of images of each recorded log.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from leased.chain.head import Head, parse_head
from leased.durable.log import OpenedLog
from tests.doubles.logs import open_in
from tests.powercut.machine import (
    DEADLINE_S,
    LAYOUTS,
    MIB,
    Layout,
    attached,
    environment,
    made,
    mounted,
)
from tests.powercut.mapper import change, flakey, linear, mapped, must_map, read_log_writes
from tests.powercut.replaying import Disk, Findings, cuts, judge

pytestmark = [pytest.mark.vm, pytest.mark.root]

IMAGES = int(os.environ.get("LEASED_POWER_CUTS", "4"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
LOG_BYTES = 160 * MIB
MARKS = 8
ACKS = 10
KINDS = [layout for layout in LAYOUTS if layout.name in ("ext4", "xfs", "btrfs")]
NAME = f"leased-{os.getpid()}"


class Writer:
    """The real writer, committing for ever, and the newest head that it is sure of."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.acked: Head | None = None
        self.acks = 0
        self._rest = b""

    def hear(self) -> bool:
        """Wait for acknowledgements, take all there are. False: it has ended."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        assert select.select([fd], [], [], DEADLINE_S)[0], "the writer says nothing"
        said = os.read(fd, 1 << 20)
        *lines, self._rest = (self._rest + said).split(b"\n")
        if lines:
            self.acked = parse_head(lines[-1].decode())
            self.acks += len(lines)
        return bool(said)

    def hear_until(self, done: Callable[[], bool]) -> None:
        """Go on until that holds."""
        while not done():
            assert self.hear(), self.why()

    def why(self) -> str:
        """What it said when it ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Writer]:
    """A writer, killed at the end."""
    words = [sys.executable, "-m", "tests.crash.committing", str(directory), str(SEED)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        try:
            yield Writer(process)
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Images lie in memory."""
    words = ["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", str(tmp_path)]
    subprocess.run(words, check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def held(log: OpenedLog, acked: Head) -> bool:
    """Whether the log has what was acknowledged."""
    if log.head.size < acked.size:
        return False
    frames = b"".join(log.journal.frames(acked.size - 1))
    length = int.from_bytes(frames[:4], "little")
    return frames[length - 32 : length] == acked.hash


@pytest.mark.parametrize("layout", KINDS, ids=lambda layout: layout.name)
def test_what_the_disk_was_asked_holds_at_every_cut(folder: Path, layout: Layout) -> None:
    must_map(layout)
    image, log = made(layout, folder), folder / "log"
    with log.open("wb") as file:
        file.truncate(LOG_BYTES)
    base = Disk(image)
    with attached(image) as data, attached(log) as told:
        table = f"0 {layout.size // 512} log-writes {data} {told}"
        with (
            mapped(NAME, table) as device,
            mounted(device, folder / "at", layout.options) as point,
            writing(point / "audit") as writer,
        ):
            for _ in range(MARKS):
                assert writer.hear(), writer.why()
                if writer.acked is not None:
                    mark = ("mark", writer.acked.text())
                    subprocess.run(["dmsetup", "message", NAME, "0", *mark], check=True)
    entries, findings = read_log_writes(log), Findings()
    log.unlink()
    for place, acked, kept in cuts(entries, base, Random(SEED), IMAGES):
        cut = folder / "cut.image"
        base.write(cut, layout.size, kept)
        judge(findings, cut, layout, folder, acked, f"entry {place}")
    print(f"{layout.name}, seed {SEED}, {len(entries)} entries: {findings}")
    assert not findings.lost and not findings.alarms and not findings.unmountable, str(findings)
    assert findings.images == IMAGES and findings.acked, str(findings)


@pytest.mark.parametrize("layout", KINDS, ids=lambda layout: layout.name)
def test_a_disk_that_drops_all_from_one_instant_on(folder: Path, layout: Layout) -> None:
    """What was acknowledged before is there; what the disk lied about is not, or nothing was
    tried."""
    must_map(layout)
    image = made(layout, folder)
    with attached(image) as data, mapped(NAME, linear(data, layout.size)) as device:
        with (
            mounted(device, folder / "at", layout.options) as point,
            writing(point / "audit") as writer,
        ):
            writer.hear_until(lambda: writer.acks >= ACKS)
            acked = writer.acked
            change(NAME, flakey(data, layout.size, "drop_writes"))
            # What was on its way was acknowledged before; three more cannot all have been.
            assert writer.hear(), writer.why()
            heard = writer.acks + 3
            writer.hear_until(lambda: writer.acks > heard)
            lied = writer.acked
        change(NAME, linear(data, layout.size))
        with (
            mounted(device, folder / "at", layout.options) as point,
            contextlib.closing(open_in(point / "audit")) as log,
        ):
            assert acked is not None and lied is not None
            assert held(log, acked), f"{acked.size} acknowledged, {log.head.size} found"
            assert not held(log, lied), "nothing was dropped"


@pytest.mark.parametrize("layout", KINDS, ids=lambda layout: layout.name)
def test_a_disk_that_fails_every_write_from_one_instant_on(folder: Path, layout: Layout) -> None:
    must_map(layout)
    image = made(layout, folder)
    with attached(image) as data, mapped(NAME, linear(data, layout.size)) as device:
        with (
            mounted(device, folder / "at", layout.options) as point,
            writing(point / "audit") as writer,
        ):
            writer.hear_until(lambda: writer.acks >= ACKS)
            change(NAME, flakey(data, layout.size, "error_writes"))
            while writer.hear():
                continue
            why = writer.why()
            assert writer.process.wait(DEADLINE_S) != 0
            assert "Input/output error" in why or "Read-only file system" in why, why[-1000:]
            acked = writer.acked
        change(NAME, linear(data, layout.size))
        with (
            mounted(device, folder / "at", layout.options) as point,
            contextlib.closing(open_in(point / "audit")) as log,
        ):
            assert acked is not None
            assert held(log, acked), f"{acked.size} acknowledged, {log.head.size} found"
