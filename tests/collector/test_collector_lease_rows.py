# SPDX-License-Identifier: Apache-2.0
"""Usage by the lease: it is the hours again, from the records, and says from which."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
import trio

from leased.collector import retention
from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.answers import UsageReport, UsageRow
from leased.collector.accounts.invoices import Invoices
from leased.collector.accounts.lease_rows import question, usage_by_lease
from leased.collector.accounts.periods import Window
from leased.collector.accounts.usage_rows import usage_rows
from leased.collector.api.csv_rows import csv_of
from leased.collector.api.report_queries import UsageQuery
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Call, Caller, Scope
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.demo import Wish
from leased.collector.fleet import Fleet
from leased.collector.main import main
from leased.collector.metering.reference import read_archive
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.retention_rule import Rule
from leased.ctl.console import Console
from leased.economics.contracts import CardVersion, Terms
from leased.economics.rates import DEFAULT_CARD, Rate
from leased.terms.errors import InvalidParameter, StateError
from leased.terms.event import Allocated, TeardownBegun
from leased.terms.moment import HOUR_NS
from leased.terms.policy import Policy
from leased.terms.quantity import parse_instant
from tests.doubles.demo_fleet import cosigned_fleet
from tests.doubles.economics_history import History, subject
from tests.doubles.fleet_archive import NODE_A, cores, dram, store

UNTIL_NS = parse_instant("2026-01-05T00:00:00Z")
WISH = Wish(nodes=2, days=70, seed=11, until_ns=UNTIL_NS, leases_per_day=8)
RISE_NS = parse_instant("2025-12-20T00:00:00Z")
DEARER = msgspec.structs.replace(
    DEFAULT_CARD,
    rates=tuple(Rate(one.kind, one.nano * 3) for one in DEFAULT_CARD.rates),
)
TERMS = Terms(cards=(CardVersion(0, DEFAULT_CARD), CardVersion(RISE_NS, DEARER)))
DAYS = [
    pytest.param("2025-12-01", "2025-12-31", id="a month in which prices rise"),
    pytest.param("2025-12-19T21:00:00Z", "2025-12-20T03:00:00Z", id="hours over the rise"),
    pytest.param("2026-01-04", "2026-01-31", id="to the last record, and beyond it"),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy days of two hosts, with their reboots, clocks that were set, and fences."""
    return cosigned_fleet(tmp_path_factory.mktemp("collector") / "state", WISH)


def window(start: str, end: str) -> Window:
    return periods.window(start, end)


@pytest.mark.parametrize(("start", "end"), DAYS)
def test_leases_add_up_to_the_hours(fleet: Path, start: str, end: str) -> None:
    """In raw units and in money, to the last digit; and each peak is in a lease or more."""
    told = 0
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        accounts = Accounts(of, TERMS)
        for tenant in of.tenants():
            hours = accounts.usage(tenant, window(start, end))
            asked = question(accounts, tenant, window(start, end))
            report = usage_by_lease(archive, asked)
            for one in ("total_cost", "tasks", "interval", "reach", "currency"):
                assert getattr(report, one) == getattr(hours, one)
            assert report.granularity == "lease"
            assert _sums(report.rows) == _sums(hours.rows)
            assert [row.start for row in report.rows] == sorted(row.start for row in report.rows)
            told += len(report.rows)
    assert told > 20


def test_a_row_says_how_many_leases_it_is_made_of(fleet: Path) -> None:
    """As many as there are rows by the lease; by the hour and by the day as folded in Python."""
    told = 0
    days = window("2025-12-02", "2025-12-08")
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        accounts, folded = Accounts(of, TERMS), Accounts(read_archive(archive), TERMS)
        for tenant in of.tenants():
            asked = question(accounts, tenant, days)
            rows = Counter(_priced(row) for row in usage_by_lease(archive, asked).rows)
            assert {_priced(row): row.leases for row in asked.report.rows} == rows
            told += sum(rows.values())
            for granularity in ("hour", "day", "total"):
                found = accounts.usage(tenant, days, granularity).rows
                assert found == folded.usage(tenant, days, granularity).rows
                assert all(row.leases for row in found)
    assert told > 20


