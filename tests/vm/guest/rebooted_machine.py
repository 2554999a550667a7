# SPDX-License-Identifier: Apache-2.0
"""The boot after the hardware phase: the agent is back, and nothing is held or fenced that nobody
fenced."""

from __future__ import annotations

import host
from host import ADMIN, call


def test_the_agent_serves() -> None:
    host.serving()
    host.offered("mem:node0:4096", "cpu:1")


def test_everything_is_clean_and_free() -> None:
    def taken() -> list[str]:
        resources = call("Device.List")["resources"]
        return [r["resource_id"] for r in resources if r["use"]["free"] != r["capacity"]]

    host.eventually("everything is free", lambda: not taken())
    assert call("Admin.Status", ADMIN)["leases"]["fenced"] == 0


def test_the_chain_verifies() -> None:
    assert host.leasectl("verify").startswith("ok: ")
