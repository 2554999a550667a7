# SPDX-License-Identifier: Apache-2.0
"""What became of each holder that would not let go: the cases, their verdicts as JSON lines, and
the table of them in tests/EVIDENCE.md.

    python tests/hostile/verdicts.py FILE...   merge FILEs into results.jsonl, write the table anew

A case is a trick; it is played against kinds of resources, on a host or in the machine of
`tests/vm`. Its verdict is one of two, and both keep the promise: `clean` (access gone, the resource
proven clean) or `fenced` (access gone or not to be had, and nobody gets the resource). A case that
ended otherwise has failed its test and writes nothing.

Rule: the table says what was run and nothing else; a case without a verdict says "not run".

Does not judge: the test that records a verdict has asserted it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
EVIDENCE = HERE.parent / "EVIDENCE.md"
BEGIN, END = "<!-- hostile:begin -->", "<!-- hostile:end -->"

KINDS = ("mem", "hugepages", "dax", "rdma", "block", "cpu", "gpu", "any")
"""`any`: the trick is against the lease itself, whatever is leased."""

PLACES = ("host", "vm", "gpu")
"""A host with Linux, the emulated machine, a host with a real GPU."""

PLACE = "vm" if os.environ.get("LEASED_VM") else "host"
"""Where a test that runs in both places runs now: the tier says it inside its machine."""

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fork_bomb": ("forks as fast as it can", ("mem", "cpu")),
    "double_fork": ("a daemon that left its session and parents", ("mem", "block")),
    "stopped": ("is stopped (SIGSTOP) and cannot handle anything", ("mem", "block")),
    "ignores_signals": ("ignores every signal that can be ignored", ("mem", "block")),
    "d_state": ("sleeps uninterruptibly in the kernel (a suspended device)", ("mem", "block")),
    "own_server": ("waits for a file system (FUSE) that it serves itself, outside", ("mem",)),
    "fd_in_flight": ("a descriptor waits in a socket's queue", ("mem", "hugepages", "block")),
    "mapped_and_closed": ("mapped it and closed every descriptor", ("mem", "dax", "block")),
    "io_uring_file": ("registered the file with an io_uring, closed it", ("mem", "block")),
    "vmsplice": ("a page of it sits in a pipe", ("mem", "hugepages")),
    "io_uring_buffer": ("a page of it is pinned as an io_uring buffer", ("hugepages",)),
    "mounted": ("mounted a file system of it, in a mount namespace of its own", ("block",)),
    "loop": ("a loop device over it", ("block",)),
    "swap": ("swaps on it", ("block",)),
    "dm_above": ("a device-mapper target over it", ("block",)),
    "seals": ("seals the memfd so that it could not be truncated", ("mem",)),
    "cow": ("a private, copied-on-write mapping", ("mem", "hugepages")),
    "pinned_mr": ("a memory region registered with RDMA", ("rdma", "hugepages")),
    "ptraced": ("a tracer outside the lease holds it stopped", ("mem",)),
    "user_namespace_root": ("is root in a user namespace of its own", ("mem", "block")),
    "cgroup_escape": ("tries to move itself out of its cgroup", ("any",)),
    "reopens": ("re-opens it as fast as it can across the cut", ("mem", "block", "gpu")),
    "clock_steps": ("the wall clock jumps, both ways", ("any",)),
    "agent_killed": ("the agent is killed at each step of the teardown", ("mem", "block")),
    "reaper_killed": ("the reaper is killed at each step of the teardown", ("mem", "block")),
    "worker_killed": ("the device worker is killed at each step", ("mem", "block", "rdma")),
    "endless_kernel": ("a kernel on the GPU that never ends", ("gpu",)),
    "all_memory": ("takes all of a GPU's memory", ("gpu",)),
    "mps_server": ("computes in the context of an MPS server that it started", ("gpu",)),
    "ipc_export": ("exported its memory to a process outside", ("gpu",)),
}
"""Every trick: what the holder does, and against which kinds it means something."""


class Verdict(NamedTuple):
    """What became of one case."""

    case: str
    kind: str
    where: str
    verdict: str
    """`clean` or `fenced`."""
    reason: str = ""
    """Of a fence: what could not be proven, as the record says it."""
    cut_ms: float | None = None
    """Deadline (or revocation) to access gone; None where the test does not time it."""
    proven_ms: float | None = None
    """Access gone to the closing record."""
    evidence: str = ""
    """What showed it, from which a reader finds the test: its name, and what was counted."""


def checked(verdict: Verdict) -> Verdict:
    """The same verdict. Raises ValueError if it is none."""
    known = verdict.case in CASES and verdict.kind in CASES[verdict.case][1]
    if not known or verdict.where not in PLACES or verdict.verdict not in ("clean", "fenced"):
        raise ValueError(f"no verdict of ours: {verdict}")
    if (verdict.verdict == "fenced") != bool(verdict.reason):
        raise ValueError(f"a fence, and only a fence, has a reason: {verdict}")
    return verdict


def record(verdict: Verdict) -> None:
    """Append it to the file that LEASED_VERDICTS names; nowhere if it names none."""
    line = json.dumps(checked(verdict)._asdict())
    path = os.environ.get("LEASED_VERDICTS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def read(lines: Iterable[str]) -> list[Verdict]:
    """Verdicts from JSON lines."""
    return [checked(Verdict(**json.loads(line))) for line in lines if line.strip()]


def merged(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """One of each case, kind and place: the slowest of a run's several, and of two verdicts the
    fence. In the order of the table."""
    found: dict[tuple[str, str, str], Verdict] = {}
    for one in verdicts:
        key = (one.case, one.kind, one.where)
        found[key] = max(found.get(key, one), one, key=worse)
    order = {name: number for number, name in enumerate(CASES)}
    return sorted(found.values(), key=lambda v: (order[v.case], v.kind, v.where))


def worse(verdict: Verdict) -> tuple[bool, float, float]:
    """Which of two is the one to publish."""
    return (verdict.verdict == "fenced", verdict.cut_ms or 0, verdict.proven_ms or 0)


def table(verdicts: Iterable[Verdict]) -> str:
    """The table, also of what was not run."""
    rows = ["| the holder | of | verdict | cut | proven | where |", "|---|---|---|---|---|---|"]
    by_case: dict[tuple[str, str], list[Verdict]] = {}
    for one in merged(verdicts):
        by_case.setdefault((one.case, one.kind), []).append(one)
    for case, (what, kinds) in CASES.items():
        for kind in kinds:
            found = by_case.get((case, kind), [])
            rows += [row(what, one) for one in found]
            if not found:
                rows.append(f"| {what} | {kind} | not run | | | |")
    return "\n".join(rows)


def row(what: str, one: Verdict) -> str:
    """One line of it."""
    said = one.verdict if one.verdict == "clean" else f"fenced: {one.reason}"
    return (
        f"| {what} | {one.kind} | {said} | {ms(one.cut_ms)} | {ms(one.proven_ms)} | {one.where} |"
    )


def ms(value: float | None) -> str:
    """A time, as exact as it deserves."""
    if value is None:
        return ""
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def put(text: str, generated: str) -> str:
    """`text` with the table between its marks. Raises ValueError if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def main() -> None:
    """Results of a place replace what was there of the same case, kind and place."""
    new = [v for path in sys.argv[1:] for v in read(Path(path).read_text("utf-8").splitlines())]
    fresh = {(one.case, one.kind, one.where) for one in new}
    old = read(RESULTS.read_text("utf-8").splitlines()) if RESULTS.exists() else []
    kept = [one for one in old if (one.case, one.kind, one.where) not in fresh]
    found = merged([*kept, *new])
    RESULTS.write_text("".join(json.dumps(one._asdict()) + "\n" for one in found), "utf-8")
    EVIDENCE.write_text(put(EVIDENCE.read_text("utf-8"), table(found)), "utf-8")


if __name__ == "__main__":
    main()
