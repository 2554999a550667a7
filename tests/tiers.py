# SPDX-License-Identifier: Apache-2.0
"""The tiers of tests, run one after the other in the order of trust, counted and added up.

A tier's tests are dealt to one worker for each processor (pytest-xdist), and to one more where they
wait for processes and deadlines a third of their time; unless the tier, or the test by its mark, is
`quiet`: what it judges by the clock, or counts on the host, must not be its neighbour's doing, nor
what it does to the host be in its neighbours' way.

Rule: a tier that should run and collected nothing, did not start, or ran over its time is a failure
of its own. Every skip is printed with the reason the test gave: what was not proven must be seen.
What failed is named once more right before the last line, which is the count: of a long log people
are often shown the end only.

Does not install anything (`tests/run`).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
TOP = TESTS.parent
BEAT_S = 30.0
SHOWN_LINES = 120
WORKERS_MAX = 4
_RESULT = re.compile(
    r"^.*(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL)|^  (?:ok  |FAIL|skip) ", re.MULTILINE
)
_TOLD = re.compile(r"^  (FAIL|skip) (.*)\n((?:       .*\n)*)", re.MULTILINE)
_COUNT = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", re.MULTILINE)


class Tier(NamedTuple):
    """A directory of tests, how long it may take, what it proves, and what its tests are like."""

    name: str
    seconds_max: int
    proves: str
    fast: bool = True
    quiet: bool = False
    waits: bool = False


TIERS = (
    Tier("tidy", 120, "the house: import law, purity, shape, lint"),
    Tier("vectors", 60, "bytes on disk and wire, against fixed examples", quiet=True),
    Tier("unit", 180, "the pure rooms, one rule at a time"),
    Tier("property", 300, "laws that hold for all inputs"),
    Tier("stateful", 180, "the lessor against a naive model"),
    Tier("scenarios", 60, "what peers got wrong in quotas, queues and preemption, case by case"),
    Tier("contract", 480, "each port's promises, on the fake and on the real thing"),
    Tier("service", 180, "the agent's tasks over fakes"),
    Tier("collector", 600, "the fleet's side: archive, ingest, witness, over real TLS", waits=True),
    Tier("sim", 600, "whole agents in simulated time, with crashes"),
    Tier("native", 300, "the C verbs, and the reaper's own tests under sanitizers", quiet=True),
    Tier("reaper", 300, "the reaper as a process", quiet=True),
    Tier("hardware", 360, "what this host really has; the GPU suite, on the mock", quiet=True),
    Tier("hostile", 300, "holders that will not let go", quiet=True),
    Tier("interop", 180, "other people's Varlink clients and OTLP receivers", quiet=True),
    Tier(
        "process",
        1500,
        "the installed programs: kill -9, restart, sockets",
        fast=False,
        waits=True,
    ),
    Tier(
        "spark",
        900,
        "a Spark cluster that loses a worker makes DuckDB's bytes",
        fast=False,
        quiet=True,
    ),
    Tier("crash", 900, "every crash point and every failing system call of the commit path"),
    Tier("fuzz", 240, "that no bytes break a parser", fast=False, quiet=True),
    Tier("powercut", 300, "power cuts, failing and full disks on ext4, xfs and btrfs", fast=False),
    Tier("lossy", 300, "a page cache that forgets, fails and lies, under writer and agent"),
    Tier("adversary", 180, "what root can do to a sealed log, beside journald's and syslog-ng's"),
    Tier("faults", 1200, "injected faults on the running daemon", fast=False, waits=True),
    Tier("bench", 300, "that the benchmarks measure what they say", quiet=True),
    Tier("packaging", 300, "the wheel, the units, the configuration, the installer"),
    Tier("vm", 3000, "a whole host: systemd, cgroup v2, NUMA, reboot, power cut", fast=False),
)


class Counts:
    """What was found so far."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.skips: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str]] = []
        self.lost: list[str] = []

    def add(self, passed: int, failed: int, skipped: int) -> None:
        """One tier's counts."""
        self.passed += passed
        self.failed += failed
        self.skipped += skipped


def run_tier(
    tier: Tier, options: argparse.Namespace, folder: Path, counts: Counts, number: str
) -> None:
    """Run one tier and add its counts; say how it went."""
    print(f"[{number}] {tier.name}: {tier.proves} ", end="", flush=True)
    began, told = time.monotonic(), list[str]()
    for name, words in parts(tier, options, folder):
        log = folder / f"{name}.log"
        before = counts.failed
        status = watch(words, log, tier.seconds_max - (time.monotonic() - began))
        text = log.read_text("utf-8", "replace")
        if tier.name == "vm":
            add_counted(tier, text, counts)
        else:
            add_report(tier, folder / f"{name}.xml", counts)
        if status not in (0, 1):
            counts.lost.append(f"{name}: {explain(status, tier)}")
        if counts.failed > before or status != 0:
            told += told_failures(text) if tier.name == "vm" else failures(text)
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    print("".join(f"    {line}\n" for line in told), end="", flush=True)


