# SPDX-License-Identifier: Apache-2.0
"""The power goes at any instant, on the file systems that count as strict: no acknowledged record
is lost and no log is called corrupt (T5).

The real writer on a real file system over a disk that records; images of what a cut could have left
are mounted and recovered. `LEASED_POWER_CUTS` is the number of images of each file system (2500 is
the long form); the seed is printed and `LEASED_CRASH_SEED` changes it. Two controls: a disk whose
flushes do nothing, and a writer whose fdatasync does nothing, must both be reported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.powercut.machine import LAYOUTS, MIB, Layout, committing, end, made, must_have, recorded
from tests.powercut.recording import marks
from tests.powercut.replaying import Disk, Entry, Findings, cuts, judge, read_recording

IMAGES = int(os.environ.get("LEASED_POWER_CUTS", "60"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
ACKS = 60
DEADLINE_S = 60.0

LYING_FDATASYNC = """
int fdatasync(int fd) { (void)fd; return 0; }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Images lie in memory where there is enough of it: they are written and thrown away."""
    room = Path("/dev/shm")
    if not room.is_dir() or shutil.disk_usage(room).free < 2048 * MIB:
        yield tmp_path
        return
    inside = room / f"leased-power-{os.getpid()}"
    inside.mkdir()
    try:
        yield inside
    finally:
        shutil.rmtree(inside)


def record(layout: Layout, folder: Path, image: Path, **more: str) -> list[Entry]:
    """Let the writer run until it has had enough acknowledgements; what the disk was asked."""
    with recorded(layout, folder, image) as recording:
        writer = committing(recording.point / "audit", recording.marks, SEED, **more)
        deadline = time.monotonic() + DEADLINE_S
        try:
            while len(marks(recording.file)) < ACKS:
                if writer.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the writer did not get on: {end(writer)}")
        finally:
            end(writer)
        return read_recording(recording.file)


def replay(
    layout: Layout, folder: Path, image: Path, entries: list[Entry], *, lying: bool = False
) -> Findings:
    """Judge images of the recording; a control ends with the first thing it has to report."""
    findings, disk = Findings(), Disk(image, folder / "certain.image")
    found = cuts(entries, disk, Random(SEED), IMAGES, lying=lying)
    for place, acked, kept in found:
        cut = folder / "cut.image"
        disk.write(cut, layout.size, kept)
        judge(findings, cut, layout, folder, acked, f"entry {place}")
    print(f"{layout.name}, seed {SEED}: {findings}")
    return findings


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_no_power_cut_costs_an_acknowledged_record(folder: Path, layout: Layout) -> None:
    must_have(layout)
    image = made(layout, folder)
    findings = replay(layout, folder, image, record(layout, folder, image))
    assert not findings.lost and not findings.alarms and not findings.unmountable, str(findings)
    assert findings.images == IMAGES and findings.acked > IMAGES // 4, str(findings)


def test_a_disk_that_lies_about_its_flushes_is_reported(folder: Path) -> None:
    layout = LAYOUTS[0]
    must_have(layout)
    image = made(layout, folder)
    findings = replay(layout, folder, image, record(layout, folder, image), lying=True)
    assert findings.lost or findings.alarms, f"the suite is blind: {findings}"


def test_a_writer_whose_fdatasync_does_nothing_is_reported(folder: Path) -> None:
    layout = LAYOUTS[0]
    must_have(layout)
    if shutil.which("gcc") is None:
        pytest.skip("not proven: that a writer which does not sync is found (no gcc)")
    shim = folder / "lying.so"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(shim), "-"]
    subprocess.run(command, input=LYING_FDATASYNC, text=True, check=True)
    image = made(layout, folder)
    entries = record(layout, folder, image, LD_PRELOAD=str(shim))
    findings = replay(layout, folder, image, entries)
    assert findings.lost or findings.alarms, f"the suite is blind: {findings}"
