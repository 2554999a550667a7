# SPDX-License-Identifier: Apache-2.0
"""Verbs against a canned agent: what is asked, what is printed, what is the exit status."""

from __future__ import annotations

import errno
import io
import json
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from leased.client import AgentUnavailable
from leased.ctl.console import Console
from leased.ctl.main import main
from tests.doubles.canned_agent import (
    LEASE_ID,
    OTHER_ID,
    RESOURCE,
    CannedAgent,
    Script,
    lease,
    refused,
    resource,
)

SECOND = 10**9
LIST = "io.leased.Lease.List"


def leasectl(agent: CannedAgent, words: str) -> tuple[int, str, str]:
    """Run a command; its status, what it printed, what it noted."""
    console = Console(
        io.StringIO(),
        io.StringIO(),
        wall_ns=lambda: 1_700_049_600 * SECOND,
        boot_ns=lambda: 100 * SECOND,
        zone=UTC,
    )
    status = main(["--socket", agent.path, *words.split()], console)
    assert isinstance(console.out, io.StringIO) and isinstance(console.err, io.StringIO)
    return status, console.out.getvalue(), console.err.getvalue()


def two_leases() -> dict[str, Any]:
    """A list of two whose ids begin alike, and one request that waits."""
    waiting = [{"command_id": "aa" * 16, "position": 2, "reason": "no_capacity"}]
    ended = lease(OTHER_ID, state="reclaimed", ended="revoked", reason="operator_drain")
    return {"leases": [lease(), ended], "waiting": waiting}


def test_ls_for_people(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, {LIST: two_leases()}) as agent:
        status, out, _ = leasectl(agent, "ls")
    assert status == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "LEASE",
        "7fa30000",
        "7fb40000",
        "REQUEST",
        "aaaaaaaa",
    ]
    heading, active, ended = out.splitlines()[:3]
    for column in ("STATE", "TENANT", "PRIORITY", "HOLDS", "ENDS", "WORKLOAD"):
        assert active[heading.index(column) - 2 : heading.index(column)] == "  "
    assert active[heading.index("ENDS") :].startswith("in 42 s (12:00:42)")
    assert ended[heading.index("ENDS") :].startswith("revoked: operator_drain")
    assert active[heading.index("HOLDS") :].startswith("mem 256MiB (node0)")


def test_ls_for_programs(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, {LIST: two_leases()}) as agent:
        status, out, _ = leasectl(agent, "ls --json --closed")
        assert agent.asked(LIST) == {"closed": True}
    document = json.loads(out)
    assert status == 0
    assert document["version"] == 1
    assert [one["lease_id"] for one in document["leases"]] == [LEASE_ID, OTHER_ID]
    assert document["waiting"][0]["position"] == 2


def test_the_beginning_of_an_id_is_enough_if_it_is_unique(tmp_path: Path) -> None:
    access = {"resource_id": RESOURCE, "name": "LEASE_RKEY_0", "value": "0x5ec2e7"}
    told = {"lease": lease(), "access": [access]}
    script: Script = {LIST: two_leases(), "io.leased.Lease.Describe": told}
    with CannedAgent(tmp_path, script) as agent:
        status, out, _ = leasectl(agent, "show 7fa")
        assert agent.asked("io.leased.Lease.Describe") == {"lease_id": LEASE_ID}
        assert status == 0 and LEASE_ID in out and "in 42 s (12:00:42)" in out
        assert "LEASE_RKEY_0" in out and "0x5ec2e7" not in out, "a terminal is looked at by others"
        status, _, err = leasectl(agent, "show 7f")
        assert status == 65 and LEASE_ID in err and OTHER_ID in err
        status, _, err = leasectl(agent, "show 99")
        assert status == 66 and "ls --closed" in err
        status, _, err = leasectl(agent, "show XYZ")
        assert status == 65


@pytest.mark.parametrize(("pid", "bound"), [(9, "process 9"), (0, "cgroup"), (-1, "deadline")])
def test_what_ends_a_lease_is_told_in_words(tmp_path: Path, pid: int, bound: str) -> None:
    told = {"lease": lease(pid=pid), "access": []}
    with CannedAgent(tmp_path, {LIST: two_leases(), "io.leased.Lease.Describe": told}) as agent:
        _, out, _ = leasectl(agent, "show 7fa")
    [line] = [line for line in out.splitlines() if line.startswith("bound to")]
    assert bound in line and "-1" not in line


