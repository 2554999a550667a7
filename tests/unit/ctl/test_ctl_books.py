# SPDX-License-Identifier: Apache-2.0
"""The offline verbs on a real sealed log: verify, audit, usage, statement, rates."""

from __future__ import annotations

import hashlib
import io
import json
import resource
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from leased.chain.segment import HEADER_BYTES
from leased.ctl.console import Console
from leased.ctl.main import main
from leased.ctl.rate_file import load_card, parse_card
from leased.economics.rates import DEFAULT_CARD
from leased.service import config_file
from leased.terms.errors import ConfigError
from leased.terms.event import NodeStopped
from leased.terms.identity import EventId
from leased.terms.lease import AccountingTag
from leased.terms.moment import Moment
from tests.doubles.economics_history import History, lease_id, memory, subject
from tests.doubles.logs import BOOT, open_in, started
from tests.vectors import verify_independent

SECOND = 10**9
GIB = 1 << 30
JANUARY = 1_767_225_600 * SECOND
ROOT = Path(__file__).resolve().parents[3]
CARD = DEFAULT_CARD.digest()


def leasectl(*words: object) -> tuple[int, str, str]:
    """Run a command; its status, what it printed, what it noted."""
    console = Console(io.StringIO(), io.StringIO(), wall_ns=lambda: JANUARY, zone=UTC)
    status = main([str(word) for word in words], console)
    assert isinstance(console.out, io.StringIO) and isinstance(console.err, io.StringIO)
    return status, console.out.getvalue(), console.err.getvalue()


