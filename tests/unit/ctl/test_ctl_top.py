# SPDX-License-Identifier: Apache-2.0
"""top and health against a canned agent: every sample beside what it is of, and what is not known
is "-"."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from tests.doubles.canned_agent import (
    LEASE_ID,
    OTHER_ID,
    Answer,
    CannedAgent,
    Script,
    lease,
    resource,
)
from tests.unit.ctl.test_ctl_verbs import leasectl

GPU = "gpu:GPU-1"
OTHER = "gpu:GPU-2"
PATIENCE_S = 30
GRACES = {"release_ns": 10**10, "preempt_ns": 3 * 10**10, "max_ns": 3 * 10**11}


def sample(name: str, value: int, of: str = "", **more: Any) -> dict[str, Any]:
    attributes = {key.replace("__", "."): text for key, text in more.pop("told", {}).items()}
    return {
        "name": name,
        "unit": "1",
        "kind": "gauge",
        "resource_id": of,
        "value": value,
        "sampled_boottime_ns": 1,
        "age_ns": 5,
        "quality": "fresh",
        "attributes": attributes,
        **more,
    }


def script() -> Script:
    used = {"leased__resource__kind": "gpu"}
    held = [{"resource_id": GPU, "kind": "gpu", "tier": None, "capacity": 1000}]
    samples = [
        sample("system.memory.limit", 8 << 30, "mem:node0"),
        sample("system.memory.usage", 3 << 29, "mem:node0", told={"system__memory__state": "used"}),
        sample("leased.lease.utilization", 420_000, lease_id=LEASE_ID, told=used),
        sample("leased.lease.cpu.time", 63 * 10**9, lease_id=LEASE_ID, told={"cpu__mode": "user"}),
        sample("leased.lease.processes", 7, lease_id=LEASE_ID),
        sample("leased.lease.memory.usage", 5 << 20, lease_id=LEASE_ID),
        sample("leased.gpu.active", 910_000, GPU, told={"leased__gpu__engine": "sm"}),
        sample("hw.gpu.utilization", 100_000, GPU, told={"hw__gpu__task": "general"}),
        sample("hw.power", 321_500, GPU, quality="stale"),
        sample("hw.temperature", 61_000, GPU, told={"hw__sensor_location": "gpu"}),
        sample("hw.temperature", 78_000, GPU, told={"hw__sensor_location": "memory"}),
        sample("hw.errors", 3, GPU, told={"error__type": "corrected"}),
        sample("hw.errors", 0, GPU, told={"error__type": "uncorrected"}),
    ]
    return {
        "io.leased.Telemetry.Watch": [{"samples": samples, "dropped": 0}] * 3,
        "io.leased.Telemetry.Read": {"samples": samples},
        "io.leased.Lease.List": {
            "leases": [lease(allotments=held), lease(OTHER_ID)],
            "waiting": [],
        },
        "io.leased.Device.List": {
            "resources": [
                resource(resource_id=GPU, kind="gpu"),
                resource(resource_id=OTHER, kind="gpu", health="sick", limits=["wants a reset"]),
            ],
            "absences": [],
            "notes": [],
            "graces": GRACES,
        },
    }


def row(out: str, begins: str) -> list[str]:
    [line] = [line for line in out.splitlines() if line.startswith(begins)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_top_shows_leases_and_devices_once_where_nobody_watches(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        status, out, _ = leasectl(agent, "top --every 5s")
        assert agent.asked("io.leased.Telemetry.Watch")["interval_ns"] == 5 * 10**9
    assert status == 0 and "\x1b" not in out, "not a terminal: said once, and no screen cleared"
    assert "node0: 1.5 GiB of 8.0 GiB used" in out
    assert row(out, "7fa3")[3:7] == ["gpu 42%", "1 min 3 s", "5.0 MiB", "7"]
    assert row(out, "7fb4")[3:7] == ["-", "-", "-", "-"], "nothing is known of it, which is not 0"
    assert row(out, GPU) == [GPU, "91%", "-", "~321 W", "78 C", "7fa30000"]
    assert row(out, OTHER) == [OTHER, "-", "-", "-", "-", "free"]
    assert "1 samples are stale" in out


def test_top_as_json_is_a_document_a_look(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        _, once, _ = leasectl(agent, "top --once --json")
        _, many, _ = leasectl(agent, "top --json")
    assert len(once.splitlines()) == 1 and len(many.splitlines()) == 3
    told = json.loads(once)
    assert told["version"] == 1
    [mine] = [one for one in told["leases"] if one["lease_id"] == LEASE_ID]
    assert {one["name"] for one in mine["samples"]} == {
        "leased.lease.utilization",
        "leased.lease.cpu.time",
        "leased.lease.processes",
        "leased.lease.memory.usage",
    }
    [gpu, other] = told["devices"]
    assert len(gpu["samples"]) == 7 and other["samples"] == []
    assert {one["resource_id"] for one in told["host"]} == {"mem:node0"}


def test_top_of_an_agent_that_hangs_ends_in_time(tmp_path: Path) -> None:
    over = threading.Event()

    def hang(_: Answer) -> Answer:
        over.wait(PATIENCE_S)
        return {}

    hanging = dict.fromkeys(("io.leased.Telemetry.Watch", "io.leased.Device.List"), hang)
    with CannedAgent(tmp_path, {**script(), **hanging}) as agent:
        status, _, err = leasectl(agent, "--timeout 0.1 top --once")
        over.set()
    assert status == 69 and "0.1" in err


def test_top_wants_a_time_with_its_unit(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        status, _, err = leasectl(agent, "top --every 5")
    assert status == 65 and "duration" in err


def test_health_names_what_is_not_well_and_its_status_says_so(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        status, out, _ = leasectl(agent, "health")
        assert status == 69
        _, told, _ = leasectl(agent, "health --json")
    assert row(out, GPU) == [GPU, "ok", "78 C", "3 corrected", "-"]
    assert row(out, OTHER) == [OTHER, "sick", "-", "-", "wants a reset"]
    device = json.loads(told)["devices"][1]
    assert (device["why"], device["temperature"], device["errors"]) == ("wants a reset", None, None)
