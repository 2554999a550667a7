# SPDX-License-Identifier: Apache-2.0
"""The sweep of system calls: every call that touches a log fails, once, and the log is judged (T3
of chain.md section 11: Tessera's method).

A first run under strace tells which calls touch the directory, and as how many-eth of its kind in
their thread; then each of them is run again and fails (EIO, ENOSPC, EINTR), is the last (SIGKILL),
or is short. What the process acknowledged is its ledger: whatever happens, `read_log` (which is
what `leasectl verify` does) and a recovery must find all of it, every lease at most once granted,
and a process that ended must have said why.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from leased.chain.head import Head, parse_head
from leased.durable.genesis import LOG_ID
from leased.durable.reader import read_log
from leased.terms.errors import ChainError, StateError
from tests.crash.living import Life

HERE = Path(__file__).resolve().parent
PATIENCE_S = 120

CALLS = {
    "openat": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "pwrite64": ("EIO", "ENOSPC", "EINTR", "KILL", "SHORT"),
    "fdatasync": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "fsync": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "renameat": ("EIO", "ENOSPC", "KILL"),
    "unlinkat": ("EIO", "KILL"),
    "mkdirat": ("EIO", "ENOSPC", "KILL"),
    "fallocate": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "flock": ("EIO", "EINTR", "KILL"),
    "pread64": ("EIO", "EINTR", "KILL"),
    "newfstatat": ("EIO", "KILL"),
    "getdents64": ("EIO", "KILL"),
}
"""What a log is made with, and how each of them may fail."""


HEART = re.compile(r"/(seg-[0-9a-f]+\.log|anchor|seal\.key|log\.id)>")
"""Files of which a write or a barrier that failed ends whoever asked for it, without exception."""


class Case(NamedTuple):
    """One call that fails. `vital`: nobody may carry on from that."""

    scene: str
    call: str
    fault: str
    when: int
    vital: bool

    def __str__(self) -> str:
        return f"{self.scene}: {self.call} {self.when} {self.fault}"


class Outcome(NamedTuple):
    """How a process took it: "carried on", "ended" or "killed"; or what is wrong."""

    how: str
    wrong: str = ""


class Scenes:
    """The two directories that a run begins with: none, and one that a crash has left, with a batch
    that is not anchored and a torn one."""

    def __init__(self, directory: Path) -> None:
        self._template = directory / "template"
        life = Life(self._template, 0)
        life.fill()
        anchor = (self._template / "anchor").read_bytes()
        life.commit(life.lives(1))
        life.log.close()
        (self._template / "anchor").write_bytes(anchor)
        newest = sorted(self._template.glob("seg-*"))[-1]
        data = newest.read_bytes()
        end = (len(data.rstrip(b"\0")) + 7) & -8
        with newest.open("r+b") as file:
            file.seek(end)
            file.write(b"torn" * 25)
        self._shim = directory / "short.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(self._shim)]
        subprocess.run([*command, str(HERE / "short.c"), "-ldl"], check=True)

    def lay_out(self, scene: str, directory: Path) -> Path:
        """The directory of a run."""
        audit = directory / "audit"
        if scene == "life":
            shutil.copytree(self._template, audit)
        return audit

    def cases(self, directory: Path) -> list[Case]:
        """Every call of either scene with every way to fail."""
        found = []
        for scene in ("birth", "life"):
            work = directory / scene
            work.mkdir()
            audit = self.lay_out(scene, work)
            trace = work / "trace"
            words = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", _filter(CALLS)]
            done = _run([*words, *_living(audit)])
            assert done.returncode == 0, done.stderr
            found += [
                Case(scene, call, fault, when, vital and fault in ("EIO", "ENOSPC"))
                for (call, when), vital in _touching(trace, audit)
                for fault in CALLS[call]
            ]
        return found

    def run(self, case: Case, directory: Path) -> Outcome:
        """Run a case in a directory of its own and judge it."""
        audit = self.lay_out(case.scene, directory)
        environment = {}
        if case.fault == "SHORT":
            environment = {"LD_PRELOAD": str(self._shim), "LEASED_SHORT": str(case.when)}
            words = []
        else:
            kills = case.fault == "KILL"
            how = "signal=KILL" if kills else f"error={case.fault}"
            # With the filter strace stops at no other call, but then it sends no signals.
            words = ["strace", "-f", *(() if kills else ("--seccomp-bpf",)), "-qq"]
            words += ["-o", "/dev/null", "-e", f"trace={case.call}"]
            words += ["-e", f"inject={case.call}:{how}:when={case.when}"]
        return judge(case, audit, _run([*words, *_living(audit)], environment))


def judge(case: Case, audit: Path, done: subprocess.CompletedProcess[str]) -> Outcome:
    """What became of the process, and of what it had acknowledged."""
    killed = done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    how = "killed" if killed else "carried on" if done.returncode == 0 else "ended"
    if case.vital and how != "ended":
        return Outcome(how, "a barrier or a write failed, and nobody minded")
    if killed != (case.fault == "KILL") and how != "carried on":
        return Outcome(how, f"status {done.returncode}: {done.stderr[-1000:]}")
    if how == "ended" and not re.search(r"(OSError|Error: )", done.stderr):
        return Outcome(how, f"it did not say why: {done.stderr[-1000:]!r}")
    heard = [line for line in done.stdout.splitlines(keepends=True) if line.endswith("\n")]
    return Outcome(how, missed(audit, parse_head(heard[-1].strip()) if heard else None))


def missed(audit: Path, acked: Head | None) -> str:
    """What is wrong with a log after a fault, of which `acked` was acknowledged: it must hold, be
    recovered, go on, and have all of it. "" if nothing is."""
    try:
        if (audit / LOG_ID).exists():
            _find(audit, acked)
        elif acked is not None:
            return "acknowledged, and there is no log"
        again = Life(audit, 2)
        if acked is not None and again.log.head.size < acked.size:
            return f"recovered {again.log.head.size} of {acked.size} records"
        again.commit(again.lives(1))
        again.log.close()
        _find(audit, acked)
    except (ChainError, StateError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _find(audit: Path, acked: Head | None) -> None:
    """The log holds, and has what was acknowledged. Raises ChainError, StateError,
    AssertionError."""
    log = read_log(audit, leases=True)
    try:
        if acked is not None:
            assert log.head.size >= acked.size, f"{log.head.size} records of {acked.size}"
            assert next(log.records(acked.size - 1)).hash == acked.hash, "another record"
    finally:
        log.close()


def table(outcomes: dict[Case, Outcome]) -> Iterator[str]:
    """Lines: how many of each call and fault went how."""
    counts: dict[tuple[str, str], collections.Counter[str]] = {}
    for case, outcome in outcomes.items():
        how = "WRONG" if outcome.wrong else outcome.how
        counts.setdefault((case.call, case.fault), collections.Counter())[how] += 1
    for (call, fault), found in sorted(counts.items()):
        yield f"{call:<11} {fault:<7} " + ", ".join(
            f"{n} {how}" for how, n in sorted(found.items())
        )


def _filter(calls: dict[str, tuple[str, ...]]) -> str:
    return f"trace={','.join(calls)}"


def _living(audit: Path) -> list[str]:
    return [sys.executable, "-m", "tests.crash.living", str(audit), "1"]


def _run(
    words: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        words,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", **(environment or {})},
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _touching(trace: Path, audit: Path) -> list[tuple[tuple[str, int], bool]]:
    """Calls by name and by how many-eth of the name they are in their thread, of those that have
    to do with the directory; and whether they write to what must not be lost."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    found: dict[tuple[str, int], bool] = {}
    for line in trace.read_text("utf-8", "replace").splitlines():
        match = re.match(r"(\d+)\s+(\w+)\((.*)", line)
        if match is None or match[2] not in CALLS:
            continue
        counts[match[1], match[2]] += 1
        told = match[3].partition(" = ")[0]
        if str(audit) in told:
            key = (match[2], counts[match[1], match[2]])
            writes = match[2] in ("pwrite64", "fdatasync") and HEART.search(told) is not None
            found[key] = found.get(key, False) or writes
    return sorted(found.items())
