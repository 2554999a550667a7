# SPDX-License-Identifier: Apache-2.0
"""An agent that is to stay when its log cannot be used: it grants nothing and says why, leases end
all the same, and it serves again once the log can be used.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leased.chain.certificate import Role
from leased.hardware.identity import node_id, read_machine_id
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote
from tests.process.test_fleet_pull import add_listener
from tests.process.test_state_refusals import contents, first_segment, patch

pytestmark = pytest.mark.root

STAY = ("--fail-closed",)
EX_UNAVAILABLE, EX_CONFIG = 69, 78


@pytest.fixture
def agent() -> Iterator[HostAgent]:
    with HostAgent() as one:
        one.start_reaper()
        yield one


def flip(agent: HostAgent) -> Path:
    """Alter the log by one bit; the same again undoes it."""
    segment = first_segment(agent)
    patch(segment, 4096 + 700)
    return segment


def serves(agent: HostAgent) -> bool:
    try:
        agent.call("Lease.List")
    except (Remote, ConnectionError, EOFError):
        return False
    return True


def await_service(agent: HostAgent) -> None:
    until = time.monotonic() + PATIENCE_S
    while not serves(agent):
        assert time.monotonic() < until, agent.log()[-3000:]


def test_nothing_is_granted_and_what_was_ends(agent: HostAgent) -> None:
    agent.start()
    lease_id = agent.acquire(ttl_ms=1500, bind="deadline")["lease_id"]
    agent.kill()
    segment = flip(agent)
    before = contents(agent.audit)

    agent.start(flags=STAY)
    with pytest.raises(Remote) as refused:
        agent.acquire()
    assert refused.value.parameters["reason"] == "audit_unavailable"
    assert refused.value.parameters["what"].startswith("CORRUPT_")
    with pytest.raises(Remote) as told:
        agent.call("Audit.Head")
    assert told.value.name == "io.leased.Audit.ChainBroken"
    assert segment.name in str(told.value.parameters)
    run = agent.leasectl("alloc", "--mem", "4KiB", check=EX_UNAVAILABLE)
    assert "nothing is granted" in run.stderr
    assert segment.name in agent.log() and "Traceback" not in agent.log()
    agent.signal(signal.SIGHUP)  # tried again: it still does not hold
    assert not serves(agent) and contents(agent.audit) == before

    flip(agent)
    agent.signal(signal.SIGHUP)
    await_service(agent)
    assert agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"
    agent.acquire()
    judge(agent)


def test_collectors_are_told_the_verdict(agent: HostAgent) -> None:
    pki = FleetPki(agent.directory / "pki")
    add_listener(agent, pki, pki.issue(Role.NODE, node_id(read_machine_id()).hex()))
    agent.start()
    agent.stop()
    segment = flip(agent)
    agent.start(flags=STAY)
    port = re.findall(r"may connect to port (\d+)", agent.log())[-1]
    context = pki.client(pki.issue(Role.COLLECTOR, "west"))
    with httpx.Client(base_url=f"https://localhost:{port}", verify=context) as client:
        answer = client.get("/audit/v1/logs")
    assert answer.status_code == 503 and answer.headers["leased-log-state"] == "failed"
    assert answer.json()["verdict"] == "CORRUPT_RECORD"
    assert segment.name in answer.json()["detail"]
    flip(agent)
    agent.signal(signal.SIGHUP)
    await_service(agent)
    judge(agent)


def test_it_serves_again_by_itself(agent: HostAgent) -> None:
    agent.start()
    agent.stop()
    anchor = agent.audit / "anchor"
    away = agent.directory / "anchor"
    anchor.rename(away)
    agent.start(flags=STAY)
    assert not serves(agent)
    away.rename(anchor)
    await_service(agent)
    judge(agent)


def test_it_stops_when_told_and_leaves_a_busy_log_alone(agent: HostAgent) -> None:
    agent.start()
    agent.stop()
    flip(agent)
    agent.start(flags=STAY)
    assert agent.stop() == 0
    flip(agent)
    agent.start()
    second = subprocess.run(
        [*(sys.executable, "-m", "leased.service.daemon"), "--config", agent.config, *STAY],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=agent.sockets(),
    )
    assert second.returncode == EX_CONFIG and "BUSY" in second.stderr