def parts(
    tier: Tier, options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, list[str]]]:
    """The runs of a tier, one after the other: a name, which its report has too, and a command."""
    # What needs the machine skips itself here and says so, unless the machine comes last anyway.
    marks = "not slow" if options.fast else "not vm"
    count = min(WORKERS_MAX, os.cpu_count() or 1) + tier.waits
    workers = ["--numprocesses", str(count), "--dist=worksteal"]
    modules = (TESTS / tier.name).rglob("test_*.py")

    def pytest(name: str, *more: str) -> tuple[str, list[str]]:
        words = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        words += [f"--junitxml={folder / name}.xml", "-o", "junit_family=xunit1"]
        return name, [*words, str(TESTS / tier.name), *more]

    if tier.name == "vm":
        yield tier.name, [str(TESTS / "vm" / "run")]
    elif tier.quiet:
        yield pytest(tier.name, "-m", marks)
    else:
        yield pytest(tier.name, "-m", f"{marks} and not quiet", *workers)
        if any("mark.quiet" in module.read_text("utf-8") for module in modules):
            yield pytest(f"{tier.name}-quiet", "-m", f"{marks} and quiet")


def watch(words: list[str], log: Path, seconds_max: float) -> int:
    """Run a command to its end, its output to `log`; a sign of life now and then. 124: too long."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        began = said = time.monotonic()
        while True:
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if now - said >= BEAT_S:
                said = now
                done = len(_RESULT.findall(log.read_text("utf-8", "replace")))
                print(f"({done} in {now - began:.0f} s) ", end="", flush=True)
            if now - began > seconds_max:
                os.killpg(process.pid, 9)
                process.wait()
                return 124


def add_report(tier: Tier, report: Path, counts: Counts) -> None:
    """Count a pytest tier from its report."""
    if not report.exists():
        return
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{tier.name}: {case.get('name')}"
        skipped = case.find("skipped")
        failure = next(chain(case.iter("failure"), case.iter("error")), None)
        if failure is not None:
            counts.add(0, 1, 0)
            counts.failures.append((name, failure.get("message", "")))
        elif skipped is not None:
            counts.add(0, 0, 1)
            why = skipped.get("message", "")
            counts.skips.append((name, why))
            if why in ("", "Skipped"):
                counts.lost.append(f"{name}: skipped, and did not say what was not proven")
        else:
            counts.add(1, 0, 0)


def add_counted(tier: Tier, text: str, counts: Counts) -> None:
    """Count a tier that ends with the closing line itself."""
    found = _COUNT.findall(text)
    if not found:
        counts.lost.append(f"{tier.name}: no closing line")
        return
    counts.add(*map(int, found[-1]))
    for mark, name, why in _TOLD.findall(text):
        if mark == "skip":
            counts.skips.append((f"{tier.name}: {name}", " ".join(why.split())))
        else:
            counts.failures.append((f"{tier.name}: {name}", why.strip().rpartition("\n")[2]))


def explain(status: int, tier: Tier) -> str:
    """Why a tier's status means that it did not run to its end."""
    if status == 124:
        return f"not over after {tier.seconds_max} s"
    return {
        5: "no test was collected",
        4: "pytest was called wrongly",
        2: "interrupted or not collected",
    }.get(status, f"status {status}")


def failures(text: str) -> list[str]:
    """The part of a log that says what failed."""
    begin = max(text.find("= FAILURES ="), text.find("= ERRORS ="))
    lines = (text[begin:] if begin >= 0 else text).splitlines()
    if len(lines) <= SHOWN_LINES:
        return lines
    return [*lines[: SHOWN_LINES // 2], "...", *lines[-SHOWN_LINES // 2 :]]


def told_failures(text: str) -> list[str]:
    """The same of the machine's log, which tells test by test: only what failed, each whole."""
    told = [found[0].splitlines() for found in _TOLD.finditer(text) if found[1] == "FAIL"]
    return [line for lines in told for line in lines] or failures(text)


def main() -> int:
    """Run what was asked for; 0 if all of it passed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        for tier in TIERS:
            print(f"{tier.name:<10} {tier.proves}{'' if tier.fast else ' (not with --fast)'}")
        return 0
    wanted = frozenset(filter(None, options.only.split(",")))
    unknown = wanted - {tier.name for tier in TIERS}
    if unknown:
        parser.error(f"no such tier: {', '.join(sorted(unknown))}")
    chosen = [
        tier
        for tier in TIERS
        if (not wanted or tier.name in wanted) and (tier.fast or not options.fast)
    ]
    counts = Counts()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="leased-tests-") as folder:
        for index, tier in enumerate(chosen, 1):
            run_tier(tier, options, Path(folder), counts, f"{index}/{len(chosen)}")
    if options.fast:
        counts.skips.append(("vm", "--fast: nothing was proven under systemd and cgroup v2"))
    close(counts, time.monotonic() - began)
    return 1 if counts.failed or counts.lost or not counts.passed else 0


def close(counts: Counts, seconds: float) -> None:
    """What was skipped, lost and failed, and the count as the last line."""
    if counts.skips:
        print("\nNot proven by this run:")
        for name, why in counts.skips:
            print(f"  {name}: {why}")
    for lost in counts.lost:
        print(f"\nDID NOT RUN: {lost}")
    if counts.failures:
        print("\nFailed:")
        for name, why in counts.failures:
            print(f"  {name}: {why.strip().splitlines()[0] if why.strip() else 'no reason given'}")
    print(f"\n{seconds:.0f} s in all")
    failed = counts.failed + len(counts.lost)
    print(f"{counts.passed} passed, {failed} failed, {counts.skipped} skipped")


if __name__ == "__main__":
    sys.exit(main())
