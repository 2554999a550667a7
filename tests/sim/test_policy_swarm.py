# SPDX-License-Identifier: Apache-2.0
"""The short form of the swarm: a few seeds, and that a seed is a history."""

from __future__ import annotations

import pytest

from leased.terms import event as events
from tests.sim.policy_swarm import OWN_PAGES, PAGE, Swarm, run

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


def test_hostile_tenants_get_no_more_than_honest_ones() -> None:
    swarm = run(7, 400, 4_000)
    assert swarm.findings == []
    used: dict[str, list[int]] = {}
    for n, temper in enumerate(swarm.tempers):
        used.setdefault(temper, []).append(swarm.held[n])
    assert max(max(held) for held in used.values()) <= OWN_PAGES * PAGE
