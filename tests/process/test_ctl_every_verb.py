# SPDX-License-Identifier: Apache-2.0
"""leasectl against the real agent: how `run` ends, and every list as JSON of version 1."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.doubles.host_agent import PATIENCE_S, REPOSITORY, HostAgent

pytestmark = pytest.mark.root

MEM = ("--mem", "1MiB,page=4KiB")


def run(
    agent: HostAgent, script: str, *words: str, interpreter: str = "bash"
) -> subprocess.Popen[str]:
    """leasectl run over a shell script, its output as text."""
    return agent.track(
        subprocess.Popen(
            [
                *(sys.executable, "-m", "leased.ctl.main", "run", *MEM, *words),
                *("--", interpreter, "-c", script),
            ],
            env={"PATH": "/usr/bin:/bin", **agent.sockets()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def document(agent: HostAgent, *words: str, status: int = 0) -> dict[str, Any]:
    """The one JSON document of a command; it names its version."""
    done = agent.leasectl(*words, "--json", check=status)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["version"] == 1, found
    return found


# ---- run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
    ],
)
def test_run_ends_as_its_command_ends(shared_agent: HostAgent, script: str, status: int) -> None:
    assert finish(run(shared_agent, script))[0] == status


@pytest.mark.parametrize(
    ("command", "status"), [("/etc/passwd", 126), ("/etc", 126), ("/no/such", 127)]
)
def test_run_of_what_is_no_command(shared_agent: HostAgent, command: str, status: int) -> None:
    done = shared_agent.leasectl("run", *MEM, "--", command, check=status)
    assert command in done.stderr


def test_run_of_what_no_kernel_can_execute(shared_agent: HostAgent) -> None:
    program = shared_agent.directory / "program"
    program.write_bytes(b"\x00 neither ELF nor script")
    program.chmod(0o755)
    shared_agent.leasectl("run", *MEM, "--", str(program), check=126)


def test_run_hands_signals_on(shared_agent: HostAgent) -> None:
    process = run(shared_agent, "trap 'echo got; exit 3' USR1; echo in; while :; do wait; done")
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGUSR1)
    status, out, _ = finish(process)
    assert (status, out) == (3, "got\n")


def test_run_over_a_deadline_that_nobody_moves(shared_agent: HostAgent) -> None:
    """It ignores SIGTERM, and it forks: all of it goes, and the pipe is at its end."""
    script = "trap '' TERM HUP INT; (sleep 600 & sleep 600) & echo $LEASE_ID; sleep 600"
    process = run(shared_agent, script, "--ttl", "1s", "--no-renew")
    status, out, err = finish(process)
    assert status == 79 and "is lost: expired" in err
    assert shared_agent.wait_for(out.strip())["runtime"]["state"] == "reclaimed"


def test_run_renews_for_as_long_as_it_takes(shared_agent: HostAgent) -> None:
    process = run(shared_agent, "echo $LEASE_ID; read -r; echo over", "--ttl", "600ms")
    assert process.stdout is not None
    lease_id = process.stdout.readline().strip()
    process.kill()
    assert lease_id
    second = agent_generation(shared_agent, 3)
    assert second >= 3


def agent_generation(agent: HostAgent, wanted: int) -> int:
    """Renewals that a command of its own has seen, waiting for them by Watch."""
    with agent.connect(admin=True) as peer:
        peer.ask("Lease.Watch", more=True)
        peer.reply()
        process = run(agent, "echo in; while :; do wait; done", "--ttl", "600ms")
        while True:
            for lease in peer.reply()["leases"]:
                if lease["runtime"]["generation"] >= wanted:
                    process.send_signal(signal.SIGTERM)
                    assert finish(process)[0] == 128 + signal.SIGTERM
                    return int(lease["runtime"]["generation"])


def test_run_that_cannot_have_it(shared_agent: HostAgent) -> None:
    done = shared_agent.leasectl("run", "--mem", "1024TiB", "--", "true", check=75)
    assert "no_capacity" in done.stderr or "no capacity" in done.stderr.lower()
    shared_agent.leasectl("run", "--mem", "12MB", "--", "true", check=65)
    shared_agent.leasectl("run", "--mem", check=64)


def test_exec_and_shell_enter_the_same_lease(shared_agent: HostAgent) -> None:
    lease = document(shared_agent, "alloc", *MEM, "--for", "1min")["lease"]
    lease_id = lease["lease_id"]
    out = shared_agent.leasectl("exec", lease_id[:8], "--", "cat", "/proc/self/cgroup").stdout
    assert out.splitlines()[-1].endswith(lease_id)
    document(shared_agent, "release", lease_id, "--wait")


# ---- JSON ----------------------------------------------------------------------------------------


def test_one_lease_through_every_verb(shared_agent: HostAgent) -> None:
    alloc = document(shared_agent, "alloc", *MEM, "--for", "1min", "--tag", "team,project=p")
    lease_id = alloc["lease"]["lease_id"]
    prefix = lease_id[:10]
    assert document(shared_agent, "show", prefix)["lease"]["lease_id"] == lease_id
    assert document(shared_agent, "why", prefix)["lease"]["lease_id"] == lease_id
    listed = document(shared_agent, "ls")["leases"]
    assert [one["lease_id"] for one in listed] == [lease_id]
    renewed = document(shared_agent, "renew", prefix, "--ttl", "2min")
    assert renewed["generation"] == 1
    [resource] = [a["resource_id"] for a in listed[0]["runtime"]["allotments"]]
    assert document(shared_agent, "holders", resource)["resource_id"] == resource
    [released] = document(shared_agent, "release", prefix, "--wait")["leases"]
    assert released["runtime"]["state"] == "reclaimed"
    waited = document(shared_agent, "wait", prefix, "--until", "closed")["lease"]
    assert waited["runtime"]["ended"] == "released"
    closed = document(shared_agent, "ls", "--closed")["leases"]
    assert lease_id in [one["lease_id"] for one in closed]


def test_what_there_is(shared_agent: HostAgent) -> None:
    devices = document(shared_agent, "devices")["resources"]
    assert "mem" in [one["kind"] for one in devices]
    assert document(shared_agent, "plan", *MEM)["grantable"] is True
    denied = document(shared_agent, "plan", "--mem", "1024TiB", status=75)
    assert denied["refusal"]["reason"] == "no_capacity"
    status = document(shared_agent, "admin", "status")["status"]
    assert status["reaper_connected"] and status["durability"] == "strict"


def test_what_was(shared_agent: HostAgent) -> None:
    log = ("--log", str(shared_agent.audit))
    shared_agent.leasectl("run", *MEM, "--", "true")
    for verb in (["verify"], ["usage"], ["usage", "--resources"], ["audit", "head"]):
        document(shared_agent, *verb, *log)
    assert document(shared_agent, "rates")["cards"]
    online = document(shared_agent, "verify", "--online")
    assert online["verdict"] == "ok"
    [tenant] = {row["tenant"] for row in document(shared_agent, "usage", *log)["usage"]}
    bill = document(shared_agent, "statement", tenant, *log)["statement"]
    assert bill["lines"]
    events = shared_agent.leasectl("audit", "log", *log, "--json").stdout.splitlines()
    assert {json.loads(line)["version"] for line in events} == {1}
    kinds = {json.loads(line)["kind"] for line in events}
    assert {"NodeStarted", "Allocated", "AccessCut", "Scrubbed", "Reclaimed"} <= kinds
    out = shared_agent.directory / "out.jsonl"
    shared_agent.leasectl("audit", "export", *log, str(out))
    assert len(out.read_text().splitlines()) >= len(events)


def test_watch_is_one_document_a_line(shared_agent: HostAgent) -> None:
    lease_id = document(shared_agent, "alloc", *MEM, "--for", "1min")["lease"]["lease_id"]
    watch = shared_agent.track(
        subprocess.Popen(
            [sys.executable, "-m", "leased.ctl.main", "watch", lease_id, "--json"],
            env={"PATH": "/usr/bin:/bin", **shared_agent.sockets()},
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert watch.stdout is not None
    lines = [json.loads(watch.stdout.readline())]
    shared_agent.leasectl("release", lease_id)
    lines += map(json.loads, watch.stdout)
    assert watch.wait(PATIENCE_S) == 0
    assert {line["version"] for line in lines} == {1}
    assert "reclaimed" in json.dumps(lines[-1])


def test_doctor_finds_this_host(shared_agent: HostAgent) -> None:
    done = shared_agent.leasectl("doctor", "--json", check=None)
    found = json.loads(done.stdout)
    assert found["version"] == 1 and found["findings"]
    assert done.returncode == (0 if found["healthy"] else 69)


def test_operators_verbs(shared_agent: HostAgent) -> None:
    lease_id = document(shared_agent, "alloc", *MEM, "--for", "1min")["lease"]["lease_id"]
    revoked = document(shared_agent, "admin", "revoke", lease_id, "--grace", "30s")["lease"]
    assert revoked["runtime"]["state"] == "draining"
    shared_agent.leasectl("done", lease_id, "--json")
    assert shared_agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"
    [memory] = document(shared_agent, "devices", "--kind", "mem")["resources"]
    name = memory["resource_id"]
    document(shared_agent, "admin", "fence", name, "4KiB")
    [memory] = document(shared_agent, "devices", "--kind", "mem")["resources"]
    assert memory["use"]["fenced"] == 4096
    document(shared_agent, "admin", "unfence", name)
    document(shared_agent, "admin", "reload")
    [memory] = document(shared_agent, "devices", "--kind", "mem")["resources"]
    assert memory["use"]["fenced"] == 0


def test_adopted_work_ends_with_its_lease(shared_agent: HostAgent) -> None:
    """A shell and what it started, brought under a lease that nobody renews."""
    lease_id = document(shared_agent, "alloc", *MEM, "--for", "2s")["lease"]["lease_id"]
    work = shared_agent.track(
        subprocess.Popen(
            ["sh", "-c", "sleep 600 & echo in; trap '' TERM; wait"],
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert work.stdout is not None and work.stdout.readline() == "in\n"
    document(shared_agent, "adopt", lease_id, "--pid", str(work.pid))
    assert work.stdout.read() == "", "the pipe ends when the last of them has gone"
    assert work.wait(PATIENCE_S) == -signal.SIGKILL
    assert shared_agent.wait_for(lease_id)["runtime"]["ended"] == "expired"
    log = ("--log", str(shared_agent.audit), "--kind", "Adopted", "--json")
    [line] = shared_agent.leasectl("audit", "log", "--lease", lease_id, *log).stdout.splitlines()
    adopted = json.loads(line)
    assert (adopted["pid"], adopted["processes"], adopted["operator_uid"]) == (work.pid, 2, 0)
    shared_agent.leasectl("adopt", "--pid", "1", "--cpu", "1", check=65)


def test_no_agent_and_no_lease(shared_agent: HostAgent) -> None:
    shared_agent.leasectl("show", "feedbeef", check=66)
    shared_agent.leasectl("--socket", "/nowhere/io.leased", "ls", check=69)
    shared_agent.leasectl("verify", "--log", "/nowhere", check=78)


# ---- the library -------------------------------------------------------------------------------


def test_the_readmes_script_runs_as_it_stands(shared_agent: HostAgent) -> None:
    """It finds the agent where LEASE_SOCKET says, as leasectl does."""
    _, _, rest = (REPOSITORY / "README.md").read_text("utf-8").partition("```python\n")
    done = subprocess.run(
        [sys.executable, "-c", rest.partition("```")[0]],
        env={"PATH": "/usr/bin:/bin", **shared_agent.sockets()},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    listed = document(shared_agent, "ls", "--closed")["leases"]
    assert any(one["runtime"]["ended"] == "released" for one in listed)
