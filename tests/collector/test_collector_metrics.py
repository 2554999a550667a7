# SPDX-License-Identifier: Apache-2.0
"""Metrics, alerts and panels, judged by Debian's Prometheus: lint, rule tests, and a real server
that scrapes a real collector and evaluates every expression that is shipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from leased.collector.archive.archive import Archive
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import Store
from tests.collector.test_collector_api_fleet import WHOLE, await_books
from tests.doubles.collector_server import PATIENCE_S, CollectorServer
from tests.doubles.economics_history import History, subject
from tests.doubles.fleet_archive import HOUR_NS, NODE_A, cores, sample, store
from tests.doubles.host import not_proven

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (-?[0-9.]+)$")
EMPTY = {
    "grey_cost_per_task_dollar": "the fleet of this test completed no task lately",
    "grey_chain_verify_failures_total": "its chains hold",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    directory = tmp_path_factory.mktemp("metrics")
    sample(directory / "state", time.time_ns())
    # Of its 45 cores tenant-acme uses 35 %: half of the target.
    use(directory / "state", f"{2:032x}", "cpu", 350_000)
    with CollectorServer(directory=directory) as running:
        await_books(running)
        body = {"cpu_cores": 100, "reason": "x"}
        running.ask("PATCH", "/v1/governance/quotas/tenant-acme", body)
        yield running


def use(state: Path, lease: str, kind: str, ppm: int) -> None:
    """What a lease used of a kind in the last hour."""
    begin_s = int(time.time()) // WINDOW_S * WINDOW_S - 11 * WINDOW_S
    with closing(Store(state)) as samples:
        for name, value in (("leased.lease.capacity", 1), ("leased.lease.utilization", ppm)):
            key = Key(NODE_A, "", lease, "tenant-acme", name, (("leased.resource.kind", kind),))
            each = (30, 30 * value, value, 30, WINDOW_S * 10**9)
            samples.append([(key, Rollup(begin_s + n * WINDOW_S, *each)) for n in range(11)])
        # Three wait, from a quarter of an hour ago until this test is long over.
        key = Key(NODE_A, "agent", "", "", "leased.queue.depth", ())
        each = (30, 90, 5, 0, WINDOW_S * 10**9)
        samples.append([(key, Rollup(begin_s + n * WINDOW_S, *each)) for n in range(9, 19)])


def tool(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        not_proven("metrics and rules as Prometheus reads them", "promtool is not installed")
    return subprocess.run(["promtool", *words], capture_output=True, text=True, **how)


def scraped(server: CollectorServer) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in server.ask("GET", "/metrics").body.decode().splitlines():
        match = SAMPLE.match(line)
        assert match is not None or line.startswith("# "), line
        if match is not None:
            found.setdefault(match[1], {})[match[2] or ""] = float(match[3])
    return found


def test_prometheus_finds_nothing_wrong_with_the_metrics(server: CollectorServer) -> None:
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    done = tool("check", "metrics", input=answer.body.decode())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_prometheus_finds_nothing_wrong_with_the_rules_and_they_fire() -> None:
    rules = CONFIGS / "prometheus"
    done = tool("check", "rules", str(rules / "alerts.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = tool("test", "rules", "alerts.test.yml", cwd=rules)
    assert done.returncode == 0, done.stdout + done.stderr
    done = tool("check", "config", "--syntax-only", "prometheus.yml", cwd=rules)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cost_is_a_partition_and_equals_the_api(server: CollectorServer) -> None:
    found = scraped(server)
    hourly, tenants = found["grey_cost_hourly_dollars"], found["grey_cost_tenant_hourly_dollars"]
    # 400 + 8 cores at 7.2, 1024 GiB at 3.6, 16 GPUs at 36 an hour.
    assert sum(hourly.values()) == pytest.approx(408 * 7.2 + 1024 * 3.6 + 16 * 36)
    mine = sum(cost for labels, cost in hourly.items() if "__" not in labels)
    assert mine == pytest.approx(sum(tenants.values()))
    assert tenants['tenant="tenant-acme"'] == pytest.approx(45 * 7.2 + 128 * 3.6)
    idle = sum(cost for labels, cost in hourly.items() if "__idle__" in labels)
    assert sum(found["grey_cost_idle_resources_dollars"].values()) == pytest.approx(idle)
    # 45 cores at half of what the target is: half of their cost could be saved.
    assert found["grey_scheduler_queue_depth"] == {"": 3}
    assert found["leased_collector_free_bytes"][""] > 0
    assert server.ask("GET", "/v1/governance/capacity").json["queue_depth"] == 3
    spare = found["grey_cost_overprovisioned_dollars"]
    assert spare == {'type="compute"': pytest.approx(45 * 7.2 / 2)}
    # The counter is the sum of the API's costs of all time, plus the hour that runs.
    costs = server.ask("GET", f"/v1/governance/costs?{WHOLE}").json
    assert costs["total_cost"] == 144 + 36
    total = found["grey_cost_dollars_total"]['tenant="beta",type="compute"']
    assert total >= 6 * 20 * 7.2 + 36
    ratio = found["grey_quota_utilization_ratio"]
    assert ratio['tenant="tenant-acme",resource="cpu_cores"'] == pytest.approx(0.45)


def test_a_tenant_that_is_called_idle_is_not_what_nobody_has(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    first = History(wall_offset_ns=now_ns - 2 * HOUR_NS)
    first.start()
    first.inventory(cores(10))
    first.allocate(1, subject(cores(4), tenant="__idle__"), 48 * HOUR_NS)
    first.boot_ns = 2 * HOUR_NS
    first.touch()
    with closing(Archive(tmp_path / "state")) as archive:
        store(archive, "host-a", NODE_A, first, now_ns)
    with CollectorServer(directory=tmp_path) as running:
        await_books(running)
        found = scraped(running)
    assert found["grey_cost_hourly_dollars"] == {
        'component="cpu",tenant="__idle__",type="compute"': pytest.approx(6 * 7.2),
        'component="cpu",tenant="tenant:__idle__",type="compute"': pytest.approx(4 * 7.2),
    }
    assert found["grey_cost_idle_resources_dollars"] == {'type="compute"': pytest.approx(6 * 7.2)}
    assert found["grey_cost_tenant_hourly_dollars"] == {'tenant="__idle__"': 4 * 7.2}


def expressions() -> list[tuple[str, str]]:
    """Every expression that is shipped, and where it stands."""
    board = json.loads((CONFIGS / "grafana" / "leased.json").read_text())
    found = [(one["title"], one["targets"][0]["expr"]) for one in board["panels"]]
    text = (CONFIGS / "prometheus" / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)\n\s+expr: (.*)", text)
    assert len(found) >= 12 and len(alerts) >= 8
    return found + alerts


def test_the_dashboard_is_one(server: CollectorServer) -> None:
    board = json.loads((CONFIGS / "grafana" / "leased.json").read_text())
    assert board["uid"] and board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        assert panel["title"] and panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    names = scraped(server)
    for title, expr in expressions():
        for name in re.findall(r"\b(?:grey|leased)_[a-z_]+", expr):
            known = name in names or name in EMPTY or name == "grey_scheduler_tasks_completed_total"
            assert known, (title, name)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def prometheus_words(directory: Path, port: int) -> list[str]:
    return [
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]


@contextlib.contextmanager
def program(words: list[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that runs for a block."""
    running = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
    )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(PATIENCE_S)


