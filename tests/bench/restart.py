# SPDX-License-Identifier: Apache-2.0
"""Restarting and idling: what a long history and many leases cost.

Rule: live leases are real ones, held by the reaper while the agent is away; their deadlines are
compared before and after, because a restart must not refill a TTL.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.history import extend_history
from tests.bench.loadgen import Figures, arguments
from tests.bench.running_agent import RunningAgent, cpu_seconds, resident_bytes, shared_bytes

LIVE_LEASES = 1_000


def measure_restart(
    load: Path, directory: Path, *, records: int, say: Callable[[str], None]
) -> Figures:
    """Start-to-serving with `records` sealed and a thousand leases live."""
    agent = RunningAgent(directory / f"restart-{records}")
    agent.start()
    holder = _hold(load, agent)
    try:
        before = _deadlines(agent)
        agent.stop()
        say(f"making a history of {records:,} records")
        count = extend_history(agent.state / "audit", records)
        ready_s = agent.start()
        after = _deadlines(agent)
        agent.stop()
    finally:
        holder.kill()
        holder.wait()
        agent.close()
    say(f"{count:,} records: serving after {ready_s:.2f} s")
    return {
        "records": count,
        "live_leases": len(before),
        "ready_s": ready_s,
        "deadlines_kept": sum(after.get(one) == at for one, at in before.items()),
    }


def measure_idle(directory: Path, *, seconds: float) -> Figures:
    """Memory and processor time of an agent that nobody asks anything."""
    agent = RunningAgent(directory / "idle")
    agent.start()
    try:
        _wait(3)
        processes = agent.processes()
        before = {name: cpu_seconds(pid) for name, pid in processes.items()}
        _wait(seconds)
        found: Figures = {}
        for name, pid in processes.items():
            share = (cpu_seconds(pid) - before[name]) / seconds
            sizes = {"rss_bytes": resident_bytes(pid), "pss_bytes": shared_bytes(pid)}
            found[name] = {**sizes, "cpu_share": share}
    finally:
        agent.close()
    return found


def _hold(load: Path, agent: RunningAgent) -> subprocess.Popen[str]:
    options: dict[str, object] = {
        "mode": "hold",
        "socket": agent.socket,
        "count": LIVE_LEASES,
        "clients": 16,
        "bind": "deadline",
        "ttl_ms": 3_600_000,
    }
    holder = subprocess.Popen(
        [load, *arguments(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    if f'"held":{LIVE_LEASES}' not in holder.stdout.readline():
        raise SystemExit("bench: not all leases were held")
    return holder


def _deadlines(agent: RunningAgent) -> dict[str, int]:
    leases = agent.call("io.leased.Lease.List").get("leases", [])
    return {
        one["lease_id"]: one["runtime"]["deadline_boottime_ns"]
        for one in leases
        if one["runtime"]["state"] == "active"
    }


def _wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.1)
