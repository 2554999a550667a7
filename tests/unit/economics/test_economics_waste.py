# SPDX-License-Identifier: Apache-2.0
"""Waste and heat by example: the classes as the source document has them, and their edges."""

from __future__ import annotations

import pytest

from leased.economics.heat import Heat, Signals, heat_of
from leased.economics.rates import DEFAULT_CARD, Rate, RateCard
from leased.economics.waste import Held, Waste, classify, judge, premium_kinds
from leased.terms.resource import ResourceKind, TierKind
from leased.terms.teardown import Utilization


def used(
    mean_pm: int, active_pm: int = 1000, samples: int = 60, coverage: int = 900
) -> Utilization:
    return Utilization(mean_pm, mean_pm, active_pm, samples, coverage)


@pytest.mark.parametrize(
    ("seen", "premium", "fragmented", "waste"),
    [
        (used(249), False, False, Waste.OVERPROVISIONED),
        (used(250), False, False, Waste.HEALTHY),  # < 25 %, strictly
        (used(249), True, False, Waste.PREMIUM),
        (used(250), True, False, Waste.HEALTHY),
        (used(900, active_pm=99), True, True, Waste.IDLE),
        (used(900, active_pm=100), False, False, Waste.HEALTHY),  # < 10 %, strictly
        (used(100, active_pm=99), True, True, Waste.IDLE),  # the first that fits
        (used(249), False, True, Waste.OVERPROVISIONED),
        (used(800), False, True, Waste.FRAGMENTED),
        (used(350), True, False, Waste.HEALTHY),  # the typical GPU of the source
        (used(0, samples=5), True, True, Waste.UNKNOWN),
        (used(0, samples=6, coverage=500), False, False, Waste.OVERPROVISIONED),
        (used(0, coverage=499), True, True, Waste.UNKNOWN),
        (Utilization(), True, True, Waste.UNKNOWN),
    ],
)
def test_the_first_class_that_fits(
    seen: Utilization, premium: bool, fragmented: bool, waste: Waste
) -> None:
    one = Held("a", "acme", "n", ResourceKind.CPU, 1000, seen)
    assert classify(one, premium=premium, fragmented=fragmented) is waste


def small(number: int, capacity: int, whole: int | None = 64_000) -> Held:
    return Held(
        f"lease{number}", "acme", "n", ResourceKind.CPU, capacity, used(900), node_capacity=whole
    )


@pytest.mark.parametrize(
    ("count", "capacity", "whole", "waste"),
    [
        (16, 3199, 64_000, Waste.FRAGMENTED),
        (16, 3200, 64_000, Waste.HEALTHY),  # a twentieth of the node each is not small
        (15, 100, 64_000, Waste.HEALTHY),
        (16, 100, None, Waste.HEALTHY),  # how much the node has is not known
    ],
)
def test_many_small_leases_of_one_tenant_are_fragmented(
    count: int, capacity: int, whole: int | None, waste: Waste
) -> None:
    judged = judge([small(n, capacity, whole) for n in range(count)], DEFAULT_CARD)
    assert {one.waste for one in judged} == {waste}


def test_another_tenants_small_leases_do_not_count() -> None:
    leases = [small(n, 100) for n in range(15)]
    leases.append(
        Held("x", "umbrella", "n", ResourceKind.CPU, 100, used(900), node_capacity=64_000)
    )
    assert {one.waste for one in judge(leases, DEFAULT_CARD)} == {Waste.HEALTHY}


def test_expensive_is_a_gpu_or_a_rate_of_the_top_quartile() -> None:
    assert (ResourceKind.GPU, None) in premium_kinds(RateCard(rates=()))
    card = RateCard(
        rates=(
            Rate(ResourceKind.MEM, 1),
            Rate(ResourceKind.MEM, 40, TierKind.HBM),
            Rate(ResourceKind.CPU, 2),
            Rate(ResourceKind.BLOCK, 3),
        )
    )
    expensive = premium_kinds(card)
    assert (ResourceKind.MEM, TierKind.HBM) in expensive
    assert (ResourceKind.CPU, None) not in expensive and (ResourceKind.MEM, None) not in expensive


def test_a_tier_with_a_rate_of_its_own_is_as_expensive_as_that() -> None:
    """DRAM is dear here and CXL is not: who wastes CXL wastes nothing premium."""
    mem = ResourceKind.MEM
    card = RateCard(
        rates=(Rate(mem, 40), Rate(mem, 1, TierKind.CXL), Rate(ResourceKind.CPU, 2)),
    )
    judged = {
        tier: judge([Held("a", "t", "n", mem, 1 << 30, used(100), tier)], card)[0].waste
        for tier in (TierKind.DRAM, TierKind.CXL, None)
    }
    assert judged == {
        TierKind.DRAM: Waste.PREMIUM,
        TierKind.CXL: Waste.OVERPROVISIONED,
        None: Waste.PREMIUM,
    }


@pytest.mark.parametrize(
    ("signals", "heat"),
    [
        (Signals(), Heat(0, "")),
        (Signals(millicelsius=45_000), Heat(0, "temperature")),
        (Signals(millicelsius=75_000), Heat(500, "temperature")),
        (Signals(millicelsius=95_000, throttled_pm=10), Heat(1000, "temperature")),
        (Signals(millicelsius=60_000, throttled_pm=400), Heat(400, "throttling")),
        (Signals(pressed_pm=100, throttled_pm=100), Heat(200, "pressure")),
    ],
)
def test_the_hottest_signal_counts(signals: Signals, heat: Heat) -> None:
    assert heat_of(signals) == heat
