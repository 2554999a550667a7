# SPDX-License-Identifier: Apache-2.0
"""The formulas of fair division against rationals, and windows against a sum over instants."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.lessor.fairness import (
    INDEX_ONE,
    decay_weights,
    entitlements,
    jain_index,
    least_part,
)
from leased.lessor.window import STEPS, Window, weights_of

tenants = st.integers(1, 12).map(lambda n: [f"t{i:02}" for i in range(n)])
capacities = st.integers(0, 10**6) | st.integers(0, 2**50)


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, dict[str, int], dict[str, int], int, int]:
    names = draw(tenants)
    capacity = draw(capacities)
    weights = {name: draw(st.integers(1, 10_000)) for name in names}
    demands = {
        name: draw(st.just(0) | st.integers(0, 2 * capacity + 2) | st.just(2**60)) for name in names
    }
    low = draw(st.integers(0, 1000))
    return capacity, weights, demands, low, draw(st.integers(max(1, low), 1000))


def exactly(
    capacity: int, weights: dict[str, int], demands: dict[str, int], low: int, high: int
) -> dict[str, Fraction]:
    """x = clamp(w * level, floor, ceiling) with the one level at which all is given out (or nobody
    wants more), found by bisection over the points where somebody is clamped.
    """
    active = [name for name, demand in demands.items() if demand > 0]
    if not active:
        return {}
    most = {name: min(demands[name], capacity * high // 1000) for name in active}
    floor = min(capacity * low // 1000, capacity // len(active))
    least = {name: min(floor, most[name]) for name in active}

    def given_out(level: Fraction) -> dict[str, Fraction]:
        return {
            name: min(max(level * weights[name], Fraction(least[name])), Fraction(most[name]))
            for name in active
        }

    points = sorted(
        {Fraction(bound[name], weights[name]) for name in active for bound in (least, most)}
    )
    below, above = Fraction(0), None
    for point in points:
        if sum(given_out(point).values()) <= capacity:
            below = point
        elif above is None:
            above = point
    if above is None:
        return given_out(below)
    at, to = sum(given_out(below).values()), sum(given_out(above).values())
    if to == at:
        return given_out(below)
    return given_out(below + (above - below) * (capacity - at) / (to - at))


@given(st.integers(1, 10**12), st.lists(st.integers(1, 10_000), min_size=1, max_size=40))
def test_tenant_share_is_weight_over_sum_of_weights_times_capacity(
    capacity: int, weights: list[int]
) -> None:
    """The formula of the source document, for tenants that want all they can get and no floor or
    ceiling: exact, but for the unit that cannot be divided.
    """
    named = {f"t{i:02}": weight for i, weight in enumerate(weights)}
    shares = entitlements(capacity, named, dict.fromkeys(named, capacity), min_pm=0, max_pm=1000)
    assert sum(shares.values()) == capacity
    for name, share in shares.items():
        exact = Fraction(named[name], sum(weights)) * capacity
        assert abs(share - exact) < 1
        if exact.denominator == 1 and all(
            (Fraction(weight, sum(weights)) * capacity).denominator == 1 for weight in weights
        ):
            assert share == exact


@given(problems())
def test_water_filling_is_exact(
    problem: tuple[int, dict[str, int], dict[str, int], int, int],
) -> None:
    capacity, weights, demands, low, high = problem
    shares = entitlements(capacity, weights, demands, min_pm=low, max_pm=high)
    exact = exactly(capacity, weights, demands, low, high)
    assert shares.keys() == exact.keys()
    assert sum(shares.values()) <= capacity
    for name, share in shares.items():
        assert abs(share - exact[name]) < 1, (name, share, exact)
        assert share <= min(demands[name], capacity * high // 1000)
    if sum(exact.values()) == capacity and shares:
        assert sum(shares.values()) == capacity, "nothing is left over that somebody wants"


@given(problems(), st.booleans())
def test_nobody_is_entitled_to_less_than_what_is_said_of_everybody(
    problem: tuple[int, dict[str, int], dict[str, int], int, int], equal: bool
) -> None:
    capacity, weights, demands, low, high = problem
    if equal:
        weights = dict.fromkeys(weights, 7)
    shares = entitlements(capacity, weights, demands, min_pm=low, max_pm=high)
    count = max(1, len(shares))
    least = least_part(capacity, count, equal=equal, min_pm=low, max_pm=high)
    for name, share in shares.items():
        assert share >= min(demands[name], least)


def test_the_order_of_names_does_not_matter_and_ties_go_to_the_first() -> None:
    weights = {"b": 1, "a": 1, "c": 1}
    wants = dict.fromkeys(weights, 100)
    assert entitlements(10, weights, wants, min_pm=0, max_pm=1000) == {"a": 4, "b": 3, "c": 3}


def test_more_tenants_than_floors_fit_share_the_capacity() -> None:
    """5 % for each of 25: the floors are scaled down to one twenty-fifth."""
    weights = {f"t{i:02}": 1000 for i in range(24)} | {"z": 1_000_000}
    shares = entitlements(1000, weights, dict.fromkeys(weights, 1000), min_pm=50, max_pm=500)
    assert min(shares.values()) == 40 and shares["z"] == 40


@given(st.lists(st.tuples(st.integers(0, 10**15), st.integers(1, 10**15)), max_size=30))
def test_jains_index_is_the_formula(values: list[tuple[int, int]]) -> None:
    quotients = [Fraction(a, b) for a, b in values]
    squares = sum(q * q for q in quotients)
    if not squares:
        assert jain_index(values) == INDEX_ONE
        return
    exact = sum(quotients) ** 2 / (len(quotients) * squares) * INDEX_ONE
    if min(q for q in quotients if q) > Fraction(1, 2**20):
        assert abs(jain_index(values) - exact) <= 2


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([], 1_000_000),
        ([(1, 2), (2, 4), (50, 100)], 1_000_000),
        ([(1, 1), (0, 1)], 500_000),
        ([(1, 1), (0, 1), (0, 1), (0, 1)], 250_000),
        ([(0, 1), (0, 5)], 1_000_000),
    ],
)
def test_jains_index_by_hand(values: list[tuple[int, int]], index: int) -> None:
    assert jain_index(values) == index


@given(st.integers(1, 10**12), st.integers(1, 10**13))
def test_decay_halves_every_half_life(step_ns: int, half_life_ns: int) -> None:
    weights = decay_weights(STEPS, step_ns, half_life_ns)
    assert weights[0] == 1 << 48
    for age, weight in enumerate(weights):
        halvings, rest = divmod(age * step_ns, half_life_ns)
        # 2^-x between its neighbours at sixty-fourths, to a relative 2^-30.
        low = 2 ** -(halvings + (rest * 64 // half_life_ns + 1) / 64)
        high = 2 ** -(halvings + (rest * 64 // half_life_ns) / 64)
        assert low * 2**48 * (1 - 2**-30) - 2 <= weight <= high * 2**48 * (1 + 2**-30) + 2
    assert weights == tuple(sorted(weights, reverse=True))


@given(
    st.integers(STEPS, 5_000),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 5)), max_size=25),
)
def test_a_window_is_the_sum_over_its_instants(
    window_ns: int, story: list[tuple[int, int]]
) -> None:
    step_ns, weights = weights_of(window_ns, 0)
    now, held, window = 1000, 0, Window(0, 1000)
    per_instant: dict[int, int] = {}
    for gap, after in story:
        for instant in range(now, now + gap):
            per_instant[instant] = held
        now += gap
        window.hold(after, now, step_ns)
        held = after
        first = (now // step_ns - STEPS + 1) * step_ns
        counted = sum(n for instant, n in per_instant.items() if instant >= first)
        assert window.used(now, step_ns, weights) == counted << 48


def test_a_window_goes_on_over_a_reboot() -> None:
    step_ns, weights = weights_of(STEPS * 10, 0)
    window = Window(5, 1_000)
    window.hold(0, 1_020, step_ns)
    assert window.used(3, step_ns, weights) == 100 << 48
    assert window.used(3 + STEPS * 10, step_ns, weights) == 0
