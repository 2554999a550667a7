# SPDX-License-Identifier: Apache-2.0
"""One file of prices for the API, the verbs and /metrics; one that cannot be meant is told at the
start, and while the server runs changes nothing."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from leased.collector.main import main
from leased.ctl.console import Console
from tests.doubles.collector_server import REPOSITORY, CollectorServer
from tests.doubles.fleet_archive import begin_of, sample


def run(*words: str) -> tuple[int, str]:
    """`leased-collector` with these words: how it ended, and what it said."""
    out = io.StringIO()
    return main(words, Console(out, out)), out.getvalue()


def test_the_api_and_the_verbs_have_one_file_of_prices(tmp_path: Path):
    now_ns = time.time_ns()
    sample(tmp_path / "state", now_ns, begin_of(now_ns))
    prices = tmp_path / "billing.toml"
    prices.write_text('[rates]\ncurrency = "EUR"')
    with CollectorServer(directory=tmp_path) as server:
        server.wait_for("usage is up to date")
        assert server.ask("GET", "/v1/governance/costs?period=30d").json["currency"] == "EUR"
        ours = ("--state", str(server.state), "costs", "--json", "--config", str(server.config))
        status, text = run(*ours)
        assert status == 0 and json.loads(text)["currency"] == "EUR"
        prices.write_text('[rates]\ncurrency = "US')
        scraped = server.ask("GET", "/metrics")
        assert scraped.status == 200 and b"grey_cost_hourly_dollars{" in scraped.body
        server.wait_for(r"refused, the prices of before stay in force: .*billing\.toml")
        prices.unlink()
        assert server.ask("GET", "/metrics").body.count(b"grey_cost_hourly_dollars{") > 0
        server.wait_for(r"prices of before stay in force: .*billing\.toml: No such file")


def test_who_agreed_to_a_minimum_and_had_nothing_is_somebody(tmp_path: Path):
    """Its bill was told, and of its usage, its quota and in the console's list it was nobody."""
    now_ns = time.time_ns()
    sample(tmp_path / "state", now_ns, begin_of(now_ns))
    agreed = 'model = "usage_based"\nmonthly_minimum = "100"\n'
    (tmp_path / "billing.toml").write_text(f'[[contracts]]\ntenant = "ghost"\n{agreed}')
    with CollectorServer(directory=tmp_path) as server:
        server.wait_for("usage is up to date")
        day = begin_of(now_ns) // 10**9
        month = time.strftime("%Y-%m", time.gmtime(day))
        asked = f"start={time.strftime('%Y-%m-%d', time.gmtime(day))}"
        asked += f"&end={time.strftime('%Y-%m-%d', time.gmtime(now_ns // 10**9))}"
        for name, status in (("ghost", 200), ("nobody", 404)):
            for path in (
                f"/v1/billing/summary?tenant={name}&month={month}",
                f"/v1/billing/usage?tenant={name}&{asked}",
                f"/v1/billing/usage?tenant={name}&{asked}&granularity=lease",
                f"/v1/governance/quotas/{name}",
                f"/v1/governance/usage/{name}",
            ):
                assert server.ask("GET", path).status == status, path
        told = server.ask("GET", f"/v1/billing/usage?tenant=ghost&{asked}").json
        assert (told["rows"], told["total_cost"]) == ([], 0)
        rows = server.ask("GET", "/v1/governance/quotas").json["quotas"]
        assert "ghost" in [row["tenant"] for row in rows]


def test_prices_that_cannot_be_meant_are_refused_before_anything_is_served(tmp_path: Path):
    config = tmp_path / "leased-collector.toml"
    config.write_text('[http]\nlisten = ["127.0.0.1:0"]\n[governance]\nterms_file = "prices.toml"')
    serve = ["--state", str(tmp_path / "state"), "serve", "--config", str(config)]
    for text in (None, "[rates]\ngpu = 1.5", '[[cards]]\nsince = "2026-01-01"\ncurrency = "EUR"'):
        if text is not None:
            (tmp_path / "prices.toml").write_text(text)
        for more in ([], ["--check"]):
            status, said = run(*serve, *more)
            assert status == 78 and "prices.toml: " in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[retention]\nraw_months = 0", "retention.raw_months"),
        ("[retention]\nraw_months = 3\nusage_months = 1", "retention.usage_months"),
        ('[pull]\nwait = "5h"', "pull.wait"),
        ('[pull]\nwiat = "5s"', "wiat"),
        ('[[nodes]]\nname = "alpha"', "nodes"),
        ("[own_log]\nport = -1", "own_log.port"),
    ],
)
def test_what_is_checked_is_the_whole_file(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "leased-collector.toml"
    config.write_text(text)
    status, said = run("serve", "--config", str(config), "--check")
    assert status == 78 and says in said
    shipped = REPOSITORY / "configs" / "leased-collector.toml"
    assert run("serve", "--config", str(shipped), "--check")[0] == 0
