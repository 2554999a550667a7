# SPDX-License-Identifier: Apache-2.0
"""The third boot, after the power cut: nothing that was acknowledged is lost, nothing is held
twice, all comes back.
"""

from __future__ import annotations

import json
from pathlib import Path

import host
from host import ADMIN, call

ACKED = json.loads(Path("/sys/firmware/qemu_fw_cfg/by_name/opt/leased/acked/raw").read_text())


def test_the_agent_serves_after_the_power_cut() -> None:
    host.serving(120)


def test_the_chain_verifies() -> None:
    verdict = json.loads(host.run("leasectl", "verify", "--json"))
    assert verdict["verdict"] == "ok"


def test_every_acknowledged_grant_is_in_the_chain() -> None:
    chain = {record["sequence"]: record for record in host.records()}
    assert len(ACKED) >= 100
    for promise in ACKED:
        assert promise["lease_id"] in json.dumps(chain[promise["sequence"]]), promise
    for promise in (ACKED[0], ACKED[-1]):
        said = host.run("leasectl", "verify", "--head", promise["hash"])
        assert f"record {promise['sequence']} has the head" in said


def test_every_lease_of_the_storm_is_over_and_clean() -> None:
    def taken() -> list[str]:
        resources = call("Device.List")["resources"]
        return [r["resource_id"] for r in resources if r["use"]["free"] != r["capacity"]]

    host.eventually("everything is free", lambda: not taken(), 60)
    closed = [record["lease_id"] for record in host.records("--kind", "Reclaimed")]
    assert len(set(closed)) == len(closed), "no lease was closed twice"
    assert {promise["lease_id"] for promise in ACKED} <= set(closed)
    counts = call("Admin.Status", ADMIN)["leases"]
    assert (counts["active"], counts["fenced"]) == (0, 0)


def test_it_leases_again() -> None:
    connection = host.Connection()
    lease = connection.acquire(host.memory(4096, node=0))["lease"]
    connection.close_fds()
    connection.call("Lease.Release", lease_id=lease["lease_id"])
    assert host.closed(lease["lease_id"])["state"] == "reclaimed"
