# SPDX-License-Identifier: Apache-2.0
"""From a request to the collector's API to what a node grants: a real collector, a real agent."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.collector.api.callers import hash_of
from tests.doubles.collector_server import PATIENCE_S, REPOSITORY, CollectorServer
from tests.doubles.host_agent import HostAgent
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote

pytestmark = pytest.mark.root

IN_FORCE_S_MAX = 2.0
TENANT = "uid-0"
TOKENS = f"""
[[tokens]]
name = "nodes"
sha256 = "{hash_of("node-secret")}"
scopes = ["node"]
"""


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorServer]:
    directory = tmp_path / "collector"
    directory.mkdir()
    (directory / "tokens.toml").write_text(TOKENS)
    access = 'loopback = "write"\ntokens_file = "tokens.toml"'
    with CollectorServer(access=access, directory=directory) as running:
        yield running


def key_of(collector: CollectorServer) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "leased.collector.main", "--state", str(collector.state)),
            *("key", "--config", str(collector.config)),
        ],
        env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def node_of(collector: CollectorServer, tmp_path: Path, key: str | None = None) -> HostAgent:
    token = tmp_path / "token"
    token.write_text("node-secret\n")
    return HostAgent(
        more=f'[collector]\nurl = "http://127.0.0.1:{collector.port}"\n'
        f'policy_key = "{key or key_of(collector)}"\ntoken_file = "{token}"\nretry = "1s"\n'
    )


def patch(collector: CollectorServer, **fields: object) -> None:
    path = f"/v1/governance/quotas/{TENANT}"
    answer = collector.ask("PATCH", path, {"reason": "a test", **fields})
    assert answer.status == 200, answer


def accepted(collector: CollectorServer) -> bool:
    """Whether some node says that it has the current policy."""
    nodes = collector.ask("GET", "/v1/governance/policy").json["nodes"]
    return any(one["current"] for one in nodes)


def await_acceptance(collector: CollectorServer, agent: HostAgent) -> None:
    until = time.monotonic() + PATIENCE_S
    while not accepted(collector):
        assert time.monotonic() < until, agent.log()[-3000:]


def outcome(agent: HostAgent) -> dict[str, object]:
    """What becomes of a request: nothing special, or why not."""
    try:
        agent.acquire()
    except Remote as refused:
        return refused.parameters
    return {}


def await_outcome(agent: HostAgent, reason: str | None, seconds: float) -> float:
    """Ask until it comes out like this; how long it took."""
    began = time.monotonic()
    while (found := outcome(agent)).get("reason") != reason:
        assert time.monotonic() - began < seconds, (found, agent.log()[-3000:])
    return time.monotonic() - began


def test_a_changed_quota_is_in_force_on_the_node_within_two_seconds(
    collector: CollectorServer, tmp_path: Path
) -> None:
    with node_of(collector, tmp_path) as agent:
        agent.start()
        await_acceptance(collector, agent)
        assert outcome(agent) == {}
        began = time.monotonic()
        patch(collector, max_leases=1)
        took = await_outcome(agent, "tenant_leases", IN_FORCE_S_MAX)
        assert time.monotonic() - began < IN_FORCE_S_MAX, took
        patch(collector, max_leases=None, memory_gb=0)
        await_outcome(agent, "tenant_capacity", IN_FORCE_S_MAX)
        patch(collector, memory_gb=None)
        await_outcome(agent, None, IN_FORCE_S_MAX)
        judge(agent)


def test_with_the_collector_gone_the_last_policy_holds(
    collector: CollectorServer, tmp_path: Path
) -> None:
    with node_of(collector, tmp_path) as agent:
        patch(collector, max_leases=0)
        agent.start()
        await_outcome(agent, "tenant_leases", PATIENCE_S)
        port = collector.port
        collector.stop(9)
        assert outcome(agent)["reason"] == "tenant_leases"
        agent.stop()
        agent.start()
        assert outcome(agent)["reason"] == "tenant_leases"
        text = collector.config.read_text()
        collector.config.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        collector.start()
        patch(collector, max_leases=None)
        await_outcome(agent, None, PATIENCE_S)
        judge(agent)


def test_with_the_collector_gone_windows_go_on_opening(
    collector: CollectorServer, tmp_path: Path
) -> None:
    """The base lets nobody in, the window does. Nobody is there to say that it is open."""
    with node_of(collector, tmp_path) as agent:
        patch(collector, max_leases=0)
        window = {"schedule": "* * * * *", "duration": "2m", "timezone": "Asia/Kathmandu"}
        body = {"tenant": TENANT, "quotas": {"max_leases": 1000}, **window}
        assert collector.ask("POST", "/v1/governance/quotas/scheduled", body).status == 201
        agent.start()
        await_acceptance(collector, agent)
        await_outcome(agent, None, PATIENCE_S)
        collector.stop(9)
        agent.stop()
        agent.start()
        assert outcome(agent) == {}
        judge(agent)


def test_what_another_key_has_signed_is_not_taken(
    collector: CollectorServer, tmp_path: Path
) -> None:
    patch(collector, max_leases=0)
    with (
        CollectorServer() as foreign,
        node_of(collector, tmp_path, key_of(foreign)) as agent,
    ):
        agent.start()
        until = time.monotonic() + PATIENCE_S
        while "no signature by a known key" not in agent.log():
            assert time.monotonic() < until, agent.log()[-3000:]
        assert outcome(agent) == {}
        judge(agent)


def test_a_configuration_that_trusts_nobody_is_refused(collector: CollectorServer) -> None:
    for lines, word in (
        ('url = "http://192.0.2.1:8080"\npolicy_key = "x"', "collector.url"),
        ('url = "https://[::1"\npolicy_key = "x"', "collector.url"),
        ('url = "https://:pw@c.example"\npolicy_key = "x"', "nothing else"),
        ('url = "https://c.example"', "collector.policy_key"),
        ('url = "https://c.example"\npolicy_key = "a+b+c"', "verifier key"),
    ):
        with HostAgent(more=f"[collector]\n{lines}\n") as agent:
            status, said = agent.refused()
            assert status == 78 and word in said
