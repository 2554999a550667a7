# SPDX-License-Identifier: Apache-2.0
"""How late access to each kind of resource ends, and how late it is proven clean, on this machine.

Rule: every kind that this machine offers is leased, held by a process that ignores SIGTERM, and
ended by its deadline; the times are the chain's own (`expiry.lags`). Nothing is imitated here: a
kind that the machine does not have is said not to have been measured. What the agent publishes for
the kind is printed beside what was measured, and so is what the kernel alone takes to end such a
holder (cgroup.kill until it has ended, nobody of ours involved): no cut can be sooner.

Does not lend what the operator of the machine has not named: a namespace is overwritten, so it is
taken only if it is blank and unused (`offer = "unused"`).
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leased.terms.moment import NS_PER_MS
from tests.bench.expiry import lags
from tests.bench.loadgen import Figures
from tests.bench.running_agent import REPOSITORY, RunningAgent
from tests.doubles.reaper_host import cgroup_root

HARDWARE = """
[hardware.block]
offer = "unused"
raw = true
raw_erase = ["zero"]

[hardware.dax]
offer = true
persistent = true
"""
TTL_S = 5
HELD_S_MAX = 120
HOLD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@dataclass(frozen=True)
class Kind:
    """What is asked for, and which resource of the inventory answers for it."""

    name: str
    ask: tuple[str, ...]
    prefix: str
    suffix: str = ""


KINDS = (
    Kind("memory, 4 KiB pages", ("--mem", "16MiB,page=4KiB"), "mem:node", ":4096"),
    Kind("memory, 2 MiB pages", ("--mem", "16MiB,page=2MiB"), "mem:node", f":{2 << 20}"),
    Kind("memory as a budget", ("--mem", "64MiB,budget"), "mem:budget"),
    Kind("one core", ("--cpu", "1"), "cpu:"),
    Kind("half a core", ("--cpu", "500m"), "cpu:"),
    Kind("namespace, encrypted", ("--block", "32MiB"), "block:"),
    Kind("namespace, raw, zeroed", ("--block", "32MiB,raw"), "block:raw-"),
    Kind("device-dax", ("--mem", "16MiB,dax"), "mem:dax"),
    Kind("memory over RDMA", ("--mem", "4MiB,rdma"), "mem:rdma"),
)


def measure_kinds(directory: Path, *, rounds: int, say: Callable[[str], None]) -> list[Figures]:
    """`rounds` leases of each kind, each kind with an agent of its own."""
    found: list[Figures] = []
    for number, kind in enumerate(KINDS):
        agent = RunningAgent(directory / f"kind-{number}", more=HARDWARE)
        agent.start()
        try:
            bounds = _published(agent, kind)
            if bounds is None:
                say(f"NOT MEASURED: {kind.name}: this machine offers none")
                continue
            alone_ns = []
            for _ in range(rounds):
                _hold_past_the_deadline(agent, kind)
                alone_ns.append(_end_by_kernel_alone())
        finally:
            agent.close()
        figures = {
            "kind": kind.name,
            **bounds,
            **lags(agent.state / "audit"),
            "kernel_alone_p50_ns": statistics.median(alone_ns),
        }
        found.append(figures)
        say(
            f"{kind.name}: cut p50 {figures['cut_p50_ns'] / NS_PER_MS:.2f} ms, "
            f"max {figures['cut_max_ns'] / NS_PER_MS:.2f} ms "
            f"(the kernel alone {figures['kernel_alone_p50_ns'] / NS_PER_MS:.2f}); "
            f"cut to proven p50 {figures['cut_to_proven_p50_ns'] / NS_PER_MS:.1f} ms, "
            f"max {figures['cut_to_proven_max_ns'] / NS_PER_MS:.1f} ms "
            f"({figures['ended']} leases, {figures['fenced']} fenced)"
        )
    return found


def _published(agent: RunningAgent, kind: Kind) -> Figures | None:
    """The bounds of the first resource that is offered; None if there is none."""
    inventory = agent.call("io.leased.Device.List")
    for one in inventory["resources"]:
        named = one["resource_id"].startswith(kind.prefix)
        if named and one["resource_id"].endswith(kind.suffix) and _room(one) > 0:
            said = one["bounds"]
            return {"cut_bound_ns": said["cut_ns"], "whole_bound_ns": sum(said.values())}
    return None


def _room(resource: dict[str, Any]) -> int:
    use = resource.get("use")
    return int(resource["capacity"] if use is None else use["free"])


def _hold_past_the_deadline(agent: RunningAgent, kind: Kind) -> None:
    words = ["run", *kind.ask, "--ttl", f"{TTL_S}s", "--no-renew", "--wait", "60s", "--"]
    holder = subprocess.Popen(
        [sys.executable, "-m", "leased.ctl.main", *words, sys.executable, "-c", HOLD],
        env={
            **os.environ,
            "LEASE_SOCKET": str(agent.socket),
            "PYTHONPATH": f"{REPOSITORY}/agent",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = holder.communicate(timeout=HELD_S_MAX)
    except subprocess.TimeoutExpired:
        holder.kill()
        raise SystemExit(f"bench: {kind.name}: the holder outlived its deadline") from None
    if holder.returncode in (64, 69, 75, 77):
        raise SystemExit(f"bench: {kind.name}: no lease: {said.decode().strip()}")
    agent.wait_closed(HELD_S_MAX)


def _end_by_kernel_alone() -> int:
    """Nanoseconds from cgroup.kill to the end of a holder like the one above."""
    mount = cgroup_root()
    assert mount is not None, "the agent has found it"
    place = mount / f"leased-bench-{os.getpid()}"
    place.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", f"print(flush=True); {HOLD}"], stdout=-1)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        (place / "cgroup.procs").write_text(str(holder.pid))
        pidfd = os.pidfd_open(holder.pid)
        try:
            began_ns = time.monotonic_ns()
            (place / "cgroup.kill").write_text("1")
            select.select([pidfd], [], [])
            return time.monotonic_ns() - began_ns
        finally:
            os.close(pidfd)
    finally:
        holder.kill()
        holder.communicate()
        place.rmdir()