def test_a_count_of_other_records_than_the_hours_are_of_is_not_told(fleet: Path) -> None:
    with closing(StoreSource(Store(fleet).rollups)) as of:
        (tenant, *_) = of.tenants()
        days = window("2025-12-02", "2025-12-08")
        counted = of.leases(days.pair, tenant, 0)
        key = next(iter(counted))
        counted[key] = msgspec.structs.replace(counted[key], cap_ns=counted[key].cap_ns + 1)
        cells, peaks = of.cells(days.pair, tenant), of.peaks(days.pair, tenant)
        rows, _ = usage_rows(cells, peaks, TERMS, days, 0, counted)
        assert [row.leases for row in rows].count(None) == 1 < len(rows)


def _priced(row: UsageRow) -> tuple[object, ...]:
    tag = (row.cost_center, row.project, row.request_class, row.budget_group)
    return (row.kind, row.tier, row.priority, *tag)


def _sums(rows: list[object]) -> dict[object, tuple[int, Fraction]]:
    amounts: Counter[object] = Counter()
    costs: dict[object, Fraction] = {}
    for row in rows:
        key = (row.kind, row.tier, row.priority, row.cost_center, row.project)
        amounts[key] += int(row.cap_ns)
        costs[key] = costs.get(key, Fraction(0)) + Fraction(row.cost_exact)
    return {key: (amount, costs[key]) for key, amount in amounts.items()}


def test_a_row_names_the_records_that_it_follows_from(fleet: Path) -> None:
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        tenant = of.tenants()[0]
        asked = question(Accounts(of, TERMS), tenant, window("2025-12-02", "2025-12-08"))
        rows = [row for row in usage_by_lease(archive, asked).rows if not row.provisional]
        assert rows
        ended = 0
        for row in rows:
            _, grant, _ = next(archive.events(row.log_id, row.first_record))
            if isinstance(grant, Allocated):  # a renewal on other terms opens a row, too
                assert (grant.lease_id.hex(), grant.subject.tenant) == (row.lease_id, tenant)
            _, end, _ = next(archive.events(row.log_id, row.last_record))
            ended += isinstance(end, TeardownBegun) and end.lease_id.hex() == row.lease_id
        assert ended > len(rows) // 2
        nodes = {entry.log_id: entry.node for entry in archive.logs()}
        assert all(nodes[row.log_id] == row.node for row in rows)


def test_what_does_not_add_up_is_no_answer(fleet: Path) -> None:
    """A cell that is not what the records say is found by who asks for the leases behind it."""
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        tenant = of.tenants()[0]
        asked = question(Accounts(of, TERMS), tenant, window("2025-12-02", "2025-12-08"))
        row, *rest = asked.report.rows
        wrong = msgspec.structs.replace(row, cap_ns=str(int(row.cap_ns) + 1))
        report = msgspec.structs.replace(asked.report, rows=[wrong, *rest])
        with pytest.raises(StateError, match="do not add up to the hours"):
            usage_by_lease(archive, msgspec.structs.replace(asked, report=report))


def test_nothing_is_read_beyond_the_record_that_the_hours_follow_from(fleet: Path) -> None:
    """However much was pulled since."""
    days = window("2026-01-03", "2026-01-06")
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        (tenant, *_) = of.tenants()
        asked = question(Accounts(of, TERMS), tenant, days)
        logs = {chain.log_id: archive.log(chain.log_id).head.size for chain in asked.chains}
        assert all(chain.last_sequence + 1 == logs[chain.log_id] for chain in asked.chains)
        early = [msgspec.structs.replace(one, last_sequence=40) for one in asked.chains]
        # As if no more had been read by then: nothing of these days, and so no answer.
        with pytest.raises(StateError):
            usage_by_lease(archive, msgspec.structs.replace(asked, chains=tuple(early)))


def test_more_leases_than_anybody_reads(fleet: Path) -> None:
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        asked = question(Accounts(of, TERMS), of.tenants()[0], window("2025-12-01", "2025-12-31"))
        with pytest.raises(InvalidParameter, match="more than 3 leases: ask for less time"):
            usage_by_lease(archive, asked, leases_max=3)


