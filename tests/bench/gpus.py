# SPDX-License-Identifier: Apache-2.0
"""How late access to a GPU ends and how late it is proven clean: on this host's GPU if there is
one that nobody uses, else over the mock driver.

Rule: what is emulated is called so wherever it is shown: nodes, leaf, filter, kill and records are
real; how long the driver takes to let go and to overwrite is not. Holders have all memory written
to and a kernel that never ends, and stay past their deadline. Nothing of a real GPU is set.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench.expiry import lags
from tests.bench.loadgen import Figures
from tests.hardware.agents import Tenant, agent_with
from tests.hardware.bench import Bench, NoAnswer
from tests.hardware.case import NotRun
from tests.mocks.nvml.control import Machine, Unavailable

FULL_BYTES = 140 * 10**9
"""From this much memory on a scrub is that of the bar."""


def measure_gpus(*, rounds: int, say: Callable[[str], None]) -> Figures | None:
    """`rounds` leases of a whole GPU, ended by their deadlines; None where there can be none."""
    try:
        with contextlib.closing(Bench("0", os.environ)) as bench:
            bench.demand_idle()
            total_bytes = int(bench.ask("memory")["total"])
            model = str(bench.identity["name"]).removeprefix("NVIDIA ")
            killed_ms = _killed_ms(bench)
            with bench.unwatched():
                return _measured(model, total_bytes, killed_ms, rounds, say)
    except (NoAnswer, NotRun) as none:
        say(f"no GPU to measure on ({none}): a mock's")
    try:
        with Machine.create(gpus=["H100"]) as machine:
            environment = {**os.environ, **machine.environment()}
            row = _ended(machine.root, environment, rounds=rounds)
            return _told({"evidence": "emulated", "model": "H100", **row}, say)
    except Unavailable as error:
        say(f"NOT MEASURED: leases of GPUs ({error})")
        return None


def _killed_ms(bench: Bench) -> int:
    """How long the driver lets such a holder die, whoever kills it."""
    with bench.hold("busy") as holder:
        began = time.monotonic()
        holder.kill()
        return round((time.monotonic() - began) * 1000)


def _measured(
    model: str, total_bytes: int, killed_ms: int, rounds: int, say: Callable[[str], None]
) -> Figures:
    row = _ended(Path("/"), os.environ, rounds=rounds)
    later = _ended(Path("/"), os.environ, rounds=max(2, rounds // 4), later=True)
    took = {"no scrub": later["cut_to_proven_max_ns"] / 1e9}
    if total_bytes >= FULL_BYTES:
        took["a full scrub of 141 GB"] = row["cut_to_proven_max_ns"] / 1e9
    row |= {"killed_ms": killed_ms}
    row |= {"released_to_proven_s": took, "fenced": row["fenced"] + later["fenced"]}
    return _told({"evidence": "measured", "model": model, **row}, say)


def _ended(
    root: Path, environment: Mapping[str, str], *, rounds: int, later: bool = False
) -> Figures:
    with agent_with(root, environment, later=later) as agent:
        for _ in range(rounds):
            with Tenant(agent, environment, "busy") as tenant:
                tenant.outlast()
        return lags(agent.audit)


def _told(row: Figures, say: Callable[[str], None]) -> Figures:
    say(
        f"{row['model']} ({row['evidence']}): cut p50 {row['cut_p50_ns'] / 1e6:.2f} ms, "
        f"max {row['cut_max_ns'] / 1e6:.2f} ms; cut to proven p50 "
        f"{row['cut_to_proven_p50_ns'] / 1e6:.0f} ms, "
        f"max {row['cut_to_proven_max_ns'] / 1e6:.0f} ms ({row['ended']} leases)"
    )
    return row
