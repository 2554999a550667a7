# SPDX-License-Identifier: Apache-2.0
"""A quota's way: from a PATCH at the collector's API to the first answer of a node that follows it.

Rule: the installed collector and the real agent, over mutual TLS on loopback, with the long-poll
that every node has open. In force is what a request is answered by: the time is from before the
PATCH is sent to the first request on the node that comes out as the new quota says.

Does not measure how shares move between nodes (`tests/process/test_fleet_quota.py` shows that).
"""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path

from leased.chain.certificate import Role
from leased.hardware.identity import node_id, read_machine_id
from tests.bench.loadgen import Figures
from tests.bench.running_agent import RunningAgent
from tests.bench.table import Line, Say
from tests.doubles.collector_server import CollectorServer, over_tls
from tests.doubles.fleet_pki import FleetPki

PATIENCE_S = 60.0
BAR_S = 2.0
ASK = {
    "resources": [{"kind": "mem", "capacity": 4096}],
    "ttl_ns": 1_000_000_000,
    "bind": "cgroup",
}
UPLINK = """
[collector]
url = "https://localhost:{port}"
fleet = "{fleet}"
policy_key = "{key}"
ca = "{ca}"
certificate = "{certificate}"
certificate_key = "{certificate_key}"
"""


def measure_quota(directory: Path, *, rounds: int, say: Say) -> Figures:
    """Seconds from a PATCH to its being in force, lowered and raised in turns."""
    pki = FleetPki(directory / "governance-pki")
    with over_tls(directory / "governance", pki, "") as collector:
        agent = _node(directory, collector, pki)
        agent.start()
        try:
            _change(collector, 1)
            _await(agent, allowed=True)
            took: dict[str, list[float]] = {"taken": [], "given": []}
            for _ in range(rounds):
                for what, gigabytes in (("taken", 0), ("given", 1)):
                    began = time.perf_counter()
                    _change(collector, gigabytes)
                    _await(agent, allowed=bool(gigabytes))
                    took[what].append(time.perf_counter() - began)
        finally:
            agent.close()
    found: Figures = {"rounds": rounds}
    for what, times in took.items():
        found[f"{what}_p50_s"] = statistics.median(times)
        found[f"{what}_max_s"] = max(times)
    say(f"a quota taken away in {found['taken_p50_s'] * 1000:.0f} ms (p50)")
    return found


def quota_lines(found: Figures) -> list[Line]:
    """The slowest of all rounds, of both ways."""
    worst = max(found["taken_max_s"], found["given_max_s"])
    raw = (
        f"taken away p50 {found['taken_p50_s'] * 1000:.0f} ms, given back p50"
        f" {found['given_p50_s'] * 1000:.0f} ms, of {found['rounds']} each"
    )
    what = "a PATCHed quota in force on a node"
    return [Line(what, f"max {worst:.2f} s", f"<= {BAR_S:.0f} s", worst <= BAR_S, raw)]


def _node(directory: Path, collector: CollectorServer, pki: FleetPki) -> RunningAgent:
    where = r"https://127\.0\.0\.1:(\d+)"
    said = re.search(where, "\n".join(collector.said))
    port = (said or collector.wait_for(where))[1]
    certificate = pki.issue(Role.NODE, node_id(read_machine_id()).hex())
    uplink = UPLINK.format(
        port=port,
        fleet=pki.fleet,
        key=collector.ask("GET", "/v1/governance/policy").json["key"],
        ca=pki.ca,
        certificate=certificate,
        certificate_key=certificate.with_suffix(".key"),
    )
    return RunningAgent(directory / "governed", more=uplink)


def _change(collector: CollectorServer, gigabytes: int) -> None:
    body = {"memory_gb": gigabytes, "reason": "a benchmark"}
    answer = collector.ask("PATCH", "/v1/governance/quotas/uid-0", body)
    if answer.status != 200:
        raise SystemExit(f"bench: the quota was not changed: {answer}")


def _await(agent: RunningAgent, *, allowed: bool) -> None:
    """Ask until it comes out so."""
    until = time.monotonic() + PATIENCE_S
    while _is_granted(agent) is not allowed:
        if time.monotonic() > until:
            raise SystemExit(f"bench: the quota is not in force: {agent.said()[-2000:]}")


def _is_granted(agent: RunningAgent) -> bool:
    try:
        agent.call("io.leased.Lease.Acquire", ASK)
    except SystemExit as refused:
        if "tenant_capacity" not in str(refused):
            raise
        return False
    return True
