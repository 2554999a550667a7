# SPDX-License-Identifier: Apache-2.0
"""What it costs to be quicker: the queue against closed forms and a simulation, and lengths of
leases against a sorted list."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leased.collector.accounts.accounts import Accounts
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from leased.collector.planning import queueing
from leased.collector.planning.flow import (
    DAY_NS,
    DAYS_KEPT,
    Day,
    Flow,
    ceiling_ns,
    class_of,
    day_start_ns,
)
from leased.collector.planning.latency_cost import latency_cost
from leased.economics.contracts import Terms
from leased.economics.hourly import NodeSpan
from leased.terms.moment import HOUR_NS
from tests.doubles.accounts import JANUARY_NS, WrittenSource

SPAN = ("4e" * 16, "1d" * 16, 0, 99, "ab" * 32)


@given(st.integers(0, 2**62))
def test_a_length_is_right_to_an_eighth(length_ns: int) -> None:
    most = ceiling_ns(class_of(length_ns))
    assert length_ns <= most <= length_ns * 9 // 8 + 1


@given(st.lists(st.integers(1, 10**15), min_size=1, max_size=200), st.integers(1, 1000))
def test_a_quantile_is_that_of_the_sorted_list(lengths: list[int], share_pm: int) -> None:
    day = Day()
    for one in lengths:
        day.end(one)
    exact = sorted(lengths)[-(-len(lengths) * share_pm // 1000) - 1]
    assert exact <= day.quantile_ns(share_pm) <= exact * 9 // 8 + 1


def test_days_are_kept_for_a_while_and_add_up() -> None:
    flow = Flow()
    for day in range(100):
        flow.begin(day * DAY_NS, 1)
        flow.end(day * DAY_NS, 1000)
    assert len(flow.days) == DAYS_KEPT
    assert flow.between(90 * DAY_NS, 99 * DAY_NS).begun == 10
    assert flow.between(0, 99 * DAY_NS).ended == DAYS_KEPT


def test_one_server_is_the_textbook() -> None:
    # M/M/1: the sojourn is exponential with mu - lambda.
    assert queueing.erlang_c(1, 0.8) == pytest.approx(0.8)
    assert queueing.sojourn_p99(1, 0.8, 1.0) == pytest.approx(math.log(100) / 0.2, rel=1e-6)
    # Two servers at one Erlang: the chance to wait is a third.
    assert queueing.erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert queueing.sojourn_p99(3, 3.0, 1.0) == math.inf


@pytest.mark.parametrize(("servers", "load"), [(3, 2.0), (5, 3.5), (2, 1.0)])
def test_the_formula_is_what_a_simulation_finds(servers: int, load: float) -> None:
    dice, free, now, times = random.Random(7), [0.0] * servers, 0.0, []
    heapq.heapify(free)
    for _ in range(200_000):
        now += dice.expovariate(load)
        begin = max(now, heapq.heappop(free))
        end = begin + dice.expovariate(1.0)
        heapq.heappush(free, end)
        times.append(end - now)
    measured = sorted(times)[int(len(times) * 0.99)]
    assert queueing.sojourn_p99(servers, load, 1.0) == pytest.approx(measured, rel=0.08)


@given(st.floats(0.01, 50), st.floats(0.01, 100), st.floats(1.001, 20))
@example(9.999_999_9, 1.0, 1.001)
def test_the_fewest_servers_that_do_it(load: float, service_s: float, times: float) -> None:
    target_s = queueing.service_p99(service_s) * times
    wanted = queueing.servers_for(target_s, load, service_s)
    assert wanted is not None
    assert queueing.sojourn_p99(wanted, load, service_s) <= target_s * (1 + 1e-9)
    if wanted > 1:
        assert queueing.sojourn_p99(wanted - 1, load, service_s) > target_s * (1 - 1e-9)


def test_quicker_than_the_service_is_nobody() -> None:
    assert queueing.servers_for(1.0, 0.5, 1.0) is None


@pytest.mark.parametrize("period", ["1h", "12h", "1d", "36h", "7d", "30d", "35d"])
def test_how_many_come_does_not_depend_on_the_period_that_is_asked_about(period: str) -> None:
    hours = 10 * 24 + 12
    fleet = Fleet()
    fleet.logs["00"] = view = NodeView("00")
    flow = view.flow
    for hour in range(hours):
        flow.begin(JANUARY_NS + hour * HOUR_NS, 2)
        flow.end(JANUARY_NS + (hour + 1) * HOUR_NS - 1, HOUR_NS)
    span = NodeSpan(*SPAN, JANUARY_NS + hours * HOUR_NS)
    accounts = Accounts(WrittenSource(node=span), Terms())
    told = latency_cost(accounts, fleet, period, ())
    assert (told.arrivals_per_hour, told.mean_hold_ms) == (1, 3_600_000)


def test_as_far_as_days_are_kept_they_are_counted() -> None:
    flow = Flow()
    for hour in range(100 * 24):
        flow.begin(hour * HOUR_NS, 1)
    now_ns = 100 * DAY_NS - 1
    begin_ns = day_start_ns(now_ns - DAYS_KEPT * DAY_NS, now_ns)
    begun = flow.between(begin_ns, now_ns).begun
    assert begun == (100 * DAY_NS - begin_ns) // HOUR_NS == DAYS_KEPT * 24


def test_leases_of_a_time_to_come_come_in_no_period_and_forget_none() -> None:
    """One node's clock went ten years ahead on the eleventh day, and its log with it."""
    fleet, hours = Fleet(), 10 * 24
    for number in range(2):
        fleet.logs[f"{number}"] = view = NodeView(f"{number}")
        view.node = f"{number}"
        ahead = 10 * 365 * 24 if number else hours
        for hour in (*range(hours), *range(ahead, ahead + 2_000 * number)):
            view.flow.begin(JANUARY_NS + hour * HOUR_NS, 2)
            view.flow.end(JANUARY_NS + (hour + 1) * HOUR_NS - 1, HOUR_NS)
    source = WrittenSource(node=NodeSpan(*SPAN, JANUARY_NS + hours * HOUR_NS))
    source.spans += (NodeSpan(*SPAN, JANUARY_NS + (10 * 365 * 24 + 2_000) * HOUR_NS),)
    accounts = Accounts(source, Terms(), clock_ns=JANUARY_NS + hours * HOUR_NS)
    assert latency_cost(accounts, fleet, "7d", ()).arrivals_per_hour <= 2
