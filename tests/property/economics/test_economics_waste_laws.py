# SPDX-License-Identifier: Apache-2.0
"""Waste and heat as laws: what was not seen is unknown, more use never makes more waste, heat only
scores down."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from leased.economics.heat import Signals, heat_of, steered
from leased.economics.rates import DEFAULT_CARD
from leased.economics.waste import ACTIVE_PM, USED_PM, Held, Waste, classify, is_known, judge
from leased.terms.resource import ResourceKind
from leased.terms.teardown import Utilization

PM = st.integers(0, 1000)
RANK = (Waste.IDLE, Waste.PREMIUM, Waste.OVERPROVISIONED, Waste.FRAGMENTED, Waste.HEALTHY)


@st.composite
def seen(draw: st.DrawFn) -> Utilization:
    """Whatever a sampler may have seen, nothing included."""
    if draw(st.booleans()):
        return Utilization(sample_count=draw(st.integers(0, 3)))
    mean = draw(PM)
    return Utilization(mean, max(mean, draw(PM)), draw(PM), draw(st.integers(0, 500)), draw(PM))


@st.composite
def held(draw: st.DrawFn) -> Held:
    return Held(
        lease=draw(st.text("abcdef", min_size=1, max_size=4)),
        tenant=draw(st.sampled_from(("acme", "umbrella"))),
        node=draw(st.sampled_from(("n1", "n2"))),
        kind=draw(st.sampled_from(list(ResourceKind))),
        capacity=draw(st.integers(1, 10**12)),
        utilization=draw(seen()),
        node_capacity=draw(st.none() | st.integers(1, 10**12)),
    )


@given(st.lists(held(), max_size=40))
def test_every_lease_has_one_class_and_too_little_seen_is_unknown(leases: list[Held]) -> None:
    judged = judge(leases, DEFAULT_CARD)
    assert [one.held for one in judged] == leases
    for one in judged:
        assert (one.waste is Waste.UNKNOWN) == (not is_known(one.held.utilization))
        assert (one.unused_pm is None) == (one.waste is Waste.UNKNOWN)
        if one.unused_pm is not None:
            assert 0 <= one.unused_pm <= 1000


@given(st.lists(held(), max_size=30), st.randoms())
def test_the_order_of_the_leases_does_not_matter(leases: list[Held], random: object) -> None:
    shuffled = leases[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    by_lease = sorted(repr(one) for one in judge(leases, DEFAULT_CARD))
    assert sorted(repr(one) for one in judge(shuffled, DEFAULT_CARD)) == by_lease


@given(held(), st.booleans(), st.booleans(), PM, PM)
def test_more_use_never_makes_more_waste(
    one: Held, premium: bool, fragmented: bool, mean: int, active: int
) -> None:
    if not is_known(one.utilization):
        return
    before = one.utilization
    assert before.mean_pm is not None and before.active_share_pm is not None
    more = msgspec.structs.replace(
        before,
        mean_pm=max(before.mean_pm, mean),
        active_share_pm=max(before.active_share_pm, active),
    )
    told = {"premium": premium, "fragmented": fragmented}
    ranks = [
        RANK.index(classify(msgspec.structs.replace(one, utilization=each), **told))
        for each in (before, more)
    ]
    assert ranks[0] <= ranks[1]


@given(st.none() | st.integers(-50_000, 150_000), st.none() | PM, st.none() | st.integers(0, 5000))
def test_heat_is_bounded_and_every_signal_only_adds(
    degrees: int | None, throttled: int | None, pressed: int | None
) -> None:
    heat = heat_of(Signals(degrees, throttled, pressed))
    assert 0 <= heat.heat_pm <= 1000
    for fewer in (Signals(None, throttled, pressed), Signals(degrees, None, pressed), Signals()):
        assert heat_of(fewer).heat_pm <= heat.heat_pm
    assert heat_of(Signals()) == heat_of(Signals(None, None, None)) and heat_of(Signals()).by == ""


@given(st.integers(0, 10**9), PM, PM)
def test_heat_scores_down_and_never_below_half(score: int, cool: int, hot: int) -> None:
    cool, hot = sorted((cool, hot))
    assert score // 2 <= steered(score, hot) <= steered(score, cool) <= score
    assert steered(score, 0) == score


def test_the_limits_are_those_of_the_source() -> None:
    assert (ACTIVE_PM, USED_PM) == (100, 250)