def test_what_a_holder_must_know_is_in_json(tmp_path: Path) -> None:
    access = {"resource_id": RESOURCE, "name": "LEASE_RKEY_0", "value": "0x5ec2e7"}
    told = {"lease": lease(), "access": [access]}
    with CannedAgent(tmp_path, {LIST: two_leases(), "io.leased.Lease.Describe": told}) as agent:
        status, out, _ = leasectl(agent, "show 7fa --json")
    assert status == 0 and json.loads(out)["access"] == [access]


def test_renew_prints_what_the_agent_said(tmp_path: Path) -> None:
    renewed = {
        "lease_id": LEASE_ID,
        "generation": 2,
        "deadline_boottime_ns": 160 * SECOND,
        "state": "active",
    }
    with CannedAgent(tmp_path, {"io.leased.Lease.Renew": renewed}) as agent:
        status, out, _ = leasectl(agent, f"renew {LEASE_ID} --ttl 60s")
        assert agent.asked("io.leased.Lease.Renew")["ttl_ns"] == 60 * SECOND
    assert (status, out) == (0, "7fa30000 renewed; ends in 1 min (12:01:00)\n")


def test_a_late_renewal_ends_with_79(tmp_path: Path) -> None:
    late = refused("deadline_passed", "ns", limit=90 * SECOND)
    with CannedAgent(tmp_path, {"io.leased.Lease.Renew": late}) as agent:
        status, out, err = leasectl(agent, f"renew {LEASE_ID}")
    assert status == 79 and out == "" and "acquire another" in err


def test_release_and_wait_for_the_proof(tmp_path: Path) -> None:
    script: Script = {
        "io.leased.Lease.Release": {"lease": lease(state="revoking", ended="released")},
        "io.leased.Lease.Wait": {"lease": lease(state="reclaimed", ended="released")},
    }
    with CannedAgent(tmp_path, script) as agent:
        status, out, _ = leasectl(agent, f"release {LEASE_ID} --wait")
        assert agent.asked("io.leased.Lease.Wait")["until"] == "closed"
    assert (status, out) == (0, "7fa30000 reclaimed\n")


def test_plan_names_the_refusal_and_its_place(tmp_path: Path) -> None:
    planned = {
        "grantable": False,
        "removals": [],
        "cost_nano": 0,
        "resource_ids": [],
        "refusal": refused("no_capacity", "cpu", limit=2000, usage=2000, requested=1000)[
            "parameters"
        ],
        "position": 3,
        "within_boottime_ns": 160 * SECOND,
        "assumes": ["deadlines", "queue", "grace"],
    }
    with CannedAgent(tmp_path, {"io.leased.Lease.Plan": planned}) as agent:
        status, out, _ = leasectl(agent, "plan --cpu 1")
        asked = agent.asked("io.leased.Lease.Plan")
    assert asked == {"resources": [{"kind": "cpu", "capacity": 1000, "exclusive": True}]}
    assert status == 75
    assert "no_capacity: cpu: asked 1, 2 of 2 in use" in out
    assert "place 3 in the queue" in out
    assert "would have what they leave by " in out
    assert "if every lease in the way ends at its deadline (a renewal makes it later" in out
    assert "if those ahead in the queue do not want the same; if whoever has to leave" in out


def test_why_a_lease_ended(tmp_path: Path) -> None:
    ended = lease(
        state="reclaimed", ended="expired", cut_boottime_ns=142 * SECOND + 3_000_000, remaining_ns=0
    )
    with CannedAgent(tmp_path, {"io.leased.Lease.Why": {"lease": ended}}) as agent:
        status, out, _ = leasectl(agent, f"why {LEASE_ID}")
    assert status == 0
    assert "expired; it is reclaimed now" in out and "3 ms after the deadline" in out


GRACES = {"release_ns": 10 * SECOND, "preempt_ns": 30 * SECOND, "max_ns": 300 * SECOND}
BOUNDS_MS = {"cut_ns": 5000, "scrub_ns": 25000, "overwrite_ns": 16000, "prove_ns": 7000}


