# SPDX-License-Identifier: Apache-2.0
"""The verbs drain and resume against a canned agent: what is waited for, and what is claimed at the
end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.doubles.canned_agent import LEASE_ID, CannedAgent, Script, lease, refused, resource
from tests.unit.ctl.test_ctl_verbs import GRACES, leasectl

DRAIN, LET_GO = "io.leased.Admin.Drain", "io.leased.Admin.LetGo"
LIST, DEVICES = "io.leased.Lease.List", "io.leased.Device.List"
GPU = {"resource_id": "gpu:GPU-0", "kind": "gpu", "tier": None, "capacity": 1000}
HOLDER = {
    "pid": 4711,
    "uid": 0,
    "name": "dcgm",
    "via": "fd",
    "resource_id": "gpu:",
}


def in_turn(*answers: Any) -> Any:
    """One answer after the other; the last one for ever."""
    rest: Iterator[Any] = iter(answers[:-1])
    return lambda asked: next(rest, answers[-1])


def on_gpu(**runtime: Any) -> dict[str, Any]:
    return lease(allotments=[{**GPU, "capacity": 1000}], **runtime)


def script(leases: Any, holders: Any = None) -> Script:
    return {
        DRAIN: {"affected": [LEASE_ID]},
        LIST: leases,
        DEVICES: {
            "resources": [resource(**GPU)],
            "absences": [],
            "notes": [],
            "graces": GRACES,
        },
        LET_GO: holders or {"holders": []},
        "io.leased.Admin.Resume": {},
    }


def listed(*leases: dict[str, Any]) -> dict[str, Any]:
    return {"leases": list(leases), "waiting": []}


def test_it_waits_until_all_of_it_is_proven_and_then_frees_the_driver(tmp_path: Path) -> None:
    leases = in_turn(
        listed(on_gpu(state="draining"), lease()),
        listed(on_gpu(state="verifying", ended="revoked"), lease()),
        listed(on_gpu(state="reclaimed", ended="revoked"), lease()),
    )
    with CannedAgent(tmp_path, script(leases)) as agent:
        status, out, err = leasectl(agent, "drain --for driver-upgrade --grace 5min")
        asked = agent.asked(DRAIN)
        assert agent.asked(LET_GO) == {"kind": "gpu"}
    assert status == 0, err
    assert (asked["resource_id"], asked["reason"]) == ("gpu:", "maintenance")
    assert asked["grace_ns"] == 300 * 10**9
    assert "every gpu is empty" in out and "nobody has the gpu driver" in out
    assert "leasectl resume gpu" in out


def test_whoever_still_has_the_driver_is_named(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script(listed(), {"holders": [HOLDER]})) as agent:
        status, out, _ = leasectl(agent, "drain gpu --for driver-upgrade")
    assert status == 75 and "4711" in out and "dcgm" in out and "nobody has" not in out


def test_patience_that_ends_leaves_an_honest_answer(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script(listed(on_gpu(state="draining")))) as agent:
        status, out, _ = leasectl(agent, "drain gpu --timeout-after 200ms")
        assert status == 75 and "every gpu is not empty" in out and LEASE_ID[:8] in out
        status, out, _ = leasectl(agent, "drain gpu --timeout-after 200ms --json")
        document = json.loads(out)
        assert status == 75 and document["drained"] is False and document["holders"] is None


def test_fenced_is_over_and_is_said(tmp_path: Path) -> None:
    use = {"free": 0, "leased": 0, "teardown": 0, "fenced": 1000, "cordoned": True}
    told = script(listed(on_gpu(state="fenced", ended="expired")))
    told[DEVICES] = {
        "resources": [resource(**GPU, use=use)],
        "absences": [],
        "notes": [],
        "graces": GRACES,
    }
    with CannedAgent(tmp_path, told) as agent:
        status, out, err = leasectl(agent, "drain gpu:GPU-0")
    assert status == 0 and "gpu:GPU-0 is fenced" in err and "is empty" in out


def test_a_drain_that_is_only_begun(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script(listed(lease()))) as agent:
        status, out, _ = leasectl(agent, "drain --no-wait --json")
        assert json.loads(out)["affected"] == [LEASE_ID] and status == 0
        assert "resource_id" not in agent.asked(DRAIN), "the whole host"
        _, out, _ = leasectl(agent, "drain --no-wait")
        assert LEASE_ID in out


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script(listed(), refused("still_held", "gpu"))) as agent:
        for what in ("gpu:GPU-0", "mem"):
            status, _, err = leasectl(agent, f"drain {what} --for driver-upgrade")
            assert status == 65 and "of gpu only" in err and DRAIN not in dict(agent.calls)
        status, _, err = leasectl(agent, "drain --for driver-upgrade")
        assert status == 65 and "resumed it meanwhile" in err
        status, out, _ = leasectl(agent, "resume gpu")
        assert status == 0 and "grants on every gpu resumed" in out
        assert agent.asked("io.leased.Admin.Resume")["resource_id"] == "gpu:"
