# SPDX-License-Identifier: Apache-2.0
"""leasectl verify --bill: who signed what the bill follows from, and what is not there is named."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from leased.chain.note import NoteKey
from leased.chain.signing import Signer
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.invoices import Invoices
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.backup import back_up
from leased.collector.demo import Node, Wish
from leased.collector.main import main as leased_collector
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.retention import carry_out
from leased.collector.retention_rule import Rule
from leased.ctl.console import Console
from leased.ctl.main import main as leasectl
from leased.economics.contracts import Terms
from leased.terms.quantity import parse_instant
from tests.doubles.demo_fleet import cosigned_fleet
from tests.doubles.fleet_archive import sample

UNTIL_NS = parse_instant("2026-01-05T00:00:00Z")
NOW_NS = parse_instant("2026-01-10T00:00:00Z")
WISH = Wish(nodes=2, days=70, seed=5, until_ns=UNTIL_NS, leases_per_day=8)


def enrol(directory: Path, log_id: str, node_id: str, origin: str, key: bytes) -> None:
    """As `leasectl audit enrolment` prints it."""
    directory.mkdir(exist_ok=True)
    document = {
        "format": "leased-enrolment/1",
        "node_id": node_id,
        "log_id": log_id,
        "origin": origin,
        "vkey": NoteKey(origin, key).text(),
        "epoch_ns": 0,
        "first_public_key": key.hex(),
    }
    (directory / f"{log_id}.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """state/ with two signed chains, enrolments/ of both, bill.json of December."""
    where = tmp_path_factory.mktemp("fleet")
    cosigned_fleet(where / "state", WISH)
    for number in range(WISH.nodes):
        node = Node(WISH, number)
        key = node.signer.public_key
        ids = (node.log_id.hex(), node.node_id.hex())
        enrol(where / "enrolments", *ids, node.origin, key)
    with closing(StoreSource(Store(where / "state").rollups)) as source:
        accounts = Accounts(source, Terms(), Invoices(where / "state"))
        for month in ("2025-10", "2025-11", "2025-12"):
            accounts.issue(month)
        (where / "bill.json").write_bytes(accounts.bill("acme", "2025-12").canonical())
    return where


@pytest.fixture
def copied(fleet: Path, tmp_path: Path) -> Path:
    shutil.copytree(fleet, tmp_path / "fleet")
    return tmp_path / "fleet"


def verify(where: Path, *words: str, archives: tuple[Path, ...] = ()) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    found = [str(one) for one in (archives or (where / "state",))]
    given = [word for one in found for word in ("--archive", one)]
    bill = ["verify", "--bill", str(where / "bill.json")]
    status = leasectl([*bill, *given, *words], Console(out, err))
    return status, out.getvalue(), err.getvalue()


def missing(where: Path, *words: str, archives: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    status, out, err = verify(where, *words, "--json", archives=archives)
    told = json.loads(out)
    assert (status, told["verdict"]) == (65, "NOT_PROVEN"), (out, err)
    found: list[dict[str, Any]] = told["missing"]
    return found


def by_all(where: Path) -> tuple[str, str]:
    return ("--enrolment", str(where / "enrolments"))


def segments(where: Path) -> list[Path]:
    [first, *_] = sorted((where / "state" / "segments").iterdir())
    return sorted(first.iterdir())


def span_of(path: Path) -> tuple[int, int]:
    first, last, _ = path.name.split("-")
    return int(first), int(last)


def test_signed_by_whom_it_should_be(fleet: Path) -> None:
    status, out, err = verify(fleet, *by_all(fleet))
    assert status == 0, err
    assert "byte for byte" in out and "below a checkpoint that its node signed" in out
    status, out, _ = verify(fleet)
    assert status == 0 and "signatures of nodes were not checked" in out
    told = json.loads(verify(fleet, *by_all(fleet), "--json")[1])
    assert (told["verdict"], told["signatures"]) == ("ok", "checked")


def test_another_key_has_signed_nothing_of_it(copied: Path) -> None:
    [file, *_] = sorted((copied / "enrolments").iterdir())
    told = json.loads(file.read_text())
    key = Signer(b"\x01" * 32).public_key
    enrol(copied / "enrolments", told["log_id"], told["node_id"], told["origin"], key)
    status, _, err = verify(copied, *by_all(copied))
    assert status == 65 and "BAD_SIGNATURE" in err


def test_an_enrolment_without_an_origin_proves_no_bill(copied: Path) -> None:
    [file, *_] = sorted((copied / "enrolments").iterdir())
    file.write_text(file.read_text().replace('"origin"', '"of"'))
    status, _, err = verify(copied, *by_all(copied))
    assert status == 65 and "lacks the log's origin" in err


def test_a_chain_that_no_enrolment_is_for_proves_nothing(copied: Path) -> None:
    [file, other] = sorted((copied / "enrolments").iterdir())
    file.unlink()
    [found] = missing(copied, "--enrolment", str(other))
    assert (found["why"], found["log_id"], found["first"]) == ("unknown", file.stem, 0)


def test_records_that_are_not_there_are_named(copied: Path) -> None:
    gone = segments(copied)[1:3]
    for path in gone:
        path.unlink()
    [found] = missing(copied, *by_all(copied))
    assert (found["why"], found["first"]) == ("absent", span_of(gone[0])[0])
    assert found["last"] == span_of(gone[1])[1]
    assert found["node_id"] in gone[0].parent.name
    status, out, _ = verify(copied)
    assert status == 65 and out.startswith("NOT_PROVEN acme 2025-12")
    assert f"records {found['first']} to {found['last']} of node" in out


def test_a_whole_chain_and_an_end_that_are_not_there(copied: Path) -> None:
    [one, other] = sorted((copied / "state" / "segments").iterdir())
    shutil.rmtree(one)
    last = sorted(other.iterdir())[-1]
    last.unlink()
    found = {entry["node_id"]: entry for entry in missing(copied)}
    assert len(found) == 2
    assert found[one.name.removeprefix("node=")]["first"] == 0
    assert found[other.name.removeprefix("node=")]["first"] == span_of(last)[0]
    assert found[other.name.removeprefix("node=")]["last"] == span_of(last)[1]


def test_records_that_nobody_signed_prove_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    sample(state, NOW_NS)
    with closing(ArchiveReader(state)) as archive:
        Store(state).refresh(archive)
        for entry in archive.logs():
            key = Signer(b"\x02" * 32).public_key
            enrol(tmp_path / "enrolments", entry.log_id, entry.node, entry.origin, key)
    with closing(StoreSource(Store(state).rollups)) as source:
        bill = Accounts(source, Terms()).bill("tenant-acme", "2025-12").canonical()
    (tmp_path / "bill.json").write_bytes(bill)
    assert verify(tmp_path)[0] == 0
    [found] = missing(tmp_path, *by_all(tmp_path))
    assert (found["why"], found["first"]) == ("unsigned", 0)
    assert "no checkpoint that the node signed" in verify(tmp_path, *by_all(tmp_path))[1]


def test_what_retention_removed_is_proven_from_where_it_was_copied_to(
    copied: Path, tmp_path: Path
) -> None:
    state = copied / "state"
    back_up(state, tmp_path / "backup", now_ns=NOW_NS)
    archive = Archive(state)
    try:
        rule = Rule(raw_months=1)
        plan = carry_out(archive, rule, Terms(), config=None, now_ns=NOW_NS, change_id="00" * 16)
    finally:
        archive.close()
    found = missing(copied, *by_all(copied))
    assert {one["log_id"]: one["last"] + 1 for one in found} == {
        cut.log_id: cut.records for cut in plan.cuts
    }
    assert {(one["why"], one["first"]) for one in found} == {("absent", 0)}
    both = (state, tmp_path / "backup")
    status, out, err = verify(copied, *by_all(copied), archives=both)
    assert status == 0 and "byte for byte" in out, err


def test_archives_and_enrolments_that_are_none(copied: Path, tmp_path: Path) -> None:
    status, _, err = verify(copied, archives=(tmp_path / "nowhere",))
    assert status == 65 and "no segments/" in err
    nonsense = tmp_path / "x.json"
    for text in ("", "{}", "[]", '{"format":"leased-enrolment/1"}'):
        nonsense.write_text(text)
        assert verify(copied, "--enrolment", str(nonsense))[0] == 65
    assert verify(copied, "--enrolment", str(tmp_path / "none.json"))[0] == 66


def test_segments_of_another_log_of_the_node_are_told_apart(copied: Path) -> None:
    """A node whose log was begun anew has files of both, which begin at the same records."""
    [one, other] = sorted((copied / "state" / "segments").iterdir())
    for path in other.iterdir():
        shutil.copy(path, one / path.name)
    for words in ((), by_all(copied)):
        status, out, err = verify(copied, *words)
        assert status == 0 and "byte for byte" in out, err


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a document stand."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1])
    found = []
    for key, one in inner:
        found.append((*at, key))
        found += _paths(one, (*at, key)) if isinstance(one, dict | list) else []
    return found


def test_a_bill_that_anybody_may_have_written_is_judged_in_words(
    fleet: Path, tmp_path: Path
) -> None:
    """Whatever stands in it: 65, no traceback, and no line that the bill itself has written."""
    good, case = (fleet / "bill.json").read_bytes(), tmp_path / "bill.json"
    paths = _paths(json.loads(good))
    odd = (None, -1, 2**64, 1.5, "x\nok acme 2025-12", "9" * 5000, [], {"a": 1}, True)
    for number, path in enumerate(paths):
        document = json.loads(good)
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = odd[number % len(odd)]
        case.write_text(json.dumps(document))
        console = Console(io.StringIO(), io.StringIO(), terminal=False)
        words = ["verify", "--bill", str(case), "--archive", str(fleet / "state")]
        assert leasectl(words, console) == 65, path
        assert isinstance(console.out, io.StringIO)
        assert "\nok acme" not in console.out.getvalue()
    assert len(paths) > 50


CREDITS = """
[[credits]]
tenant = "acme"
month = "2025-11"
amount = "7.25"
reason = "outage"
[[credits]]
tenant = "acme"
month = "2025-10"
amount = "900000000"
reason = "goodwill"
[[credits]]
tenant = "nobody"
month = "2025-12"
amount = "1"
reason = "a slip of the pen"
"""


def test_a_late_credit_is_computed_again_from_the_chains(copied: Path) -> None:
    """October to December are issued, and January is a draft."""
    state, terms, bill = copied / "state", copied / "billing.toml", copied / "bill.json"
    terms.write_text(CREDITS)

    def collector(*words: str) -> str:
        out = io.StringIO()
        words = ("--state", str(state), *words, "--terms", str(terms))
        assert leased_collector(list(words), Console(out, io.StringIO())) == 0
        return out.getvalue()

    told = json.loads(collector("bill", "acme", "2026-01", "--out", str(bill), "--json"))
    given = {one["month"]: (one["amount"], one["left"]) for one in told["credit_items"]}
    assert list(given) == ["2025-10", "2025-11"] and told["total"] == 0
    assert given["2025-10"][0] == -told["subtotal"] < 0 < given["2025-10"][1]
    assert given["2025-11"] == (0, 7.25)
    status, out, err = verify(copied)
    assert status == 0 and "1 credits" in out, err
    honest = bill.read_bytes()
    bill.write_bytes(honest.replace(b"goodwill (of 2025-10)", b"goodwill (of 2025-09)"))
    assert verify(copied)[0] == 65
    bill.write_bytes(honest.replace(b'"nano":900000000000000000', b'"nano":1000000000'))
    assert verify(copied)[0] == 65
    left = json.loads(collector("issue", "2025-12", "--json"))["credits_left"]
    assert [(one["tenant"], one["month"], one["amount"]) for one in left] == [
        ("acme", "2025-10", 900000000),
        ("acme", "2025-11", 7.25),
        ("nobody", "2025-12", 1),
    ]
