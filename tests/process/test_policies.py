# SPDX-License-Identifier: Apache-2.0
"""Policies on the real agent: checked, applied, kept over a kill, explained; and files that cannot
be meant change nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.host_agent import HostAgent, obstructed
from tests.doubles.wire_peer import Remote

pytestmark = pytest.mark.root

TIGHT = """
leases_max = 40

[tenants.uid-0]
leases_max = 1
mem = "64MiB"
"""
SMALL = ("--mem", "1MiB,page=4KiB")


def policy(agent: HostAgent, text: str, name: str = "policy.toml") -> str:
    """A file with that text."""
    path = agent.directory / name
    path.write_text(text)
    return str(path)


def asked(agent: HostAgent, *words: str, status: int = 0) -> dict[str, Any]:
    """The JSON document of a command."""
    found: dict[str, Any] = json.loads(agent.leasectl(*words, "--json", check=status).stdout)
    return found


def in_force(agent: HostAgent) -> dict[str, Any]:
    """What `policy show` says."""
    shown: dict[str, Any] = asked(agent, "policy", "show")["policy"]
    return shown


def test_a_policy_is_checked_applied_kept_over_a_kill_and_put_back(agent: HostAgent) -> None:
    before = in_force(agent)
    assert before["configured"] is True
    agent.acquire(4096)
    file = policy(agent, TIGHT)
    check = agent.leasectl("policy", "check", file).stdout
    assert "can be in force here" in check and "+ tenants.uid-0.leases_max = 1" in check
    assert in_force(agent) == before, "a check changes nothing"
    applied = agent.leasectl("policy", "apply", file).stdout
    shown = in_force(agent)
    assert shown["policy_hash"] in applied and shown["configured"] is False
    status = json.loads(agent.leasectl("admin", "status", "--json").stdout)["status"]
    assert status["policy_generation"] == shown["generation"] > before["generation"]
    assert shown["document"]["tenants"]["uid-0"]["mem"] == "64MiB"
    refused = agent.leasectl("alloc", *SMALL, check=75)
    assert "tenants.uid-0.leases_max" in refused.stderr
    agent.kill()
    agent.start()
    again = in_force(agent)
    assert (again["policy_hash"], again["generation"]) == (
        shown["policy_hash"],
        shown["generation"],
    )
    assert "tenants.uid-0.leases_max" in agent.leasectl("alloc", *SMALL, check=75).stderr
    agent.leasectl("policy", "reset")
    assert in_force(agent)["policy_hash"] == before["policy_hash"]
    agent.kill()
    agent.start()
    assert in_force(agent)["policy_hash"] == before["policy_hash"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("leases_max = 0", "policy.toml: leases_max = 0: must be at least 1"),
        ("no_such_key = 1", "no_such_key"),
        ('[tenants.a]\ngroup = "none"', "tenants.a.group"),
        ("not toml at all [", "policy.toml: "),
        (
            '[tenants.a.schedules.w]\ncron = "61 * * * *"\nduration = "1h"\ngpu = 1',
            "policy.toml: tenants.a.schedules.w.cron = 61",
        ),
        ('timezone = "Mars/Olympus"', "policy.toml: timezone = Mars/Olympus"),
        (
            'expires_at = "2020-01-01T00:00:00Z"',
            "policy.toml: expires_at = 2020-01-01T00:00:00Z: it has expired already",
        ),
        ("generation = 1", ": generation = 1: 1 is in force, and it has to be larger"),
        (
            '[tenants.a]\n[allocation.mem]\nstrategy = "reservation"\n'
            'reservations = { a = "900TiB" }',
            ": allocation.mem.reservations = 900TiB: over-committed",
        ),
    ],
)
def test_a_file_that_cannot_be_in_force_is_named_by_key_value_and_reason(
    shared_agent: HostAgent, text: str, said: str
) -> None:
    before = in_force(shared_agent)
    file = policy(shared_agent, text)
    for verb in ("check", "apply"):
        done = shared_agent.leasectl("policy", verb, file, check=78)
        assert said in done.stdout + done.stderr, (verb, done)
    assert in_force(shared_agent) == before


def test_what_a_tenant_may_have_and_has_is_shown(agent: HostAgent) -> None:
    agent.leasectl("policy", "apply", policy(agent, TIGHT))
    lease = agent.acquire(8192)["lease_id"]
    shown = agent.leasectl("quota", "show").stdout
    assert "tenants.uid-0.leases_max" in shown and "8KiB" in shown and "64MiB" in shown
    rows = {row["rule"]: row for row in asked(agent, "quota", "show")["allowances"]}
    assert rows["tenants.uid-0.leases_max"]["usage"] == 1
    assert rows["tenants.uid-0.mem"]["usage"] == 8192 and rows["tenants.uid-0.mem"]["capacity"] > 0
    less = policy(agent, TIGHT.replace('"64MiB"', '"4KiB"'), "less.toml")
    check = agent.leasectl("policy", "check", less).stdout
    assert "above their limits" in check and "1 lease told to leave" in check
    planned = agent.leasectl("plan", *SMALL, check=75)
    assert "tenants.uid-0.leases_max" in planned.stdout
    assert lease[:8] in agent.leasectl("why", lease).stdout
    agent.leasectl("quota", "show", "somebody-else", check=77)


def test_ages_and_rates_are_shown_and_budgets_with_their_unit(agent: HostAgent) -> None:
    own = '[tenants.uid-0]\nduration_max = "2h"\nsubmit_rate = "30/min"\napi_rate = "900/s"\n'
    own += 'budgets = [{ period = "day", of = "mem", capacity_seconds = 1 }]'
    agent.leasectl("policy", "apply", policy(agent, own))
    shown = [line.split() for line in agent.leasectl("quota", "show").stdout.splitlines()]
    assert ["tenants.uid-0.duration_max", "-", "2", "h", "hard"] in shown
    assert ["tenants.uid-0.submit_rate", "-", "30/min", "hard"] in shown
    assert ["tenants.uid-0.api_rate", "-", "900/s", "hard"] in shown
    assert ["tenants.uid-0.budgets[0]", "0", "GiB", "s", "1", "GiB", "s", "hard"] in shown
    refused = agent.leasectl("alloc", "--mem", "4MiB", "--for", "1h", check=75).stderr
    assert "asked 15 GiB s, the limit is 1 GiB s (tenants.uid-0.budgets[0])" in refused


def test_what_is_divided_is_shown_by_whose_it_is_and_to_how_much_he_may_have(
    agent: HostAgent,
) -> None:
    fair = '[tenants.uid-0]\n[allocation.mem]\nstrategy = "fair_share"\nmax_share = "40%"'
    agent.leasectl("policy", "apply", policy(agent, fair))
    agent.acquire(8192)
    assert "allocation.mem of uid-0 " in agent.leasectl("quota", "show").stdout
    [row] = asked(agent, "quota", "show")["allowances"]
    assert row["usage"] == 8192 and row["ceiling"] == row["capacity"] * 400 // 1000


def test_a_file_is_checked_without_an_agent(tmp_path: Path, shared_agent: HostAgent) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"leases_max": 7}')
    assert "can be meant" in shared_agent.leasectl("policy", "check", "--offline", str(path)).stdout


def test_a_holder_that_has_to_go_asks_for_time(agent: HostAgent) -> None:
    """As a user does it: told to leave, `extend`, refused beyond the ceiling, explained."""
    kept = agent.acquire(4096)["lease_id"]
    early = agent.leasectl("extend", kept, "--for", "10s", check=65)
    assert "not_notified" in early.stderr and "leasectl renew" in early.stderr
    agent.call("Admin.Drain", admin=True, grace_ns=20 * 10**9)
    before = agent.describe(kept)["runtime"]
    assert before["state"] == "draining"
    agent.leasectl("extend", kept, "--for", "2min")
    after = agent.describe(kept)["runtime"]
    gained_ns = after["drain_deadline_boottime_ns"] - before["drain_deadline_boottime_ns"]
    assert gained_ns > 90 * 10**9 and after["generation"] == before["generation"] + 1
    refused = agent.leasectl("extend", kept, "--for", "301s", check=75)
    assert "notice_limit" in refused.stderr
    assert "preemption.checkpoint_max_standard" in refused.stderr
    why = agent.leasectl("why", kept).stdout
    assert "has to go (operator_drain)" in why and "it was told" in why
    assert "at most (preemption.checkpoint_max_standard)" in why
    told = asked(agent, "why", kept)
    assert told["latest_boottime_ns"] == told["told_boottime_ns"] + 300 * 10**9
    sealed = agent.leasectl("audit", "log", "--log", str(agent.audit)).stdout
    assert sealed.count("DrainNotified") == 2, sealed
    agent.leasectl("done", kept)
    assert agent.wait_for(kept)["runtime"]["ended"] == "released"


def test_why_says_which_step_of_a_teardown_fenced(agent: HostAgent) -> None:
    lease_id = agent.acquire(1 << 20)["lease_id"]
    with obstructed(agent.cgroup / lease_id):
        agent.call("Lease.Release", lease_id=lease_id)
        assert agent.wait_for(lease_id)["runtime"]["state"] == "fenced"
        said = agent.leasectl("why", lease_id).stdout
        assert "fenced, because it could not be proven clean" in said, said
        assert "the step that failed is" in said, said
        told = asked(agent, "why", lease_id)
        assert told["step"] and told["lease"]["runtime"]["fenced"]
    agent.call("Admin.Unfence", admin=True, lease_id=lease_id)
    assert "it is reclaimed now" in agent.leasectl("why", lease_id).stdout


def test_a_refused_request_is_explained_after_a_kill_by_its_record(agent: HostAgent) -> None:
    request = "5e" * 16
    with pytest.raises(Remote):
        agent.acquire(1 << 50, command_id=request)
    before = asked(agent, "why", request)["refusal"]
    agent.kill()
    agent.start()
    after = asked(agent, "why", request)["refusal"]
    for key in ("reason", "limit", "usage", "requested"):
        assert after[key] == before[key], key
    said = agent.leasectl("why", request).stdout
    assert f"refused: {before['reason']}: mem: asked " in said, said


def test_a_request_that_was_granted_after_all_is_not_called_refused(agent: HostAgent) -> None:
    """Whose lease is closed by the time of a restart, which is told of no closed lease."""
    granted, refused = "6f" * 16, "70" * 16
    document = json.dumps({"tenants": {"uid-0": {"leases_max": 1}}})
    agent.call("Admin.SetPolicy", admin=True, document=document)
    other = agent.acquire()["lease_id"]
    for request in (granted, refused):
        with pytest.raises(Remote):
            agent.acquire(command_id=request)
    agent.call("Lease.Release", lease_id=other)
    agent.wait_for(other)
    after_all = agent.acquire(command_id=granted)["lease_id"]
    agent.call("Lease.Release", lease_id=after_all)
    agent.wait_for(after_all)
    agent.kill()
    agent.start()
    for _ in range(2):  # asked of the log, and remembered
        with pytest.raises(Remote, match="NoSuchLease"):
            agent.call("Lease.Why", lease_id=granted)
        why: Any = agent.call("Lease.Why", lease_id=refused)
        assert why["refusal"]["reason"] == "tenant_leases"


def test_what_was_taken_is_asked_for_again_by_the_beginning_of_its_id(agent: HostAgent) -> None:
    lease_id = agent.acquire(4096)["lease_id"]
    said = agent.leasectl("alloc", *SMALL, "--for", "5s", "--requeue", lease_id[:8], check=65)
    assert "not_preempted" in said.stderr and "could succeed" not in said.stderr
