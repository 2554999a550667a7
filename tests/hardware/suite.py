# SPDX-License-Identifier: Apache-2.0
"""The hardware suite: what is true of the GPU of this machine, in five minutes, nothing changed
(`tests/hardware/run --help`).

It sets no mode and no limit, does not reset, and touches only a GPU that nobody uses. The results
are one JSON file a GPU model, from which `tests/hardware/table.py` makes the table in
tests/EVIDENCE.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hardware.bench import Bench, NoAnswer
from tests.hardware.case import CASES, FAILED, HELD, NOT_RUN, Case, Failed, Finding, NotRun
from tests.hardware.options import read_arguments
from tests.hostile.cuda_process import TrickFailed

FORMAT = 1
RESULTS = Path(__file__).resolve().parent / "results"
MODULES = ("cases_access", "cases_release", "cases_sharing", "cases_lease", "cases_agent")
_NO_GPU, _CHANGED = 66, 70


def cases() -> list[Case]:
    """Every case there is, in order."""
    for name in MODULES:
        importlib.import_module(f"tests.hardware.{name}")
    return CASES


def find_out(one: Case, bench: Bench, left_s: float) -> Finding:
    """Run one case to its verdict."""
    began = time.monotonic()

    def ended(verdict: str, why: str, measured: Mapping[str, Any]) -> Finding:
        took_ms = round((time.monotonic() - began) * 1000)
        return Finding(one, verdict, why, dict(measured), took_ms)

    if left_s < one.seconds_most:
        return ended(NOT_RUN, f"{left_s:.0f} s left, it may take {one.seconds_most}", {})
    try:
        return ended(HELD, "", one.find_out(bench))
    except NotRun as lacking:
        return ended(NOT_RUN, str(lacking), {})
    except Failed as seen:
        return ended(FAILED, str(seen), seen.measured)
    except (NoAnswer, TrickFailed, OSError, ValueError) as broke:
        return ended(FAILED, f"{type(broke).__name__}: {broke}", {})


def run(bench: Bench, budget_s: float, chosen: frozenset[str]) -> list[Finding]:
    """Every case that was chosen (all, if none), in order."""
    until = time.monotonic() + budget_s
    found = []
    for one in cases():
        if chosen and one.name not in chosen:
            continue
        finding = find_out(one, bench, until - time.monotonic())
        print(_line(finding), flush=True)
        found.append(finding)
    return found


def _line(finding: Finding) -> str:
    words = f"{finding.verdict:<8} {finding.case.name:<22} {finding.took_ms / 1000:5.1f} s  "
    measured = ", ".join(f"{name} {value}" for name, value in finding.measured.items())
    return words + "; ".join(filter(None, (finding.why, measured)))


def document(bench: Bench, findings: list[Finding], *, evidence: str) -> dict[str, Any]:
    """What is written down. Nothing in it names this machine or its GPU's serial."""
    return {
        "format": FORMAT,
        "evidence": evidence,
        "gpu": bench.identity["name"],
        "driver": bench.identity["driver"],
        "cuda": bench.identity["cuda"],
        "kernel": platform.release(),
        "root": os.geteuid() == 0,
        "on": datetime.now(UTC).strftime("%Y-%m-%d"),
        "memory": bench.ask("memory"),
        "cases": [finding.plain() for finding in findings],
    }


def write(results: Path, told: Mapping[str, Any]) -> Path:
    """One file a model; the mock's are kept apart from what was measured."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(told["gpu"]).lower()).strip("-")
    prefix = "" if told["evidence"] == "measured" else "mock-"
    path = results / f"{prefix}{slug}.json"
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2) + "\n")
    return path


def _bench(options: argparse.Namespace, gpu: str, environment: Mapping[str, str]) -> Bench:
    return Bench(gpu, environment, options.root, options.patience_s)


@contextlib.contextmanager
def bench_of(options: argparse.Namespace) -> Iterator[Bench]:
    """The bench that was asked for."""
    if not options.mock:
        with contextlib.closing(_bench(options, options.gpu, os.environ)) as bench:
            yield bench
        return
    from tests.mocks.nvml.control import Machine

    with Machine.create(gpus=[options.mock]) as machine:
        options.root = machine.root
        environment = {**os.environ, **machine.environment()}
        with contextlib.closing(_bench(options, "0", environment)) as bench:
            yield bench


def main() -> int:
    """Find out, write down, and see that every setting is as it was."""
    options = read_arguments()
    try:
        with bench_of(options) as bench:
            before = bench.ask("settings")
            print(f"{bench.identity['name']}, driver {bench.identity['driver']}", flush=True)
            findings = run(bench, options.budget_s, frozenset(options.case))
            after = bench.ask("settings")
            evidence = "measured" if options.root == Path("/") else "emulated"
            if options.results is not None:
                print(write(options.results, document(bench, findings, evidence=evidence)))
    except NoAnswer as none:
        print(f"no GPU can be asked here: {none}", file=sys.stderr)
        return _NO_GPU
    count = {name: sum(one.verdict == name for one in findings) for name in (HELD, FAILED, NOT_RUN)}
    print(", ".join(f"{number} {name}" for name, number in count.items()))
    if before != after:
        print(f"SETTINGS CHANGED: {before} -> {after}", file=sys.stderr)
        return _CHANGED
    return 1 if count[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
