# SPDX-License-Identifier: Apache-2.0
"""T3: each system call that makes, recovers, writes, prunes and closes a log fails once, in every
way it may.

`LEASED_SWEEP=all` runs every one of them (about 2 800, an hour on two cores), `LEASED_SWEEP=1/4` to
`4/4` the same in four sittings; the short form takes each call with each fault once, another
occurrence each by `LEASED_CRASH_SEED`.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from tests.crash.sweep import CALLS, Case, Outcome, Scenes, table
from tests.doubles.host import not_proven

SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
SITTING = os.environ.get("LEASED_SWEEP", "").replace("all", "1/1")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    pytest.importorskip("leased._native", reason="the compiled part is not built")
    if shutil.which("strace") is None:
        not_proven("the sweep of system calls", "there is no strace")
    return Scenes(tmp_path_factory.mktemp("scenes"))


def chosen(cases: list[Case]) -> list[Case]:
    """Each call with each fault once, those that must not be carried on from thrice; or all, or
    those of one sitting."""
    if SITTING:
        sitting, _, sittings = SITTING.partition("/")
        mixed = Random(SEED).sample(cases, len(cases))  # some of each fault in every sitting
        return mixed[int(sitting) - 1 :: int(sittings)]
    random, groups = Random(SEED), {}
    for case in cases:
        groups.setdefault((case.call, case.fault, case.vital), []).append(case)
    picked = ((group, 3 if vital else 1) for (_, _, vital), group in groups.items())
    return [
        case for group, count in picked for case in random.sample(group, min(count, len(group)))
    ]


def test_no_failing_call_costs_an_acknowledged_record(scenes: Scenes, tmp_path: Path) -> None:
    every = scenes.cases(tmp_path)
    cases = chosen(every)
    missing = CALLS.keys() - {case.call for case in every}
    assert not missing, f"a log does not call {missing} any more"

    def run(numbered: tuple[int, Case]) -> Outcome:
        number, case = numbered
        directory = tmp_path / str(number)
        directory.mkdir()
        outcome = scenes.run(case, directory)
        if not outcome.wrong:
            shutil.rmtree(directory)
        return outcome

    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(cases, pool.map(run, enumerate(cases)), strict=True))
    print(f"seed {SEED}: {len(cases)} of {len(every)} faults")
    print("\n".join(table(outcomes)))
    wrong = [f"{case}: {outcome}" for case, outcome in outcomes.items() if outcome.wrong]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    # A call that fails has to be noticed: an error that everybody carries on from proves nothing.
    ended = sum(outcome.how == "ended" for outcome in outcomes.values())
    assert ended >= len(cases) // 4, f"only {ended} of {len(cases)} faults were noticed"
