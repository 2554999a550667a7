# SPDX-License-Identifier: Apache-2.0
"""leasectl against a real agent with its real reaper: work under a lease, its loss, a drain, and
the bill of it all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.running_agent import RunningAgent

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="the agent needs root"),
    pytest.mark.skipif(
        not (ROOT / "native" / "build" / "leased-reaper").exists(), reason="native/ is not built"
    ),
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    """An agent of its own."""
    running = RunningAgent(tmp_path_factory.mktemp("agent"))
    running.start()
    yield running
    running.close()


def start(agent: RunningAgent, *words: str) -> subprocess.Popen[str]:
    """leasectl as people run it."""
    sockets = {
        "LEASE_SOCKET": str(agent.socket),
        "LEASE_ADMIN_SOCKET": str(agent.runtime / "io.leased.admin"),
        "PYTHONPATH": str(ROOT / "agent"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "leased.ctl.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **sockets},
    )


def leasectl(agent: RunningAgent, *words: str) -> tuple[int, str, str]:
    """Status, output, notes."""
    process = start(agent, *words)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def document(agent: RunningAgent, *words: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    status, out, err = leasectl(agent, *words, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_command_runs_inside_its_lease_and_the_lease_ends_with_it(agent: RunningAgent) -> None:
    program = "echo $LEASE_ID; cat /proc/self/cgroup; exit 5"
    status, out, err = leasectl(agent, "run", "--mem", "4MiB", "--", "sh", "-c", program)
    assert status == 5, err
    lease_id = out.splitlines()[0]
    assert out.splitlines()[-1].endswith(f"/{lease_id}")
    lease = document(agent, "wait", lease_id, "--until", "closed")["lease"]
    assert lease["runtime"]["state"] == "reclaimed"


def test_a_command_does_not_outlive_its_lease(agent: RunningAgent) -> None:
    words = ("run", "--mem", "1MiB", "--ttl", "1s", "--no-renew", "--", "sleep", "600")
    status, _, err = leasectl(agent, *words)
    assert status == 79 and "is lost: expired" in err


def test_a_drain_tells_the_command_and_gives_it_time(agent: RunningAgent) -> None:
    program = 'trap "head -1 <&$LEASE_NOTIFY_FD; exit 9" TERM; echo in; while :; do sleep 0.1; done'
    process = start(agent, "run", "--mem", "1MiB,page=4KiB", "--", "sh", "-c", program)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    [lease] = document(agent, "ls")["leases"]
    resource_id = lease["runtime"]["allotments"][0]["resource_id"]
    drained = document(agent, "admin", "drain", resource_id, "--grace", "30s")
    assert drained["affected"] == [lease["lease_id"]]
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 9, err
    assert json.loads(out)["reason"] == "operator_drain"
    status, out, _ = leasectl(agent, "plan", "--mem", "1MiB", "--json")
    assert status == 75 and json.loads(out)["refusal"]["reason"] == "cordoned"
    assert leasectl(agent, "admin", "resume", resource_id)[0] == 0
    assert leasectl(agent, "plan", "--mem", "1MiB")[0] == 0


def test_the_bill_follows_from_the_log_and_agrees_with_what_was_sealed(agent: RunningAgent) -> None:
    log = str(agent.state / "audit")
    assert leasectl(agent, "run", "--mem", "1MiB", "--", "true")[0] == 0
    assert document(agent, "verify", "--log", log)["verdict"] == "ok"
    status, out, err = leasectl(agent, "usage", "--log", log, "--json")
    assert status == 0 and "is not what is folded" not in err, err
    [tenant] = {row["tenant"] for row in json.loads(out)["usage"]}
    bill = document(agent, "statement", tenant, "--log", log)
    assert int(bill["statement"]["lines"][0]["capacity_ns"]) > 0
    for row in document(agent, "usage", "--log", log, "--resources")["resources"]:
        paid = sum(int(row[f"{pool}_ns"]) for pool in ("tenant", "teardown", "fenced", "idle"))
        assert paid == int(row["provisioned_ns"])
