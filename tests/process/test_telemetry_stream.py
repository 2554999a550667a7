# SPDX-License-Identifier: Apache-2.0
"""Telemetry of the real agent, end to end: GPUs of the mock driver, real leaves, real TLS to a
receiver that shares no code with it; and what it costs an agent that has nothing to do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leased.chain.certificate import Role
from leased.hardware.identity import node_id, read_machine_id
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.gpu_host import REPOSITORY, mock_machine
from tests.doubles.host_agent import HostAgent
from tests.doubles.otlp_receiver import Receiver, receiver
from tests.mocks.nvml.control import Machine

pytestmark = pytest.mark.root

TELEMETRY = """
[telemetry]
interval = "1s"
endpoint = "{url}"
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"
job_mapping_dir = "{jobs}"
[hardware.gpu]
root = "{root}"
mps_dir = "{root}/mps"
release_budget = "2s"
settle_apart = "50ms"
"""
LEASE = "leased.lease.id"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with mock_machine(["H100", "H100"]) as one:
        yield one


@contextlib.contextmanager
def streaming(
    machine: Machine, folder: Path, *statuses: str
) -> Iterator[tuple[HostAgent, Receiver]]:
    """An agent that streams to a receiver."""
    authority = FleetPki(folder / "pki")
    node = authority.issue(Role.NODE, node_id(read_machine_id()).hex())
    (folder / "jobs").mkdir()
    with receiver(authority.issue(Role.COLLECTOR, "main"), authority.ca, *statuses) as one:
        told = TELEMETRY.format(
            url=one.url,
            ca=authority.ca,
            certificate=node,
            key=node.with_suffix(".key"),
            jobs=folder / "jobs",
            root=machine.root,
        )
        with HostAgent(more=told) as agent:
            yield agent.start(), one


@contextlib.contextmanager
def holding(agent: HostAgent, *words: str) -> Iterator[str]:
    """A lease with a process in it that computes; its id."""
    script = (
        "import os, sys\nprint(os.environ['LEASE_ID'], flush=True)\nwhile True: sum(range(10000))"
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "leased.ctl.main", "run", "--ttl", "60s", *words, "--"),
            *(sys.executable, "-c", script),
        ],
        env={**os.environ, **agent.sockets(), "PYTHONPATH": f"{REPOSITORY}/agent:{REPOSITORY}"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=60)


def about(name: str, **more: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a point is of that series and has these attributes, `__` for a dot."""
    wanted = {key.replace("__", "."): value for key, value in more.items()}
    return lambda point: point["name"] == name and wanted.items() <= point["attributes"].items()


def until(one: Receiver, *wanted: Any, patience_s: float = 60) -> list[dict[str, Any]]:
    """The points that fit each of `wanted`, as soon as there is one of each."""
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + patience_s
    while len(found) < len(wanted):
        assert time.monotonic() < end, f"only {sorted(found)} of {len(wanted)} came"
        for point in one.next().get("points", ()):
            for at, fits in enumerate(wanted):
                if at not in found and fits(point):
                    found[at] = point
    return [found[at] for at in range(len(wanted))]


def test_leases_and_devices_reach_a_foreign_receiver(machine: Machine, tmp_path: Path) -> None:
    gpu = f"gpu:{machine.uuid(0)}"
    with streaming(machine, tmp_path) as (agent, one):
        machine.set(0, power_mw=444_000)
        with holding(agent, "--gpu", f"uuid={machine.uuid(0)}") as lease:
            watts, used, held, spent = until(
                one,
                about("hw.power", **{"hw.id": gpu}),
                about("leased.lease.utilization", **{LEASE: lease}),
                about("leased.lease.capacity", **{LEASE: lease}),
                lambda p: about("leased.lease.cpu.time", **{LEASE: lease})(p) and p["value"] > 0.05,
            )
            assert (watts["value"], held["value"]) == (444.0, 1000)
            assert watts["resource"]["host.id"] == node_id(read_machine_id()).hex()
            assert 0 <= used["value"] <= 1 and used["attributes"]["leased.resource.kind"] == "gpu"
            assert spent["kind"] == "sum" and spent["unit"] == "s"
            top = json.loads(agent.leasectl("top", "--once", "--json").stdout)
            [row] = [one for one in top["leases"] if one["lease_id"] == lease]
            assert "leased.lease.utilization" in {one["name"] for one in row["samples"]}
            well = json.loads(agent.leasectl("health", "--json").stdout)["devices"]
            assert {one["health"] for one in well if one["resource_id"] == gpu} == {"ok"}
            jobs = {path.name: path.read_text() for path in (tmp_path / "jobs").iterdir()}
            assert jobs == {"0": f"{lease}\n", "1": ""}
        [ended] = until(one, lambda p: p["attributes"].get(LEASE) == lease and p["flags"] == 1)
        assert ended["value"] is None


def test_a_receiver_that_was_away_misses_nothing(machine: Machine, tmp_path: Path) -> None:
    with streaming(machine, tmp_path, "503", "503", "429:2") as (agent, one):
        first = one.next()
        again = [one.next() for _ in range(3)]
        times = [{p["time"] for p in seen["points"]} for seen in (first, *again)]
        assert times[0] == times[1] == times[2] == times[3], "the same round until it was taken"
        rounds = [one.next() for _ in range(3)]
        assert len({min(p["time"] for p in seen["points"]) for seen in rounds}) == 3
        dropped = [p for seen in rounds for p in seen["points"] if p["name"].endswith(".dropped")]
        assert dropped == []
        assert "takes nothing" in agent.log() and "takes it again; nothing was lost" in agent.log()


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_agent_that_has_nothing_to_do_costs_little(tmp_path: Path) -> None:
    """With the stream on, at the default interval: of the agent and all its workers together."""
    authority = FleetPki(tmp_path / "pki")
    node = authority.issue(Role.NODE, node_id(read_machine_id()).hex())
    with receiver(authority.issue(Role.COLLECTOR, "main"), authority.ca) as one:
        told = f"""
[telemetry]
endpoint = "{one.url}"
ca = "{authority.ca}"
certificate = "{node}"
key = "{node.with_suffix(".key")}"
"""
        with HostAgent(more=told) as agent:
            agent.start()
            one.next()
            pids = [agent.pid, *agent.workers()]
            before, began = sum(map(ticks, pids)), time.monotonic()
            rounds = [one.next(60) for _ in range(3)]
            spent_s = (sum(map(ticks, pids)) - before) / os.sysconf("SC_CLK_TCK")
            share = spent_s / (time.monotonic() - began)
            resident = next(
                p["value"] for p in rounds[-1]["points"] if p["name"] == "process.memory.usage"
            )
            print(json.dumps({"share_of_a_core": round(share, 5), "resident": resident}))
            assert len(pids) >= 3
            assert share < 0.02, f"{share:.2%} of a core"
            assert resident < 80 << 20, f"{resident >> 20} MiB"
