# SPDX-License-Identifier: Apache-2.0
"""The bench: one GPU, what the suite may do to it, and how it is watched.

Rule: every wait has a deadline, every process an owner. Nothing is set: no mode, no limit, no
reset. What needs a privilege that is not there raises NotRun with what is lacking.

Does not judge: a case does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hardware.case import Failed, NotRun
from tests.hardware.options import PATIENCE_S
from tests.hostile.cuda_process import Holder, holder

REPOSITORY = Path(__file__).resolve().parents[2]
START_BUDGET_S = 60.0
POLL_S = 0.002
_numbers = itertools.count()


class NoAnswer(Exception):
    """The driver did not answer in time, or said that it cannot."""


class Asker:
    """A process that asks NVML (`asker.py`)."""

    def __init__(self, gpu: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hardware.asker", gpu],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )
        self.pid = self._process.pid
        try:
            self.identity = self._answer(START_BUDGET_S)
        except NoAnswer:
            self.close()
            raise

    def ask(self, question: str, budget_s: float) -> dict[str, Any]:
        """One answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise NoAnswer("the process that asks NVML has ended") from error
        return self._answer(budget_s)

    def _answer(self, budget_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        if not select.select([self._process.stdout], [], [], budget_s)[0]:
            raise NoAnswer(f"NVML did not answer in {budget_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise NoAnswer(self._process.stderr.read().strip().splitlines()[-1])
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise NoAnswer(str(told["error"]))
        return told

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Bench:
    """One GPU under test."""

    def __init__(
        self,
        gpu: str,
        environment: Mapping[str, str],
        root: Path = Path("/"),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.root = root
        self.patience_s = patience_s
        paths = (str(REPOSITORY), str(REPOSITORY / "agent"), environment.get("PYTHONPATH", ""))
        self._plain = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._asker: Asker | None = Asker(gpu, self._plain)
        self.identity = self._asker.identity
        self.uuid = str(self.identity["uuid"])
        self.environment = {**self._plain, "CUDA_VISIBLE_DEVICES": self.uuid}
        self.node = root / f"dev/nvidia{self.identity['minor']}"

    # -- watching ----------------------------------------------------------------------------------

    def ask(self, question: str, budget_s: float | None = None) -> dict[str, Any]:
        """One question to NVML; after a silence the next one goes to a new process."""
        if self._asker is None:
            self._asker = Asker(self.uuid, self._plain)
        try:
            return self._asker.ask(question, budget_s or self.patience_s)
        except NoAnswer:
            self._asker.close()
            self._asker = None
            raise

    @property
    def asker_pid(self) -> int:
        """The process that watches: it has the GPU open."""
        return self._asker.pid if self._asker is not None else 0

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Nobody of ours is attached for a while."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        yield

    def used_bytes(self) -> int:
        """What is in use now."""
        return int(self.ask("memory")["used"])

    def time_until(
        self, done: Callable[[dict[str, Any]], bool], budget_s: float | None = None
    ) -> int | None:
        """Milliseconds until the lists look like that; None if they never do."""
        began = time.monotonic()
        while True:
            told = self.ask("lists")
            took_s = time.monotonic() - began
            if done(told):
                return round(took_s * 1000)
            if took_s > (budget_s or self.patience_s):
                return None
            select.select([], [], [], POLL_S)

    def demand_idle(self) -> int:
        """What is in use once the case before is over. A GPU that somebody uses is not tested, nor
        one in parts."""
        if self.ask("settings")["mig"] == [1, 1]:
            raise NotRun("MIG is on: the suite is of whole GPUs")
        if self.time_until(lambda told: not told["pids"]) is None:
            raise NotRun(f"somebody uses this GPU: pids {self.ask('lists')['pids']}")
        return self.used_bytes()

    # -- holders -----------------------------------------------------------------------------------

    def hold(
        self, trick: str, argument: str = "", *, leaf: Path | None = None, fds: Sequence[int] = ()
    ) -> contextlib.AbstractContextManager[Holder]:
        """A holder for a block."""
        return holder(trick, argument, environment=self.environment, leaf=leaf, fds=fds)

    def run(self, module: str, *words: str, budget_s: float) -> dict[str, Any]:
        """A program of ours that ends by itself with one line of JSON."""
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=budget_s,
        )
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            (why,) = (done.stderr or done.stdout).strip().splitlines()[-1:] or ("not a word",)
            lacks = why.startswith(("ImportError", "ModuleNotFoundError"))
            raise (NotRun if lacks else Failed)(f"{module}: {why}")
        told: dict[str, Any] = json.loads(lines[-1])
        return told

    @contextlib.contextmanager
    def leaf(self) -> Iterator[Path]:
        """A leaf of cgroup v2 of our own."""
        if os.geteuid() != 0:
            raise NotRun("not root: no leaf of cgroup v2 can be made")
        above = _unified()
        path = above / f"leased-hardware-{os.getpid()}-{next(_numbers)}"
        try:
            path.mkdir()
        except OSError as error:
            raise NotRun(f"no leaf of cgroup v2 can be made: {error}") from error
        try:
            yield path
        finally:
            _end(path)

    def close(self) -> None:
        """Nobody watches any more."""
        if self._asker is not None:
            self._asker.close()


def _unified() -> Path:
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            return Path(fields.split()[4])
    raise NotRun("cgroup v2 is not mounted here")


def kill_all(leaf: Path) -> None:
    """SIGKILL to everybody in a leaf, as the reaper does."""
    descriptor = os.open(leaf / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"1")
    finally:
        os.close(descriptor)


def _end(leaf: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(OSError):
        kill_all(leaf)
    while True:
        try:
            leaf.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            select.select([], [], [], POLL_S)
