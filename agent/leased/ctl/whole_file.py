# SPDX-License-Identifier: Apache-2.0
"""Files that verbs write for people: bills, statements, exports.

Rule: a file is there whole, or is what it was before: a full disk, an interrupt, a failure in the
middle leave no half of one. A device or a pipe is written as it is.

Does not choose the name and does not tell of a failure (`outcome`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def put_whole(file: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block has ended, and is none if it fails. Raises
    OSError."""
    place = file.resolve()
    if place.exists() and not place.is_file():
        with place.open("wb") as out:
            yield out
        return
    fresh = place.with_name(f"{place.name}.new")
    fresh.unlink(missing_ok=True)  # of one who was killed; or a link that somebody laid there
    try:
        with fresh.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write_whole(file: Path, data: bytes) -> None:
    """All of it, under its name, or nothing. Raises OSError."""
    with put_whole(file) as out:
        out.write(data)
