# SPDX-License-Identifier: Apache-2.0
"""Workloads of a real agent, as a test starts and watches them: by pidfd, on the boot clock.

Rule: when a process is gone is read from the clock right after its pidfd says so; nothing the agent
tells enters into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.doubles.host_agent import PATIENCE_S, HostAgent, boot_ns, exited

_HOLDER = Path(__file__).with_name("bare_holder.py")
PYTHON = (sys.executable, "-I", "-S")


class Workload:
    """A process that holds a lease and ignores whatever can be ignored."""

    def __init__(
        self, agent: HostAgent, *modes: str, ttl_ms: int, size_bytes: int = 1 << 20
    ) -> None:
        command = [*PYTHON, str(_HOLDER), str(agent.socket), str(ttl_ms), str(size_bytes), *modes]
        self.process = agent.track(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        told = json.loads(line)
        self.lease_id: str = told["lease_id"]
        self.deadline_ns: int = told["deadline_ns"]
        self.pidfd = os.pidfd_open(self.process.pid)
        agent.defer(os.close, self.pidfd)
        self.child_pidfd = -1
        if told["child"]:
            self.child_pidfd = os.pidfd_open(told["child"])
            agent.defer(_end, self.child_pidfd)

    @property
    def alive(self) -> bool:
        """Whether the holder itself still runs."""
        return not exited(self.pidfd, 0)

    def gone_ns(self) -> int:
        """Wait for its end; the boot clock just after."""
        assert exited(self.pidfd, PATIENCE_S), "the holder still runs"
        return boot_ns()

    def child_gone_ns(self) -> int:
        """Wait for the end of its child; the boot clock just after."""
        assert exited(self.child_pidfd, PATIENCE_S), "the holder's child still has its memory"
        return boot_ns()


def _end(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    exited(pidfd)
    os.close(pidfd)
