# SPDX-License-Identifier: Apache-2.0
"""Pruning at a start, on a real directory: the slowest collector decides, and without one nothing
goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leased.chain.note import COSIGNATURE_V1, NoteKey
from leased.durable.log import OpenedLog
from leased.durable.reader import read_log
from leased.durable.scan import segment_names
from leased.service.listening import Collector
from leased.service.pruning import acked_size, prune
from leased.terms import event as e
from tests.contract.journal.test_log_retention import life
from tests.doubles.logs import CountedEntropy, moment_at, open_in, started

WEST = Collector("west", NoteKey("west", b"w" * 32, COSIGNATURE_V1))
EAST = Collector("east", NoteKey("east", b"e" * 32, COSIGNATURE_V1))


def acked(collector: Collector, size: int) -> e.HeadCountersigned:
    key_id = int.from_bytes(collector.key.key_id, "big")
    return e.HeadCountersigned(e.EventId(bytes(16)), size, bytes(32), key_id, 1, bytes(64))


def seal(log: OpenedLog, sealer, events: list[e.Event], at: int) -> None:
    batch = sealer.seal([(event, moment_at(at)) for event in events])
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(at))
    if batch.ends_epoch:
        log.forget_epoch()


def filled(directory: Path, *acks: tuple[Collector, int]) -> None:
    log = open_in(directory)
    sealer = log.sealer()
    for number in range(60):
        seal(log, sealer, [*([started()] if number == 0 else []), *life(number)], number)
    seal(log, sealer, [acked(*one) for one in acks] or [started()], 61)
    log.close()


class LateClock:
    def now(self):
        return moment_at(10**6)


@pytest.mark.parametrize(
    ("collectors", "goes"),
    [((), False), ((WEST,), True), ((WEST, EAST), False), ((EAST,), False)],
)
async def test_the_slowest_collector_decides(
    tmp_path: Path, collectors: tuple[Collector, ...], goes: bool
) -> None:
    filled(tmp_path, (WEST, 300), (EAST, 3))
    before = segment_names(sorted(os.listdir(tmp_path)))
    log = open_in(tmp_path)
    sealer = log.sealer()
    seal(log, sealer, [started()], 1000)
    said: list[str] = []
    await prune(log, sealer, collectors, 1, 0, LateClock(), CountedEntropy(b"p"), said.append)
    log.close()
    left = segment_names(sorted(os.listdir(tmp_path)))
    assert (len(left) < len(before)) == goes == bool(said)
    read = read_log(tmp_path, leases=True)
    pruned = [event for _, event, _ in read.events() if isinstance(event, e.Pruned)]
    read.close()
    assert len(pruned) == goes
    if goes:
        assert pruned[0].min_seq <= 300 == pruned[0].acked_size
        assert read.facts.slot.min_seq == pruned[0].min_seq


def test_the_newest_acknowledgement_of_each_counts() -> None:
    history = [acked(WEST, 5), acked(EAST, 9), acked(WEST, 12)]
    assert acked_size(history, [WEST]) == 12
    assert acked_size(history, [WEST, EAST]) == 9
    assert acked_size(history[:1], [WEST, EAST]) == 0 == acked_size(history, [])
