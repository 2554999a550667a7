# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.sim --seed N --ticks M`: one run, told in full. `--seeds A:B` runs a swarm and
names what fell.

Rule: what is printed is enough to replay: seed, ticks, commit. Exit status 1 if anything was
breached.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.sim.swarm import TICKS, run_seed, run_seeds
from tests.sim.witnesses import WitnessWorld
from tests.sim.world import Outcome, World


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the seed to run")
    parser.add_argument("--seeds", help="a range A:B to run instead, B not included")
    parser.add_argument("--ticks", type=int, default=TICKS, help="length of the storm in 100 ms")
    parser.add_argument("--trace", action="store_true", help="print every line of the trace")
    parser.add_argument(
        "--witnesses", action="store_true", help="a node, two collectors and a nemesis instead"
    )
    options = parser.parse_args()
    make = WitnessWorld if options.witnesses else World
    print(f"commit {_commit()}, ticks {options.ticks}", flush=True)
    if options.seeds:
        first, _, last = options.seeds.partition(":")
        return _swarm(range(int(first), int(last)), options.ticks, make)
    outcome = run_seed(options.seed, options.ticks, make=make)
    if options.trace:
        print("\n".join(outcome.trace))
    _tell(outcome)
    return 1 if outcome.breaches else 0


def _swarm(seeds: range, ticks: int, make: type[World]) -> int:
    began = time.monotonic()
    fallen = records = leases = 0
    met: dict[str, int] = {}
    for outcome in run_seeds(seeds, ticks, make=make):
        records += outcome.records
        leases += outcome.leases
        for name, count in outcome.faults.items():
            met[name] = met.get(name, 0) + count
        if outcome.breaches:
            fallen += 1
            print(f"seed {outcome.seed}: {len(outcome.breaches)} breaches: {outcome.breaches[0]}")
    print(f"{len(seeds)} seeds, {fallen} fell, {leases} leases, {records} records")
    for name, count in sorted(met.items()):
        print(f"  {count:6} {name}")
    print(f"{time.monotonic() - began:.1f} s")
    return 1 if fallen else 0


def _tell(outcome: Outcome) -> None:
    print(
        f"seed {outcome.seed}: trace {outcome.fingerprint}, {outcome.records} records, "
        f"{outcome.leases} leases, {outcome.agent_runs} runs of the agent in {outcome.boots} boots"
    )
    for table in (outcome.faults, outcome.replies):
        print("  " + ", ".join(f"{name} {count}" for name, count in sorted(table.items())))
    for breach in outcome.breaches:
        print(f"BREACH {breach}")


def _commit() -> str:
    """The commit this runs on, with a mark if the tree is not clean."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
