# SPDX-License-Identifier: Apache-2.0
"""Retention where two collectors share a fleet, on a real PostgreSQL: one says what goes and each
removes of its own; who is taken over in the middle changes nothing that is told. (As processes that
are killed: `process`.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.floor import Kept
from leased.collector.archive.manifest_postgres import PartLost, PostgresManifest
from leased.collector.archive.manifests import share
from leased.collector.archive.parts import RETENTION_PART, part_of, share_of
from leased.collector.archive.sharing import Sharing
from leased.collector.metering.store import Store
from leased.collector.retention import Plan, at_once, carry_out, finish
from leased.economics.contracts import Terms
from leased.terms.quantity import parse_instant
from tests.collector.test_collector_manifests import empty
from tests.collector.test_collector_retention import (
    CHANGE,
    FLOOR_NS,
    MONTHS,
    NOW_NS,
    RULE,
    fleet,  # noqa: F401
    gone,
    issue,
    raw_bytes,
    state,  # noqa: F401
    told,
)
from tests.doubles.postgres_server import PostgresServer

NAMES = ("west", "east")
LATER_NS = parse_instant("2026-02-10T00:00:00Z")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


@pytest.fixture
def shared(state: Path, server: PostgresServer) -> Path:  # noqa: F811
    """The fleet's state directory, with its manifest in PostgreSQL."""
    empty(server)
    share(state, server.database)
    return state


class One:
    """One of two collectors, in this process."""

    def __init__(self, state: Path, name: str, run: bytes) -> None:  # noqa: F811
        self.archive = Archive(state, name=name)
        self.sharing = Sharing(self.archive, name, run)

    def carry_out(self, now_ns: int = NOW_NS, do: Callable[[Callable], object] = at_once) -> Plan:
        """As `pull` does every hour."""
        at = {"config": None, "now_ns": now_ns, "change_id": CHANGE}
        terms = gone(self.archive.directory) if now_ns == LATER_NS else Terms()
        return carry_out(self.archive, RULE, terms, do=do, **at)

    def mine(self) -> int:
        """How many segments below the floor it still has to remove."""
        floor = Kept(self.archive.directory).floor()
        return sum(
            segment.last_seq < one.records
            for log_id, one in floor.logs.items()
            if part_of(one.node) in self.sharing.parts
            for segment in self.archive.manifest.segments(log_id)
        )


@pytest.fixture
def pair(shared: Path) -> Iterator[tuple[One, One]]:
    """Both, and the first has the part that says what goes; each has a log of which some goes."""
    archive = ArchiveReader(shared)
    parts = {part_of(entry.node) for entry in archive.logs() if entry.head.size > 100}
    archive.close()
    for number in count():
        run = number.to_bytes(8, "big")
        first, second = (f"{name}/{run.hex()}" for name in NAMES)
        has = share_of(first, (first, second))
        if RETENTION_PART in has and parts & has and parts - has:
            break
    both = tuple(One(shared, name, run) for name in NAMES)
    for _ in range(3):
        for one in both:
            one.sharing.give_back(one.sharing.beat())
    assert RETENTION_PART in both[0].sharing.parts and both[1].sharing.parts
    yield both
    for one in both:
        one.archive.close()


def rebuilt(state: Path) -> list[str]:  # noqa: F811
    """What is not made again with the same bytes."""
    with closing(ArchiveReader(state)) as archive:
        return Store(state).rebuild(archive)[1]


def test_one_says_what_goes_and_each_removes_of_its_own(
    shared: Path, pair: tuple[One, One]
) -> None:
    first, second = pair
    before, had = told(shared), raw_bytes(shared)
    assert "another collector" in second.carry_out().waits and raw_bytes(shared) == had
    found = first.carry_out()
    assert len(found.cuts) == 2
    left = raw_bytes(shared)
    assert left < had and not first.mine() and second.mine(), "no more than its own"
    assert told(shared) == before and rebuilt(shared) == []
    assert "another collector" in second.carry_out().waits
    assert raw_bytes(shared) == had - sum(cut.bytes for cut in found.cuts) and not second.mine()
    assert told(shared) == before and rebuilt(shared) == []
    assert first.carry_out().cuts == [] and second.carry_out().cuts == []


def test_what_waits_for_another_to_remove_it_is_kept_once(
    shared: Path, pair: tuple[One, One]
) -> None:
    """The second is silent for a month: nothing below the floor is looked at again."""
    first, second = pair
    first.carry_out()
    floor = Kept(shared).floor()
    issue(shared, MONTHS[3])
    before = told(shared)
    assert first.carry_out(LATER_NS).cuts
    after = Kept(shared).floor()
    assert after.floor_ns > floor.floor_ns == FLOOR_NS
    assert all(after.logs[one].records >= kept.records for one, kept in floor.logs.items())
    assert told(shared) == before and rebuilt(shared) == []
    assert finish(second.archive) and not second.mine()
    assert told(shared) == before and rebuilt(shared) == []


def expire(server: PostgresServer, whose: str) -> None:
    """As if a collector had been silent for longer than it may be."""
    manifest = PostgresManifest(server.database)
    past = "clock_timestamp() - INTERVAL '1 minute'"
    for table in ("parts", "collectors"):
        manifest._ask(f"UPDATE {table} SET until = {past} WHERE holder LIKE ?", (f"{whose}/%",))
    manifest.close()


def test_who_is_taken_over_before_it_counts_changes_nothing(
    shared: Path, server: PostgresServer, pair: tuple[One, One]
) -> None:
    first, second = pair
    before, had, asked = told(shared), raw_bytes(shared), count()

    def stalled(work: Callable[[], object]) -> object:
        if next(asked) == 2:  # all is laid, nothing counts
            expire(server, "west")
            second.sharing.beat()
            assert RETENTION_PART in second.sharing.parts
        return work()

    with pytest.raises(PartLost):
        first.carry_out(do=stalled)
    assert next(asked) == 3
    assert Kept(shared).floor().logs == {} and raw_bytes(shared) == had
    assert told(shared) == before
    found = second.carry_out()
    assert raw_bytes(shared) == had - sum(cut.bytes for cut in found.cuts)
    assert told(shared) == before and rebuilt(shared) == []
