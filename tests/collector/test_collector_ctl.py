# SPDX-License-Identifier: Apache-2.0
"""leasectl collector against the real collector: every verb, who may, and what ends how."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from leased.chain.certificate import Role
from leased.collector.archive.archive import Archive
from leased.collector.case import EVIDENCE
from leased.collector.demo import Wish, make_fleet
from leased.collector.main import main as collector
from leased.collector.metering.store import Store
from leased.ctl.completion import script
from leased.ctl.console import Console
from leased.ctl.main import build_parser, main
from leased.terms.moment import DAY_NS
from tests.doubles.collector_server import CollectorServer, over_tls
from tests.doubles.fleet_pki import FleetPki

END_NS = 20_630 * DAY_NS  # 2026-06-26
MONTH = "2026-05"
PATIENCE_S = 60

READING = [
    ("status",),
    ("nodes",),
    ("heads",),
    ("leases",),
    ("leases", "--tenant", "acme", "--limit", "1"),
    ("events", "--limit", "5"),
    ("usage", "acme", "--start", "2026-06-01", "--end", "2026-06-03"),
    ("costs", "--start", "2026-06-01", "--end", "2026-06-20"),
    ("costs", "--group-by", "cost_center"),
    ("bill", "acme", MONTH),
    ("chargeback", MONTH),
    ("allocations",),
    ("capacity",),
    ("forecast", "--horizon", "30d"),
    ("idle",),
    ("waste",),
    ("heat",),
    ("health",),
    ("quota", "list"),
    ("quota", "show", "acme"),
    ("quota", "schedules"),
    ("quota", "log"),
    ("webhook", "list"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    state = tmp_path_factory.mktemp("fleet") / "state"
    archive = Archive(state)
    make_fleet(archive, Wish(3, 40, 7, END_NS, 8), lambda text: None)
    Store(state).refresh(archive)
    archive.close()
    with CollectorServer(state=state) as running:
        running.wait_for("usage is up to date")
        yield running


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def ask(url: str, *words: str, status: int | None = 0, link: tuple[str, ...] = ()) -> Done:
    """leasectl collector, in this process: its connections are real."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = main(["collector", "--url", url, *link, *words], Console(out, err))
    except SystemExit as usage:
        ended = int(str(usage.code))
    done = Done(ended, out.getvalue(), err.getvalue())
    assert status in (None, done.returncode), done
    return done


def document(url: str, *words: str, status: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(url, *words, "--json", status=status).stdout)
    assert told["version"] == 1
    return told


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_every_verb_tells_people_and_programs(
    server: CollectorServer, words: tuple[str, ...]
) -> None:
    told = ask(server.url, *words).stdout
    assert told.strip() and "True" not in told and "False" not in told, "Python's words"
    assert len(document(server.url, *words)) > 1


