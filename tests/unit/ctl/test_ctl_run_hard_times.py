# SPDX-License-Identifier: Apache-2.0
"""run where things go wrong around it: nobody to tell, no status to read, a child that is ended
early, a terminal that does not reach the command, an agent that does not answer or fails.
"""

from __future__ import annotations

import os
import pty
import queue
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.doubles.canned_agent import LEASE_ID, Answer, CannedAgent, Script, lease

PATIENCE_S = 30
MEM = ("--mem", "1MiB")


def script(**more: object) -> Script:
    """An agent that grants one lease, and whose watch ends at once."""
    held = lease(deadline_boottime_ns=10**18)
    found: Script = {
        "io.leased.Lease.Acquire": {"lease": held, "fds": [], "access": [], "attached": False},
        "io.leased.Lease.Join": {"lease": held, "fds": [], "access": [], "environment": {}},
        "io.leased.Lease.Release": {"lease": lease(state="revoking", ended="released")},
        "io.leased.Lease.Describe": {"lease": held, "access": []},
    }
    found.update(more)  # type: ignore[arg-type]
    return found


def words(agent: CannedAgent, *more: str) -> list[str]:
    return [sys.executable, "-m", "leased.ctl.main", "--socket", agent.path, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def finished(agent: CannedAgent, *more: str, **how: object) -> subprocess.CompletedProcess[str]:
    """leasectl to its end."""
    return subprocess.run(  # type: ignore[call-overload]
        words(agent, *more),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
        text=True,
        env=environment(),
        timeout=PATIENCE_S,
    )


def heed_interrupts() -> None:
    """Whoever is started in the background of a shell ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_notice_of_which_nobody_can_be_told_reaches_the_command(tmp_path: Path) -> None:
    notice = {
        "lease_id": LEASE_ID,
        "reason": "operator_drain",
        "deadline_boottime_ns": 10**18,
        "seconds_left": 30,
    }
    watched = [{"sequence": 1, "leases": [], "notice": notice, "gap": False}]
    command = "read line <&$LEASE_NOTIFY_FD && exit 9"
    scripted = script(**{"io.leased.Lease.Watch": watched})
    with CannedAgent(tmp_path, scripted) as agent, Path("/dev/full").open("w") as full:
        more = ("--notice-signal", "none", "--", "bash", "-c", command)
        done = finished(agent, "run", *MEM, *more, stderr=full)
    assert done.returncode == 9


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (("run", "--mem", "4097B", "--", "sh", "-c", "exit 5"), 5),
        (("run", *MEM, "--", "/no/such/command"), 127),
        (("call", "io.leased.Lease.None"), 76),
    ],
)
def test_an_error_output_that_is_full_changes_no_status(
    tmp_path: Path, more: tuple[str, ...], status: int
) -> None:
    with CannedAgent(tmp_path, script()) as agent, Path("/dev/full").open("w") as full:
        assert finished(agent, *more, stderr=full).returncode == status


def test_a_reader_of_the_receipt_that_has_gone_does_not_keep_the_command_from_running(
    tmp_path: Path,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with CannedAgent(tmp_path, script()) as agent:
        done = finished(agent, "run", "--json", *MEM, "--", "sh", "-c", "exit 5", stderr=writer)
    os.close(writer)
    assert done.returncode == 5


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_lease_that_nobody_can_be_told_of_is_given_back(
    tmp_path: Path, json: tuple[str, ...]
) -> None:
    with CannedAgent(tmp_path, script()) as agent, Path("/dev/full").open("w") as full:
        done = finished(agent, "alloc", *MEM, "--for", "1h", *json, stdout=full)
        assert agent.asked("io.leased.Lease.Release")["lease_id"] == LEASE_ID
    assert done.returncode == 74


def test_who_starts_us_may_ignore_the_end_of_children(tmp_path: Path) -> None:
    def ignoring() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with CannedAgent(tmp_path, script()) as agent:
        done = finished(agent, "run", *MEM, "--", "sh", "-c", "exit 5", preexec_fn=ignoring)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_ended_before_it_begins_did_not_succeed(
    tmp_path: Path, number: int
) -> None:
    started: queue.SimpleQueue[int] = queue.SimpleQueue()
    granted = script()["io.leased.Lease.Acquire"]

    def acquire(_: Answer) -> Answer:
        pid = started.get()
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        pidfd = os.pidfd_open(int(child))
        signal.pidfd_send_signal(pidfd, number)
        assert select.select([pidfd], [], [], PATIENCE_S)[0]
        os.close(pidfd)
        assert isinstance(granted, dict)
        return granted

    with CannedAgent(tmp_path, script(**{"io.leased.Lease.Acquire": acquire})) as agent:
        process = subprocess.Popen(
            words(agent, "run", *MEM, "--", "true"),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=heed_interrupts,
        )
        started.put(process.pid)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert agent.asked("io.leased.Lease.Release")["lease_id"] == LEASE_ID
    assert (process.returncode, err) == (128 + number, "")


def on_a_terminal(agent: CannedAgent, *more: str) -> tuple[int, int]:
    """leasectl as the leader of a terminal of its own: its pid, and our end."""
    command, told = words(agent, *more), environment()
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(command[0], command, told)
    return pid, fd


def read_until(fd: int, what: bytes) -> None:
    said = b""
    while what not in said:
        assert select.select([fd], [], [], PATIENCE_S)[0], said
        said += os.read(fd, 4096)


@pytest.mark.parametrize("leaves", ["os.setpgid(0, 0);", ""])
def test_ctrl_c_reaches_the_command_once_wherever_it_is(tmp_path: Path, leaves: str) -> None:
    """`timeout`, among others, begins a process group of its own, which the terminal does not
    reach."""
    program = (
        f"import os, signal; {leaves}"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); print('ready', flush=True);"
        "signal.sigwait([signal.SIGINT]); os._exit(9 if not signal.sigpending() else 10)"
    )
    with CannedAgent(tmp_path, script()) as agent:
        pid, fd = on_a_terminal(agent, "run", *MEM, "--", sys.executable, "-c", program)
        pidfd = os.pidfd_open(pid)
        try:
            read_until(fd, b"ready")
            os.write(fd, b"\x03")
            assert select.select([pidfd], [], [], PATIENCE_S)[0], "it goes on"
        finally:
            os.close(fd)  # hangs up whoever is still there
            _, status = os.waitpid(pid, 0)
            os.close(pidfd)
    assert os.waitstatus_to_exitcode(status) == 9


def test_a_terminal_that_goes_takes_the_command_along(tmp_path: Path) -> None:
    """The kernel tells the leader of the session, which we are under `ssh -t` or `xterm -e`."""
    program = (
        "import os, signal;"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP]); print('ready', flush=True);"
        "signal.sigwait([signal.SIGHUP]); os._exit(9)"
    )
    with CannedAgent(tmp_path, script()) as agent:
        pid, fd = on_a_terminal(agent, "run", *MEM, "--", sys.executable, "-c", program)
        pidfd = os.pidfd_open(pid)
        read_until(fd, b"ready\r\n")  # all of it: half a write to what has gone fails
        os.close(fd)
        gone = select.select([pidfd], [], [], PATIENCE_S)[0]
        if not gone:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
    assert gone, "it goes on"
    assert os.waitstatus_to_exitcode(status) == 9


def test_an_agent_that_does_not_take_the_lease_back_is_told_of(tmp_path: Path) -> None:
    over = threading.Event()

    def release(_: Answer) -> Answer:
        over.wait(PATIENCE_S)
        return {"error": "io.leased.Lease.NoSuchLease", "parameters": {"lease_id": LEASE_ID}}

    with CannedAgent(tmp_path, script(**{"io.leased.Lease.Release": release})) as agent:
        done = finished(agent, "--timeout", "1", "run", *MEM, "--", "sh", "-c", "exit 3")
        over.set()
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert "did not answer in 1 s; lease 7fa30000 ends at its deadline" in line


def test_a_renewal_or_release_that_fails_costs_the_command_nothing(tmp_path: Path) -> None:
    """Whatever the agent's error is: the lease is good until its deadline."""
    short = lease(deadline_boottime_ns=10**18)
    short["context"]["ttl_ns"] = 300_000_000
    granted = {"lease": short, "fds": [], "access": [], "attached": False}
    fails = {
        "error": "io.leased.Lease.DeviceError",
        "parameters": {"verb": "arm", "errno": 5, "detail": "failed"},
    }
    reader, writer = os.pipe()
    renewals: list[Answer] = []

    def renew(asked: Answer) -> Answer:
        renewals.append(asked)
        if len(renewals) == 2:
            os.close(writer)  # lets the command end
        return fails

    scripted = script(
        **{
            "io.leased.Lease.Acquire": granted,
            "io.leased.Lease.Renew": renew,
            "io.leased.Lease.Release": fails,
        }
    )
    with CannedAgent(tmp_path, scripted) as agent:
        command = ("sh", "-c", "read line; exit 6")
        done = finished(agent, "run", *MEM, "--", *command, stdin=reader)
    os.close(reader)
    assert done.returncode == 6, done.stderr
    [line] = done.stderr.splitlines()
    assert line.endswith("lease 7fa30000 ends at its deadline")
