# SPDX-License-Identifier: Apache-2.0
"""The short form of the swarm: a few seeds, and that a seed is a history."""

from __future__ import annotations

import pytest

from leased.terms import event as events
from tests.sim.policy_swarm import OWN_PAGES, PAGE, Swarm, contest, run

TENANTS, STEPS = 1_000, 1_500


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_tenants_some_of_them_hostile(seed: int) -> None:
    swarm = run(seed, TENANTS, STEPS)
    assert swarm.findings == [], f"python -m tests.sim.policy_swarm --seed {seed}"
    kinds = {type(event) for event, _ in swarm.history}
    assert {events.Allocated, events.Renewed, events.Refused, events.Reclaimed} <= kinds
    assert swarm.made_way and swarm.said["granted"] > 100 and swarm.said["submit_rate"] > 100


def test_the_same_seed_is_the_same_history() -> None:
    first, second = (run(11, 300, 400) for _ in range(2))
    assert first.history == second.history


def test_a_lease_above_a_limit_would_be_found() -> None:
    swarm = Swarm(5, 10)
    swarm.held[3] = OWN_PAGES * PAGE
    swarm.ask(3, swarm.lessor.policy.tenant_default.level_max or 0, pages=1)
    assert "above its hard limit" in swarm.findings[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_tricks_gain_nothing_where_everybody_wants_all(seed: int) -> None:
    had = contest(seed, 90, 20_000)
    tricks = {temper: share for temper, share in had.items() if temper != "steady"}
    assert len(tricks) == 3 and max(tricks.values()) < 1.1, had
    assert min(had.values()) > 0.5, "and nobody starves"