def test_devices_with_what_is_absent(tmp_path: Path) -> None:
    bounds = {name: ms * 10**6 for name, ms in BOUNDS_MS.items()}
    listed = {
        "resources": [resource(bounds=bounds)],
        "absences": [{"kind": "gpu", "why": "no driver is loaded"}],
        "notes": ["nvme0n1 is mounted"],
        "graces": GRACES,
    }
    with CannedAgent(tmp_path, {"io.leased.Device.List": listed}) as agent:
        status, out, _ = leasectl(agent, "devices --wide")
        assert status == 0
        assert "mem:node0:4096  dram  1GiB      512MiB  512MiB  0B" in out
        assert "mem                 5 s  25 s   16 s       7 s    53 s" in out
        assert "notice before the end: 10 s of drain, 30 s of preemption; never more" in out
        assert "no gpu: no driver is loaded" in out
        assert "mem:node0:4096: no cgroup v2 memory controller" in out
        _, out, _ = leasectl(agent, "devices --kind gpu --json")
    document = json.loads(out)
    assert document["resources"] == [] and document["absences"][0]["kind"] == "gpu"


@pytest.mark.parametrize(("shown", "said"), [(2, False), (3, True)])
def test_what_several_namespaces_of_a_lease_may_take_is_told_where_there_are_several(
    tmp_path: Path, shown: int, said: bool
) -> None:
    bounds = {name: ms * 10**6 for name, ms in BOUNDS_MS.items()}
    names = ("block:aa01", "block:raw:aa01", "block:aa02")[:shown]
    spaces = [resource(resource_id=one, kind="block", tier=None, bounds=bounds) for one in names]
    listed = {"resources": spaces, "absences": [], "notes": [], "graces": GRACES}
    with CannedAgent(tmp_path, {"io.leased.Device.List": listed}) as agent:
        _, out, _ = leasectl(agent, "devices")
    assert ("several namespaces in one lease" in out) is said, out


def test_watch_prints_changes_until_the_stream_ends(tmp_path: Path) -> None:
    notice = {
        "lease_id": LEASE_ID,
        "reason": "operator_drain",
        "deadline_boottime_ns": 130 * SECOND,
        "seconds_left": 30,
    }
    changes = [
        {"sequence": 4, "leases": [lease()], "gap": False},
        {"sequence": 5, "leases": [], "notice": notice, "gap": False},
        {
            "sequence": 6,
            "leases": [lease(state="draining", drain_deadline_boottime_ns=130 * SECOND)],
            "gap": True,
        },
    ]
    with CannedAgent(tmp_path, {"io.leased.Lease.Watch": changes}) as agent:
        status, out, err = leasectl(agent, "watch")
        assert status == 75 and "too slow" in err
        assert "5  7fa30000  notice: operator_drain, leave in 30 s (12:00:30)" in out
        assert "leaves in 30 s (12:00:30)" in out
        _, out, _ = leasectl(agent, "watch --json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["sequence"] for line in lines] == [4, 5, 6]
    assert all(line["version"] == 1 for line in lines)


def test_operators_verbs(tmp_path: Path) -> None:
    listed = {"resources": [resource()], "absences": [], "notes": [], "graces": GRACES}
    script: Script = {
        "io.leased.Device.List": listed,
        "io.leased.Admin.Fence": {},
        "io.leased.Admin.Drain": {"affected": [LEASE_ID]},
        "io.leased.Admin.Resume": {},
        "io.leased.Admin.Revoke": {"lease": lease(state="draining")},
        "io.leased.Admin.Unfence": {},
    }
    with CannedAgent(tmp_path, script) as agent:
        status, out, _ = leasectl(agent, "admin fence mem 256MiB")
        assert status == 0 and RESOURCE in out
        asked = agent.asked("io.leased.Admin.Fence")
        assert (asked["resource_id"], asked["capacity"]) == (RESOURCE, 256 << 20)
        status, out, _ = leasectl(agent, "admin drain mem:node0 --grace 30s")
        assert status == 0 and "1 lease told to leave" in out and LEASE_ID in out
        assert agent.asked("io.leased.Admin.Drain")["grace_ns"] == 30 * SECOND
        status, out, _ = leasectl(agent, "admin resume")
        assert (status, out) == (0, "grants on this host resumed\n")
        assert "resource_id" not in agent.asked("io.leased.Admin.Resume")
        status, _, _ = leasectl(agent, f"admin revoke {LEASE_ID} --reason maintenance")
        assert status == 0
        assert agent.asked("io.leased.Admin.Revoke")["reason"] == "maintenance"
        status, _, _ = leasectl(agent, f"admin unfence {RESOURCE}")
        assert status == 0
        assert agent.asked("io.leased.Admin.Unfence")["resource_id"] == RESOURCE
        status, _, err = leasectl(agent, "admin drain gpu:0")
        assert status == 65 and "no such resource" in err


def test_not_allowed_is_77(tmp_path: Path) -> None:
    denied = {"error": "io.leased.Lease.PermissionDenied", "parameters": {"why": "operators only"}}
    with CannedAgent(tmp_path, {"io.leased.Admin.Status": denied}) as agent:
        status, _, err = leasectl(agent, "admin status")
    assert status == 77 and "operators only" in err


def test_a_door_that_is_not_ours_is_not_allowed() -> None:
    closed = AgentUnavailable.at("/run/x", PermissionError(errno.EACCES, "Permission denied"))
    gone = AgentUnavailable.at("/run/x", FileNotFoundError(errno.ENOENT, "No such file"))
    assert (closed.exit_status, gone.exit_status) == (77, 69)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("alloc --mem 1MiB --for 1min --ttl 5s", "ttl: --for says how long"),
        ("alloc --mem 1MiB --ttl 5 --for 1min", "ttl: --for says how long"),
        ("top --once --every 0s", "every: 0s: above 0"),
        ("audit log --last -1", "last: -1: how many"),
    ],
)
def test_what_was_passed_over_is_refused(tmp_path: Path, words: str, said: str) -> None:
    with CannedAgent(tmp_path, {}) as agent:
        status, _, err = leasectl(agent, words)
        assert (status, agent.calls) == (65, []) and said in err


