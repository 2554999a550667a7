# SPDX-License-Identifier: Apache-2.0
"""The crash-state search: run the real writer on a recording disk, crash it everywhere, recover,
judge.

A crash point is after any operation; a state is what some subset of the pending pieces leaves. Each
state is opened by the real recovery and judged by a list of what was acknowledged: nothing of it
may be missing or different, and no state that a crash can leave may be called corrupt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from random import Random
from typing import NamedTuple

from leased.chain.head import Head
from leased.chain.sealer import SealedBatch
from leased.durable import scan
from leased.durable.log import OpenedLog
from leased.terms.errors import ChainError, InvariantError, StateError
from leased.terms.moment import Moment
from tests.doubles.disk import CrashPoint, MemoryDisk
from tests.doubles.logs import (
    CountedEntropy,
    allocation,
    commit_and_forget,
    moment_at,
    open_on,
    renewal,
    started,
)


class Workload(NamedTuple):
    """What a run writes: records per batch, `ticks` of 100 ms between batches, and how long an
    epoch is (None: none ends)."""

    sizes: tuple[int, ...]
    ticks: int = 1
    epoch_ns: int | None = None


BATCHES = Workload((1, 2, 5, 1, 9, 3, 12, 1, 4, 7, 15, 2))
"""Enough for two segment switches, and for batches that are cut in two."""

SEALS = Workload((1, 3, 1, 2, 6, 1, 14, 1, 20, 2), ticks=7, epoch_ns=10**9)
"""An epoch ends at almost every batch, and its key is overwritten."""

SWITCHES = Workload((30, 1, 30, 2, 25, 30, 1, 30))
"""Most batches are cut, or end a segment."""


MIXED = Workload(tuple(Random(n).randrange(1, 14) for n in range(26)), ticks=3, epoch_ns=10**9)
"""All of it, for longer."""


class Findings:
    """Counts of what a search came across; `lost` and `alarms` keep the first few as text."""

    def __init__(self) -> None:
        self.states = 0
        self.rolled_forward = 0
        self.torn = 0
        self.lost: list[str] = []
        self.alarms: list[str] = []

    def __str__(self) -> str:
        return (
            f"{self.states} states, {self.rolled_forward} rolled forward, {self.torn} torn, "
            f"lost {self.lost[:2]}, alarms {self.alarms[:2]}"
        )


def record_run(
    disk: MemoryDisk,
    *,
    opening: Callable[..., OpenedLog] = open_on,
    workload: Workload = BATCHES,
    commit: Callable[[OpenedLog, SealedBatch, Moment], None] = commit_and_forget,
) -> list[bytes]:
    """Make a log on `disk` and commit batches, marking each acknowledgement; return all frames
    in order."""
    options = {} if workload.epoch_ns is None else {"epoch_ns": workload.epoch_ns}
    log, number, frames = opening(disk, **options), 0, []
    sealer = log.sealer()
    for count, size in enumerate(workload.sizes):
        at = moment_at(count * workload.ticks)
        items = [(started() if count == 0 else allocation(count), at)]
        for _ in range(size):
            items.append((renewal(number), at))
            number += 1
        batch = sealer.seal(items)
        commit(log, batch, at)
        disk.mark(batch.new_head)
        log.journal.spares.fill()
        frames.append(batch.frames)
    return frames


def crash_states(
    disk: MemoryDisk, *, granule: int, samples: int, seed: int, first: int = 0
) -> Iterator[tuple[int, Head | None, dict[str, bytes]]]:
    """Yield (operation, last acknowledged head, directory) for each distinct state a crash of
    the run can leave."""
    random, seen = Random(seed), set()
    point = CrashPoint(disk, first)
    for index in range(first, len(disk.ops) + 1):
        for state in point.states(granule=granule, random=random, samples=samples):
            acked = point.marks[-1] if point.marks else None
            key = hash((acked, tuple(sorted(state.items()))))
            if key not in seen:
                seen.add(key)
                yield index, acked, state
        if index < len(disk.ops):
            point.advance(disk.ops[index])


def judge(
    findings: Findings,
    state: dict[str, bytes],
    acked: Head | None,
    sealed: Sealed,
    where: str,
    *,
    kind: type[MemoryDisk] = MemoryDisk,
) -> MemoryDisk | None:
    """Recover `state` and note what is wrong with the outcome. `sealed` is what was
    sealed, in order."""
    findings.states += 1
    disk = kind(state)
    try:
        log = open_on(disk, entropy=CountedEntropy(b"another run"))
        found = sealed.count(b"".join(log.journal.frames(0)))
    except (ChainError, StateError, InvariantError) as error:
        findings.alarms.append(f"{where}: {error}")
        return None
    if found is None:
        findings.lost.append(f"{where}: a record differs")
    elif acked is not None and (found < acked.size or log.head.size != found):
        findings.lost.append(f"{where}: {acked.size} acknowledged, {found} found")
    if log.recovered is not None:
        findings.rolled_forward += log.recovered.kept_records > 0
        findings.torn += log.recovered.torn_bytes > 0
    return disk


class Sealed:
    """Sealed frames, one behind the other, and where each ends."""

    def __init__(self, frames: list[bytes]) -> None:
        self.data = b"".join(frames)
        self._ends = [0]
        while self._ends[-1] < len(self.data):
            at = self._ends[-1]
            self._ends.append(at + int.from_bytes(self.data[at : at + 4], "little"))

    def count(self, found: bytes) -> int | None:
        """How many frames `found` has; None: it is not the first of these frames."""
        index = bisect_left(self._ends, len(found))
        whole = index < len(self._ends) and self._ends[index] == len(found)
        return index if whole and self.data.startswith(found) else None


@contextmanager
def closed_segments_read_once() -> Iterator[None]:
    """A closed segment is verified once, and not for every state that has the very same bytes under
    the same name: what is said of it depends on nothing else. What a crash can touch, the segment
    that is written to, is read for every state, as is every segment that does not hold."""
    real = scan.scan_segment
    remembered = lru_cache(maxsize=256)(real)

    def scan_segment(
        data: bytes, name: str, log_id: bytes, *, end: int | None = None
    ) -> scan.SegmentScan:
        return remembered(data, name, log_id) if end is None else real(data, name, log_id, end=end)

    scan.scan_segment = scan_segment
    try:
        yield
    finally:
        scan.scan_segment = real
