# SPDX-License-Identifier: Apache-2.0
"""The second boot: the leases of the first are over and everything is clean. What follows is a
grant storm (`storm.py`), in which the power goes.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import host
from host import call

KEPT = json.loads(Path("/var/lib/leased-suite.json").read_text())


def test_it_is_another_boot_and_the_agent_serves() -> None:
    host.serving()
    host.offered("mem:node0:4096", "cpu:1")
    assert host.boot_id() != KEPT["boot_id"]


def test_the_leases_of_the_old_boot_are_over_and_clean() -> None:
    for lease_id in KEPT["leases"]:
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


def test_nobody_pays_for_the_time_after_the_boot_ended() -> None:
    """The last moment sealed in the old boot is the most that anybody is charged for."""
    chain = host.records()
    last_ns = max(one["boottime_ns"] for one in chain if one["boot_id"] == KEPT["boot_id"])
    for lease_id in KEPT["leases"]:
        told = {one["kind"]: one for one in chain if one.get("lease_id") == lease_id}
        held_ns = last_ns - told["Allocated"]["effective_ns"]
        assert held_ns > 0
        assert told["Reclaimed"]["held_capacity_ns"] == [2 * host.MIB * held_ns]
    words = ["leasectl", "usage", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "not what is folded" not in done.stderr


def test_the_head_of_the_old_boot_is_in_the_chain() -> None:
    assert "has the head" in host.leasectl("verify", "--head", KEPT["head"])


def test_the_journal_still_has_them() -> None:
    entries = host.journal(f"LEASE_ID={KEPT['leases'][0]}", "LEASE_EVENT=Allocated")
    assert entries[0]["_BOOT_ID"] == KEPT["boot_id"]
