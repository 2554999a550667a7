# SPDX-License-Identifier: Apache-2.0
"""What NVML promises, on the mock and on a real driver: the same tests, no setting changed."""

from __future__ import annotations

import re
import select
import time
from typing import Any

import pytest

from tests.contract.gpu.conftest import Gpus

UUID = re.compile(r"GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
NOT_SUPPORTED, RECOVERY_ACTION, ENERGY, NO_SUCH_FIELD = 3, 230, 83, 9999
RELEASE_BUDGET_S = 10.0
MIB = 1 << 20


def pids(told: dict[str, Any]) -> list[int]:
    return [pid for pid, _ in told["compute"]]


def until_gone(gpus: Gpus, pid: int) -> dict[str, Any]:
    """Ask until a process is in no list any more."""
    deadline = time.monotonic() + RELEASE_BUDGET_S
    while True:
        told = gpus.ask("processes", 0)
        if pid not in pids(told):
            return told
        assert time.monotonic() < deadline, f"{pid} still listed: {told}"
        select.select([], [], [], 0.05)


def test_gpus_are_attached_at_the_start_or_are_not_known_at_all(gpus: Gpus) -> None:
    told = gpus.ask("attachment")
    node = f"nvidia{told['minor']}"
    assert "nvidiactl" in told["unattached"] and node not in told["unattached"]
    assert told["unattached_count"] == 0
    assert told["count"] >= 1 and node in told["attached"]
    assert node in told["handle"]
    assert told["shutdown"] == []


def test_every_name_of_a_gpu_leads_to_it(gpus: Gpus) -> None:
    told = gpus.ask("identity", 0)
    assert UUID.fullmatch(told["uuid"])
    assert told["again"] == [told["uuid"]] * 2
    assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", told["bus"])
    assert told["bus"].endswith(told["legacy"][-10:])
    assert [int(part, 16) for part in re.split("[:.]", told["bus"])[:3]] == told["numbers"]
    assert told["device_id"] & 0xFFFF == 0x10DE


def test_the_parts_of_memory_add_up(gpus: Gpus) -> None:
    told = gpus.ask("memory", 0)
    total, reserved, free, used = told["v2"]
    assert total == reserved + free + used
    assert told["v1"] == [total, free, used + reserved]
    assert sum(told["bar1"][1:]) == told["bar1"][0]


def test_a_context_is_listed_with_its_pid_and_memory_and_goes_with_its_process(gpus: Gpus) -> None:
    before = gpus.ask("processes", 0)
    with gpus.hold("small") as held:
        during = gpus.ask("processes", 0)
        own = [used for pid, used in during["compute"] if pid == held.pid]
        assert len(own) == 1 and own[0] >= 64 * MIB
        assert (held.pid, own[0]) in [tuple(row) for row in gpus.ask("details", 0)["all"]]
        assert during["used"] >= before["used"] + 64 * MIB
        held.kill()
        after = until_gone(gpus, held.pid)
    assert pids(after) == pids(before)


def test_memory_comes_back_after_a_kill_with_a_kernel_running(gpus: Gpus) -> None:
    before = gpus.ask("processes", 0)["used"]
    with gpus.hold("busy") as held:
        assert gpus.ask("processes", 0)["used"] > before + int(held.words[0])
        held.kill()
        until_gone(gpus, held.pid)
    deadline = time.monotonic() + RELEASE_BUDGET_S
    while gpus.ask("processes", 0)["used"] > before + 16 * MIB:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_who_only_opened_the_node_is_not_listed(gpus: Gpus) -> None:
    minor = gpus.ask("identity", 0)["minor"]
    node = f"{gpus.machine.root if gpus.machine else ''}/dev/nvidia{minor}"
    with gpus.hold("node_only", node) as held:
        assert held.pid not in pids(gpus.ask("processes", 0))


def test_a_field_that_is_not_there_does_not_spoil_the_others(gpus: Gpus) -> None:
    told = gpus.ask("fields", 0, RECOVERY_ACTION, NO_SUCH_FIELD, ENERGY)
    assert told[str(RECOVERY_ACTION)][0] == 0 and told[str(RECOVERY_ACTION)][2] == 0
    assert told[str(NO_SUCH_FIELD)][0] != 0
    assert told[str(ENERGY)][0] == 0


def test_each_answer_on_health_is_its_own(gpus: Gpus) -> None:
    told = gpus.ask("health", 0)
    for name in ("remapped", "ecc", "temperature", "power", "energy", "persistence"):
        assert told[name] == {"error": NOT_SUPPORTED} or told[name] is not None, name
    assert told["compute_mode"] in (0, 2, 3)


def test_waiting_for_an_event_that_does_not_come_ends_in_time(gpus: Gpus) -> None:
    began = time.monotonic()
    assert gpus.ask("events", 0, 200) == {"seen": []}
    assert time.monotonic() - began >= 0.2


def test_rates_between_two_samples(gpus: Gpus) -> None:
    told = gpus.ask("gpm", 0)
    if not told["supported"]:
        pytest.skip("not proven: rates between samples (before Hopper)")
    assert 0.0 <= told["sm"] <= 100.0


def test_a_killed_monitor_leaves_nvml_answering(gpus: Gpus) -> None:
    with gpus.hold("monitor") as watcher:
        watcher.watch(int(watcher.words[0]))
        watcher.kill()
        assert gpus.ask("identity", 0)["uuid"]
