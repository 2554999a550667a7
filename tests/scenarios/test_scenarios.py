# SPDX-License-Identifier: Apache-2.0
"""Every scenario beside this file, on the real lessor: what peers got wrong, by name, and what
users expect of quotas, queues and preemption.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.stage import Stage, load, perform

HERE = Path(__file__).parent
SCENARIOS = sorted(HERE.glob("*.toml"))
CASES_MIN = 25


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    stage = perform(path)
    replayed = [type(event).__name__ for event, _ in stage.desk.history]
    assert replayed, "something happened"
    # Whatever was played, a restart finds the same leases.
    before = {one: lease.state for one, lease in stage.desk.table.leases.items()}
    live = [one for one, lease in stage.desk.table.leases.items() if lease.ended is None]
    stage.desk.restart(known=live)
    after = {one: lease.state for one, lease in stage.desk.table.leases.items()}
    assert after == before


def test_there_are_enough_and_each_has_a_title_of_its_own() -> None:
    assert len(SCENARIOS) >= CASES_MIN
    titles = [load(path)["title"] for path in SCENARIOS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    "step",
    [
        {"do": "acquire", "name": "a", "gpu": 1, "expect_answer": "waits"},
        {"do": "acquire", "name": "a", "gpu": 1, "expect_states": {"a": "draining"}},
        {"do": "acquire", "name": "a", "gpu": 1, "expect_free": {"gpu": 2}},
        {"do": "acquire", "name": "a", "gpu": 1, "expect_event": "Preempted"},
        {"do": "acquire", "name": "a", "gpu": 1, "expect_queue": ["a"]},
        {"do": "acquire", "name": "a", "gpu": 1, "mispelled": 1},
    ],
)
def test_an_expectation_that_does_not_hold_fails(step: dict[str, object]) -> None:
    stage = Stage({"node": {"gpus": 2}, "steps": []})
    with pytest.raises(AssertionError):
        stage.play(step)
