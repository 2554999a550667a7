# SPDX-License-Identifier: Apache-2.0
"""The device workers of a process, by what the kernel says of its children.

Does not touch them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leased.hardware import forkserver, worker


def workers_of(pid: int) -> list[int]:
    """Pids of the workers that the fork servers of this process have forked."""
    return sorted(each for server in servers_of(pid) for each in _children(server, worker.COMM))


def servers_of(pid: int) -> list[int]:
    """Pids of its fork servers."""
    return sorted(_children(pid, forkserver.COMM))


def _children(pid: int, name: str) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for word in _read(task).split():
            if _read(Path(f"/proc/{word}/comm")).strip() == name:
                yield int(word)


def _read(path: Path) -> str:
    """Nothing, where the process is gone."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
