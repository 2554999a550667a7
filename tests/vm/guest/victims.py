# SPDX-License-Identifier: Apache-2.0
"""Our own processes in the machine, stopped and killed in the middle of what they do.

Rule: whoever is stopped is woken again, unless it is gone; whoever is killed is replaced by systemd
before a test goes on. Does not import the agent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import host
from host import ADMIN, call, eventually


@contextlib.contextmanager
def killed_at(call_name: str, nth: int, *pids: int) -> Iterator[None]:
    """Whichever of the processes enters its nth call of this name is killed there."""
    tracers = []
    try:
        for pid in pids:
            inject = f"inject={call_name}:signal=KILL:when={nth}"
            words = ["strace", "-p", str(pid), "-e", f"trace={call_name}", "-e", inject]
            tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
            tracers.append(tracer)
            assert tracer.stderr is not None
            attached = "attached" in tracer.stderr.readline()
            assert attached or not is_alive(pid), pid
        yield
    finally:
        for tracer in tracers:
            tracer.terminate()
            tracer.communicate(timeout=host.HANGS_S)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """SIGSTOP these for a while; those gone meanwhile are left alone."""
    pidfds = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(pidfds[-1], signal.SIGSTOP)
    try:
        yield
    finally:
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)


def agent() -> int:
    """The agent's pid."""
    return host.main_pid("leased.service")


def reaper() -> int:
    """The reaper's pid."""
    return host.main_pid("leased-reaper.service")


def workers() -> list[int]:
    """The agent's device workers, which its fork server has forked."""
    return [worker for server in children(agent()) for worker in children(server)]


def cutters() -> list[int]:
    """The reaper's cutters."""
    return children(reaper())


def children(pid: int) -> list[int]:
    """Of a process with one thread that forks; not those that have ended and are not waited for."""
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words if is_alive(int(word))]


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and is not waited for does not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def comes_to(lease_id: str, state: str) -> None:
    """Wait until a lease is in this state."""
    eventually(f"it is {state}", lambda: host.describe(lease_id)["state"] == state)


def replaced(pid: int, which: Callable[[], int]) -> None:
    """Wait until there is another one, and agent and reaper have met."""
    eventually("systemd has started another one", lambda: which() not in (0, pid))
    host.serving()
    eventually("they have met", lambda: call("Admin.Status", ADMIN)["reaper_connected"])
