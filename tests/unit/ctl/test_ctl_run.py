# SPDX-License-Identifier: Apache-2.0
"""run, alloc and exec as real processes against a canned agent: exit status, environment, signals,
giving back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.canned_agent import LEASE_ID, RESOURCE, CannedAgent, Script, lease, refused

PYTHON = sys.executable
MEMORY = {"resource_id": RESOURCE, "index": 0, "purpose": "memory"}
PATIENCE_S = 30


def script(**more: object) -> Script:
    """An agent that grants one lease."""
    environment = {"LEASE_ID": LEASE_ID, "LEASE_EPOCH": "1", "LEASE_DIR": "/run/leased/leases/x"}
    with_fds = {"lease": lease(), "fds": [MEMORY], "access": []}
    found: Script = {
        "io.leased.Lease.Acquire": {**with_fds, "attached": False},
        "io.leased.Lease.Join": {**with_fds, "environment": environment},
        "io.leased.Lease.Release": {"lease": lease(state="revoking", ended="released")},
        "io.leased.Lease.Renew": {
            "lease_id": LEASE_ID,
            "generation": 2,
            "deadline_boottime_ns": 10**18,
            "state": "active",
        },
    }
    found.update(more)  # type: ignore[arg-type]
    return found


@pytest.fixture
def memfd() -> int:
    """A descriptor to hand out."""
    fd = os.memfd_create("leased")
    os.write(fd, b"memory")
    return fd


def start(agent: CannedAgent, *words: str, stdin: int | None = None) -> subprocess.Popen[str]:
    """leasectl as a process of its own."""
    return subprocess.Popen(
        [PYTHON, "-m", "leased.ctl.main", "--socket", agent.path, *words],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SHELL": "/bin/true"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, output, notes."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def test_run_returns_the_status_and_gives_the_lease_back(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        status, _, err = finish(start(agent, "run", "--mem", "256MiB", "--", "sh", "-c", "exit 7"))
        assert status == 7, err
        assert agent.asked("io.leased.Lease.Acquire")["bind"] == "cgroup"
        assert agent.asked("io.leased.Lease.Join") == {"lease_id": LEASE_ID}
        assert agent.asked("io.leased.Lease.Release")["lease_id"] == LEASE_ID


def test_the_command_inherits_its_lease(tmp_path: Path, memfd: int) -> None:
    program = (
        "import os, json; e = os.environ;"
        "fd = int(e['LEASE_MEM_FDS']); os.lseek(fd, 0, 0);"
        "print(json.dumps([e['LEASE_ID'], e['LEASE_DIR'], os.read(fd, 9).decode(),"
        " os.get_blocking(int(e['LEASE_NOTIFY_FD'])), len(os.listdir('/proc/self/fd'))]))"
    )
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        status, out, err = finish(start(agent, "run", "--mem", "1MiB", "--", PYTHON, "-c", program))
    assert status == 0, err
    found = json.loads(out)
    assert found[:4] == [LEASE_ID, "/run/leased/leases/x", "memory", True]
    assert found[4] == 6, "0, 1, 2, the memory, the notice pipe, and the listing itself"


def test_a_command_that_is_not_there(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--", "no-such-command"))
        assert status == 127 and "no-such-command: No such file" in err
        assert agent.asked("io.leased.Lease.Release")


def test_a_signal_that_ends_the_command_is_128_and_its_number(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        command = ("sh", "-c", "kill -USR1 $$")
        status, _, _ = finish(start(agent, "run", "--mem", "1MiB", "--", *command))
    assert status == 128 + signal.SIGUSR1


def test_signals_reach_the_command(tmp_path: Path, memfd: int) -> None:
    command = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        process = start(agent, "run", "--mem", "1MiB", "--", "sh", "-c", command)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        status, out, _ = finish(process)
    assert (status, out) == (3, "told\n")


def test_a_notice_reaches_the_pipe_and_the_command(tmp_path: Path, memfd: int) -> None:
    notice = {
        "lease_id": LEASE_ID,
        "reason": "operator_drain",
        "deadline_boottime_ns": 10**18,
        "seconds_left": 30,
    }
    watched = [{"sequence": 1, "leases": [], "notice": notice, "gap": False}]
    program = (
        "import os, signal, sys; fd = int(os.environ['LEASE_NOTIFY_FD']);"
        "signal.signal(signal.SIGUSR1, lambda *_: None);"
        "line = os.fdopen(fd).readline(); print(line, end='')"
    )
    with CannedAgent(tmp_path, script(**{"io.leased.Lease.Watch": watched}), [memfd]) as agent:
        words = ("--notice-signal", "none", "--", PYTHON, "-c", program)
        status, out, err = finish(start(agent, "run", "--mem", "1MiB", *words))
    assert status == 0, err
    assert json.loads(out) == notice
    assert "has to be given back (operator_drain)" in err


def test_a_command_killed_with_its_lease_is_79(tmp_path: Path, memfd: int) -> None:
    ended = {"lease": lease(state="scrubbing", ended="expired"), "access": []}
    scripted = script(**{"io.leased.Lease.Describe": ended})
    with CannedAgent(tmp_path, scripted, [memfd]) as agent:
        command = ("sh", "-c", "kill -KILL $$")
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--", *command))
    assert status == 79 and "is lost: expired" in err


def test_a_command_killed_before_the_agent_knows_of_the_end_is_79(
    tmp_path: Path, memfd: int
) -> None:
    """The reaper kills at the deadline, and the agent ends the lease after that."""
    over = lease(deadline_boottime_ns=1)
    scripted = script(
        **{
            "io.leased.Lease.Acquire": {"lease": over, "fds": [], "access": [], "attached": False},
            "io.leased.Lease.Describe": {"lease": over, "access": []},
            "io.leased.Lease.Wait": {"lease": lease(state="revoking", ended="expired")},
        }
    )
    with CannedAgent(tmp_path, scripted, [memfd]) as agent:
        command = ("sh", "-c", "kill -KILL $$")
        words = ("run", "--mem", "1MiB", "--no-renew", "--", *command)
        status, _, err = finish(start(agent, *words))
        assert agent.asked("io.leased.Lease.Wait")["until"] == "ended"
    assert status == 79 and "is lost: expired" in err


def test_a_command_that_leaves_its_lease_is_told_of(tmp_path: Path, memfd: int) -> None:
    """As podman and systemd-run --scope do: they move what they run into cgroups of their own."""
    left = [{"sequence": 1, "leases": [lease(state="revoking", ended="released")], "gap": False}]
    with CannedAgent(tmp_path, script(**{"io.leased.Lease.Watch": left}), [memfd]) as agent:
        wait = f"import select, sys; select.select([0], [], [], {PATIENCE_S}); sys.exit(3)"
        command = (PYTHON, "-S", "-c", wait)
        process = start(agent, "run", "--mem", "1MiB", "--", *command, stdin=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.readline()
        status, out, err = finish(process)
    assert (status, out, err) == (3, "", "")
    assert "7fa3" in said and "is over (released): the command has left its cgroup" in said


def test_a_command_killed_by_somebody_else_is_137(tmp_path: Path, memfd: int) -> None:
    held = lease(deadline_boottime_ns=10**18)
    scripted = script(
        **{
            "io.leased.Lease.Acquire": {"lease": held, "fds": [], "access": [], "attached": False},
            "io.leased.Lease.Describe": {"lease": held, "access": []},
        }
    )
    with CannedAgent(tmp_path, scripted, [memfd]) as agent:
        command = ("sh", "-c", "kill -KILL $$")
        status, _, _ = finish(start(agent, "run", "--mem", "1MiB", "--", *command))
    assert status == 137


def test_a_refused_run_starts_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    scripted = {"io.leased.Lease.Acquire": refused("no_capacity", "mem", requested=1 << 20)}
    with CannedAgent(tmp_path, scripted) as agent:
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--", "touch", str(marker)))
    assert status == 75 and "no_capacity: mem: asked 1MiB" in err
    assert not marker.exists()


def test_a_join_that_is_denied_gives_the_lease_back(tmp_path: Path, memfd: int) -> None:
    denied = {"error": "io.leased.Lease.PermissionDenied", "parameters": {"why": "not you"}}
    with CannedAgent(tmp_path, script(**{"io.leased.Lease.Join": denied}), [memfd]) as agent:
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--", "true"))
        assert status == 77 and "not you" in err
        assert agent.asked("io.leased.Lease.Release")


def test_nothing_to_run_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, {}) as agent:
        status, _, err = finish(start(agent, "run", "--mem", "1MiB"))
        assert status == 65 and "say what to run" in err
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--", ""))
        assert status == 65 and "say what to run" in err
        status, _, err = finish(start(agent, "run", "--", "true"))
        assert status == 65 and "say what is wanted" in err
        assert agent.calls == []


def test_what_is_no_text_is_named(tmp_path: Path, memfd: int) -> None:
    """A terminal of another encoding, say. As an argument of the command it is the command's."""
    with CannedAgent(tmp_path, granted(), [memfd]) as agent:
        alien = os.fsdecode(b"caf\xe9")
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--tag", alien, "--", "true"))
        assert status == 65 and "caf" in err and "UTF-8" in err and "Traceback" not in err
        status, _, err = finish(start(agent, "run", "--mem", "1MiB", "--", f"/no/{alien}"))
        assert status == 127 and "/no/caf\\xe9: No such file" in err


