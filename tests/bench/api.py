# SPDX-License-Identifier: Apache-2.0
"""Reading: how long the collector's API takes over a fleet's records, and the console to its first
paint.

Rule: the installed program, on loopback, over one connection, as a dashboard reads: every route
that is documented for reading, in turns, after it has read the store once. A quantile is over all
requests together; the slowest route is named. The browser is a real one.
"""

from __future__ import annotations

import http.client
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.loadgen import Figures
from tests.doubles.browser import Browser
from tests.doubles.collector_server import CollectorServer

PATHS = (
    "/v1/governance/quotas",
    "/v1/governance/quotas/{tenant}",
    "/v1/governance/quotas/scheduled",
    "/v1/governance/changes",
    "/v1/governance/usage/{tenant}",
    "/v1/governance/allocations",
    "/v1/governance/allocations/history?period=24h",
    "/v1/governance/compliance",
    "/v1/governance/costs?period=30d",
    "/v1/billing/summary?tenant={tenant}&month={month}",
    "/v1/billing/bill?tenant={tenant}&month={month}",
    "/v1/billing/usage?tenant={tenant}&start={month}-01&end={month}-07",
    "/v1/billing/chargeback?month={month}",
    "/v1/governance/capacity",
    "/v1/governance/health",
    "/v1/governance/heat",
    "/v1/governance/policy",
    "/v1/governance/optimize/idle",
    "/v1/governance/optimize/placement?gpu=1",
    "/v1/governance/optimize/waste",
    "/v1/nodes",
    "/v1/leases?limit=100",
    "/v1/events?limit=100",
    "/v1/webhooks",
)
LONG = (
    "/metrics",
    "/v1/governance/capacity/forecast?horizon=90d",
    "/v1/governance/costs/nodes?period=30d",
    "/v1/governance/optimize/reservations",
    "/v1/governance/optimize/rightsizing",
    "/v1/governance/optimize/scaling",
    "/v1/governance/optimize/sensitivity",
    "/v1/governance/optimize/spot",
    "/v1/governance/economics/latency-cost",
    "/v1/governance/economics/slo",
)
"""What Prometheus scrapes, and studies of the whole past: told beside the others."""

LEFT_OUT = (
    "/v1/ca",
    "/v1/governance/quotas/scheduled/{id}",
    "/v1/governance/shares/{tenant}",
    "/v1/nodes/{node}/policy",
    "/v1/webhooks/{id}",
    "/v1/webhooks/{id}/deliveries",
)
"""What a made fleet has none of."""


def measure_api(directory: Path, *, short: bool, say: Callable[[str], None]) -> Figures:
    """Quantiles of reads over a made fleet, and the console's first paint."""
    nodes, days, rounds = (50, 30, 20) if short else (1_000, 90, 100)
    state = directory / "read"
    program = [sys.executable, "-m", "leased.collector.main", "--state", str(state)]
    size = ["--nodes", str(nodes), "--days", str(days), "--leases", "2"]
    say(f"making a fleet of {nodes:,} nodes and {days} days")
    subprocess.run([*program, "demo", *size], check=True, capture_output=True)
    with CollectorServer(directory=directory, state=state) as server:
        server.wait_for("usage is up to date")
        settle(server, nodes)
        _check_routes(server.ask("GET", "/v1/openapi.json").json["paths"])
        tenant = server.ask("GET", "/v1/governance/quotas").json["quotas"][0]["tenant"]
        month = server.ask("GET", "/v1/governance/costs?period=30d").json["period"][:7]
        named = {"tenant": tenant, "month": month}
        reads = {path: _ask(server.port, path.format(**named), rounds) for path in PATHS}
        long = {path: _ask(server.port, path, max(2, rounds // 20)) for path in LONG}
        every = sorted(took for times in reads.values() for took in times)
        slowest = max(reads, key=lambda path: statistics.median(reads[path]))
        found: Figures = {
            "nodes": nodes,
            "days": days,
            "requests": len(every),
            "p50_s": every[len(every) // 2],
            "p99_s": every[min(len(every) - 1, len(every) * 99 // 100)],
            "slowest": slowest,
            "slowest_p50_s": statistics.median(reads[slowest]),
            "long_p50_s": {path: statistics.median(times) for path, times in long.items()},
            "routes_p50_s": {path: statistics.median(times) for path, times in reads.items()},
        }
        if shutil.which("chromium"):
            found["paint_s"] = _paint(server)
    say(f"p99 {found['p99_s'] * 1000:.1f} ms, slowest {slowest}")
    return found


def _check_routes(documented: dict[str, Any]) -> None:
    """No route is slow because nobody looked."""
    known = {path.partition("?")[0] for path in (*PATHS, *LONG)} | set(LEFT_OUT)
    read = {path for path, verbs in documented.items() if "get" in verbs}
    missed = sorted(read - known)
    if missed:
        raise SystemExit(f"bench: read by nobody: {', '.join(missed)}")


def settle(server: CollectorServer, nodes: int) -> None:
    """Until the fleet has been read whole."""
    deadline = time.monotonic() + 1800
    while time.monotonic() < deadline:
        seen: list[dict[str, Any]] = server.ask("GET", "/v1/nodes", timeout_s=120).json["nodes"]
        if len(seen) == nodes and all(node["total"] for node in seen):
            return
        time.sleep(1)
    raise SystemExit("bench: the fleet was not read within half an hour")


def _ask(port: int, path: str, rounds: int) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    times = []
    try:
        for _ in range(rounds):
            began = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"bench: {path} was answered with {answer.status}")
    finally:
        connection.close()
    return times


def _paint(server: CollectorServer) -> float:
    """Seconds from going there to the first content on the screen, the second time (warm)."""
    with Browser() as browser:
        found = 0.0
        for _ in range(2):
            browser.open(f"http://localhost:{server.port}/")
            browser.wait("performance.getEntriesByName('first-contentful-paint').length > 0")
            script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            found = float(browser.evaluate(script)) / 1000
    return found
