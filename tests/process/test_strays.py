# SPDX-License-Identifier: Apache-2.0
"""Cgroups of leases that no lease knows: ended at the start, before anything is granted, and on
record. Those of leases that go on, and what is nobody's lease, are left alone."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from leased.durable.reader import read_log
from leased.terms.event import StrayEnded
from tests.doubles.host_agent import HostAgent, exited
from tests.doubles.workloads import Workload

pytestmark = pytest.mark.root


def sleeper(agent: HostAgent, directory: Path) -> int:
    """A process inside; a pidfd of it."""
    directory.mkdir(parents=True)
    process = agent.track(subprocess.Popen(["sleep", "600"]))
    (directory / "cgroup.procs").write_text(str(process.pid))
    return os.pidfd_open(process.pid)


def test_a_leaf_without_a_lease_is_ended_at_the_start(agent: HostAgent) -> None:
    kept = Workload(agent, "cgroup", ttl_ms=60_000)
    agent.kill()
    stray = agent.cgroup / secrets.token_hex(16)
    inside = sleeper(agent, stray)
    below = sleeper(agent, stray / "of-the-tenant")
    foreign = sleeper(agent, agent.cgroup / "backup.service")
    agent.start()
    assert exited(inside) and exited(below)
    assert not stray.exists()
    assert not exited(foreign, 0), "not a lease's"
    assert kept.alive, "its lease goes on"
    agent.stop()
    events = read_log(agent.audit).events()
    [event] = [event for _, event, _ in events if isinstance(event, StrayEnded)]
    assert (event.cgroup, event.processes, event.errno) == (stray.name, 1, 0)
    for pidfd in (inside, below, foreign):
        os.close(pidfd)


def test_a_log_that_was_replaced_leaves_nobody_with_access(agent: HostAgent) -> None:
    """Leases that the new log does not know, one of them still armed: none of them lives on."""
    orphan = Workload(agent, "cgroup", ttl_ms=60_000)
    agent.kill()
    shutil.rmtree(agent.state)
    agent.state.mkdir()
    agent.start()
    assert orphan.gone_ns()
    assert agent.call("Lease.List", admin=True)["leases"] == []