def test_no_agent_is_69(tmp_path: Path) -> None:
    console = Console(io.StringIO(), io.StringIO())
    assert main(["--socket", str(tmp_path / "none"), "ls"], console) == 69


def test_call_and_introspect(tmp_path: Path) -> None:
    info = {
        "vendor": "leased",
        "product": "leased",
        "version": "1",
        "url": "",
        "interfaces": ["org.varlink.service", "io.leased.Lease"],
    }
    script: Script = {
        "io.leased.Lease.List": {"leases": [], "waiting": []},
        "org.varlink.service.GetInfo": info,
        "org.varlink.service.GetInterfaceDescription": {"description": "interface x\n"},
    }
    with CannedAgent(tmp_path, script) as agent:
        status, out, _ = leasectl(agent, 'call io.leased.Lease.List {"closed":true}')
        assert status == 0 and json.loads(out) == {"leases": [], "waiting": []}
        assert agent.asked("io.leased.Lease.List") == {"closed": True}
        status, _, err = leasectl(agent, "call io.leased.Lease.Nothing")
        assert status == 76 and "MethodNotFound" in err
        status, _, _ = leasectl(agent, "call io.leased.Lease.List [1]")
        assert status == 65
        _, out, _ = leasectl(agent, "introspect")
        assert out.splitlines()[1:] == info["interfaces"]
        _, out, _ = leasectl(agent, "introspect --json")
        assert json.loads(out) == {"version": 1, "service": info}
        _, out, _ = leasectl(agent, "introspect io.leased.Lease")
        assert out == "interface x\n"


def test_alloc_for_a_time(tmp_path: Path) -> None:
    granted = {"lease": lease(), "fds": [], "access": [], "attached": False}
    with CannedAgent(tmp_path, {"io.leased.Lease.Acquire": granted}) as agent:
        status, out, err = leasectl(agent, "alloc --mem 3000KiB,page=2MiB --for 10min")
        asked = agent.asked("io.leased.Lease.Acquire")
    assert status == 0
    assert out == f"export LEASE_ID={LEASE_ID}\n"
    assert "asking for 4MiB" in err and "leasectl shell 7fa30000" in err
    assert (asked["bind"], asked["ttl_ns"]) == ("deadline", 600 * SECOND)
    assert len(asked["command_id"]) == 32
