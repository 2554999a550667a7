# SPDX-License-Identifier: Apache-2.0
"""Sharing a fleet: which parts of it this collector follows now.

Rule: a collector says every `BEAT_S` that it lives, and holds each part for `TTL_S` from then on.
What nobody holds any more it takes over if it is its share, and clears what the one before left
half done before anything of it is pulled; what is another's share it gives back after its own
pullers of it have ended. While the database is away everybody keeps what they have: nothing can be
written meanwhile, and so nothing can be written twice.

Alone (SQLite) there is nothing to share, and every part is its own. Blocks: the storer's thread
calls it. Does not pull (`pulling`).
"""

from __future__ import annotations

from typing import Any, Final

from leased.collector.archive.archive import Archive
from leased.collector.archive.parts import PARTS, share_of
from leased.terms.errors import StateError

BEAT_S: Final = 3.0
TTL_S: Final = 15.0
"""A collector that is silent for so long is dead. Five beats: one that is busy is not."""


class Sharing:
    """One run's part in it. `holder` is never used again: who restarts is somebody else."""

    def __init__(self, archive: Archive, name: str, run: bytes) -> None:
        self._archive = archive
        self._holder = f"{name}/{run.hex()[:16]}"
        self._to_clear: set[int] = set()
        self.parts: frozenset[int] = frozenset() if archive.shared else frozenset(range(PARTS))
        """Those that are followed."""

    def beat(self) -> frozenset[int]:
        """Say that this one lives, take over, and set `parts`; which are to be given back. Raises
        ManifestGone, SegmentDamaged, StateError."""
        if not self._archive.shared:
            return frozenset()
        manifest: Any = self._archive.manifest
        share = share_of(self._holder, manifest.live(self._holder, TTL_S))
        self._to_clear.update(manifest.take(self._holder, share, TTL_S))
        if self._to_clear:
            self._archive.recover_parts(self._to_clear)
            self._to_clear.clear()
        held: frozenset[int] = manifest.held(self._holder)
        self.parts = held & share
        return held - share

    def beat_alone(self) -> None:
        """The same, where nobody else may follow anything. Raises those, and StateError."""
        if not self._archive.shared:
            return
        manifest: Any = self._archive.manifest
        others = [one for one in manifest.live(self._holder, TTL_S) if one != self._holder]
        if others:
            names = ", ".join(sorted(one.partition("/")[0] for one in others))
            why = f"stop those first (who was killed is forgotten after {TTL_S:.0f} s)"
            raise StateError(f"{self._archive.directory}: followed by {names}; {why}")
        self.beat()

    def give_back(self, parts: frozenset[int]) -> None:
        """Let others take these."""
        if parts:
            manifest: Any = self._archive.manifest
            manifest.release(self._holder, parts)

    def leave(self) -> None:
        """Give everything back."""
        if self._archive.shared:
            manifest: Any = self._archive.manifest
            manifest.leave_fleet(self._holder)
