# SPDX-License-Identifier: Apache-2.0
"""A node, two collectors and a nemesis, seed by seed: whatever is done to what a collector has seen
is found by one of them, nobody honest is blamed, and a quorum is never claimed that there is not.

Rule: a seed that falls is named with the command that replays it. `LEASED_WITNESS_SEEDS` asks for
more of them (CI: 100), or for fewer: whether they met everything is judged from 100 on.
"""

from __future__ import annotations

import os

from tests.doubles.host import not_proven
from tests.sim.swarm import run_seed, run_seeds
from tests.sim.witnesses import TAMPERINGS, TICKS, Forgetful, Silent, WitnessWorld

ENOUGH = 100
SEEDS = int(os.environ.get("LEASED_WITNESS_SEEDS", ENOUGH))


def test_every_tampering_is_found_and_nobody_honest_is_blamed() -> None:
    met: dict[str, int] = {}
    for outcome in run_seeds(range(SEEDS), TICKS, make=WitnessWorld):
        replay = f"python -m tests.sim --witnesses --seed {outcome.seed} --ticks {TICKS} --trace"
        assert not outcome.breaches, f"{replay}\n" + "\n".join(outcome.breaches)
        for name, count in outcome.faults.items():
            met[name] = met.get(name, 0) + count
    if SEEDS < ENOUGH:
        not_proven("that the nemesis did everything", f"{SEEDS} seeds; it takes {ENOUGH}")
    # A swarm that met nothing proves nothing.
    assert {f"{name}: found" for name in TAMPERINGS} <= met.keys()
    assert met["None: not visible"] > SEEDS // 5 and "None: found" not in met
    assert {"message lost", "answer lost", "message twice", "collector died"} <= met.keys()
    assert met["quorum"] > SEEDS // 5


def test_the_same_seed_tells_the_same_story() -> None:
    first, second, other = (run_seed(seed, TICKS, make=WitnessWorld) for seed in (11, 11, 12))
    assert first.trace == second.trace != other.trace


def test_collectors_that_do_not_compare_notes_miss_a_split_view() -> None:
    """The swarm can fail: what only their reading each other finds, goes unfound without."""
    missed = run_seeds(range(40), TICKS, make=Silent)
    assert any("split: nobody has found it" in text for one in missed for text in one.breaches)


def test_a_collector_that_cosigns_what_it_does_not_have_is_seen() -> None:
    found = run_seeds(range(6), TICKS, make=Forgetful)
    assert any("a quorum for" in text for one in found for text in one.breaches)
