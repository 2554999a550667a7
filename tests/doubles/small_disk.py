# SPDX-License-Identifier: Apache-2.0
"""A real file system so small that a test can fill it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.doubles.host import not_proven


@contextmanager
def mounted_small(where: Path) -> Iterator[Path]:
    """One of 3 MB, until the block ends."""
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        not_proven("a full disk under the collector", "needs root that may mount")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(directory: Path, left: int = 0) -> Path:
    """Write a file there until nothing more can be written but so much; the file."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(file.tell() - left)
    return filler
