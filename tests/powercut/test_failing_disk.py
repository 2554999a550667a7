# SPDX-License-Identifier: Apache-2.0
"""A disk that answers EIO to flushes or to writes, under real file systems (T5b): nothing is
acknowledged from then on, the failed barrier is not tried again, and what was acknowledged is there
when the disk is well."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest

from leased.chain.head import Head, parse_head
from tests.doubles.logs import open_in
from tests.powercut.machine import (
    LAYOUTS,
    Layout,
    attached,
    committing,
    made,
    mounted,
    must_have,
    recorded,
)
from tests.powercut.recording import MARK
from tests.powercut.replaying import read_recording

SEED = 20260701
DEADLINE_S = 60.0
KINDS = [layout for layout in LAYOUTS if layout.name in ("ext4", "xfs", "btrfs")]


def acknowledged(recording: Path) -> list[Head]:
    """The heads marked so far."""
    marks = [entry.data for entry in read_recording(recording) if entry.kind == MARK]
    return [parse_head(line) for line in b"".join(marks).decode().split("\n")[:-1]]


@pytest.mark.parametrize("fault", ["eio-flush", "eio-write"])
@pytest.mark.parametrize("layout", KINDS, ids=lambda layout: layout.name)
def test_a_failing_disk_costs_nothing_that_was_acknowledged(
    tmp_path: Path, layout: Layout, fault: str
) -> None:
    must_have(layout)
    if shutil.which("strace") is None:
        pytest.skip("not proven: that a failed barrier is not tried again (no strace)")
    image, trace = made(layout, tmp_path), tmp_path / "trace"
    with recorded(layout, tmp_path, image) as recording:
        before = f"strace -f -qq -y -e trace=fdatasync,fsync,pwrite64 -o {trace}"
        writer = committing(recording.point / "audit", recording.marks, SEED, before=before)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while len(acknowledged(recording.file)) < 15:
                if writer.poll() is not None or time.monotonic() > deadline:
                    writer.kill()
                    told = writer.communicate()[1]
                    pytest.fail(f"on a healthy disk the writer did not get on: {told}")
            recording.control.write_text(fault)
            told = writer.communicate(timeout=DEADLINE_S)[1]
        finally:
            writer.kill()
            writer.wait()
        acked = acknowledged(recording.file)
        assert writer.returncode != 0 and "Input/output error" in told, told[-1000:]
        _assert_nothing_follows_the_failure(trace.read_text("utf-8", "replace"))
        recording.control.write_text("well")
        shutil.copyfile(recording.fuse / "disk", tmp_path / "well.image")
    _assert_recovers(layout, tmp_path, acked[-1])


def whole_calls(trace: str) -> list[tuple[int, int, str]]:
    """Where each call begins and ends in the trace, and the call: one that another thread's came
    between is told in two lines."""
    begun: dict[str, tuple[int, str]] = {}
    found = []
    for at, line in enumerate(trace.splitlines()):
        pid, _, told = line.partition(" ")
        if told.endswith("<unfinished ...>"):
            begun[pid] = at, told.removesuffix("<unfinished ...>")
            continue
        rest = re.sub(r"^\s*<\.\.\. \w+ resumed>", "", told)
        began, first = begun.pop(pid, (at, "")) if rest != told else (at, "")
        found.append((began, at, first + rest))
    return found


def _assert_nothing_follows_the_failure(trace: str) -> None:
    """After a barrier failed, nothing is begun to be written or synced in the log's directory."""
    calls = [call for call in whole_calls(trace) if "/audit/" in call[2]]
    failed = min(end for _, end, told in calls if re.search(r"= -1 E", told))
    # What the thread of spares had begun on files that are not in the log yet goes on to its end.
    later = [told for began, _, told in calls if began > failed and "/next-" not in told]
    assert not later, later[:5]


def _assert_recovers(layout: Layout, folder: Path, acked: Head) -> None:
    """As after a restart on a disk that is well again."""
    with (
        attached(folder / "well.image") as device,
        mounted(device, folder / "again", layout.options) as point,
    ):
        log = open_in(point / "audit")
        assert log.head.size >= acked.size
        frames = b"".join(log.journal.frames(acked.size - 1))
        length = int.from_bytes(frames[:4], "little")
        assert frames[length - 32 : length] == acked.hash
        log.close()
