# SPDX-License-Identifier: Apache-2.0
"""The telemetry of a demonstration fleet: by the receiver's own door, the same by the seed, and
with something of everything in it."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import trio

from leased.collector.accounts.accounts import Accounts
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.fleet import Fleet
from leased.collector.main import main
from leased.collector.metering.store import Store as Usage
from leased.collector.metering.store_source import StoreSource
from leased.collector.planning.allocation_history import allocations
from leased.collector.planning.rightsizing import rightsizing
from leased.collector.telemetry import views
from leased.collector.telemetry.demo import EVERY_NS, LATELY_NS, follow, living
from leased.collector.telemetry.receiver import Receiver
from leased.collector.telemetry.store import NAME, Store
from leased.ctl.console import Console
from leased.economics.contracts import Terms
from leased.economics.rates import DEFAULT_CARD
from leased.economics.waste import Waste
from leased.terms.event import Allocated, Expired, Renewed, Revoked
from leased.terms.lease import Priority, RevocationReason
from leased.terms.policy import Allocation
from leased.terms.quantity import parse_instant
from leased.terms.resource import ResourceKind
from tests.doubles.fleet_archive import sample

NOW_NS = parse_instant("2026-01-05T09:30:00Z")
HOUR_NS = 3_600 * 10**9


def make(state: Path, seed: int = 7) -> Path:
    console = Console(io.StringIO(), io.StringIO(), wall_ns=lambda: NOW_NS)
    words = ["demo", "--nodes", "4", "--days", "12", "--seed", str(seed)]
    assert main(["--state", str(state), *words], console) == 0
    return state


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("demo") / "state")


def rows(state: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(state / NAME)) as base:
        named = "SELECT node, resource, lease, tenant, name, attributes, r.* FROM series s"
        found = base.execute(f"{named} JOIN rollups r ON r.series = s.id")
        return sorted(row[:6] + row[7:] for row in found.fetchall())


def test_the_same_seed_and_the_same_clock_make_the_same(made: Path, tmp_path: Path) -> None:
    assert rows(made) == rows(make(tmp_path / "again"))
    assert rows(made) != rows(make(tmp_path / "other", seed=4))


def test_there_is_something_of_everything_in_the_last_hour(made: Path) -> None:
    with closing(Store(made, reading=True)) as samples:
        found = views.leases(samples, *views.windows(NOW_NS, HOUR_NS))
        classes = Counter(one.waste for one in views.waste(found, DEFAULT_CARD))
        assert {Waste.HEALTHY, Waste.IDLE, Waste.UNKNOWN} < classes.keys()
        assert classes.keys() & {Waste.OVERPROVISIONED, Waste.PREMIUM}
        seen = [one.utilization for one in found if one.utilization.mean_pm is not None]
        assert {one.coverage_pm for one in seen} == {1000}
        heats = views.heat(samples, NOW_NS // 10**9)
        assert len({one.heat_pm for one in heats.values()}) > 1
        assert any(views.waits(samples, *views.windows(NOW_NS, HOUR_NS)).values())
        fleet = read(made)
        assert {one.lease for one in found} <= {lease.lease_id for _, lease in fleet.leases()}


def test_workloads_have_names_and_some_ask_for_more_than_they_use(made: Path) -> None:
    fleet = read(made)
    subjects = fleet.subjects().values()
    tagged = {one.workload: one.tag for one in subjects if one.tag is not None}
    assert len(tagged) >= 8 and {one.workload for one in subjects if one.tag is None} == {None}
    assert {one.request_class for one in tagged.values()} == {
        *("training", "inference", "batch", "interactive")
    }
    assert all(one.cost_center and one.project and one.budget_group for one in tagged.values())
    end_s = NOW_NS // 10**9
    when = {"begin_s": end_s - 7 * 86_400, "end_s": end_s, "period": "7d", "percentile": 95}
    usage = StoreSource(Usage(made).rollups)
    with closing(usage) as source, closing(Store(made, reading=True)) as samples:
        told = rightsizing(Accounts(source, Terms()), fleet, samples, **when)
    named = {one.component.partition("/")[2] for one in told.recommendations}
    assert {"pilot-serve", "reports-panel"} <= named <= tagged.keys() - {"atlas-train"}


def test_the_capacity_report_tells_how_many_wait(made: Path) -> None:
    out = io.StringIO()
    console = Console(out, io.StringIO(), wall_ns=lambda: NOW_NS)
    assert main(["--state", str(made), "capacity", "--json"], console) == 0
    told = json.loads(out.getvalue())
    assert isinstance(told["queue_depth"], int) and 0 < told["queue_depth"] < 5_000


def test_the_week_before_has_been_looked_at_every_hour(made: Path) -> None:
    usage = StoreSource(Usage(made).rollups)
    with closing(usage) as source, closing(Store(made, reading=True)) as samples:
        plans, accounts = ((0, Allocation(ResourceKind.GPU)),), Accounts(source, Terms())
        points = allocations(accounts, "7d", plans, samples.shares_by).points
    told = [one.efficiency for one in points if one.allocated]
    assert len(told) > 100 and None not in told
    assert 0 < min(told) < max(told) < 1


def test_what_a_lease_wastes_is_of_a_kind(made: Path) -> None:
    """4 cores and 4 GPUs were both 4."""
    told = []
    for words in (["--json"], []):
        console = Console(io.StringIO(), io.StringIO(), wall_ns=lambda: NOW_NS)
        assert main(["--state", str(made), "waste", *words], console) == 0
        told.append(console.out.getvalue())
    kinds = [one["kind"] for one in json.loads(told[0])["leases"]]
    assert len({*kinds}) > 1
    assert [line.split()[3] for line in told[1].splitlines()[1:]] == kinds


def test_what_runs_out_has_been_there_until_its_deadline(made: Path) -> None:
    expired = 0
    with closing(ArchiveReader(made)) as archive:
        for entry in archive.logs():
            deadlines: dict[bytes, int] = {}
            for _, event, moment in archive.events(entry.log_id, 0):
                if isinstance(event, Allocated | Renewed):
                    deadlines[event.lease_id] = event.deadline_ns
                elif isinstance(event, Expired):
                    expired += 1
                    assert moment.boot_ns >= deadlines[event.lease_id]
    assert expired


def test_what_is_guaranteed_is_not_preempted(made: Path) -> None:
    """It was, and its service level was missed by that."""
    found = Counter[Priority]()
    with closing(ArchiveReader(made)) as archive:
        for entry in archive.logs():
            for _, event, _ in archive.events(entry.log_id, 0):
                if isinstance(event, Revoked):
                    preempted = event.reason is RevocationReason.PRIORITY_PREEMPTION
                    found[event.subject.priority] += preempted
    assert found[Priority.STANDARD] and found[Priority.SCAVENGER]
    assert not found[Priority.GUARANTEED]


def read(state: Path) -> Fleet:
    fleet = Fleet()
    with closing(ArchiveReader(state)) as archive:
        while fleet.follow(archive, 100_000):
            pass
    return fleet


async def test_it_goes_on_where_it_was_left(made: Path, tmp_path: Path) -> None:
    """Two hours later, looked around in again: the hour before is there at once."""
    later_ns, state = NOW_NS + 2 * HOUR_NS, shutil.copytree(made, tmp_path / "state")
    fleet, samples = read(state), Store(state)
    looks = LATELY_NS // EVERY_NS * len({one.node for one in living(fleet)})
    receiver = Receiver(samples, wall_ns=lambda: later_ns, newest_ns=lambda: later_ns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        nursery.start_soon(follow, state, lambda: fleet, receiver, lambda: later_ns)
        while receiver.requests < looks:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert receiver.points and not receiver.rejected
    found = views.leases(samples, *views.windows(later_ns, HOUR_NS))
    samples.close()
    assert {one.lease for one in found} == {one.lease for one in living(fleet)}


def test_no_real_host_is_spoken_for(tmp_path: Path) -> None:
    Archive(tmp_path / "state").close()
    sample(tmp_path / "state", NOW_NS)
    fleet = read(tmp_path / "state")
    assert any(lease.is_held for _, lease in fleet.leases()) and living(fleet) == []