ROUTES = """
route:
  receiver: nobody
  routes:
    - matchers: ['severity="info"']
      receiver: finance
receivers:
  - name: nobody
  - name: finance
"""
ALERTING = """
alerting:
  alertmanagers:
    - static_configs:
        - targets: ["127.0.0.1:{port}"]
"""


def test_an_alert_reaches_alertmanager_with_what_routes_go_by(
    server: CollectorServer, tmp_path: Path
) -> None:
    if None in map(shutil.which, ("prometheus", "prometheus-alertmanager", "amtool")):
        not_proven("that alerts reach an Alertmanager", "prometheus-alertmanager is not installed")
    mine, theirs = free_port(), free_port()
    (tmp_path / "alertmanager.yml").write_text(ROUTES)
    checked = subprocess.run(
        ["amtool", "check-config", str(tmp_path / "alertmanager.yml")], capture_output=True
    )
    assert checked.returncode == 0, checked.stderr
    rules = (CONFIGS / "prometheus" / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(re.sub(r"for: \w+", "for: 0s", rules))
    text = (CONFIGS / "prometheus" / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}").replace("15s", "1s")
    text = text.replace("scrape_interval: 1s", "scrape_interval: 1s\n  evaluation_interval: 1s")
    (tmp_path / "prometheus.yml").write_text(text + ALERTING.format(port=theirs))
    words = [
        "prometheus-alertmanager",
        f"--config.file={tmp_path / 'alertmanager.yml'}",
        f"--storage.path={tmp_path / 'silences'}",
        f"--web.listen-address=127.0.0.1:{theirs}",
        "--cluster.listen-address=",
    ]
    ask = ["amtool", f"--alertmanager.url=http://127.0.0.1:{theirs}", "alert", "query"]
    with (
        program(words, tmp_path) as alertmanager,
        program(["prometheus", *prometheus_words(tmp_path, mine)], tmp_path) as prometheus,
    ):
        until = time.monotonic() + PATIENCE_S
        while True:
            query = [*ask, "--output=json", "--receiver=finance", "alertname=GreyWasteHigh"]
            done = subprocess.run(query, capture_output=True, text=True)
            found = json.loads(done.stdout) if done.returncode == 0 else []
            if found:
                break
            alive = prometheus.poll() is None and alertmanager.poll() is None
            assert alive and time.monotonic() < until, done.stderr
    [alert] = found
    assert alert["labels"]["severity"] == "info"
    assert alert["annotations"]["summary"] == "Cluster waste exceeds 20%"


def test_a_real_prometheus_evaluates_every_expression(
    server: CollectorServer, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        not_proven("that Prometheus evaluates what is shipped", "prometheus is not installed")
    for name in ("alerts.yml", "prometheus.yml"):
        text = (CONFIGS / "prometheus" / name).read_text()
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}").replace("15s", "1s")
        (tmp_path / name).write_text(text)
    port = free_port()

    def ask(expr: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expr})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}") as answer:
            told = json.load(answer)
        assert told["status"] == "success"
        return told["data"]["result"]

    with program(["prometheus", *prometheus_words(tmp_path, port)], tmp_path) as prometheus:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                # Two scrapes, so that rates have something to be a rate of.
                seen = ask("count_over_time(grey_cost_hourly_dollars[1m])")
                if seen and float(seen[0]["value"][1]) >= 3:
                    break
            except (OSError, ValueError):
                pass
            assert time.monotonic() < until and prometheus.poll() is None
        for _, expr in expressions():
            ask(expr)
        assert float(ask("sum(grey_cost_hourly_dollars)")[0]["value"][1]) == pytest.approx(
            sum(scraped(server)["grey_cost_hourly_dollars"].values())
        )
        panels = dict(expressions())
        by_kind = {row["metric"]["component"] for row in ask(panels["Compute Cost Breakdown"])}
        assert by_kind == {"cpu", "gpu", "mem"}