def document(*words: object) -> dict[str, Any]:
    """The JSON that a command prints."""
    status, out, err = leasectl(*words, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["version"] == 1
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An hour of a node: a closed lease of acme, an open one of other."""
    history = History(wall_offset_ns=JANUARY)
    history.start()
    history.inventory(memory(8 * GIB))
    tagged = subject(memory(GIB), tag=AccountingTag("cc-7"), rate_hash=CARD)
    history.allocate(1, tagged, deadline_ns=10**15)
    history.boot_ns = 60 * SECOND
    history.end(1)
    history.boot_ns = 61 * SECOND
    history.tear_down(1)
    history.reclaim(1, held=(60 * SECOND * GIB,))
    history.allocate(2, subject(memory(2 * GIB), tenant="other", rate_hash=CARD), 10**15)
    history.boot_ns = 71 * SECOND
    history.touch()
    directory = tmp_path / "audit"
    opened = open_in(directory)
    sealer = opened.sealer()
    for _, event, moment in history.records:
        batch = sealer.seal([(event, moment)])
        opened.journal.commit_blocking(batch.frames, batch.count, batch.new_head.hash, moment)
    opened.close()
    return directory


def test_verify_says_what_holds(log: Path) -> None:
    found = document("verify", "--log", log)
    assert found["verdict"] == "ok" and found["records"] >= 8 and found["torn_bytes"] == 0
    status, out, _ = leasectl("verify", "--log", log, "--head", found["head"])
    assert status == 0 and "has the head that was asked for" in out
    status, _, err = leasectl("verify", "--log", log, "--head", "ab" * 32)
    assert status == 65 and "FORK_OR_ROLLBACK" in err


@pytest.mark.parametrize(("silent_s", "stale"), [(0, False), (150, False), (151, True)])
def test_a_log_that_an_agent_has_open_and_does_not_seal_is_stale(
    tmp_path: Path, silent_s: int, *, stale: bool
) -> None:
    """The end that is to be expected is part of the verdict: a log that stopped is not whole."""
    opened = open_in(tmp_path / "audit")
    end_ns = JANUARY - silent_s * SECOND
    sealer = opened.sealer()
    for seconds in (0, 60):
        moment = Moment(BOOT, 10**12 + seconds * SECOND, end_ns - 60 * SECOND + seconds * SECOND)
        event = NodeStopped(EventId(bytes(16)), 0) if seconds else started()
        batch = sealer.seal([(event, moment)], moment=moment)
        opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment)
    status, out, _ = leasectl("verify", "--log", tmp_path / "audit")
    assert (status, "no epoch for" in out) == (66 if stale else 0, stale)
    opened.close()


def test_a_slip_of_the_pen_is_no_alarm(log: Path) -> None:
    _, said, _ = leasectl("audit", "head", "--log", log)
    status, out, _ = leasectl("verify", "--log", log, "--head", said.strip())
    assert status == 0 and "has the head that was asked for" in out
    size, _, hexed = said.strip().partition(":")
    status, _, err = leasectl("verify", "--log", log, "--head", f"{int(size) - 1}:{hexed}")
    assert status == 65 and "FORK_OR_ROLLBACK" in err, "of another size it was never the head"
    assert leasectl("verify", "--log", log, "--head", f"00{size}:{hexed}")[0] == 0
    for slip in (hexed[:-1], "zz", f"x:{hexed}", f"{'9' * 5000}:{hexed}", f"٣:{hexed}"):
        status, _, err = leasectl("verify", "--log", log, "--head", slip)
        assert status == 65 and "64 hex digits" in err and "ROLLBACK" not in err
    status, _, err = leasectl("audit", "log", "--log", log, "--lease", "7FA3")
    assert status == 65 and "lower-case hex digits" in err


def test_verify_names_what_does_not_hold(log: Path) -> None:
    [segment] = sorted(log.glob("seg-*.log"))[:1]
    data = bytearray(segment.read_bytes())
    data[HEADER_BYTES + 80] ^= 1
    segment.write_bytes(data)
    for words in (("verify",), ("audit", "log"), ("usage",), ("statement", "acme")):
        status, out, err = leasectl(*words, "--log", log)
        assert status == 65 and out == "", words
        assert "CORRUPT_RECORD" in err and "sequence" in err and "offset" in err


def test_verify_names_a_lease_whose_steps_are_out_of_order(tmp_path: Path) -> None:
    history = History(wall_offset_ns=JANUARY)
    history.start()
    history.inventory(memory(8 * GIB))
    history.allocate(1, subject(memory(GIB)), 10**15)
    history.end(1)
    history.reclaim(1)  # neither cut nor scrubbed
    opened = open_in(tmp_path / "audit")
    batch = opened.sealer().seal([(event, moment) for _, event, moment in history.records])
    opened.journal.commit_blocking(batch.frames, batch.count, batch.head, history.records[-1][2])
    opened.close()
    status, _, err = leasectl("verify", "--log", tmp_path / "audit")
    assert status == 65 and "BAD_ORDER: Reclaimed of lease" in err and "REVOKING" in err


def test_a_directory_without_a_log_is_refused(tmp_path: Path) -> None:
    status, _, err = leasectl("verify", "--log", tmp_path)
    assert status == 78 and "no log here" in err


def test_audit_log_chooses(log: Path) -> None:
    name = lease_id(1).hex()
    status, out, _ = leasectl("audit", "log", "--log", log, "--lease", name)
    kinds = [line.split()[2] for line in out.splitlines()]
    assert status == 0 and kinds[:3] == ["Allocated", "Expired", "TeardownBegun"]
    assert kinds[3:] == ["AccessCut", "Scrubbed", "Reclaimed"]
    _, out, _ = leasectl("audit", "log", "--log", log, "--tenant", "other", "--json")
    [event] = [json.loads(line) for line in out.splitlines()]
    assert event["kind"] == "Allocated" and event["subject"]["priority"] == "standard"
    assert event["subject"]["allotments"][0]["tier"] == "dram"
    assert event["time"] == "2026-01-01T00:01:01.000000000Z"
    _, out, _ = leasectl("audit", "log", "--log", log, "--last", "2")
    assert len(out.splitlines()) == 2


def test_audit_export_of_frames_is_what_is_stored(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "records.frames"
    status, _, err = leasectl("audit", "export", "--log", log, "--format", "frames", file)
    stored = sorted(log.glob("seg-*.log"))[0].read_bytes()
    assert status == 0 and f"{file.stat().st_size} bytes written" in err
    assert file.read_bytes() in stored
    lines = tmp_path / "records.jsonl"
    assert leasectl("audit", "export", "--log", log, lines)[0] == 0
    events = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [event["sequence"] for event in events] == list(range(len(events)))
    assert (
        leasectl("audit", "export", "--log", log, "--format", "frames", "--kind", "Expired", "-")[0]
        == 65
    )


def test_audit_export_of_a_log_is_one_for_every_verifier_and_has_no_secrets(
    log: Path, tmp_path: Path
) -> None:
    copy, beyond = tmp_path / "copy", sorted(log.glob("seg-*.log"))[-1]
    with beyond.open("r+b") as file:  # what a writer appends meanwhile is not anchored
        file.seek(-4096, 2)
        file.write(b"later")
    assert leasectl("audit", "export", "--log", log, "--format", "log", copy)[0] == 0
    assert not {path.name for path in copy.iterdir()} & {"node.key", "seal.key", "quarantine"}
    told = document("verify", "--log", copy)
    assert told["head"] == document("audit", "head", "--log", log)["head"]
    assert told["torn_bytes"] == 0
    head = verify_independent.verify(copy, leases=True, countersigned=True)
    assert head == (told["next_sequence"], told["head"])
    again = leasectl("audit", "export", "--log", log, "--format", "log", copy)
    assert again[0] == 78 and "give a new directory" in again[2]
    for words in (("--last", "1", tmp_path / "b"), ("--from", "2", tmp_path / "b"), ("-",)):
        assert leasectl("audit", "export", "--log", log, "--format", "log", *words)[0] == 65


def test_audit_head_without_an_agent(log: Path) -> None:
    head = document("audit", "head", "--log", log)
    assert head["head"] == document("verify", "--log", log)["head"]


def test_usage_in_full_and_conserved(log: Path) -> None:
    found = document("usage", "--log", log)
    rows = {(row["pool"], row["tenant"]): row for row in found["usage"]}
    assert rows["tenant", "acme"]["capacity_seconds"] == "60"
    assert rows["tenant", "acme"]["tag"][0] == "cc-7"
    assert rows["tenant", "acme"]["peak_of_period"] == GIB
    assert rows["teardown", "acme"]["capacity_seconds"] == "1"
    assert rows["tenant", "other"]["capacity_seconds"] == "20"
    [row] = document("usage", "--log", log, "--resources")["resources"]
    paid = sum(int(row[f"{pool}_ns"]) for pool in ("tenant", "teardown", "fenced", "idle"))
    assert paid == int(row["provisioned_ns"]) == 8 * GIB * 71 * SECOND


@pytest.mark.parametrize("more", [("--by", "day"), ("--tenant", "acme")])
def test_what_usage_by_resource_cannot_say_is_not_passed_over(
    log: Path, more: tuple[str, str]
) -> None:
    status, _, err = leasectl("usage", "--log", str(log), "--resources", *more)
    assert status == 65 and "leave --by and --tenant away" in err


def test_usage_of_a_period_by_hour(log: Path) -> None:
    found = document(
        "usage", "--log", log, "--tenant", "acme", "--since", "2026-01-01T00:00:30Z",
        "--until", "2026-01-01T00:01:00Z", "--by", "hour",
    )  # fmt: skip
    [row] = found["usage"]
    assert (row["from"], row["capacity_seconds"]) == ("2026-01-01T00:00:00.000000000Z", "30")
    status, out, _ = leasectl("usage", "--log", log)
    assert status == 0 and "60 GiB-s" in out
    assert leasectl("usage", "--log", log, "--since", "soon")[0] == 65


def test_a_statement_can_be_recomputed_from_its_bytes(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "bill.json"
    found = document("statement", "acme", "--log", log, "--out", file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found["sha256"]
    bill = found["statement"]
    assert json.loads(file.read_bytes()) == bill
    assert (bill["total"], bill["complete"]) == ("0.060000", True)
    assert bill["lines"][0]["cost_exact"] == "0.06"
    again = document("statement", "acme", "--log", log)
    assert again["sha256"] == found["sha256"]
    open_bill = document("statement", "other", "--log", log)["statement"]
    assert open_bill["lines"][0]["provisional"] and not open_bill["complete"]


def test_a_statement_that_has_no_room_leaves_the_one_before(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "bill.json"
    file.write_text("of yesterday")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        status, _, err = leasectl("statement", "acme", "--log", log, "--out", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 74 and "bill.json: File too large" in err, err
    assert file.read_text() == "of yesterday"
    assert [path.name for path in tmp_path.glob("bill*")] == ["bill.json"]


@pytest.mark.parametrize("words", [("statement", "acem"), ("usage", "--tenant", "acem")])
def test_who_never_had_a_lease_has_no_empty_bill(log: Path, words: tuple[str, ...]) -> None:
    """Who had one, and has nothing of the time that is asked for, has."""
    file = log.parent / "bill.json"
    out = ("--out", file) if words[0] == "statement" else ()
    status, told, err = leasectl(*words, "--log", log, *out)
    assert (status, told) == (66, "") and "no lease of 'acem' is on record" in err
    assert not file.exists()
    known = [word.replace("acem", "acme") for word in words]
    assert "on record" not in leasectl(*known, "--log", log)[2]
    late = ("--since", "2026-01-01T00:01:05Z")
    status, told, err = leasectl(*known, "--log", log, *late)
    assert status == 0 and "nothing of acme is on record in this time" in err


def test_a_lease_of_an_unknown_card_is_not_billed(tmp_path: Path) -> None:
    history = History(wall_offset_ns=JANUARY)
    history.start()
    history.allocate(1, subject(memory(GIB), rate_hash=b"\x11" * 32), 10**15)
    history.boot_ns = SECOND
    history.touch()
    directory = tmp_path / "audit"
    opened = open_in(directory)
    batch = opened.sealer().seal([(event, moment) for _, event, moment in history.records])
    moment = history.records[-1][2]
    opened.journal.commit_blocking(batch.frames, batch.count, batch.new_head.hash, moment)
    opened.close()
    status, out, err = leasectl("statement", "acme", "--log", directory)
    assert status == 78 and out == "" and "11" * 32 in err


def test_rates_are_read_as_the_agent_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "leased.toml"
    file.write_text(
        '[rates]\ncurrency = "EUR"\ndecimals = 2\ngpu = "0.02"\n"mem.hbm" = "0.004"\n'
        "[rates.multipliers_pm]\nguaranteed = 1500\n",
        encoding="utf-8",
    )
    assert load_card(file).digest() == config_file.load(file).rates.digest()
    shipped = ROOT / "configs" / "leased.toml"
    assert load_card(shipped).digest() == DEFAULT_CARD.digest()
    found = document("rates", "--rates", file)
    assert {card["currency"] for card in found["cards"]} == {"credits", "EUR"}
    status, out, _ = leasectl("rates", "--rates", file)
    assert status == 0 and "guaranteed pays 1500 per mille" in out


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"gpu": 0.01}, "never a float"),
        ({"tpu": "1"}, "none of"),
        ({"mem.fast": "1"}, "none of"),
        ({"gpu": "1,5"}, "decimal string"),
        ({"multipliers_pm": {"vip": 1}}, "none of"),
    ],
)
def test_rates_that_cannot_be_meant(table: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_card(table, "rates.toml")
