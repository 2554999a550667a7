# SPDX-License-Identifier: Apache-2.0
"""An archive with the demonstration's fleet in it, as a collector has it that has cosigned it all.

Does not run a collector (`collector_server`).
"""

from __future__ import annotations

from pathlib import Path

from leased.collector.archive.archive import Archive
from leased.collector.demo import Wish, make_fleet
from leased.collector.metering.store import Store


def cosigned_fleet(state: Path, wish: Wish) -> Path:
    """Make it in `state`, with its usage; the same path."""
    archive = Archive(state)
    make_fleet(archive, wish)
    for entry in archive.logs():
        archive.manifest.set(entry.log_id, entry.head, cosigned_size=entry.head.size)
    Store(state).refresh(archive)
    archive.close()
    return state
