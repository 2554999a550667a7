# SPDX-License-Identifier: Apache-2.0
"""The crash-state search: run the real writer on a recording disk, crash it everywhere, recover,
judge.

A crash point is after any operation; a state is what some subset of the pending pieces leaves. Each
state is opened by the real recovery and judged by a list of what was acknowledged: nothing of it
may be missing or different, and no state that a crash can leave may be called corrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from leased.chain.head import Head
from leased.chain.sealer import SealedBatch
from leased.durable.log import OpenedLog
from leased.terms.errors import ChainError, InvariantError, StateError
from leased.terms.moment import Moment
from tests.doubles.disk import CrashPoint, MemoryDisk
from tests.doubles.logs import CountedEntropy, allocation, moment_at, open_on, renewal, started


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


def commit_and_forget(log: OpenedLog, batch: SealedBatch, at: Moment) -> None:
    """As the agent does: the batch, and once it is anchored, the key of an epoch that ended."""
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
    if batch.ends_epoch:
        log.forget_epoch()


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
    hashes: list[bytes],
    where: str,
    *,
    kind: type[MemoryDisk] = MemoryDisk,
) -> MemoryDisk | None:
    """Recover `state` and note what is wrong with the outcome. `hashes` are those of the records
    in the order sealed."""
    findings.states += 1
    disk = kind(state)
    try:
        log = open_on(disk, entropy=CountedEntropy(b"another run"))
        found = _hashes(b"".join(log.journal.frames(0)))
    except (ChainError, StateError, InvariantError) as error:
        findings.alarms.append(f"{where}: {error}")
        return None
    if acked is not None and (len(found) < acked.size or log.head.size != len(found)):
        findings.lost.append(f"{where}: {acked.size} acknowledged, {len(found)} found")
    elif log.identity.origin and found != hashes[: len(found)]:
        findings.lost.append(f"{where}: a record differs")
    if log.recovered is not None:
        findings.rolled_forward += log.recovered.kept_records > 0
        findings.torn += log.recovered.torn_bytes > 0
    return disk


def hashes_of(frames: list[bytes]) -> list[bytes]:
    """The record hashes of sealed frames."""
    return _hashes(b"".join(frames))


def _hashes(data: bytes) -> list[bytes]:
    found, offset = [], 0
    while offset < len(data):
        offset += int.from_bytes(data[offset : offset + 4], "little")
        found.append(data[offset - 32 : offset])
    return found
