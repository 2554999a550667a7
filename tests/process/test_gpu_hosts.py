# SPDX-License-Identifier: Apache-2.0
"""Hosts as they are bought, through the whole agent: eight GPUs on NVLink, and a mix of whole GPUs
and MIG devices. What goes wrong with some is nobody else's business."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.doubles.gpu_host import make_instances, mock_machine
from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.mocks.nvml.control import Machine
from tests.process.test_gpu_leases import HARDWARE, gpus_of, holder, lease_on

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLOSED = "2"
SEES = (sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")


def run(agent: HostAgent, gpus: str, *command: str) -> Any:
    words = ("run", "--gpu", gpus, "--wait", "10s", "--", *(command or ("true",)))
    return agent.leasectl(*words, check=None)


def until_all_are_well(agent: HostAgent) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while any(one["health"] != "ok" for one in gpus_of(agent)):
        assert time.monotonic() < end_s, gpus_of(agent)
        agent.leasectl("resume", "gpu")  # it looks soon


def until_one_is_sick(agent: HostAgent) -> None:
    """A grant that hung is a reason to look at the GPUs, after which nobody else is sent there."""
    end_s = time.monotonic() + PATIENCE_S
    while all(one["health"] == "ok" for one in gpus_of(agent)):
        assert time.monotonic() < end_s, gpus_of(agent)


def goes_on(process: subprocess.Popen[str]) -> bool:
    """Whether a holder has its context still."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline() == "1\n"


def held_by(agent: HostAgent, machine: Machine, lease_id: str, count: int) -> list[int]:
    told = json.loads(agent.leasectl("ls", "--json").stdout)["leases"]
    [lease] = [json.dumps(one) for one in told if one["lease_id"] == lease_id]
    return [gpu for gpu in range(count) if f"gpu:{machine.uuid(gpu)}" in lease]


def test_of_eight_gpus_some_hang_or_are_lost_and_the_others_go_on() -> None:
    with (
        mock_machine(["H100"] * 8) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent,
    ):
        agent.start()
        assert {machine.show(gpu)["compute_mode"] for gpu in range(8)} == {CLOSED}
        four, one = holder(agent, ("--gpu", "4"), "hold"), holder(agent, ("--gpu", "1"), "hold")
        free = [gpu for gpu in range(8) if machine.show(gpu)["compute_mode"] == CLOSED]
        assert len(free) == 3
        # One that hangs is refused to whoever asks for it, and stalls nobody else.
        machine.fault("nvmlDeviceGetMemoryInfo_v2", "hang", gpu=free[0])
        for gpu in free[1:]:
            assert run(agent, f"uuid={machine.uuid(gpu)}").returncode == 0
        words = ("run", "--gpu", f"uuid={machine.uuid(free[0])}", "--", "true")
        assert "does not answer" in agent.leasectl(*words, check=None).stderr
        until_one_is_sick(agent)
        assert run(agent, "1").returncode == 0
        machine.clear()
        until_all_are_well(agent)
        # Three at once, of which one is leased: that lease ends, the four go on.
        leases = {lease_on(agent, machine, gpu) for gpu in range(8) if machine.processes(gpu)}
        by_size = sorted((held_by(agent, machine, lease, 8) for lease in leases), key=len)
        assert [len(gpus) for gpus in by_size] == [1, 4]
        lost = (*by_size[0], *free[:2])
        for says_so, gpu in enumerate(lost):
            machine.lose(gpu, says_so=bool(says_so % 2))
        assert one.wait(PATIENCE_S)
        assert goes_on(four) and run(agent, "1").returncode == 0
        assert sum(found["health"] == "gone" for found in gpus_of(agent)) == 3
        assert four.stdin is not None
        four.stdin.close()
        assert four.wait(PATIENCE_S) == 0
        for gpu in lost:
            machine.find(gpu)
        until_all_are_well(agent)
        seen = run(agent, "8", *SEES).stdout.strip().split(",")
        assert set(seen) == {machine.uuid(gpu) for gpu in range(8)}
        assert "Traceback" not in agent.log()


def test_beside_mig_devices_of_others_each_ends_by_itself() -> None:
    with (
        mock_machine(["A100", "H100", "L4", "A100"], mig={0: True, 3: True}) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent,
    ):
        make_instances(0, 0, 0, 2)  # 1g, 1g, 3g
        make_instances(3, 4)  # 7g
        agent.start()
        modes = [machine.show(gpu)["compute_mode"] for gpu in range(4)]
        assert modes == ["0", CLOSED, CLOSED, "0"], "a MIG device cannot be closed"
        first = holder(agent, ("--gpu", "1,mig=1g.10gb"), "hold")
        second = holder(agent, ("--gpu", "1,mig=3g.40gb"), "hold")
        whole = holder(agent, ("--gpu", "1,mig=7g.80gb"), "hold")
        seen = run(agent, "2", *SEES).stdout.strip().split(",")
        assert set(seen) == {machine.uuid(1), machine.uuid(2)}
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(PATIENCE_S) == 0
        assert goes_on(second) and goes_on(whole)
        assert len(run(agent, "2,mig=1g.10gb", *SEES).stdout.split(",")) == 2
        # The libraries were replaced under a driver that runs: those who have theirs go on.
        machine.fault("nvmlInitWithFlags", "return:18")
        agent.leasectl("resume", "gpu")
        assert run(agent, "1").returncode
        assert goes_on(second) and goes_on(whole)
        drain = ("drain", "gpu", "--for", "driver-upgrade", "--grace", "1s")
        assert "nobody has the gpu driver" in agent.leasectl(*drain).stdout
        assert second.wait(PATIENCE_S) and whole.wait(PATIENCE_S)
        machine.driver_unload()
        machine.clear()
        machine.driver_load()
        agent.leasectl("resume", "gpu")
        until_all_are_well(agent)
        for gpus in ("2,mig=1g.10gb", "1,mig=3g.40gb", "1,mig=7g.80gb", "2"):
            assert run(agent, gpus).returncode == 0, gpus
        assert "Traceback" not in agent.log()
