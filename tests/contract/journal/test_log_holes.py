# SPDX-License-Identifier: Apache-2.0
"""A log whose segment came back from a copy without its blocks: `tar -S`, `cp --sparse`, a backup
that skips zeros. What a segment promises is that it has them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from leased.durable.files import DirectoryDisk
from leased.durable.log import OpenedLog
from leased.terms.errors import StateError
from tests.doubles.logs import moment_at, open_in, renewal, write_batches

SEGMENT = 64 * 1024


class Brimful(DirectoryDisk):
    """Not a block more."""

    def reserve(self, handle: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def restored(directory: Path) -> tuple[Path, int, bytes]:
    """A log whose newest segment is sparse; that segment, and its content."""
    log = open_in(directory, segment_bytes=SEGMENT)
    write_batches(log, [20] * 3)
    end = log.journal.anchored.end_offset
    log.close()
    for spare in directory.glob("next-*"):
        spare.unlink()
    [path] = directory.glob("seg-*")
    data = path.read_bytes()
    path.unlink()
    with path.open("wb") as file:
        file.write(data[:end])
        file.truncate(len(data))
    assert path.stat().st_blocks * 512 < SEGMENT
    return path, end, data


def go_on(log: OpenedLog) -> None:
    batch = log.sealer().seal([(renewal(100), moment_at(9))])
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(9))


def test_a_sparse_segment_gets_its_blocks_before_anything_is_granted(tmp_path: Path) -> None:
    path, end, data = restored(tmp_path / "log")
    log = open_in(tmp_path / "log", segment_bytes=SEGMENT)
    assert path.stat().st_blocks * 512 >= SEGMENT and path.read_bytes() == data
    go_on(log)
    assert path.read_bytes()[:end] == data[:end]
    log.close()
    open_in(tmp_path / "log").close()


def test_on_a_full_disk_it_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    path, _, data = restored(tmp_path / "log")
    anchor = (tmp_path / "log" / "anchor").read_bytes()
    with pytest.raises(StateError, match="has no blocks for all of it.*free some space"):
        open_in(tmp_path / "log", segment_bytes=SEGMENT, disk=Brimful(tmp_path / "log"))
    assert path.read_bytes() == data and (tmp_path / "log" / "anchor").read_bytes() == anchor
    log = open_in(tmp_path / "log", segment_bytes=SEGMENT)
    go_on(log)
    log.close()


def test_one_that_has_its_blocks_opens_on_a_full_disk(tmp_path: Path) -> None:
    log = open_in(tmp_path / "log", segment_bytes=SEGMENT)
    write_batches(log, [20] * 3)
    log.close()
    log = open_in(tmp_path / "log", segment_bytes=SEGMENT, disk=Brimful(tmp_path / "log"))
    go_on(log)
    log.close()
