# SPDX-License-Identifier: Apache-2.0
"""How late access ends and how late the proof comes, read from the chain's own records.

Rule: deadline, cut and proof are the effective times of Expired, AccessCut and Reclaimed, all on
CLOCK_BOOTTIME. Holders are real processes that ignore SIGTERM and write to their memory; where
there are too many for that (10 000), leases are bound to nothing but their deadline. The agent
lives, is stopped (SIGSTOP) across the deadlines, or is killed and started again.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

from leased.durable.reader import read_log
from leased.terms import event as events
from leased.terms.moment import NS_PER_MS
from tests.bench.loadgen import Figures, arguments
from tests.bench.running_agent import RunningAgent

TTL_MS = 1_500
SETTLE_S_MAX = 60.0
MANY = 10_000
LARGE_BYTES = 256 << 20


def most_leases(wanted: int) -> int:
    """`wanted`, or as many as the hard limit on open files allows the reaper to hold."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, (hard - 2_000) // 2)


def measure_expiry(
    load: Path, directory: Path, *, rounds: int, many: int, say: Callable[[str], None]
) -> list[Figures]:
    """Lags for one holder, a hundred, and `many` leases, with the agent alive, stopped and dead."""
    cases: list[tuple[str, str, int, int, int]] = [
        ("alive", "holders", 1, 4096, rounds),
        ("alive", "holders", 100, 4096, 1),
        ("alive", "hold", many, 4096, 1),
        ("stopped", "holders", 1, 4096, max(1, rounds // 4)),
        ("stopped", "holders", 100, 4096, 1),
        ("killed", "holders", 1, 4096, max(1, rounds // 4)),
        ("killed", "holders", 100, 4096, 1),
        ("killed", "hold", many, 4096, 1),
        ("alive", "holders", 1, LARGE_BYTES, rounds),
    ]
    found: list[Figures] = []
    for number, (state, mode, count, size, times) in enumerate(cases):
        where = directory / f"expiry-{number}"
        figures = _measure(load, where, state=state, mode=mode, count=count, size=size, times=times)
        found.append(figures)
        say(
            f"agent {state}, {count} x {size >> 10} KiB: cut p50 "
            f"{figures['cut_p50_ns'] / 1e6:.2f} ms, p99 {figures['cut_p99_ns'] / 1e6:.2f} ms; "
            f"proven p99 {figures['proven_p99_ns'] / 1e6:.1f} ms ({figures['ended']} leases)"
        )
    return found


def _measure(
    load: Path, where: Path, *, state: str, mode: str, count: int, size: int, times: int
) -> Figures:
    agent = RunningAgent(where)
    agent.start()
    try:
        for _ in range(times):
            _let_expire(load, agent, state=state, mode=mode, count=count, size=size)
        agent.wait_closed(SETTLE_S_MAX)
    finally:
        agent.close()
    found = lags(agent.state / "audit")
    return {"agent": state, "mode": mode, "count": count, "bytes": size, "times": times, **found}


def _let_expire(
    load: Path, agent: RunningAgent, *, state: str, mode: str, count: int, size: int
) -> None:
    options: dict[str, object] = {"mode": mode, "socket": agent.socket, "count": count}
    options["bytes"] = size
    if mode == "hold":
        options |= {"clients": 64, "bind": "deadline", "ttl_ms": 60_000, "renew_ttl_ms": 2_000}
    else:
        options["ttl_ms"] = TTL_MS
    holders = subprocess.Popen(
        [load, *arguments(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holders.stdout is not None and holders.stdin is not None
    held = holders.stdout.readline()
    if f'"held":{count}' not in held:
        raise SystemExit(f"bench: not all leases were held: {held!r}")
    if state == "stopped":
        agent.signal(signal.SIGSTOP)
    elif state == "killed":
        agent.kill()
    if state != "alive" or mode != "holders":
        _sleep_past_deadlines()
    if state == "stopped":
        agent.signal(signal.SIGCONT)
    elif state == "killed":
        agent.start()
    holders.stdin.close()
    if mode == "holders":
        holders.wait(SETTLE_S_MAX)
    else:
        holders.kill()
        holders.wait()


def _sleep_past_deadlines() -> None:
    until = time.monotonic() + 3.5
    while time.monotonic() < until:
        time.sleep(0.05)


def lags(directory: Path, leases: Collection[str] | None = None) -> Figures:
    """What the records say: from the deadline to the cut and to the proof, and from the cut to the
    end of the scrub and to the proof; of these leases only, if they are named."""
    deadline: dict[bytes, int] = {}
    cut_ns: dict[bytes, int] = {}
    cut: list[int] = []
    proven: list[int] = []
    between: list[int] = []
    scrubbed: list[int] = []
    cut_by_reaper = fenced = 0
    log = read_log(directory)
    for _, event, _ in log.events():
        if not isinstance(event, events.LeaseEvent):
            continue
        if leases is not None and event.lease_id.hex() not in leases:
            continue
        if isinstance(event, events.Expired):
            deadline[event.lease_id] = event.effective_ns
        elif isinstance(event, events.AccessCut) and event.lease_id in deadline:
            cut.append(event.effective_ns - deadline[event.lease_id])
            cut_ns[event.lease_id] = event.effective_ns
            cut_by_reaper += event.by_reaper
        elif isinstance(event, events.Scrubbed) and event.lease_id in cut_ns:
            scrubbed.append(event.effective_ns - cut_ns[event.lease_id])
        elif isinstance(event, events.Reclaimed) and event.lease_id in deadline:
            proven.append(event.effective_ns - deadline[event.lease_id])
            between.append(event.effective_ns - cut_ns[event.lease_id])
        elif isinstance(event, events.Fenced):
            fenced += 1
    log.close()
    return {
        "ended": len(cut),
        "by_reaper": cut_by_reaper,
        "fenced": fenced,
        **percentiles("cut", cut),
        **percentiles("proven", proven),
        **percentiles("cut_to_scrubbed", scrubbed),
        **percentiles("cut_to_proven", between),
    }


def percentiles(name: str, found: list[int]) -> Figures:
    """The middle, the 99th of a hundred (by nearest rank: the worst, of fewer) and the worst; an
    age where nothing was found."""
    ordered = sorted(found) or [10**9 * NS_PER_MS]
    return {
        f"{name}_p50_ns": ordered[len(ordered) // 2],
        f"{name}_p99_ns": ordered[-(-len(ordered) * 99 // 100) - 1],
        f"{name}_max_ns": ordered[-1],
    }
