# SPDX-License-Identifier: Apache-2.0
"""Issued bills never change; late records become a correction, once, at the old prices."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from leased.collector.accounts.accounts import Accounts, NoData, UnknownTenant
from leased.collector.accounts.focus_1_4 import VERSIONS
from leased.collector.accounts.invoices import Invoices, NotSettled
from leased.economics.contracts import CardVersion, Contract, Model, Plan, Terms
from leased.economics.rates import DEFAULT_CARD, NANO, Rate, RateCard
from leased.terms.errors import StateError
from leased.terms.lease import AccountingTag
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind
from tests.doubles.accounts import GIB, JANUARY_HOURS, JANUARY_NS, NODE, WrittenSource
from tests.doubles.collector_server import REPOSITORY
from tests.doubles.host import not_proven

CPU = ResourceKind.CPU
MARCH = range(JANUARY_HOURS + 29 * 24, JANUARY_HOURS + 29 * 24 + 10)
FEBRUARY = range(JANUARY_HOURS, JANUARY_HOURS + 10)
LATER = msgspec.structs.replace(NODE, watermark_ns=NODE.watermark_ns + 80 * 24 * HOUR_NS)


def fleet(tmp_path: Path) -> tuple[WrittenSource, Invoices]:
    source = WrittenSource(node=LATER)
    source.hold("t", CPU, 1_000, range(10))
    source.hold("t", CPU, 1_000, FEBRUARY)
    source.hold("t", CPU, 1_000, MARCH)
    return source, Invoices(tmp_path)


def test_late_records_are_a_correction_in_the_next_bill_and_only_there(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    accounts = Accounts(source, Terms(), invoices)
    (january,) = accounts.issue("2024-01")
    source.hold("t", CPU, 1_000, range(20, 25))
    assert accounts.bill("t", "2024-01") == january and january.total == "72.000000"
    dear = RateCard(tuple(Rate(r.kind, 9 * r.nano) for r in DEFAULT_CARD.rates))
    since = LATER.watermark_ns // HOUR_NS * HOUR_NS
    accounts = Accounts(
        source, Terms((CardVersion(0, DEFAULT_CARD), CardVersion(since, dear))), invoices
    )
    (february,) = accounts.issue("2024-02")
    assert february.corrections == (("Correction of 2024-01", "36.000000"),)
    assert [line.description for line in february.line_items] == [
        "CPU (standard)",
        "Correction of 2024-01",
    ]
    assert february.total == "108.000000"
    (march,) = accounts.issue("2024-03")
    assert march.corrections == () and march.total == "72.000000"


def test_a_month_that_is_billed_late_does_not_charge_a_correction_again(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    Accounts(source, Terms(), invoices).issue("2024-01")
    source.hold("t", CPU, 1_000, range(20, 25))
    accounts = Accounts(source, Terms(), invoices)
    (march,) = accounts.issue("2024-03")
    assert march.corrections == (("Correction of 2024-01", "36.000000"),)
    (february,) = accounts.issue("2024-02")
    assert february.corrections == () and february.total == "72.000000"


def in_money(currency: str, decimals: int) -> Terms:
    card = msgspec.structs.replace(DEFAULT_CARD, currency=currency, decimals=decimals)
    return Terms((CardVersion(0, card),))


def test_a_correction_is_what_it_is_in_bills_of_other_digits(tmp_path: Path):
    """Five hours of a core at 7.20, and what no digits of March can say goes on."""
    source, invoices = fleet(tmp_path)
    Accounts(source, in_money("USD", 2), invoices).issue("2024-01")
    source.hold("t", CPU, 1_000, range(20, 25))
    (february,) = Accounts(source, in_money("USD", 6), invoices).issue("2024-02")
    assert february.corrections == (("Correction of 2024-01", "36.000000"),)
    assert february.total == "108.000000"
    source.hold("t", CPU, 4, range(31 * 24 + 20, 31 * 24 + 21))
    (march,) = Accounts(source, in_money("USD", 0), invoices).issue("2024-03")
    assert march.corrections == () and march.total == "72"
    april = Accounts(source, in_money("USD", 3), invoices).corrections("t", "2024-04")
    assert april == [("Correction of 2024-02", 29)]


def test_money_of_another_currency_is_told_once_and_in_no_sum(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    Accounts(source, Terms(), invoices).issue("2024-01")
    source.hold("t", CPU, 1_000, range(20, 25))
    (february,) = Accounts(source, in_money("USD", 2), invoices).issue("2024-02")
    told = "Correction of 2024-01: 36.000000 credits, to be settled apart"
    assert february.corrections == ((told, "0.00"),) and february.total == "72.00"
    (march,) = Accounts(source, in_money("USD", 2), invoices).issue("2024-03")
    assert march.corrections == () and march.total == "72.00"


def test_a_correction_may_give_back(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    Accounts(source, Terms(), invoices).issue("2024-01")
    gone = next(key for key in source.written if key.bucket == source.since_ns // HOUR_NS)
    del source.written[gone]
    bill = Accounts(source, Terms(), invoices).bill("t", "2024-02")
    assert bill.corrections == (("Correction of 2024-01", "-7.200000"),)


def test_a_bill_is_issued_once_and_only_when_its_month_is_settled(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    accounts = Accounts(source, Terms(), invoices)
    assert accounts.issue("2024-01") == accounts.issue("2024-01")
    forged = msgspec.structs.replace(invoices.of_tenant("t")[0], total="0.000000")
    with pytest.raises(StateError, match="issued otherwise"):
        invoices.issue(forged, b"")
    source.spans = (NODE,)
    with pytest.raises(NotSettled, match=f"of node {NODE.node_id} end at 2024-02-10T00:00:00Z, be"):
        accounts.issue("2024-02")
    assert [bill.period for bill in invoices.of_tenant("t")] == ["2024-01"]


def test_a_fleet_that_is_no_more_has_its_last_bill(tmp_path: Path):
    """Its last record is of the 20th of January, and February begins eleven days later."""
    gone = msgspec.structs.replace(NODE, watermark_ns=JANUARY_NS + 20 * 24 * HOUR_NS)
    source, invoices = WrittenSource(node=gone), Invoices(tmp_path)
    source.hold("t", CPU, 1_000, range(10))
    over_ns = JANUARY_NS + JANUARY_HOURS * HOUR_NS
    retired = Terms(retired_nodes=(NODE.node_id,))
    for terms, clock_ns in ((Terms(), over_ns), (retired, over_ns - 1), (retired, None)):
        with pytest.raises(NotSettled, match="is not over" if terms is retired else "of node"):
            Accounts(source, terms, invoices, clock_ns=clock_ns).issue("2024-01")
    (bill,) = Accounts(source, retired, invoices, clock_ns=over_ns).issue("2024-01")
    assert (bill.total, bill.as_of_ns) == ("72.000000", str(over_ns))


def test_a_month_to_come_is_not_over_by_the_clock_of_one_node(tmp_path: Path):
    """It was two years ahead once; the others are gone, and it may be, too."""
    ahead_ns = NODE.watermark_ns + 2 * 366 * 24 * HOUR_NS
    others = [msgspec.structs.replace(NODE, node_id=f"{n}e" * 16) for n in (1, 2)]
    source, invoices = WrittenSource(), Invoices(tmp_path)
    source.spans = (*others, msgspec.structs.replace(NODE, watermark_ns=ahead_ns))
    source.hold("t", CPU, 1_000, range(10))
    gone = tuple(one.node_id for one in others)
    for retired in (gone, (*gone, NODE.node_id)):
        terms = Terms(retired_nodes=retired)
        accounts = Accounts(source, terms, invoices, clock_ns=NODE.watermark_ns)
        for month in ("2024-02", "2025-03"):
            with pytest.raises(NotSettled, match="it is not over"):
                accounts.issue(month)
    assert [bill.total for bill in accounts.issue("2024-01")] == ["72.000000"]


def test_the_bills_of_a_month_are_issued_all_or_none(tmp_path: Path):
    """In New York January ends five hours later."""
    end_ns = NODE.watermark_ns - 9 * 24 * HOUR_NS + HOUR_NS
    source = WrittenSource(node=msgspec.structs.replace(NODE, watermark_ns=end_ns))
    for tenant in ("a", "b", "c"):
        source.hold(tenant, CPU, 1_000, range(10))
    invoices = Invoices(tmp_path)
    accounts = Accounts(source, Terms(time_zones=(("b", "America/New_York"),)), invoices)
    with pytest.raises(NotSettled, match="the bill of b"):
        accounts.issue("2024-01")
    assert not invoices.directory.exists()
    with pytest.raises(UnknownTenant):
        accounts.issue("2024-01", ["a", "nobody"])
    assert not invoices.directory.exists()
    assert [bill.tenant for bill in accounts.issue("2024-01", ["a", "c"])] == ["a", "c"]


def test_who_had_nothing_of_a_month_yet_does_not_keep_others_from_their_bills(tmp_path: Path):
    """The first record is of the last day of January, when it was February in Tokyo."""
    source = WrittenSource(since_ns=NODE.watermark_ns - 9 * 24 * HOUR_NS - 4 * HOUR_NS, node=LATER)
    for tenant in ("a", "tokyo"):
        source.hold(tenant, CPU, 1_000, range(10))
    zones = Terms(time_zones=(("tokyo", "Asia/Tokyo"),))
    accounts = Accounts(source, zones, Invoices(tmp_path))
    assert [bill.tenant for bill in accounts.issue("2024-01")] == ["a"]
    assert [bill.tenant for bill in accounts.issue("2024-02")] == ["a", "tokyo"]
    with pytest.raises(NoData):
        accounts.issue("2023-12")


ZONES = ("UTC", "America/New_York", "Pacific/Kiritimati", "Etc/GMT+12", "Europe/Berlin", "UTC")


def test_a_tenant_whose_zone_is_changed_pays_every_hour_once(tmp_path: Path):
    """Kiritimati is 26 hours before the Etc/GMT+12. February and July are billed after the month
    that follows them."""
    node = msgspec.structs.replace(NODE, watermark_ns=JANUARY_NS + 400 * 24 * HOUR_NS)
    source, invoices = WrittenSource(node=node), Invoices(tmp_path)
    source.hold("t", CPU, 1_000, range(-48, 370 * 24))
    for at, month in enumerate((1, 3, 2, 4, 5, 6, 8, 7, 9, 10, 11, 12)):
        terms = Terms(time_zones=(("t", ZONES[at // 2]),))
        (bill,) = Accounts(source, terms, invoices).issue(f"2024-{month:02}")
        hours = (int(bill.to_ns) - int(bill.from_ns)) // HOUR_NS
        assert bill.line_items[0].quantity == str(hours * 3600) and not bill.corrections
    year = invoices.of_tenant("t")
    assert [one.to_ns for one in year[:-1]] == [one.from_ns for one in year[1:]]
    assert int(year[0].from_ns) == JANUARY_NS
    assert int(year[-1].to_ns) == JANUARY_NS + 366 * 24 * HOUR_NS


def test_a_plan_and_a_minimum_are_billed_to_who_never_had_a_lease(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    since_ns, until_ns = JANUARY_NS, JANUARY_NS + 31 * 24 * HOUR_NS
    terms = Terms(
        plans=(Plan("small", 1_000, GIB, 500 * NANO),),
        contracts=(
            Contract("idle", since_ns, Model.RESERVED, until_ns, plan="small"),
            Contract("least", since_ns, Model.USAGE_BASED, monthly_minimum_nano=7 * NANO),
            Contract("nothing", since_ns, Model.USAGE_BASED),
        ),
    )
    accounts = Accounts(source, terms, invoices)
    told = {bill.tenant: bill.total for bill in accounts.issue("2024-01")}
    assert told == {"idle": "500.000000", "least": "7.000000", "t": "72.000000"}
    assert accounts.summary("idle", "2024-01").total == 500
    assert [bill.tenant for bill in accounts.issue("2024-02")] == ["least", "t"]
    for tenant in ("idle", "nothing"):  # never an empty bill
        with pytest.raises(UnknownTenant):
            accounts.bill(tenant, "2024-02")


def test_an_issued_bill_that_was_altered_is_refused(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    accounts = Accounts(source, Terms(), invoices)
    accounts.issue("2024-01")
    path = tmp_path / "invoices" / "tenant=t" / "2024-01.json"
    for bad in (path.read_bytes()[:-9], path.read_bytes() + b"\n"):
        path.write_bytes(bad)
        with pytest.raises(StateError):
            accounts.bill("t", "2024-01")


def test_issuing_changes_no_byte_of_the_bill(tmp_path: Path):
    source, invoices = fleet(tmp_path)
    draft = Accounts(source, Terms(), invoices).bill("t", "2024-01")
    (issued,) = Accounts(source, Terms(), invoices).issue("2024-01")
    assert issued.canonical() == draft.canonical() == invoices.issued("t", "2024-01").canonical()


def test_what_was_issued_is_exported_as_it_was(tmp_path: Path):
    """By day and tag, whatever is recorded, corrected or removed later."""
    source, invoices = fleet(tmp_path)
    tags = AccountingTag("CC-1", "atlas"), AccountingTag("CC-2")
    source.hold("t", ResourceKind.MEM, GIB, range(20, 50), tag=tags[0], tier=TierKind.DRAM)
    source.hold("t", ResourceKind.MEM, GIB, range(30, 90), tag=tags[1], tier=TierKind.DRAM)
    dear = RateCard(tuple(Rate(r.kind, 9 * r.nano) for r in DEFAULT_CARD.rates))
    since_ns = JANUARY_NS + 36 * HOUR_NS  # at noon: of that day there are two prices
    terms = Terms((CardVersion(0, DEFAULT_CARD), CardVersion(since_ns, dear)))
    accounts = Accounts(source, terms, invoices)
    draft = {version: accounts.focus("t", "2024-01", version) for version in VERSIONS}
    accounts.issue("2024-01")
    mine = [key for key in source.written if key.tag == tags[0] and key.bucket < MARCH[0]]
    for key in mine:  # a clock that was stepped: as much, of the day after
        moved = msgspec.structs.replace(key, bucket=key.bucket + 24)
        source.written[moved] = source.written.pop(key)
    for version in VERSIONS:
        assert Accounts(source, terms, invoices).focus("t", "2024-01", version) == draft[version]
    source.hold("t", CPU, 1_000, range(200, 300))
    source.written = {key: n for key, n in source.written.items() if key.bucket % 3}
    for version in VERSIONS:
        assert Accounts(source, terms, invoices).focus("t", "2024-01", version) == draft[version]
    path = tmp_path / "invoices" / "tenant=t" / "2024-01.hours"
    whole = path.read_bytes()
    for bad in (whole[:-9], whole.replace(b'"version":1', b'"version":2'), b"{}"):
        path.write_bytes(bad)
        with pytest.raises(StateError, match="restore it"):
            Accounts(source, terms, invoices).focus("t", "2024-01")
    path.unlink()  # as an earlier release left it
    assert Accounts(source, terms, invoices).focus("t", "2024-01") != draft["1.2"]


def test_the_directories_of_a_bill_are_as_durable_as_the_bill(tmp_path: Path):
    """A power cut that takes a tenant's first directory would take the bill in it: it was sent
    already, and is issued again, at the prices of then."""
    program = f"""
