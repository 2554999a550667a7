# SPDX-License-Identifier: Apache-2.0
"""Projecting: what is new of every log of an archive, brought into its blocks.

Rule: a log's projection follows from its records alone, so logs are projected several at a time.
What is there is believed within one boot of the machine; in another, of which a power cut may have
been the beginning, it is compared with its digests first, and what is not whole is made again.

Does not say what a row is (`projection`) and does not meter (`store`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifest import LogEntry
from leased.collector.metering.blocks import LogBlocks, Sidecar, full_blocks

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
MARK: Final = "boot"
"""In which boot of the machine the blocks were last known to be whole."""

AT_ONCE: Final = 2
"""As many as DuckDB has threads. Reading, C and Parquet do without the interpreter's lock."""


def project_logs(
    directory: Path,
    archive: ArchiveReader,
    entries: Sequence[LogEntry],
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[LogEntry, LogBlocks, list[Sidecar]]]:
    """Each log with its blocks, in the order of `entries`. Raises SegmentDamaged, ChainError."""
    mark, boot = directory / MARK, _read(BOOT_ID)
    trusted = bool(boot) and _read(mark) == boot
    project = partial(_project, directory, archive, trusted=trusted)
    with ThreadPoolExecutor(AT_ONCE, "project") as threads:
        done = threads.map(project, entries)
        for entry, (blocks, sidecars) in zip(entries, done, strict=True):
            progress(f"projected {entry.name}")
            yield entry, blocks, sidecars
    if not trusted:
        mark.write_text(boot)


def _project(
    directory: Path, archive: ArchiveReader, entry: LogEntry, *, trusted: bool
) -> tuple[LogBlocks, list[Sidecar]]:
    """Project what is new of a log, from the beginning of its last block on."""
    blocks = LogBlocks(directory, entry.log_id)
    sidecars = blocks.sidecars()
    if not trusted:
        sidecars = blocks.whole(sidecars)
    if sidecars and sidecars[-1].carry.next_seq == entry.head.size:
        return blocks, sidecars
    if sidecars and sidecars[-1].carry.next_seq > entry.head.size:
        sidecars = []  # an older archive was put back
    done = full_blocks(sidecars)
    from_seq = sidecars[done - 1].carry.next_seq if done else 0
    return blocks, blocks.extend(archive.chunks(entry.log_id, from_seq), sidecars)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
