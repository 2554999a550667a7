# SPDX-License-Identifier: Apache-2.0
"""The holder of a lease as a test sees it: an intruder process, its pidfds, and the reaper's cut.

Rule: identity is the pidfd here too; every process is gone and reaped when the tenant is closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.doubles.host import not_proven

_REPOSITORY = Path(__file__).resolve().parents[2]


class Tenant:
    """One holder (and perhaps a second process of it that will survive the cut)."""

    def __init__(self, trick: str, fd: int) -> None:
        paths = [str(_REPOSITORY), str(_REPOSITORY / "agent"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.doubles.intruder", trick, str(fd)],
            pass_fds=(fd,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
            env=environment,
        )
        word, _, pid = self._line().partition(" ")
        if word != "ready":
            self.close()
            not_proven(f"the trick {trick!r}", "the kernel does not let a tenant play it")
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.process.pid)
        self.other_pidfd = os.pidfd_open(int(pid))

    def ask(self, line: str = "?") -> str:
        """What the remaining process can still do; "" when it is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def cut(self) -> None:
        """As the reaper does with a bare lease: SIGKILL to the bound holder, wait until gone."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.process.wait()

    @property
    def other_gone(self) -> bool:
        """Whether the second process has ended."""
        return bool(select.select([self.other_pidfd], [], [], 0)[0])

    def wait_other_gone(self, timeout_s: float = 5) -> bool:
        """Wait for it."""
        return bool(select.select([self.other_pidfd], [], [], timeout_s)[0])

    def close(self) -> None:
        """Nothing of it is left."""
        for name in ("other_pidfd", "pidfd"):
            pidfd = self.__dict__.pop(name, None)
            if pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], 5)
                os.close(pidfd)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def tenant(trick: str, fds: Sequence[int]) -> Iterator[Tenant]:
    """A tenant that was handed `fds` (closed here, as the agent does) and played its trick."""
    try:
        holder = Tenant(trick, fds[0])
    finally:
        for fd in fds:
            os.close(fd)
    try:
        yield holder
    finally:
        holder.close()
