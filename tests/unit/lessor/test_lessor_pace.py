# SPDX-License-Identifier: Apache-2.0
"""Pace: so many per so much time, exactly."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from leased.lessor.pace import KEPT_MAX, Pace
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Rate

TEN = Rate(10, NS_PER_S)


def test_a_second_of_the_rate_may_be_had_at_once_and_then_it_is_even() -> None:
    paced = Pace()
    now = 77 * NS_PER_S
    assert [paced.take("a", TEN, now) for _ in range(10)] == [None] * 10
    assert paced.take("a", TEN, now) == now + NS_PER_S // 10
    assert paced.take("a", TEN, now + NS_PER_S // 10 - 1) == now + NS_PER_S // 10
    assert paced.take("a", TEN, now + NS_PER_S // 10) is None
    assert paced.take("b", TEN, now) is None, "others are not held up"


def test_a_slow_rate_lets_one_through_at_a_time() -> None:
    paced, slow = Pace(), Rate(2, 3_600 * NS_PER_S)
    assert paced.take("a", slow, 5) is None
    assert paced.take("a", slow, 5) == 5 + 1_800 * NS_PER_S


def test_another_rate_begins_anew() -> None:
    paced = Pace()
    for _ in range(10):
        paced.take("a", TEN, 0)
    assert paced.take("a", TEN, 0) is not None
    assert paced.take("a", Rate(11, NS_PER_S), 0) is None


def test_what_is_remembered_is_bounded() -> None:
    paced = Pace()
    for number in range(3 * KEPT_MAX):
        paced.take(f"tenant-{number}", TEN, number * NS_PER_S)
    assert len(paced._kept) <= KEPT_MAX + 1


@given(
    st.integers(1, 50),
    st.sampled_from([NS_PER_S, 60 * NS_PER_S, 7]),
    st.lists(st.integers(0, NS_PER_S), max_size=60),
)
def test_no_window_holds_more_than_the_rate_and_its_burst(
    count: int, per_ns: int, gaps: list[int]
) -> None:
    rate, paced, now, taken = Rate(count, per_ns), Pace(), 0, []
    for gap in gaps:
        now += gap
        until = paced.take("a", rate, now)
        if until is None:
            taken.append(now)
        else:
            assert until > now
            assert Pace.take(paced, "a", rate, until) is None, "it may when it was told that it may"
            taken.append(until)
            now = until
    burst = max(Fraction(1), Fraction(NS_PER_S * count, per_ns))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = burst + Fraction((taken[last] - taken[first]) * count, per_ns)
            assert last - first + 1 <= most