def test_what_is_told_is_what_the_collectors_own_verbs_tell(server: CollectorServer) -> None:
    own = subprocess.run(
        [
            *(sys.executable, "-m", "leased.collector.main", "--state", str(server.state)),
            *("bill", "acme", MONTH, "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert json.loads(own.stdout) == document(server.url, "bill", "acme", MONTH)
    told = document(server.url, "status")
    assert (told["nodes"], told["verdicts"], told["wanting"]) == (3, {"OK": 3}, [])
    heads = document(server.url, "heads")["heads"]
    assert sum(one["records"] for one in heads) == told["records"]


def test_a_bill_that_was_fetched_is_computed_again_by_the_auditor(
    server: CollectorServer, tmp_path: Path
) -> None:
    file = tmp_path / "acme.json"
    ask(server.url, "bill", "acme", MONTH, "--out", str(file))
    verify = [sys.executable, "-m", "leased.ctl.main", "verify", "--bill", str(file)]
    done = subprocess.run(
        [*verify, "--archive", str(server.state), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["sha256"] == document(server.url, "bill", "acme", MONTH)["sha256"]
    )


def test_csv_and_focus_and_whatever_the_api_has(server: CollectorServer) -> None:
    days = ("--start", "2026-06-01", "--end", "2026-06-02")
    rows = ask(server.url, "usage", "acme", *days, "--csv").stdout.splitlines()
    assert rows[0].startswith("start,end,kind") and len(rows) > 1
    assert "ChargePeriodStart" in ask(server.url, "export", "acme", MONTH).stdout
    assert json.loads(ask(server.url, "get", "/v1/openapi.json").stdout)["openapi"].startswith(
        "3.1"
    )
    assert "grey_cost" in ask(server.url, "get", "/metrics").stdout


def test_a_month_without_an_end(server: CollectorServer) -> None:
    refused = ask(server.url, "export", "acme", "9999-12", status=65)
    assert refused.stderr == 'leasectl: month: 9999-12: such as "2026-01"\n'


@pytest.mark.parametrize("last", ["24h", "7d", "2w"])
def test_the_last_days_are_the_same_by_either_program(server: CollectorServer, last: str) -> None:
    """Those before the last record of the fleet, whose hosts fell silent months ago."""
    begin = {"24h": "2026-06-25", "7d": "2026-06-19", "2w": "2026-06-12"}[last]
    for words in (("usage", "acme"), ("costs",)):
        over = document(server.url, *words, "--last", last)
        out = io.StringIO()
        here = ["--state", str(server.state), *words, "--last", last, "--json"]
        assert collector(here, Console(out, io.StringIO())) == 0
        beside = json.loads(out.getvalue())
        assert over["interval"] == beside["interval"]
        assert over["interval"] == {"start": f"{begin}T00:00:00Z", "end": "2026-06-26T00:00:00Z"}
        assert over["total_cost"] == beside["total_cost"] > 0
    rows = document(server.url, "usage", "acme", "--last", last, "--by", "lease")["rows"]
    assert sum(row["cost"] for row in rows) == pytest.approx(
        document(server.url, "usage", "acme", "--last", last)["total_cost"], rel=1e-6
    )


def test_a_quota_is_changed_for_a_reason_and_only_by_who_saw_it(server: CollectorServer) -> None:
    ask(server.url, "quota", "set", "acme", "gpus=8", status=64)
    changed = document(server.url, "quota", "set", "acme", "gpus=8", "--reason", "launch")
    assert changed["quotas"]["gpus"] == 8
    other = ("quota", "set", "acme", "gpus=9", "--reason", "late", "--if-match", '"stale"')
    refused = ask(server.url, *other, status=75)
    assert "precondition-failed" in refused.stderr
    shown = document(server.url, "quota", "show", "acme")
    assert shown["quota"]["quotas"]["gpus"] == 8 and shown["usage"]["quotas"]["gpus"]["limit"] == 8
    night = ("--cron", "0 20 * * *", "--for", "10h", "--timezone", "Europe/Berlin")
    made = document(server.url, "quota", "schedule", "acme", "gpus=16", *night)
    assert made["id"] in ask(server.url, "quota", "schedules").stdout
    ask(server.url, "quota", "unschedule", made["id"])
    assert made["id"] not in ask(server.url, "quota", "schedules").stdout
    actions = [one["action"] for one in document(server.url, "quota", "log")["changes"]]
    assert "quota.change" in actions and len(actions) == 3
    gone = document(server.url, "quota", "set", "acme", "gpus=none", "--reason", "over")
    assert "gpus" not in gone["quotas"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("quota", "show", "nobody"), 66, "not-found"),
        (("bill", "acme", "1999-01"), 66, "not-found"),
        (("bill", "acme", "99-1"), 65, "malformed"),
        (("quota", "set", "acme", "gpus", "--reason", "x"), 65, "limits"),
        (("quota", "set", "acme", "gpus=-1", "--reason", "x"), 65, "malformed"),
        (("quota", "set", "acme", "gpus=1", "gpus=2", "--reason", "x"), 65, "twice"),
        (("usage", "acme", "--last", "soon"), 65, "last"),
        (("webhook", "replay", "0" * 32), 66, "not-found"),
        (("quota", "show", "../../v1/nodes"), 66, "not-found"),
        (("get", "nodes"), 65, "path"),
        (("get", "/v1/nothing"), 66, "not-found"),
        (("get", "/v1/stream"), 65, "a stream"),
        (("get", "/v1/nöthing here"), 66, "not-found"),
        (("get", "/v1/nodes?wo=hier und da"), 65, "malformed"),
        (("quota", "set", "acme", "gpus=\u0665", "--reason", "x"), 65, "malformed"),
    ],
)
def test_refusals_are_typed(
    server: CollectorServer, words: tuple[str, ...], status: int, says: str
) -> None:
    done = ask(server.url, *words, status=None)
    assert (done.returncode, says in done.stderr) == (status, True), done.stderr


def test_nobody_there_and_nowhere_to_go() -> None:
    assert (
        "does `leased-collector serve` run" in ask("http://localhost:1", "status", status=69).stderr
    )
    for url in ("http://192.0.2.1", "ftp://localhost", "https://host/path", "localhost:8080"):
        ask(url, "status", status=65)


@pytest.mark.parametrize("rest", ["localhost:8080", "192.0.2.1", "localhost:port", "[::1", ""])
def test_a_password_in_the_url_is_refused_and_not_repeated(rest: str) -> None:
    for user in ("me:hidden@", "hidden@", ":hidden@"):
        said = ask(f"http://{user}{rest}", "status", status=65).stderr
        assert "--token-file" in said and "hidden" not in said


def forked(state: Path) -> str:
    """One node whose log was found to be forked; the log's id."""
    archive = Archive(state)
    make_fleet(archive, Wish(1, 2, 7, END_NS, 4), lambda text: None)
    [entry] = archive.logs()
    archive.manifest.set(
        entry.log_id, entry.head, verdict="FORK", why="two records 7", since_ns=END_NS
    )
    archive.close()
    return entry.log_id


def test_a_verdict_that_wants_somebody_is_an_exit_status(tmp_path: Path) -> None:
    state = tmp_path / "state"
    forked(state)
    with CollectorServer(state=state) as running:
        running.wait_for("usage is up to date")
        told = document(running.url, "status", status=65)
        assert [one["verdict"] for one in told["wanting"]] == ["FORK"]
        assert "two records 7" in ask(running.url, "status", status=65).stdout
        assert "FORK" in ask(running.url, "heads", status=65).stdout


def test_the_newest_evidence_comes_first_and_is_of_this_log(tmp_path: Path) -> None:
    state = tmp_path / "state"
    log_id, evidence = forked(state), state / EVIDENCE
    evidence.mkdir()
    for digits, size, found_ns in ((16, 95, 3), (8, 1000, 2), (16, 7, 10)):
        (evidence / f"{log_id[:digits]}-FORK-{size}-{found_ns}.json").write_text("{}")
    # What is another log's that begins alike, of another verdict, or nobody's.
    other = log_id[:8] + "".join("0" if one != "0" else "1" for one in log_id[8:16])
    own = log_id[:16]
    for name in (f"{other}-FORK-7-99", f"{own}-GAP-7-99", f"{own}-FORK-7-99 (copy)"):
        (evidence / f"{name}.json").write_text("{}")
    out = io.StringIO()
    console = Console(out, io.StringIO(), terminal=False)
    assert collector(["--state", str(state), "verdict", "--json"], console) == 65
    [told] = json.loads(out.getvalue())["verdicts"]
    assert [path.rpartition("-")[2] for path in told["evidence"]] == ["10.json", "3.json", "2.json"]


# ---- who asks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> FleetPki:
    return FleetPki(tmp_path_factory.mktemp("pki"))


def test_over_mutual_tls(tmp_path: Path, pki: FleetPki) -> None:
    with over_tls(tmp_path / "collector", pki) as running:
        match = running.wait_for(r"serving https://127\.0\.0\.1:(\d+)$")
        url = f"https://localhost:{match[1]}"
        scraper = pki.issue(Role.SCRAPER, "desk")
        shown = ("--certificate", str(scraper), "--certificate-key")
        link = ("--ca", str(pki.ca), *shown, str(scraper.with_suffix(".key")))
        assert "nodes" in ask(url, "status", link=link).stdout
        refused = ask(url, "quota", "set", "acme", "gpus=1", "--reason", "x", link=link, status=77)
        assert "forbidden" in refused.stderr
        # Nobody vouches for it where the CA is not given.
        assert "--ca FILE" in ask(url, "status", status=69).stderr
        other = ask(f"https://127.0.0.2:{match[1]}", "status", link=link, status=69).stderr
        assert "does `leased-collector serve` run" in other, "it listens at 127.0.0.1"


def test_a_fleet_that_is_called_otherwise_in_the_configuration_is_told(
    tmp_path: Path, pki: FleetPki
) -> None:
    """Whoever came with a certificate was refused, and was told to come with one."""
    out, err = io.StringIO(), io.StringIO()
    with over_tls(tmp_path / "collector", pki) as running:
        written = running.config.read_text()
        for fleet, told in ((pki.fleet, ""), ("leased", f"is of the fleet {pki.fleet}, and")):
            said = written.replace(f'fleet = "{pki.fleet}"', f'fleet = "{fleet}"')
            running.config.write_text(said)
            words = ["serve", "--config", str(running.config), "--check"]
            assert collector(words, Console(out, err)) == 0
            assert told in err.getvalue() and bool(told) == bool(err.getvalue())


def test_a_node_of_the_fleet_is_taken_for_no_collector(tmp_path: Path, pki: FleetPki) -> None:
    """It has a certificate of the same CA, for the same host."""
    node = pki.issue(Role.NODE, "1" * 32)
    tls = (
        'listen = ["127.0.0.1:0"]\ntls_listen = ["127.0.0.1:0"]\n'
        f'certificate = "{node}"\ncertificate_key = "{node.with_suffix(".key")}"'
    )
    with CollectorServer(http=tls, directory=tmp_path) as running:
        match = running.wait_for(r"serving https://127\.0\.0\.1:(\d+)$")
        url = f"https://localhost:{match[1]}"
        refused = ask(url, "status", link=("--ca", str(pki.ca)), status=69)
        assert "no collector" in refused.stderr


def test_a_token_says_who_asks_and_is_nobody_elses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leased.collector.main", "token", "desk", "--scope", "read"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    secret, tokens = tmp_path / "token", tmp_path / "tokens.toml"
    secret.write_text(made.stdout)
    secret.chmod(0o644)
    told = made.stderr.splitlines()
    tokens.write_text("\n".join(line for line in told if not line.startswith("leased-collector")))
    access = f'loopback = "none"\ntokens_file = "{tokens}"'
    with CollectorServer(access=access, directory=tmp_path) as running:
        refused = ask(running.url, "status", status=77)
        assert "unauthenticated" in refused.stderr and "--token-file" in refused.stderr
        link = ("--token-file", str(secret))
        assert "others may read it" in ask(running.url, "status", link=link, status=65).stderr
        secret.chmod(0o600)
        assert ask(running.url, "status", link=link).stdout
        assert ask(running.url, "webhook", "list", link=link).stdout
        told = ask(running.url, "webhook", "test", "1", link=link, status=77)
        assert "scope webhook" in told.stderr
        secret.write_text("leased_" + "x" * 43)
        assert "not known" in ask(running.url, "status", link=link, status=77).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_goes_below_the_verbs(shell: str) -> None:
    text = script(shell, build_parser())
    for words in READING:
        family = [word for word in words if word.isalpha() and word != "acme"]
        assert f"leasectl collector {' '.join(family)}" in text
