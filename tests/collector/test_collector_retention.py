# SPDX-License-Identifier: Apache-2.0
"""Retention: what goes is sealed, what remains tells the same, and nothing goes that is needed."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.chain.tree import EMPTY
from leased.collector import retention
from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.invoices import Invoices
from leased.collector.accounts.tally import Tally
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.backup import back_up, restore
from leased.collector.archive.floor import NOTHING, Kept
from leased.collector.demo import Wish
from leased.collector.governance.quotas import Override, Quota, Schedule
from leased.collector.governance.register import Register
from leased.collector.main import main
from leased.collector.metering.reference import read_archive
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.retention import carry_out, plan, upkeep
from leased.collector.retention_rule import Rule
from leased.collector.retention_waits import known_ns
from leased.collector.verbs.store import compare
from leased.ctl.console import Console
from leased.economics.amounts import fixed, units
from leased.economics.bill_text import parse_bill
from leased.economics.billing import Bill
from leased.economics.contracts import Contract, Model, Plan, Terms
from leased.economics.rates import NANO
from leased.terms.errors import StateError
from leased.terms.moment import HOUR_NS
from leased.terms.quantity import parse_instant
from tests.collector.test_collector_api_fleet import await_books
from tests.collector.test_collector_store import derived
from tests.doubles.collector_server import CollectorServer
from tests.doubles.demo_fleet import cosigned_fleet
from tests.doubles.host import not_proven

UNTIL_NS = parse_instant("2026-01-05T00:00:00Z")
NOW_NS = parse_instant("2026-01-10T12:00:00Z")
FLOOR_NS = parse_instant("2025-12-01T00:00:00Z")
WISH = Wish(nodes=2, days=100, seed=11, until_ns=UNTIL_NS, leases_per_day=8)
MONTHS = ("2025-09", "2025-10", "2025-11", "2025-12")
RULE = Rule(raw_months=1)
CHANGE = "c0" * 16
LISTED = Terms()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred days of three nodes, cosigned; the bills of all months but the last are issued."""
    state = cosigned_fleet(tmp_path_factory.mktemp("collector") / "state", WISH)
    with closing(StoreSource(Store(state).rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(state))
        for month in MONTHS[:3]:
            accounts.issue(month)
    return state


@pytest.fixture
def state(fleet: Path, tmp_path: Path) -> Path:
    shutil.copytree(fleet, tmp_path / "state")
    return tmp_path / "state"


def remove(
    state: Path, rule: Rule = RULE, now_ns: int = NOW_NS, terms: Terms = LISTED
) -> retention.Plan:
    archive = Archive(state)
    try:
        return carry_out(archive, rule, terms, config=None, now_ns=now_ns, change_id=CHANGE)
    finally:
        archive.close()


@pytest.mark.parametrize("by", ["pull", "verb"])
def test_a_clock_that_is_ahead_of_most_records_counts_no_months(
    state: Path, tmp_path: Path, by: str
) -> None:
    """A month ahead, or so far that the certificates are over and no node can be asked."""
    issue(state, MONTHS[3])
    config, ahead_ns = tmp_path / "collector.toml", parse_instant("2026-02-10T00:00:00Z")
    config.write_text("[retention]\nraw_months = 1\n")
    if by == "pull":
        with closing(Archive(state)) as archive:
            assert "before 2025-12-01" in upkeep(archive, config, ahead_ns, CHANGE)
    else:
        words = ["--state", str(state), "retention", "--apply", "--config", str(config)]
        assert main(words, Console(io.StringIO(), wall_ns=lambda: ahead_ns)) == 0
    assert Kept(state).floor().floor_ns == FLOOR_NS


def test_what_time_it_is_is_what_most_of_those_say_that_were_heard(state: Path) -> None:
    spans = Store(state).rollups.listing().nodes
    last_ns, year_ns = max(one.watermark_ns for one in spans), 365 * 86_400 * 10**9
    with closing(Archive(state)) as archive:
        assert known_ns(archive, LISTED, NOW_NS) == last_ns < NOW_NS
        assert known_ns(archive, LISTED, FLOOR_NS) == FLOOR_NS, "a clock that is behind"
        assert known_ns(archive, gone(state), NOW_NS) == NOW_NS, "nobody is waited for"
        say(state, last_ns + year_ns)
        for entry in archive.logs():
            at_ns = NOW_NS - year_ns if entry.log_id == spans[0].log_id else NOW_NS
            archive.manifest.set(entry.log_id, entry.head, contact_ns=at_ns)
        known = known_ns(archive, LISTED, NOW_NS + year_ns)
        assert known == spans[1].watermark_ns, "who is ahead, too, is long silent"


def gone(state: Path) -> Terms:
    """Nobody waits for the nodes that were."""
    spans = Store(state).rollups.listing().nodes
    return Terms(retired_nodes=tuple(one.node_id for one in spans))


def say(state: Path, watermark_ns: int) -> None:
    """The first node's records reach no further, or further, than they did."""
    rollups = Store(state).rollups
    listing = rollups.listing()
    first = msgspec.structs.replace(listing.nodes[0], watermark_ns=watermark_ns)
    rollups.replace(msgspec.structs.replace(listing, nodes=(first, *listing.nodes[1:])))


def refresh(state: Path) -> None:
    with closing(ArchiveReader(state)) as archive:
        Store(state).refresh(archive)


def told(state: Path) -> dict[str, Any]:
    """Everything that is asked about money, of every month."""
    with closing(StoreSource(Store(state).rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(state))
        window = (0, 1 << 62)
        bills = {
            (tenant, month): accounts.draft(tenant, accounts.month(month)).canonical()
            for tenant in source.tenants()
            for month in MONTHS
        }
        return {
            "bills": bills,
            "cells": source.cells(window),
            "peaks": source.peaks(window),
            "tasks": source.tasks(window),
            "quiet": source.quiet(window),
            "held": sorted(map(str, source.held())),
            "first": source.first_ns(),
        }


def issue(state: Path, month: str) -> None:
    with closing(StoreSource(Store(state).rollups)) as source:
        Accounts(source, Terms(), Invoices(state)).issue(month)


def raw_bytes(state: Path) -> int:
    return sum(path.stat().st_size for path in (state / "segments").rglob("*.seg"))


def test_what_remains_tells_the_same(state: Path) -> None:
    before, had = told(state), raw_bytes(state)
    found = remove(state)
    assert len(found.cuts) == 2 and not found.held and not found.waits
    assert found.floor == "2025-12-01"
    kept = sum(path.stat().st_size for path in (state / "kept").iterdir())
    assert raw_bytes(state) == had - sum(cut.bytes for cut in found.cuts)
    assert raw_bytes(state) < had * 2 // 3 and kept < had // 2
    assert told(state) == before
    refresh(state)
    assert told(state) == before
    assert main(["--state", str(state), "check"], Console(io.StringIO(), io.StringIO())) == 0


def test_rebuilt_it_has_the_same_bytes(state: Path) -> None:
    before = told(state)
    remove(state)
    for entry in logs(state):
        Store(state).forget(entry)  # what the next refresh projects, too
    with closing(ArchiveReader(state)) as archive:
        store = Store(state)
        _, changed = store.rebuild(archive)
        assert changed == []
        first = derived(state)
        _, changed = store.rebuild(archive)
        assert changed == [] and derived(state) == first
        with closing(StoreSource(store.rollups)) as source:
            assert compare(source, read_archive(archive), FLOOR_NS) == []
    assert told(state) == before


def logs(state: Path) -> list[str]:
    with closing(ArchiveReader(state)) as archive:
        return [entry.log_id for entry in archive.logs()]


def test_the_tree_of_every_log_can_still_be_made(fleet: Path, state: Path) -> None:
    remove(state)
    with closing(ArchiveReader(fleet)) as whole, closing(ArchiveReader(state)) as rest:
        for log_id in logs(state):
            hashes = list(whole.hashes(log_id))
            assert list(rest.hashes(log_id)) == hashes
            assert EMPTY.extended(list(rest.hashes(log_id))).root() == EMPTY.extended(hashes).root()
            there = {record.sequence: record.hash for record in rest.records(log_id)}
            assert there.items() <= dict(enumerate(hashes)).items()
            assert 0 in there and len(there) < len(hashes)
            assert list(rest.hashes(log_id, 17)) == hashes[17:]


def test_the_removal_is_sealed_before_anything_goes(state: Path) -> None:
    remove(state)
    with closing(Register(state / "governance")) as register:
        assert register.check() == 1
        [change] = register.changes(before=None, count=5)
    assert change.change.action == "records.removed"
    document = json.loads(change.change.document)
    floor = Kept(state).floor()
    assert document["records"] == {one: kept.records for one, kept in floor.logs.items()}
    assert document["floor"] == "2025-12-01"


def test_the_next_month_goes_further(state: Path) -> None:
    remove(state)
    issue(state, MONTHS[3])
    before = told(state)
    # The newest record is of the fifth of January: no node has passed the end of it.
    floor = Kept(state).floor()
    assert remove(state, now_ns=parse_instant("2026-02-10T00:00:00Z")).floor == "2025-12-01"
    again = remove(state, now_ns=parse_instant("2026-02-10T00:00:00Z"), terms=gone(state))
    assert again.floor == "2026-01-01" and again.cuts
    assert Kept(state).floor().floor_ns > floor.floor_ns
    with closing(ArchiveReader(state)) as archive:
        assert Store(state).rebuild(archive)[1] == []
    assert told(state) == before
    assert remove(state, now_ns=parse_instant("2026-02-11T00:00:00Z"), terms=gone(state)).cuts == []


@pytest.mark.parametrize(
    "need", ["bill", "node", "quota", "override", "schedule", "verdict", "cosigned", "running"]
)
def test_nothing_goes_that_somebody_needs(state: Path, need: str) -> None:
    archive = Archive(state)
    entry = archive.logs()[0]
    terms = Terms()
    if need == "bill":
        [tenant, *_] = sorted((state / "invoices").glob("tenant=*"))
        (tenant / "2025-10.json").unlink()
    elif need == "verdict":
        archive.manifest.set(
            entry.log_id, entry.head, verdict="FORK", why="two records 7", since_ns=NOW_NS
        )
    elif need == "cosigned":
        archive.manifest.set(entry.log_id, entry.head, cosigned_size=0)
    elif need == "node":
        say(state, FLOOR_NS - 1)
    elif need in DAYS_KEPT:
        assert plan(state, RULE, terms, NOW_NS).cuts
        ask_for_days(state, need, 41)
    had = raw_bytes(state)
    found = plan(state, RULE, terms, NOW_NS)
    archive.close()
    if need == "bill":
        assert "for 2025-10 is open" in found.waits
    elif need == "node":
        assert "has no record since" in found.waits
    elif need in DAYS_KEPT:
        assert found.waits == "acme's quota log_retention_days keeps the last 41 days"
    elif need in ("verdict", "cosigned"):
        assert list(found.held) == [entry.name] and len(found.cuts) == 1
        before = told(state)
        remove(state)
        assert told(state) == before
        with closing(ArchiveReader(state)) as rest:
            assert [record.sequence for record in rest.records(entry.log_id)] == list(
                range(entry.head.size)
            )
            assert Store(state).rebuild(rest)[1] == []
        return
    else:
        with Store(state).locked(), pytest.raises(StateError, match="bringing it up to date"):
            remove(state)
        assert raw_bytes(state) == had
        return
    assert found.cuts == [] and remove_nothing(state, found) and raw_bytes(state) == had


DAYS_KEPT = ("quota", "override", "schedule")


def ask_for_days(state: Path, how: str, days: int) -> None:
    """A tenant's quota keeps records: the last of them is 35 days after the floor."""
    (state / "governance").mkdir(mode=0o700, exist_ok=True)
    limits, least = {"log_retention_days": days}, {"log_retention_days": 34}
    over = NOW_NS + 1 if how == "override" else NOW_NS
    with closing(Register(state / "governance")) as register:
        register.put_quota(Quota("acme", limits if how == "quota" else least))
        register.add_override(Override("a" * 32, "acme", limits, "x", 1, over, "me"))
        if how == "schedule":
            cron = ("0 8 * * *", "UTC", 3600 * 10**9)
            register.add_schedule(Schedule("b" * 32, "acme", *cron, limits, 1, "me"))


def remove_nothing(state: Path, found: retention.Plan) -> bool:
    """What the plan said is what is done."""
    del found
    return not (state / "kept").exists()


CALLS = "renameat,renameat2,rename,unlinkat,unlink"
"""What a removal is made of, where a kill can come between."""


def traced(state: Path, config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The verb itself, as a process, NOW being what the fleet's end makes of it."""
    return subprocess.run(
        [
            *("strace", "-f", "-qq", "-y", "-o", str(config.with_suffix(".trace"))),
            *("-e", f"trace={CALLS}", *more, sys.executable, "-c", PROGRAM),
            *("--state", str(state), "retention", "--config", str(config), "--apply"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


PROGRAM = f"""
import sys
from leased.collector.main import main
from leased.ctl.console import Console
sys.exit(main(sys.argv[1:], Console(wall_ns=lambda: {NOW_NS})))
"""


def test_killed_at_any_step_it_ends_the_same(state: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        not_proven("kills in the middle of a removal", "there is no strace")
    config = tmp_path / "leased-collector.toml"
    config.write_text("[retention]\nraw_months = 1\n")
    before = told(state)
    whole = tmp_path / "whole"
    shutil.copytree(state, whole)
    done = traced(whole, config)
    assert done.returncode == 0, done.stderr
    said = config.with_suffix(".trace").read_text().splitlines()
    said = [line for line in said if "(" in line.split()[1]]  # signals are told too
    assert len({line.split()[0] for line in said}) == 1, "one thread removes"
    floor = next(number for number, line in enumerate(said, 1) if "floor.json" in line)
    called = [line.split()[1].partition("(")[0] for line in said]
    calls = len(said)
    steps = {1, floor - 1, floor, floor + 1, calls}
    for step in sorted(steps):
        here = tmp_path / f"killed-{step}"
        shutil.copytree(state, here)
        call = called[step - 1]
        nth = called[:step].count(call)
        done = traced(here, config, "-e", f"inject={call}:signal=KILL:when={nth}")
        assert done.returncode == -signal.SIGKILL, (step, done)
        with closing(ArchiveReader(here)) as archive:
            assert Store(here).rebuild(archive)[1] == [], step
        assert told(here) == before, "what is told does not depend on when it died"
        remove(here)
        assert told(here) == before and raw_bytes(here) == raw_bytes(whole), step
        shutil.rmtree(here)


def test_a_backup_has_what_was_kept(state: Path, tmp_path: Path) -> None:
    remove(state)
    before = told(state)
    back_up(state, tmp_path / "backup", now_ns=NOW_NS)
    assert any(path.startswith("kept/") for path in listing(tmp_path / "backup"))
    restored = tmp_path / "restored"
    restore(tmp_path / "backup", restored)
    refresh(restored)
    assert told(restored) == before
    [frames, *_] = (restored / "kept").glob("*.frames")
    frames.write_bytes(frames.read_bytes()[:-1] + b"\0")
    out = io.StringIO()
    assert main(["--state", str(restored), "check"], Console(out, out)) == 65
    assert "was altered" in out.getvalue()


def listing(backup: Path) -> list[str]:
    return list(json.loads((backup / "backup.json").read_bytes())["files"])


def test_usage_goes_after_its_own_time(state: Path) -> None:
    rule = Rule(raw_months=1, usage_months=2)
    before = told(state)
    with closing(StoreSource(Store(state).rollups)) as source:
        exported = Accounts(source, Terms(), Invoices(state)).focus("acme", MONTHS[0])
    remove(state, rule)
    with closing(StoreSource(Store(state).rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(state))
        assert accounts.focus("acme", MONTHS[0]) == exported
        assert source.first_ns() == parse_instant("2025-11-01T00:00:00Z")
        with pytest.raises(NoData):  # which was not issued: nobody was enrolled then
            accounts.bill("acme", "2025-08")
        kept = {
            key: amount
            for key, amount in before["cells"].items()
            if key.bucket >= source.first_ns() // (3600 * 10**9)
        }
        assert source.cells((0, 1 << 62)) == kept
        # What was issued stays, and is told, whatever else has gone.
        for tenant, month in ((one, month) for one in source.tenants() for month in MONTHS[:3]):
            issued = Invoices(state).issued(tenant, month)
            assert issued is not None and accounts.bill(tenant, month) == issued
            assert accounts.summary(tenant, month).total == Decimal(issued.total)
    with closing(ArchiveReader(state)) as archive:
        assert Store(state).rebuild(archive)[1] == []


def test_hours_that_went_are_given_back_to_nobody(state: Path) -> None:
    before = told(state)["bills"]
    remove(state, Rule(raw_months=1, usage_months=2))
    with closing(StoreSource(Store(state).rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(state))
        for tenant in source.tenants():
            assert accounts.corrections(tenant, MONTHS[3]) == []
            assert accounts.bill(tenant, MONTHS[3]).canonical() == before[tenant, MONTHS[3]]


def test_a_month_that_begins_in_the_one_before_keeps_all_its_hours(state: Path) -> None:
    """In Tokyo December begins on the last of November, UTC."""
    terms, rule = Terms(time_zones=(("acme", "Asia/Tokyo"),)), Rule(raw_months=1, usage_months=1)

    def december() -> Bill:
        with closing(StoreSource(Store(state).rollups)) as source:
            accounts = Accounts(source, terms, Invoices(state))
            return accounts.draft("acme", accounts.month(MONTHS[3], "acme"))

    before = december()
    assert remove(state, rule, terms=terms).cuts
    assert december() == before
    with closing(ArchiveReader(state)) as archive:
        assert Store(state).rebuild(archive)[1] == []
    assert december() == before


def test_a_correction_is_billed_before_the_hours_that_it_follows_from_go(state: Path) -> None:
    rule = Rule(raw_months=1, usage_months=2)
    path = state / "invoices" / "tenant=acme" / "2025-09.json"
    bill = parse_bill(path.read_bytes())
    dear = msgspec.structs.replace(bill, total=fixed(units(bill.total, 6) + 5, 6))
    path.write_bytes(dear.canonical())
    found = remove(state, rule)
    assert not found.cuts and found.waits.startswith("the Correction of 2025-09 of acme is on no")
    with closing(StoreSource(Store(state).rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(state))
        said = {bill.tenant: bill.corrections for bill in accounts.issue(MONTHS[3])}
    assert said["acme"] == (("Correction of 2025-09", "-0.000005"),)
    assert remove(state, rule).cuts


def test_nothing_goes_before_the_bill_of_who_owes_a_fee_and_has_no_lease(state: Path) -> None:
    begin_ns, end_ns = (parse_instant(f"2025-{month}-01T00:00:00Z") for month in (10, 12))
    least = {"monthly_minimum_nano": NANO}
    terms = Terms(
        plans=(Plan("small", 1_000, 1 << 30, NANO),),
        contracts=(
            Contract("idle", begin_ns, Model.RESERVED, plan="small"),
            Contract("least", 0, Model.USAGE_BASED, until_ns=end_ns, **least),
        ),
    )
    owed = [("least", "2025-09"), ("idle", "2025-10"), ("least", "2025-10")]
    owed += [("idle", "2025-11"), ("least", "2025-11")]
    for tenant, month in owed:
        found = plan(state, RULE, terms, NOW_NS)
        assert not found.cuts and found.waits.startswith(f"the bill of {tenant} for {month} is op")
        with closing(StoreSource(Store(state).rollups)) as source:
            Accounts(source, terms, Invoices(state)).issue(month, [tenant])
    assert plan(state, RULE, terms, NOW_NS).cuts


def test_no_counter_falls_when_hours_go(state: Path, tmp_path: Path) -> None:
    terms = Terms()
    before = counters(tmp_path)
    with closing(StoreSource(Store(state).rollups)) as opened_before:
        end_ns = (max(node.watermark_ns for node in opened_before.nodes()) // HOUR_NS + 1) * HOUR_NS
        counted = Tally(opened_before, terms, NOTHING, end_ns)
        remove(state, Rule(raw_months=1, usage_months=2))
        # Whoever still has the hours does not count them twice.
        again = Tally(opened_before, terms, Kept(state).floor(), end_ns)
        assert (again.costs, again.seconds, again.tasks) == (
            counted.costs,
            counted.seconds,
            counted.tasks,
        )
    assert counters(tmp_path) == before
    issue(state, MONTHS[3])
    later = parse_instant("2026-02-10T00:00:00Z")
    assert remove(state, Rule(raw_months=1, usage_months=1), later, gone(state)).cuts
    assert counters(tmp_path) == before


def counters(directory: Path) -> list[str]:
    """What Prometheus counts of tenants, as a server says it that starts now."""
    with CollectorServer(directory=directory) as server:
        await_books(server)
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
    names = ("grey_cost_dollars_total", "grey_lease_capacity", "grey_scheduler_tasks_completed")
    found = [line for line in lines if line.startswith(names)]
    assert len({line.partition("{")[0] for line in found}) == len(names)
    return found


def test_the_verb_shows_and_removes_only_when_it_is_told_to(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "leased-collector.toml"
    config.write_text("[retention]\nraw_months = 1\n")
    had = raw_bytes(state)

    def run(*words: str) -> tuple[int, str]:
        out = io.StringIO()
        console = Console(out, out, wall_ns=lambda: NOW_NS)
        return main(
            ["--state", str(state), "retention", "--config", str(config), *words], console
        ), out.getvalue()

    status, text = run()
    assert status == 0 and "may go" in text and raw_bytes(state) == had
    status, text = run("--apply", "--json")
    assert status == 0 and json.loads(text)["removed"] and raw_bytes(state) < had
    status, text = run()
    assert status == 0 and "nothing may go" in text and "UP TO RECORD" not in text
    config.write_text("[retention]\nraw_months = 0\n")
    assert msgspec.structs.asdict(Rule()) == {"raw_months": None, "usage_months": None}
    assert "raw_months" in run()[1]
    config.write_text("[retention]\nraw_months = 5\nusage_months = 4\n")
    assert "not fewer" in run()[1]
