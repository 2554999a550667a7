# SPDX-License-Identifier: Apache-2.0
"""Operations per second against etcd, PostgreSQL and Redis: they take turns with us on the same
disk, round by round.

Rule: a round is raw fdatasync, etcd, Renew, grants, for one number of clients after the other, and
with 64 clients the other two stores; what is compared are medians over rounds, so a slow minute of
the machine hits all sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from tests.bench.loadgen import Figures, fdatasync_p50_ns, run_load
from tests.bench.peer import etcd, lease_grants
from tests.bench.running_agent import RunningAgent
from tests.bench.stores import inserts, missing, postgresql, redis, sets

CLIENTS = (1, 8, 64, 256)
GRANTS_PER_CLIENT = {1: 300, 8: 1_500, 64: 6_000, 256: 6_000}
ETCD_REQUESTS = {1: 10_000, 8: 30_000, 64: 60_000, 256: 60_000}
STORE_CLIENTS = 64
INSERTS, SETS = 20_000, 100_000


def measure_throughput(
    load: Path, directory: Path, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> list[Figures]:
    """Raw figures of every round."""
    found: list[Figures] = []
    if absent := missing():
        say(f"not compared: apt-get install {' '.join(absent)}")
    agent = RunningAgent(directory / "throughput")
    agent.start()
    try:
        for number in range(rounds):
            for clients in CLIENTS:
                row = _measure(load, directory, agent, clients, seconds)
                row["round"] = number
                found.append(row)
                say(
                    f"round {number + 1}/{rounds}, {clients} clients: etcd "
                    f"{row['etcd']['operations_per_s']:,.0f}/s, renew "
                    f"{row['renew']['operations_per_s']:,.0f}/s, grant "
                    f"{row['grant']['operations_per_s']:,.0f}/s"
                )
    finally:
        agent.close()
    return found


def _measure(
    load: Path, directory: Path, agent: RunningAgent, clients: int, seconds: float
) -> Figures:
    raw_ns = fdatasync_p50_ns(load, directory)
    share = min(1.0, seconds / 4)
    requests = int(ETCD_REQUESTS[clients] * share)
    with etcd(directory) as url:
        theirs = lease_grants(url, clients=clients, requests=requests, scratch=directory)
    others = _stores(directory, clients, share) if clients == STORE_CLIENTS else {}
    renew = run_load(load, mode="renew", socket=agent.socket, clients=clients, seconds=seconds)
    count = GRANTS_PER_CLIENT[clients]
    grant = run_load(load, mode="grant", socket=agent.socket, clients=clients, count=count)
    return {
        "clients": clients,
        "fdatasync_p50_ns": raw_ns,
        "etcd": theirs,
        "renew": renew,
        "grant": grant,
        **others,
    }


def _stores(directory: Path, clients: int, share: float) -> Figures:
    """PostgreSQL and Redis; nothing where one of them is not installed."""
    if missing():
        return {}
    with postgresql(directory) as socket:
        requests = int(INSERTS * share)
        inserted = inserts(socket, clients=clients, requests=requests, scratch=directory)
    with redis(directory) as socket:
        kept = sets(socket, clients=clients, requests=int(SETS * share))
    return {"postgresql": inserted, "redis": kept}


def median_of(rows: list[Figures], clients: int, *path: str) -> float:
    """The median over rounds of one figure."""
    found: list[float] = []
    for row in rows:
        if row["clients"] == clients:
            value = row
            for name in path:
                value = value[name]
            found.append(float(value))  # type: ignore[arg-type]
    return statistics.median(found)
