# SPDX-License-Identifier: Apache-2.0
"""The one writer's lock: who only looks whether somebody has it keeps nobody out."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from leased.durable.files import DirectoryDisk


def test_who_looks_at_the_lock_keeps_no_writer_out(tmp_path: Path) -> None:
    """`leasectl verify` has it for an instant; an agent that started then said BUSY."""
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    disk = DirectoryDisk(tmp_path)
    assert disk.lock(pause=lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    assert DirectoryDisk(tmp_path).is_locked()
    os.close(looking)
    disk.close()


def test_another_writer_keeps_the_lock(tmp_path: Path) -> None:
    first, second = DirectoryDisk(tmp_path), DirectoryDisk(tmp_path)
    assert first.lock()
    pauses: list[float] = []
    assert not second.lock(pause=pauses.append)
    assert 0 < sum(pauses) < 0.1
    first.close()
    assert second.lock()
    second.close()
