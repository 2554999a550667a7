# SPDX-License-Identifier: Apache-2.0
"""A disk that answers EIO to flushes or to writes, under real file systems (T5b): nothing is
acknowledged from then on, the failed barrier is not tried again, and what was acknowledged is there
when the disk is well."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from leased.chain.head import Head, parse_head
from tests.doubles.logs import open_in
from tests.powercut.machine import (
    LAYOUTS,
    Layout,
    attached,
    committing,
    end,
    made,
    mounted,
    must_have,
    recorded,
)
from tests.powercut.recording import marks

SEED = 20260701
DEADLINE_S = 60.0
TRACED = "fdatasync,fsync,pwrite64,openat,renameat,renameat2"
FAILED = re.compile(r"Input/output error|Read-only file system")
KINDS = [layout for layout in LAYOUTS if layout.name in ("ext4", "xfs", "btrfs")]


class Call(NamedTuple):
    """One call of the trace: its process, where it begins and ends, and how it is told."""

    pid: str
    begin: int
    end: int
    told: str


def acknowledged(recording: Path) -> list[Head]:
    """The heads marked so far."""
    return [parse_head(line) for line in marks(recording)]


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
        before = f"strace -f -qq -y -e trace={TRACED} -o {trace}"
        writer = committing(recording.point / "audit", recording.marks, SEED, before=before)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while len(marks(recording.file)) < 15:
                if writer.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"on a healthy disk the writer did not get on: {end(writer)}")
            recording.control.write_text(fault)
            told = writer.communicate(timeout=DEADLINE_S)[1]
        finally:
            end(writer)
        acked = acknowledged(recording.file)
        # A file system whose own journal failed is read-only from then on.
        assert writer.returncode != 0 and FAILED.search(told), told[-1000:]
        _assert_nothing_follows_the_failure(trace.read_text("utf-8", "replace"))
        recording.control.write_text("well")
        shutil.copyfile(recording.fuse / "disk", tmp_path / "well.image")
    _assert_recovers(layout, tmp_path, acked[-1])


def whole_calls(trace: str) -> list[Call]:
    """The calls of a trace, by where they begin: one that another thread's came between is told
    in two lines."""
    begun: dict[str, tuple[int, str]] = {}
    found = []
    for at, line in enumerate(trace.splitlines()):
        pid, _, told = line.partition(" ")
        if told.endswith("<unfinished ...>"):
            begun[pid] = at, told.removesuffix("<unfinished ...>")
            continue
        rest = re.sub(r"^\s*<\.\.\. \w+ resumed>", "", told)
        began, first = begun.pop(pid, (at, "")) if rest != told else (at, "")
        found.append(Call(pid, began, at, first + rest))
    return sorted(found, key=lambda call: call.begin)


def of_the_log(calls: list[Call]) -> list[Call]:
    """Those on what is in the log. The spares, files that are not in it yet, and the names that
    are synced for them, are the business of a thread that the log does not wait for."""
    spare, found = {}, []
    for call in calls:
        if "/audit/" in call.told or "seg-" in call.told or "next-" in call.told:
            spare[call.pid] = "next-" in call.told and "seg-" not in call.told
        elif "/audit>" not in call.told:
            continue
        if not spare.get(call.pid):
            found.append(call)
    return found


def _assert_nothing_follows_the_failure(trace: str) -> None:
    """After a barrier failed, nothing is begun to be written or synced in the log's directory."""
    calls = of_the_log(whole_calls(trace))
    assert calls, trace[-1000:]
    # None: the log ended for want of a spare, before any call of its own failed.
    failed = min((call.end for call in calls if FAILED.search(call.told)), default=len(trace))
    later = [call.told for call in calls if call.begin > failed and "openat" not in call.told]
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
