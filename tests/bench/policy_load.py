# SPDX-License-Identifier: Apache-2.0
"""What a full policy costs the spine: two agents on the same disk, one with everything that the
language can say in force, one with nothing, asked in turn.

Rule: the limits are held against whoever asks and are never reached, so that every check is made
and nobody is refused; what is compared are medians over interleaved rounds.

Does not time single decisions: `policy` does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from tests.bench.loadgen import Figures, run_load
from tests.bench.running_agent import RunningAgent

CLIENTS = 64
GRANTS = 5_000
FULL = """
[policy.tenant_default]
leases_max = 16384
concurrent_max = 16384
waiting_max = 1000
duration_max = "8h"
submit_rate = "1000000/s"
api_rate = "1000000/s"
level_max = "critical"
mem = { limit = "256GiB", mode = "soft" }
"mem.dram" = { limit = "256GiB", mode = "soft" }
cpu = { limit = 1000, mode = "soft" }
budgets = [
  { period = "day", of = "mem", capacity_seconds = 1000000000 },
  { period = "month", cost = "1000000.00" },
]

[policy.borrowing]
enabled = true

[policy.allocation.mem]
strategy = "fair_share"
min_share = "0%"
max_share = "100%"

[policy.allocation.cpu]
strategy = "reservation"
borrow_idle = true
"""
"""The load's tenant is named by nobody, so it has what `tenant_default` says; groups and what is
lent are between tenants, of whom there is one here."""


def measure_policy_load(
    load: Path, directory: Path, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> list[Figures]:
    """Renewals and grants per second of every round, without and with the policy."""
    agents = {
        "bare": RunningAgent(directory / "bare"),
        "full": RunningAgent(directory / "full", more=FULL),
    }
    found: list[Figures] = []
    try:
        for agent in agents.values():
            agent.start()
        for number in range(rounds):
            row: Figures = {"round": number}
            # Who goes first takes turns, too.
            for name in sorted(agents, reverse=bool(number % 2)):
                row[name] = _measure(load, agents[name], seconds)
            found.append(row)
            for what in ("renew", "grant"):
                bare, full = row["bare"][what], row["full"][what]
                say(f"round {number + 1}/{rounds}: {what} {bare:,}/s, with the policy {full:,}/s")
    finally:
        for agent in agents.values():
            agent.close()
    return found


def _measure(load: Path, agent: RunningAgent, seconds: float) -> Figures:
    where = {"socket": agent.socket, "clients": CLIENTS}
    renew = run_load(load, mode="renew", seconds=seconds, **where)
    grant = run_load(load, mode="grant", count=GRANTS, **where)
    agent.wait_closed(60)
    return {
        "renew": round(renew["operations_per_s"]),
        "grant": round(grant["operations_per_s"]),
    }


def share_kept(rows: list[Figures], what: str) -> float:
    """How much of `what` per second is left with the policy on: the median over rounds."""
    return statistics.median(row["full"][what] / row["bare"][what] for row in rows)
