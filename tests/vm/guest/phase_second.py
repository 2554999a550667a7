# SPDX-License-Identifier: Apache-2.0
"""The second boot: the leases of the first are over and everything is clean. What follows is a
grant storm (`storm.py`), in which the power goes.
"""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import host
import pytest
from host import call

CLOCKS_NS = 50_000_000
"""How far wall clock and boot clock may have drifted apart within a minute."""


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the last test of the boot before has written down."""
    found: dict[str, Any] = json.loads(Path("/var/lib/leased-suite.json").read_text())
    return found


def is_seal(record: dict[str, Any]) -> bool:
    return bool(record["kind"] == "EpochSealed")


def time_of(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["time"])


def test_it_is_another_boot_and_the_agent_serves(kept: dict[str, Any]) -> None:
    host.serving()
    host.offered("mem:node0:4096", "cpu:1")
    assert host.boot_id() != kept["boot_id"]


def test_the_leases_of_the_old_boot_are_over_and_clean(kept: dict[str, Any]) -> None:
    for lease_id in kept["leases"]:
        told = host.history(lease_id)
        kinds = [record["kind"] for record in told]
        assert kinds[0] == "Allocated"
        assert kinds[-1] == "Reclaimed"
        (revoked,) = [record for record in told if record["kind"] == "Revoked"]
        assert revoked["reason"] == "node_reboot"


def test_all_capacity_is_free_again() -> None:
    def taken() -> list[str]:
        resources = call("Device.List")["resources"]
        return [r["resource_id"] for r in resources if r["use"]["free"] != r["capacity"]]

    host.eventually("everything is free", lambda: not taken())


def test_nobody_pays_for_the_time_after_the_boot_ended(kept: dict[str, Any]) -> None:
    """The last moment sealed in the old boot is the most that anybody is charged for. It may be
    that of an epoch's seal, of which only the wall clock is told: the next boot seals epochs, too,
    before it says who it is."""
    chain = host.records()
    [*_, last] = [one for one in chain if one["boot_id"] == kept["boot_id"] and not is_seal(one)]
    begun = next(one for one in chain[last["sequence"] + 1 :] if not is_seal(one))
    seals = [one for one in chain[last["sequence"] + 1 : begun["sequence"]] if is_seal(one)]
    later_ns = [int((time_of(seal) - time_of(last)).total_seconds() * 1e9) for seal in seals]
    for lease_id in kept["leases"]:
        told = {one["kind"]: one for one in chain if one.get("lease_id") == lease_id}
        [held] = told["Reclaimed"]["held_capacity_ns"]
        after_ns = told["Allocated"]["effective_ns"] + held // (2 * host.MIB) - last["boottime_ns"]
        charged = after_ns == 0 or any(abs(after_ns - one) < CLOCKS_NS for one in later_ns)
        assert charged and held % (2 * host.MIB) == 0, (after_ns, later_ns)
    words = ["leasectl", "usage", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "not what is folded" not in done.stderr


def test_the_head_of_the_old_boot_is_in_the_chain(kept: dict[str, Any]) -> None:
    assert "has the head" in host.leasectl("verify", "--head", kept["head"])


def test_the_journal_still_has_them(kept: dict[str, Any]) -> None:
    entries = host.journal(f"LEASE_ID={kept['leases'][0]}", "LEASE_EVENT=Allocated")
    assert entries[0]["_BOOT_ID"] == kept["boot_id"]
