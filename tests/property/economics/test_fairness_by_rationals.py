# SPDX-License-Identifier: Apache-2.0
"""Fairness by rationals: shares are one level of water, exactly; Jain's index is its formula."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from leased.collector.governance.fairness import filled, jain, water

weights = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 5_000), min_size=1)
shares = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted)


@given(weights, st.data(), st.integers(0, 10**6), shares)
def test_shares_are_one_level_of_water(weights, data, total, bounds) -> None:
    """Whoever is between its bounds has its weight times the level; whoever is not would be beyond
    the bound at that level; nothing is left that somebody could have."""
    demand = {name: data.draw(st.integers(0, 10**6)) for name in weights}
    (least_pm, most_pm), n = bounds, len(weights)
    found = water(total, weights, demand, min_pm=least_pm, max_pm=most_pm)
    most = {name: min(Fraction(total * most_pm, 1000), demand[name]) for name in weights}
    floor = min(Fraction(total * least_pm, 1000), Fraction(total, n))
    least = {name: min(floor, most[name]) for name in weights}
    assert all(least[name] <= found[name] <= most[name] for name in weights)
    assert sum(found.values()) == min(total, sum(most.values()))
    levels = {name: found[name] / weights[name] for name in weights}
    inside = [levels[name] for name in weights if least[name] < found[name] < most[name]]
    assert len(set(inside)) <= 1
    # Nobody who could have more has less than what another has above its floor.
    for name in weights:
        for other in weights:
            if found[name] < most[name] and found[other] > least[other]:
                assert levels[name] >= levels[other], (found, name, other)


@given(weights, st.data(), st.integers(0, 10**6), shares)
def test_whole_shares_are_the_exact_ones_to_one(weights, data, total, bounds) -> None:
    demand = {name: data.draw(st.integers(0, 10**6)) for name in weights}
    exact = water(total, weights, demand, min_pm=bounds[0], max_pm=bounds[1])
    whole = filled(total, weights, demand, min_pm=bounds[0], max_pm=bounds[1])
    assert sum(whole.values()) == int(sum(exact.values())) <= total
    assert all(abs(whole[name] - exact[name]) < 1 for name in weights)
    assert whole == filled(
        total, dict(reversed(weights.items())), demand, min_pm=bounds[0], max_pm=bounds[1]
    )


@given(weights, st.integers(1, 10**6))
def test_who_wants_more_than_there_is_has_the_documented_share(weights, total) -> None:
    """TenantShare = (TenantWeight / SumOfWeights) * ClusterCapacity."""
    demand = dict.fromkeys(weights, total)
    found = water(total, weights, demand, min_pm=0, max_pm=1000)
    whole = sum(weights.values())
    assert found == {name: Fraction(total * weight, whole) for name, weight in weights.items()}


@given(st.lists(st.integers(0, 10**30), max_size=20))
def test_jains_index_is_its_formula(values) -> None:
    index = jain(values)
    if not any(values):
        assert index == 1
        return
    exact = Fraction(sum(values) ** 2, len(values) * sum(value * value for value in values))
    assert 0 <= exact - Fraction(index) < Fraction(1, 10_000)
    assert Fraction(1, len(values)) <= exact <= 1 and index <= Decimal(1)
