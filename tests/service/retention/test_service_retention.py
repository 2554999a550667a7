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
from leased.service.fleet.config import Countersigner, Listening
from leased.service.log.pruning import acked_size, prune
from leased.terms import event as e
from tests.contract.journal.test_log_retention import life
from tests.doubles.logs import CountedEntropy, commit_and_forget, moment_at, open_in, started

WEST = Countersigner("west", NoteKey("west", b"w" * 32, COSIGNATURE_V1))
EAST = Countersigner("east", NoteKey("east", b"e" * 32, COSIGNATURE_V1))


def acked(log: OpenedLog, collector: Countersigner, size: int) -> e.HeadCountersigned:
    key_id = int.from_bytes(collector.key.key_id, "big")
    root = log.pages().tree(size, log.journal.anchored).root()
    return e.HeadCountersigned(e.EventId(bytes(16)), size, root, key_id, 1, bytes(64))


def seal(log: OpenedLog, sealer, events: list[e.Event], at: int) -> None:
    batch = sealer.seal([(event, moment_at(at)) for event in events])
    commit_and_forget(log, batch, moment_at(at))


def filled(directory: Path, *acks: tuple[Countersigner, int]) -> None:
    log = open_in(directory)
    sealer = log.sealer()
    for number in range(60):
        seal(log, sealer, [*([started()] if number == 0 else []), *life(number)], number)
    seal(log, sealer, [acked(log, *one) for one in acks] or [started()], 61)
    log.close()


class LateClock:
    def now(self):
        return moment_at(10**6)


@pytest.mark.parametrize(
    ("collectors", "quorum", "goes"),
    [
        ((), 0, False),
        ((WEST,), 0, True),
        ((WEST, EAST), 0, False),
        ((WEST, EAST), 2, False),
        ((WEST, EAST), 1, True),
        ((EAST,), 0, False),
    ],
)
async def test_the_slowest_collector_decides_of_those_that_it_takes(
    tmp_path: Path, collectors: tuple[Countersigner, ...], quorum: int, goes: bool
) -> None:
    filled(tmp_path, (WEST, 300), (EAST, 3))
    before = segment_names(sorted(os.listdir(tmp_path)))
    log = open_in(tmp_path)
    assert list(log.history()), "as a replay reads it"
    sealer = log.sealer()
    seal(log, sealer, [started()], 1000)
    said: list[str] = []
    listening = Listening(collectors=collectors, quorum=quorum)
    await prune(log, sealer, listening, 1, 0, LateClock(), CountedEntropy(b"p"), said.append)
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
    [west, east] = [int.from_bytes(one.key.key_id, "big") for one in (WEST, EAST)]
    acknowledged = {west: 12, east: 9}
    assert acked_size(acknowledged, [WEST], 0) == 12
    assert acked_size(acknowledged, [WEST, EAST], 0) == 9
    assert acked_size(acknowledged, [WEST, EAST], 2) == 9
    assert acked_size(acknowledged, [WEST, EAST], 1) == 12
    assert acked_size({west: 5}, [WEST, EAST], 0) == 0 == acked_size(acknowledged, [], 0)


def test_a_start_knows_what_each_had_acknowledged(tmp_path: Path) -> None:
    filled(tmp_path, (WEST, 5), (EAST, 9), (WEST, 12), (WEST, 12))
    log = open_in(tmp_path)
    assert log.acknowledged == {}, "before anything was read"
    assert list(log.history())
    log.close()
    keys = [int.from_bytes(one.key.key_id, "big") for one in (WEST, EAST)]
    assert [log.acknowledged[key] for key in keys] == [12, 9]
