# SPDX-License-Identifier: Apache-2.0
"""GPUs through the whole agent: leasectl asks, the reaper cuts at the deadline, the chain says how
it ended. The driver is the mock one, everything else is real."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from leased.terms.event import Fenced, Reclaimed
from leased.terms.teardown import TeardownStep
from tests.doubles.gpu_host import REPOSITORY, make_instances, mock_machine
from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.doubles.story import tell
from tests.mocks.nvml.control import Machine

pytestmark = pytest.mark.root

GIB = 1 << 30
HARDWARE = """
[hardware.gpu]
root = "{root}"
mps_dir = "{root}/mps"
release_budget = "2s"
settle_apart = "50ms"
"""
TELLS_ITS_NAME = ("sh", "-c", "echo $LEASE_ID")
SEES = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['LEASE_ID'])"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with mock_machine(["H100", "H100"]) as one:
        yield one


@pytest.fixture(scope="module")
def agent(machine: Machine) -> Iterator[HostAgent]:
    with HostAgent(hardware=HARDWARE.format(root=machine.root)) as one:
        yield one.start()


def holder(agent: HostAgent, lease_words: tuple[str, ...], trick: str) -> subprocess.Popen[str]:
    """`leasectl run` with a tenant that holds on to its GPU; returns when it holds."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "leased.ctl.main", "run", *lease_words, "--"),
            *(sys.executable, "-m", "tests.doubles.cuda_holder", trick, str(4 * GIB)),
        ],
        env={**os.environ, **agent.sockets(), "PYTHONPATH": f"{REPOSITORY}/agent:{REPOSITORY}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    agent.track(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def lease_on(agent: HostAgent, machine: Machine, gpu: int) -> str:
    """The live lease that has the GPU."""
    [found] = [
        one["lease_id"]
        for one in json.loads(agent.leasectl("ls", "--json").stdout)["leases"]
        if f"gpu:{machine.uuid(gpu)}" in json.dumps(one)
    ]
    return str(found)


def gpus_of(agent: HostAgent) -> list[dict[str, Any]]:
    """As `leasectl devices` has them."""
    told = json.loads(agent.leasectl("devices", "--kind", "gpu", "--json").stdout)
    found: list[dict[str, Any]] = told["resources"]
    return found


def test_devices_say_what_they_are(agent: HostAgent, machine: Machine) -> None:
    ids = {one["resource_id"] for one in gpus_of(agent)}
    assert ids == {f"gpu:{machine.uuid(0)}", f"gpu:{machine.uuid(1)}"}
    assert {one["evidence"] for one in gpus_of(agent)} == {"emulated"}


def test_run_sees_one_gpu_and_gives_it_back_clean(agent: HostAgent, machine: Machine) -> None:
    done = agent.leasectl("run", "--gpu", "1", "--", sys.executable, "-c", SEES)
    uuid, lease_id = done.stdout.split()
    assert uuid in (machine.uuid(0), machine.uuid(1))
    agent.wait_for(lease_id)
    assert isinstance(tell(agent).lives[lease_id].events[-1], Reclaimed)
    assert machine.show(0)["compute_mode"] == machine.show(1)["compute_mode"] == "2"


def test_two_gpus_are_one_name(agent: HostAgent, machine: Machine) -> None:
    done = agent.leasectl("run", "--gpu", "2", "--", sys.executable, "-c", SEES)
    uuids, lease_id = done.stdout.split()
    assert set(uuids.split(",")) == {machine.uuid(0), machine.uuid(1)}
    agent.wait_for(lease_id)


def test_whoever_ignores_the_end_is_cut_at_the_deadline(agent: HostAgent, machine: Machine) -> None:
    uuid = machine.uuid(0)
    words = ("--gpu", f"uuid={uuid}", "--ttl", "4s", "--no-renew")
    process = holder(agent, words, "reopen")
    lease_id = lease_on(agent, machine, 0)
    assert [one.kind for one in machine.processes(0)]
    process.wait(30)
    agent.wait_for(lease_id)
    assert isinstance(tell(agent).lives[lease_id].events[-1], Reclaimed)
    assert machine.processes(0) == [] and machine.dirty(0) == 0


def test_a_gpu_that_is_not_clean_is_fenced_and_the_chain_says_why(
    agent: HostAgent, machine: Machine
) -> None:
    process = holder(agent, ("--gpu", f"uuid={machine.uuid(1)}"), "hold")
    lease_id = lease_on(agent, machine, 1)
    machine.ghost(1, 4_190_000, GIB)
    assert process.stdin is not None
    process.stdin.close()  # it ends by itself, and the lease with it
    ended = agent.wait_for(lease_id)
    assert ended["runtime"]["state"] == "fenced"
    fenced = tell(agent).lives[lease_id].events[-1]
    assert isinstance(fenced, Fenced)
    assert (fenced.step, fenced.errno) == (TeardownStep.WITNESS, errno.ESRCH)
    machine.unghost(1)
    agent.leasectl("admin", "unfence", lease_id)
    agent.leasectl("run", "--gpu", f"uuid={machine.uuid(1)}", "--", "true")


def test_an_agent_that_was_killed_finds_its_gpu_in_use_and_ends_it() -> None:
    with (
        mock_machine(["H100"]) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent,
    ):
        agent.start()
        words = ("--gpu", f"uuid={machine.uuid(0)}", "--ttl", "12s", "--no-renew")
        holder(agent, words, "hold")
        lease_id = lease_on(agent, machine, 0)
        agent.kill()
        agent.start()
        # It goes on: nobody closed what a lease has, and whoever is in it lives.
        assert machine.show(0)["compute_mode"] == "0" and machine.processes(0)
        ended = agent.wait_for(lease_id)
        assert ended["runtime"]["state"] == "reclaimed"
        assert machine.dirty(0) == 0 and machine.show(0)["compute_mode"] == "2"


def test_a_driver_is_replaced_under_the_agent_whether_it_is_restarted_meanwhile_or_not() -> None:
    """Who listened to the driver ended the agent with it."""
    with (
        mock_machine(["H100"]) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent,
    ):
        agent.start()
        process = holder(agent, ("--gpu", "1"), "hold")
        words = ("drain", "gpu", "--for", "driver-upgrade", "--grace", "1s")
        assert "nobody has the gpu driver" in agent.leasectl(*words).stdout
        assert process.wait(PATIENCE_S)
        machine.driver_unload()
        for restarted in (False, True):
            if restarted:
                agent.kill()
                agent.start()
            assert len(gpus_of(agent)) == 1, "as it was seen last"
            refused = agent.leasectl("run", "--gpu", "1", "--", "true", check=None)
            assert "cordoned" in refused.stderr, refused
        machine.driver_load()
        agent.leasectl("resume", "gpu")
        agent.leasectl("run", "--gpu", "1", "--wait", "20s", "--", "true")
        assert "Traceback" not in agent.log()


@pytest.mark.parametrize("call", ["nvmlDeviceGetUUID", "nvmlInitWithFlags"])
def test_a_call_that_fails_at_a_start_ends_no_lease(call: str) -> None:
    """It was revoked, its work killed and its GPU fenced, for one "Unknown Error"."""
    with (
        mock_machine(["H100"]) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent,
    ):
        agent.start()
        process = holder(agent, ("--gpu", "1"), "hold")
        lease_id = lease_on(agent, machine, 0)
        agent.kill()
        machine.fault(call, "return:999")
        agent.start()
        [one] = gpus_of(agent)
        assert one["health"] == "sick" and "Unknown Error" in one["limits"][0]
        assert lease_on(agent, machine, 0) == lease_id and process.poll() is None
        machine.clear()
        until = time.monotonic() + PATIENCE_S
        while gpus_of(agent)[0]["health"] != "ok":
            assert time.monotonic() < until
            agent.leasectl("resume", "gpu")  # it looks soon
        assert process.stdin is not None
        process.stdin.close()
        assert agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"


@pytest.mark.parametrize("says_so", [True, False])
def test_a_lost_gpu_ends_its_lease(agent: HostAgent, machine: Machine, says_so: bool) -> None:
    process = holder(agent, ("--gpu", f"uuid={machine.uuid(0)}"), "hold")
    lease_id = lease_on(agent, machine, 0)
    machine.lose(0, says_so=says_so)  # XID 79 is heard; the look that follows finds it gone
    process.wait(40)
    ended = agent.wait_for(lease_id)
    assert ended["runtime"]["state"] == "fenced"
    machine.find(0)
    words = ("run", "--gpu", f"uuid={machine.uuid(0)}", "--wait", "2s", "--", *TELLS_ITS_NAME)
    until = time.monotonic() + PATIENCE_S
    agent.leasectl("resume", "gpu")  # it looks soon: the fence opens with the proof
    while (again := agent.leasectl(*words, check=None)).returncode:
        assert time.monotonic() < until, agent.leasectl("devices", "--json").stdout
        agent.leasectl("resume", "gpu")  # an XID that was heard late wants a probe
    assert agent.wait_for(again.stdout.strip())["runtime"]["state"] == "reclaimed"


def test_an_instance_is_made_for_whoever_asks_for_its_profile() -> None:
    layout = 'mig_layout = ["1g.10gb@0", "3g.40gb@4"]'
    with (
        mock_machine(["H100"], mig={0: True}) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root) + layout) as agent,
    ):
        agent.start()
        refused = agent.leasectl("run", "--gpu", "1", "--", "true", check=None)
        assert refused.returncode != 0, "seven parts are no GPU"
        done = agent.leasectl("run", "--gpu", "1,mig=3g.40gb", "--", sys.executable, "-c", SEES)
        uuid, lease_id = done.stdout.split()
        assert uuid.startswith("MIG-") and "@" not in uuid
        assert agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"
        assert make_instances(0) == []