from pathlib import Path
from tests.collector.test_collector_invoices import Accounts, Terms, fleet
source, invoices = fleet(Path({str(tmp_path)!r}))
Accounts(source, Terms(), invoices).issue("2024-01")
"""
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", "trace=mkdir,mkdirat,fsync"]
    if shutil.which("strace") is None or subprocess.run([*strace, "true"]).returncode:
        not_proven("the order in which a bill's directories are made", "strace cannot trace here")
    words = [*strace, sys.executable, "-B", "-c", program]
    path = f"{REPOSITORY / 'agent'}:{REPOSITORY}"
    subprocess.run(words, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, check=True)
    calls = [line.split(" ", 1)[1].strip() for line in trace.read_text().splitlines()]
    made = [number for number, call in enumerate(calls) if call.startswith("mkdir")]
    assert len(made) == 2, calls
    for number in made:
        assert re.match(rf"mkdirat\(\d+<{re.escape(str(tmp_path))}", calls[number]), calls[number]
        parent = calls[number].partition("<")[2].partition(">")[0]
        assert any(call.startswith("fsync") and f"<{parent}>" in call for call in calls[number:])


def test_the_minimum_of_a_contract_is_held_against_its_own_lines(tmp_path: Path):
    """What is used after it, or before, pays for none of it; a bill of an earlier release, which
    held all against all, is what it was."""
    source, invoices = fleet(tmp_path)
    source.hold("t", CPU, 1_000, range(16 * 24, 16 * 24 + 100))  # at 720 credits
    middle_ns = JANUARY_NS + 15 * 24 * HOUR_NS + 12 * HOUR_NS
    least = Contract("t", 0, Model.RATE_CARD, middle_ns, monthly_minimum_nano=310 * NANO)
    terms = Terms(contracts=(least, Contract("t", middle_ns, Model.RATE_CARD)))
    accounts = Accounts(source, terms, invoices)
    bill = accounts.bill("t", "2024-01")
    assert [(line.description, line.total) for line in bill.line_items] == [
        ("CPU (standard)", "72.000000"),
        ("Minimum commitment adjustment", "83.000000"),
        ("CPU (standard)", "720.000000"),
    ]
    assert (bill.total, bill.version) == ("875.000000", 3)
    before = msgspec.structs.replace(
        bill,
        version=1,
        line_items=(bill.line_items[0], bill.line_items[2]),
        subtotal="792.000000",
        total="792.000000",
    )
    invoices.issue(before, b"")
    assert accounts.bill("t", "2024-02").corrections == ()
