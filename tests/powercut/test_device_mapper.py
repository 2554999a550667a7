# SPDX-License-Identifier: Apache-2.0
"""A second opinion on power cuts and failing disks, from the kernel's device mapper (T6): a log of
all that the disk was asked (dm-log-writes), a disk that drops every write from one instant on, and
one that fails them (dm-flakey), under ext4, xfs and btrfs.

Runs in the machine of tests/vm. `LEASED_POWER_CUTS` is the number of images of each recorded log.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import pytest

from leased.chain.head import Head, parse_head
from leased.durable.log import OpenedLog
from tests.crash.committing import commit_to
from tests.doubles.logs import open_in
from tests.powercut.machine import (
    DEADLINE_S,
    LAYOUTS,
    MIB,
    Layout,
    attached,
    made,
    mounted,
)
from tests.powercut.mapper import change, flakey, linear, mapped, must_map, read_log_writes
from tests.powercut.replaying import Disk, Findings, copy_used, cuts, judge

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

    def __init__(self, process: BaseProcess, said: Connection, wrong: Connection) -> None:
        self.process = process
        self.acked: Head | None = None
        self.acks = 0
        self._said = said
        self._wrong = wrong
        self._rest = b""

    def hear(self) -> bool:
        """Wait for acknowledgements, take all there are. False: it has ended."""
        fd = self._said.fileno()
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
        self.process.join(DEADLINE_S)
        why = b""
        while piece := os.read(self._wrong.fileno(), 1 << 16):
            why += piece
        return why.decode()


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Writer]:
    """A writer, killed at the end. One that is forked is there at once: an emulated machine takes
    seconds to begin a Python."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.crash.committing"])
    (said, saying), (wrong, wailing) = forking.Pipe(duplex=False), forking.Pipe(duplex=False)
    process = forking.Process(target=commit_to, args=(directory, SEED, saying, wailing))
    process.start()
    saying.close()
    wailing.close()
    with said, wrong:
        try:
            yield Writer(process, said, wrong)
        finally:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images lie in memory."""
    point = tmp_path_factory.mktemp("images")
    words = ["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", str(point)]
    subprocess.run(words, check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, Path]:
    """File systems that were made already, by their names."""
    return {}


@pytest.fixture
def image(folder: Path, images: dict[str, Path], layout: Layout) -> Iterator[Path]:
    """A disk with a fresh file system, which a test may spoil."""
    must_map(layout)
    if layout.name not in images:
        images[layout.name] = made(layout, folder)
    fresh = folder / "disk.image"
    copy_used(images[layout.name], fresh, layout.size)
    yield fresh
    for path in folder.glob("*.image"):
        path.unlink()


def held(log: OpenedLog, acked: Head) -> bool:
    """Whether the log has what was acknowledged."""
    if log.head.size < acked.size:
        return False
    frames = b"".join(log.journal.frames(acked.size - 1))
    length = int.from_bytes(frames[:4], "little")
    return frames[length - 32 : length] == acked.hash


@pytest.mark.parametrize("layout", KINDS, ids=lambda layout: layout.name)
def test_what_the_disk_was_asked_holds_at_every_cut(
    folder: Path, image: Path, layout: Layout
) -> None:
    log = folder / "log.image"
    with log.open("wb") as file:
        file.truncate(LOG_BYTES)
    base = Disk(image, folder / "certain.image")
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
def test_a_disk_that_drops_all_from_one_instant_on(
    folder: Path, image: Path, layout: Layout
) -> None:
    """What was acknowledged before is there; what the disk lied about is not, or nothing was
    tried."""
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
def test_a_disk_that_fails_every_write_from_one_instant_on(
    folder: Path, image: Path, layout: Layout
) -> None:
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
            assert writer.process.exitcode not in (0, None)
            assert "Input/output error" in why or "Read-only file system" in why, why[-1000:]
            acked = writer.acked
        change(NAME, linear(data, layout.size))
        with (
            mounted(device, folder / "at", layout.options) as point,
            contextlib.closing(open_in(point / "audit")) as log,
        ):
            assert acked is not None
            assert held(log, acked), f"{acked.size} acknowledged, {log.head.size} found"
