# SPDX-License-Identifier: Apache-2.0
"""Pieces: how much of a body over HTTP is taken, and in how many parts.

Rule: to take a part of one byte apart costs as much as one of a KiB, so it counts as that, and so
does an answer that only announces another (1xx). Whoever sends in crumbs is at the end of what he
may send before he has kept anybody else from a turn.

Pure. Does not read.
"""

from __future__ import annotations

from typing import Final

PIECE_BYTES: Final = 1024


class Pieces:
    """What has come so far of at most `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def fit(self, size_bytes: int = 0) -> bool:
        """Whether one more of this size does."""
        self._left -= max(PIECE_BYTES, size_bytes)
        return self._left >= 0
