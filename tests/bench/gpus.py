# SPDX-License-Identifier: Apache-2.0
"""How late access to a GPU ends and how late it is proven clean, over the mock driver.

Rule: emulated, and called so wherever it is shown: nodes, leaf, filter, kill and records are real;
how long the driver takes to let go and to overwrite is not. What is measured is the agent's own
part: the reaper's cut, the workers' starts, the scans, the two looks. Holders ignore SIGTERM and
hold a context with memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from tests.bench.expiry import lags
from tests.bench.loadgen import Figures
from tests.doubles.gpu_host import REPOSITORY
from tests.doubles.host_agent import HostAgent
from tests.mocks.nvml.control import Machine, Unavailable

GIB = 1 << 30
HARDWARE = """
[hardware.gpu]
root = "{root}"
mps_dir = "{root}/mps"
"""
HELD_S_MAX = 60


def measure_gpus(*, rounds: int, say: Callable[[str], None]) -> Figures | None:
    """`rounds` leases of one H100 each, ended by their deadlines; None where there can be none."""
    try:
        machine = Machine.create(gpus=["H100"])
    except Unavailable as error:
        say(f"NOT MEASURED: leases of GPUs ({error})")
        return None
    before = dict(os.environ)
    with machine:
        os.environ.update(machine.environment())
        try:
            with HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent:
                agent.start()
                for _ in range(rounds):
                    _hold_past_the_deadline(agent)
                figures = {"evidence": "emulated", "model": "H100", **lags(agent.audit)}
        finally:
            os.environ.clear()
            os.environ.update(before)
    say(
        f"GPU (emulated): cut p50 {figures['cut_p50_ns'] / 1e6:.2f} ms, "
        f"max {figures['cut_max_ns'] / 1e6:.2f} ms; cut to proven p50 "
        f"{figures['cut_to_proven_p50_ns'] / 1e6:.0f} ms, "
        f"max {figures['cut_to_proven_max_ns'] / 1e6:.0f} ms ({figures['ended']} leases)"
    )
    return figures


def _hold_past_the_deadline(agent: HostAgent) -> None:
    words = ["run", "--gpu", "1", "--ttl", "5s", "--no-renew", "--wait", "60s", "--"]
    holder = subprocess.Popen(
        [
            *(sys.executable, "-m", "leased.ctl.main", *words),
            *(sys.executable, "-m", "tests.doubles.cuda_holder", "hold", str(8 * GIB)),
        ],
        env={**os.environ, **agent.sockets(), "PYTHONPATH": f"{REPOSITORY}/agent:{REPOSITORY}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )
    try:
        holder.wait(HELD_S_MAX)
    finally:
        holder.kill()
        holder.communicate()
    for one in agent.call("Lease.List", admin=True)["leases"]:
        agent.wait_for(one["lease_id"])