def test_alloc_without_a_time_is_a_shell(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        status, _, err = finish(start(agent, "alloc", "--mem", "1MiB"))
        assert status == 0, err
        assert agent.asked("io.leased.Lease.Join") and agent.asked("io.leased.Lease.Release")


def test_exec_and_shell_become_the_command(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, script(), [memfd]) as agent:
        process = start(agent, "exec", LEASE_ID, "--", "sh", "-c", "echo $LEASE_EPOCH $$")
        status, out, err = finish(process)
        assert status == 0, err
        assert out == f"1 {process.pid}\n"
        status, _, err = finish(start(agent, "exec", LEASE_ID, "--", "no-such-command"))
        assert status == 127 and "No such file" in err
        assert finish(start(agent, "shell", LEASE_ID))[0] == 0


RECEIPT = {"log_id": "1d" * 16, "sequence": 7, "record_hash": "ab" * 32}


def granted(**more: object) -> Script:
    answer = {"lease": lease(), "fds": [MEMORY], "access": [], "attached": False}
    return script(**{"io.leased.Lease.Acquire": {**answer, **more}})


def test_a_lease_that_is_left_comes_with_its_receipt(tmp_path: Path, memfd: int) -> None:
    kept = tmp_path / "receipt.json"
    words = ("alloc", "--mem", "256MiB", "--for", "1min", "--json", "--receipt", str(kept))
    with CannedAgent(tmp_path, granted(**RECEIPT), [memfd]) as agent:
        status, out, err = finish(start(agent, *words))
    assert status == 0, err
    assert json.loads(out)["receipt"] == RECEIPT
    assert json.loads(kept.read_text()) == RECEIPT


def test_what_a_command_prints_is_its_own(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, granted(**RECEIPT), [memfd]) as agent:
        words = ("run", "--json", "--mem", "256MiB", "--", "echo", "hello")
        status, out, err = finish(start(agent, *words))
    assert (status, out) == (0, "hello\n"), err
    told = json.loads(err.splitlines()[0])
    assert (told["version"], told["lease"]["lease_id"], told["receipt"]) == (1, LEASE_ID, RECEIPT)


def test_no_receipt_is_said_as_none(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, granted(), [memfd]) as agent:
        status, out, err = finish(start(agent, "alloc", "--mem", "1MiB", "--for", "9s", "--json"))
    assert status == 0, err
    assert json.loads(out)["receipt"] is None


def test_a_receipt_that_cannot_be_kept_gives_the_lease_back(tmp_path: Path, memfd: int) -> None:
    with CannedAgent(tmp_path, granted(**RECEIPT), [memfd]) as agent:
        words = ("run", "--receipt", str(tmp_path / "no" / "where"), "--mem", "1MiB", "--", "true")
        status, _, err = finish(start(agent, *words))
        assert status == 74 and "no/where: No such file" in err
        assert agent.asked("io.leased.Lease.Release")["lease_id"] == LEASE_ID
