# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench`: measure, print the table of ratios, keep the raw figures as JSON.

Rule: everything measured in one run is in one file, with the machine and the commit it was measured
on. Exit status 1 if a bar was missed and `--strict` was asked for.

A part that needs much of the program is imported when it is measured: an emulated machine, which
measures devices, would take most of a minute for what it never uses.

Does not install anything: `tests/bench/run` does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import table
from tests.bench.expiry import MANY, measure_expiry, most_leases
from tests.bench.kinds import measure_kinds
from tests.bench.loadgen import Figures, compile_load
from tests.bench.published import lines_of
from tests.bench.regions import measure_regions
from tests.bench.restart import measure_idle, measure_restart
from tests.bench.scrub import measure_scrub
from tests.bench.throughput import measure_throughput

RESULTS = Path(__file__).with_name("results")
PARTS = (
    *("throughput", "policy", "expiry", "scrub", "kinds", "regions", "gpu"),
    *("chain", "restart", "pull", "collect", "idle", "metering", "api", "quota"),
)
WITHOUT_LOAD = frozenset(
    ("kinds", "regions", "scrub", "chain", "pull", "collect", "metering", "api", "quota")
)
"""Parts that need no load generator."""


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds, smaller histories")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="the disk to use")
    options = parser.parse_args()
    parts = options.only or list(PARTS)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory(dir=options.directory, prefix="leased-bench-") as made:
        figures = _measure(Path(made), parts, short=options.short, say=say)
    lines = lines_of(figures)
    print(table.render(lines))
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    kept.write_text(json.dumps(figures, indent=1) + "\n")
    say(f"raw figures in {kept}")
    return 1 if options.strict and any(line.held is False for line in lines) else 0


def _measure(directory: Path, parts: list[str], *, short: bool, say: table.Say) -> Figures:
    load = compile_load(directory) if set(parts) - WITHOUT_LOAD else Path()
    figures: Figures = {"machine": _machine(), "short": short}
    if "throughput" in parts:
        rounds, seconds = (2, 2.0) if short else (5, 4.0)
        rows = measure_throughput(load, directory, rounds=rounds, seconds=seconds, say=say)
        figures["throughput"] = rows
    if "policy" in parts:
        from tests.bench.policy import measure_policy
        from tests.bench.policy_load import measure_policy_load

        rows = measure_policy(rounds=300 if short else 1_000, say=say)
        figures["policy"] = rows
        times, seconds = (4, 1.5) if short else (10, 4.0)
        rows = measure_policy_load(load, directory, rounds=times, seconds=seconds, say=say)
        figures["policy_load"] = rows
    if "expiry" in parts:
        times, many = (5, 1_000) if short else (40, most_leases(MANY))
        if not short and many < MANY:
            say(f"this machine lets a process open too few files: {many:,} leases, not {MANY:,}")
        rows = measure_expiry(load, directory, rounds=times, many=many, say=say)
        figures["expiry"] = rows
    if "scrub" in parts:
        figures["scrub"] = measure_scrub(rounds=5 if short else 15, say=say)
    if "kinds" in parts:
        rows = measure_kinds(directory, rounds=3 if short else 100, say=say)
        figures["kinds"] = rows
    if "regions" in parts:
        figures["regions"] = measure_regions(rounds=5 if short else 30, say=say)
    if "gpu" in parts:
        from tests.bench.gpus import measure_gpus

        measured = measure_gpus(rounds=3 if short else 20, say=say)
        if measured is not None:
            figures["gpu"] = measured
    if "chain" in parts:
        from tests.bench.chain import measure_chain

        size, times, seconds = (100_000, 3, 1.0) if short else (1_000_000, 5, 4.0)
        figures["chain"] = measure_chain(
            directory, records=size, rounds=times, seconds=seconds, say=say
        )
    if "restart" in parts:
        sizes = (100_000,) if short else (100_000, 1_000_000)
        rows = [measure_restart(load, directory, records=size, say=say) for size in sizes]
        figures["restart"] = rows
    if "idle" in parts:
        figures["idle"] = measure_idle(directory, seconds=5 if short else 30)
    figures.update(_measure_fleet(directory, parts, short=short, say=say))
    return figures


def _measure_fleet(directory: Path, parts: list[str], *, short: bool, say: table.Say) -> Figures:
    """What takes a collector."""
    figures: Figures = {}
    if "pull" in parts:
        from tests.bench.pull import measure_pull

        size, times = (100_000, 2) if short else (1_000_000, 3)
        figures["pull"] = measure_pull(directory, records=size, rounds=times, say=say)
    if "collect" in parts:
        from tests.bench.collect import measure_collect

        size, times = (100_000, 2) if short else (1_000_000, 3)
        figures["collect"] = measure_collect(directory, records=size, rounds=times, say=say)
    if "api" in parts:
        from tests.bench.api import measure_api

        figures["api"] = measure_api(directory, short=short, say=say)
    if "metering" in parts:
        from tests.bench.metering import measure_metering

        figures["metering"] = measure_metering(directory, short=short, say=say)
    if "quota" in parts:
        from tests.bench.quota import measure_quota

        figures["quota"] = measure_quota(directory, rounds=3 if short else 20, say=say)
    return figures


def _commit() -> str:
    if shutil.which("git") is None:  # the emulated machine has the tree and no git
        return os.environ.get("LEASED_COMMIT", "unknown")
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return described.stdout.strip()


def _machine() -> Figures:
    return {
        "commit": _commit(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
