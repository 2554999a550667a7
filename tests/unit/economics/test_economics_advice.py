# SPDX-License-Identifier: Apache-2.0
"""Sensitivity and placement: borders to the unit, weights as documented, laws of scores."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.economics.placement import WEIGHTS, Site, Strategy, binding, rank, score
from leased.economics.sensitivity import Sensitivity, sensitivity


@pytest.mark.parametrize(
    ("cost_pm", "wait_pm", "used", "expected"),
    [
        (501, 0, True, Sensitivity.CRITICAL),
        (500, 301, True, Sensitivity.CRITICAL),
        (500, 300, True, Sensitivity.MODERATE),
        (200, 0, True, Sensitivity.LOW),
        (50, 0, True, Sensitivity.INDIFFERENT),
        (51, 0, True, Sensitivity.LOW),
        (0, 0, False, Sensitivity.UNUSED),
    ],
)
def test_levels_begin_above_their_border(
    cost_pm: int, wait_pm: int, used: bool, expected: Sensitivity
):
    assert sensitivity(cost_pm, wait_pm, used=used) is expected


def test_the_weights_are_the_documented_ones():
    for strategy in Strategy:
        assert sum(msgspec.structs.astuple(WEIGHTS[strategy])) == 100
    assert WEIGHTS[Strategy.SPREAD].pressure == WEIGHTS[Strategy.BINPACK].fragmentation == 50


def test_spread_picks_the_emptiest_and_bin_packing_the_fullest_that_has_room():
    sites = [Site(name, {"gpu": 8000}, {"gpu": used}) for name, used in
             (("empty", 0), ("half", 4000), ("nearly", 7000), ("full", 8000))]  # fmt: skip
    ask = {"gpu": 1000}
    assert [one.node_id for one in rank(sites, ask, Strategy.SPREAD)] == ["empty", "half", "nearly"]
    assert rank(sites, ask, Strategy.BINPACK)[0].node_id == "nearly"
    assert score(sites[0], {}, Strategy.SPREAD) is None
    assert rank(sites, {"net": 1}, Strategy.SPREAD) == []


def test_a_hot_node_loses_to_a_fuller_one_and_a_near_one_wins():
    cool = Site("cool", {"gpu": 8000}, {"gpu": 2000})
    hot = Site("hot", {"gpu": 8000}, {}, heat_pm=1000)
    assert [one.node_id for one in rank([cool, hot], {"gpu": 1000}, Strategy.SPREAD)] == [
        *("cool", "hot")
    ]
    near = Site("near", {"gpu": 8000}, {"gpu": 4000}, near_pm=1000)
    far = Site("far", {"gpu": 8000}, {"gpu": 3500})
    assert rank([far, near], {"gpu": 1000}, Strategy.SPREAD)[0].node_id == "near"


def test_what_a_workload_lives_by_says_which_node_is_good():
    """Critical on GPUs and indifferent to cores: it goes where GPUs are abundant."""
    levels = {"gpu": Sensitivity.CRITICAL, "cpu": Sensitivity.INDIFFERENT}
    ask = {"gpu": 1000, "cpu": 4000}
    assert binding(ask, levels) == ("gpu",) and binding(ask, {}) == ("cpu", "gpu")
    gpus = Site("gpus", {"gpu": 8000, "cpu": 64_000}, {"gpu": 1000, "cpu": 60_000})
    cores = Site("cores", {"gpu": 8000, "cpu": 64_000}, {"gpu": 6000, "cpu": 0})
    sites = [gpus, cores]
    assert rank(sites, ask, Strategy.SPREAD)[0].node_id == "cores"
    assert rank(sites, ask, Strategy.SPREAD, binding(ask, levels))[0].node_id == "gpus"
    full = msgspec.structs.replace(gpus, used={"gpu": 1000, "cpu": 64_000})
    assert score(full, ask, Strategy.SPREAD, ("gpu",)) is None, "all of it has to fit"


sites = st.builds(
    Site,
    node_id=st.text("abc", min_size=1, max_size=3),
    total=st.fixed_dictionaries({"gpu": st.integers(1, 9000), "cpu": st.integers(1, 9000)}),
    used=st.fixed_dictionaries({"gpu": st.integers(0, 9000), "cpu": st.integers(0, 9000)}),
    near_pm=st.integers(0, 1000),
    heat_pm=st.integers(0, 1000),
)
asks = st.fixed_dictionaries({"gpu": st.integers(0, 9000), "cpu": st.integers(1, 9000)})


@given(st.lists(sites, max_size=6), asks, st.sampled_from(Strategy))
def test_scores_are_shares_and_heat_never_helps(found: list[Site], ask, strategy: Strategy):
    ranked = rank(found, ask, strategy)
    assert [one.score_pm for one in ranked] == sorted((o.score_pm for o in ranked), reverse=True)
    for site in found:
        one = score(site, ask, strategy)
        fits = all(site.used[kind] + amount <= site.total[kind] for kind, amount in ask.items())
        assert (one is not None) == (
            fits or all(site.used[k] + n <= site.total[k] for k, n in ask.items() if n)
        )
        if one is not None:
            assert 0 <= one.score_pm <= 1000
            cool = score(msgspec.structs.replace(site, heat_pm=0), ask, strategy)
            assert cool is not None and cool.score_pm >= one.score_pm