async def test_who_asks_at_once_waits_and_is_answered(fleet: Path) -> None:
    """Each its own, and those who ask for the same get the same."""
    with closing(StoreSource(Store(fleet).rollups)) as of:
        accounts = Accounts(of, TERMS)
        reports = Reports(lambda ask: ask(accounts), Policy, Fleet, fleet)
        answered: list[tuple[str, UsageReport]] = []

        async def ask(end: str) -> None:
            query = UsageQuery(
                tenant=of.tenants()[0], start="2025-12-02", end=end, granularity="lease"
            )
            call = Call(Caller("somebody", frozenset(Scope)), None, query, None, 0)
            first = await trio.to_thread.run_sync(reports.usage, call)
            assert first.value is None and first.then is not None
            answered.append((end, (await first.then()).value))

        ends = ("2025-12-03", "2025-12-04", "2025-12-03", "2025-12-05")
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(ask, end)
        assert sorted(end for end, _ in answered) == sorted(ends)
        assert all(report.rows and report.granularity == "lease" for _, report in answered)


def test_where_records_were_removed_there_are_hours_and_no_leases(
    fleet: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(fleet, state)
    with closing(StoreSource(Store(state).rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(state))
        for month in ("2025-10", "2025-11"):
            accounts.issue(month)
    now_ns = parse_instant("2026-01-10T12:00:00Z")
    with closing(Archive(state)) as archive:
        retention.carry_out(
            *(archive, Rule(raw_months=1), Terms()),
            config=None,
            now_ns=now_ns,
            change_id="c0" * 16,
        )
        floor_ns = archive.kept.floor().floor_ns
    assert floor_ns == parse_instant("2025-12-01T00:00:00Z")
    with closing(ArchiveReader(state)) as archive:
        Store(state).rebuild(archive)
    with closing(ArchiveReader(state)) as archive, closing(StoreSource(Store(state).rollups)) as of:
        accounts, gone = Accounts(of, TERMS), 0
        for tenant in of.tenants():
            whole = question(accounts, tenant, window("2025-12-01", "2025-12-31"))
            assert _sums(usage_by_lease(archive, whole).rows) == _sums(whole.report.rows)
            over = question(accounts, tenant, Window(floor_ns - HOUR_NS, floor_ns + HOUR_NS))
            with pytest.raises(NoData, match="before 2025-12-01T00:00:00Z were removed"):
                usage_by_lease(archive, over)
            # Of hours just before it all records may still be there: of leases that went on.
            hours = accounts.usage(tenant, window("2025-11-01", "2025-12-02")).rows
            assert all(row.leases for row in hours if row.start >= "2025-12-01")
            gone += sum(row.leases is None for row in hours)
    assert gone > 20


def test_as_csv_and_by_the_verb(fleet: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with closing(ArchiveReader(fleet)) as archive, closing(StoreSource(Store(fleet).rollups)) as of:
        tenant = of.tenants()[0]
        asked = question(Accounts(of, Terms()), tenant, window("2025-12-02", "2025-12-03"))
        report = usage_by_lease(archive, asked)
    read = list(csv.DictReader(io.StringIO(csv_of(report).decode())))
    assert [row["lease_id"] for row in read] == [row.lease_id for row in report.rows]
    assert {row["provisional"] for row in read} <= {"true", "false"}
    asking = ("usage", tenant, "--start", "2025-12-02", "--end", "2025-12-03", "--by", "lease")
    words = ["--state", str(fleet), *asking, "--csv"]
    assert main(words, console=Console(out, err)) == 0
    shown = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["lease_id"] for row in shown] == [row.lease_id for row in report.rows]


def test_a_lease_of_nothing_is_in_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verified record may say 0 of something: no hour has it, and nobody's usage is refused."""
    begin_ns = parse_instant("2026-01-04T00:00:00Z")
    history = History(wall_offset_ns=begin_ns)
    history.start()
    history.inventory(cores(8), dram(8))
    history.allocate(1, subject(cores(2), dram(0), tenant="t"), 2 * HOUR_NS)
    history.boot_ns = 4 * HOUR_NS
    history.touch()
    with closing(Archive(tmp_path)) as archive:
        store(archive, "host-a", NODE_A, history, begin_ns)
    words = ["--state", str(tmp_path), "usage", "t", "--start", "2026-01-04", "--end", "2026-01-04"]
    for by in ("hour", "lease"):
        assert main([*words, "--csv", "--by", by]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert {row["kind"] for row in rows} == {"cpu"}
