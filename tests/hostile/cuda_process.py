# SPDX-License-Identifier: Apache-2.0
"""A holder of a GPU as a test sees it: a process that plays a trick, perhaps in a leaf.

Rule: identity is the pidfd; whatever a test does, the process and those it made known are gone and
reaped afterwards.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
START_BUDGET_S = 60.0
"""A first context on a cold driver takes seconds; on a host with eight GPUs, many."""


class TrickFailed(Exception):
    """The process could not play its trick: its own words."""


class Holder:
    """One process of `cuda_holders`."""

    def __init__(
        self,
        trick: str,
        argument: str = "",
        *,
        environment: Mapping[str, str],
        leaf: Path | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        paths = [str(_REPOSITORY), str(_REPOSITORY / "agent"), environment.get("PYTHONPATH", "")]
        into = f"{leaf}/cgroup.procs" if leaf else "/dev/null"
        # The shell writes its own pid ("0") and becomes the holder: no time outside the leaf.
        script = 'echo 0 > "$0" && exec "$@"'
        program = [sys.executable, "-m", "tests.hostile.cuda_holders", trick, argument]
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", script, into, *program],
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
            pass_fds=tuple(fds),
        )
        self.pid = self.process.pid
        self._others: list[int] = []
        try:
            word, _, rest = self._line(START_BUDGET_S).partition(" ")
        except TrickFailed:
            self.close()
            raise
        if word != "ready":
            self.close()
            raise TrickFailed(f"{trick}: {rest or 'ended without a word'}")
        self.words = rest.split()

    def ask(self, budget_s: float = 10.0) -> str:
        """What it can still do; "" when it is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("?\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._line(budget_s)

    def _line(self, budget_s: float) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], budget_s)[0]:
            raise TrickFailed(f"no answer in {budget_s:g} s")
        return self.process.stdout.readline().rstrip("\n")

    def watch(self, pid: int) -> None:
        """A process that it made, and that must be gone at the end as well."""
        with contextlib.suppress(ProcessLookupError):
            self._others.append(os.pidfd_open(pid))

    def kill(self) -> None:
        """SIGKILL to the one process, and wait."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Nothing of it is left."""
        self.kill()
        for pidfd in self._others:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5)
            os.close(pidfd)
        self._others.clear()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def holder(
    trick: str,
    argument: str = "",
    *,
    environment: Mapping[str, str],
    leaf: Path | None = None,
    fds: Sequence[int] = (),
) -> Iterator[Holder]:
    """A holder that played its trick; gone when the block ends."""
    one = Holder(trick, argument, environment=environment, leaf=leaf, fds=fds)
    try:
        yield one
    finally:
        one.close()
