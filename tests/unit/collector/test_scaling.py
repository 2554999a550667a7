# SPDX-License-Identifier: Apache-2.0
"""What spot capacity and schedules would cost, by hand-made hours."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.periods import Window
from leased.collector.metering.sources import Held
from leased.collector.planning.scheduled_scaling import (
    ScalingConfig,
    Schedule,
    counted,
    scheduled_scaling,
)
from leased.collector.planning.spot import SpotConfig, expected_cost, spot
from leased.economics.contracts import Terms
from leased.economics.pools import Pool
from leased.terms.errors import InvalidParameter
from leased.terms.lease import Priority
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import JANUARY_NS, WrittenSource

CPU = ResourceKind.CPU
RATES = Terms().infrastructure
DAYS = 40
S = 10**9
EVEN = SpotConfig(500, 400, 100 * 3_600 * S, 3_600 * S, 0)
"""Half, at 40 %; an hour is lost every hundred."""

OFFICE = ScalingConfig(
    "UTC", (Schedule("day", "0 8 * * *", 3), Schedule("night", "30 17 * * *", 1))
)


def four_hosts(held: int = 0, priority: Priority = Priority.STANDARD) -> Accounts:
    """Of ten cores each, for forty days; `held` cores all the time. A core is 7.20 an hour."""
    source = WrittenSource()
    hours = range(DAYS * 24)
    source.hold("", CPU, 40_000, hours, pool=Pool.PROVISIONED)
    if held:
        source.hold("acme", CPU, held * 1000, hours, priority=priority)
    source.now = [Held(f"{n}" * 32, Pool.PROVISIONED, "", CPU, None, 10_000) for n in range(4)]
    return Accounts(source, Terms(infrastructure=msgspec.structs.replace(RATES, decimals=2)))


def test_the_expected_cost_is_that_of_the_formula() -> None:
    told = spot(four_hosts(), config=EVEN)
    # Forty cores: 288 an hour. Half of it at 0.4 x 1.01, half as now.
    assert told.on_demand_cost_hourly == Decimal("288.00")
    assert told.expected is not None and told.expected.expected_cost_hourly == Decimal("202.18")
    assert told.expected.savings_monthly == Decimal("62651.52")
    assert told.expected.savings_percent == Decimal("29.8")
    assert (told.overhead, told.interruptions_per_month) == (Decimal("0.01"), Decimal("7.3"))
    # 1.5 hours are lost an hour where spot is as dear as now: 1095 times an hour's work a month.
    assert told.break_even_interruptions_per_month == Decimal("1095.0")
    assert [one.spot_share for one in told.what_if] == [
        Decimal(one) for one in ("0", "0.25", "0.5", "0.75", "1")
    ]
    assert (told.workers, told.reason) == (4, None)


def test_what_is_guaranteed_stays_where_it_is() -> None:
    told = spot(four_hosts(30, Priority.GUARANTEED), config=EVEN, shares_pm=[250, 260])
    assert told.eligible_share == told.expected.spot_share == Decimal("0.25")
    assert [one.reachable for one in told.what_if] == [True, False]
    assert spot(four_hosts(30), config=EVEN).eligible_share == 1


def test_where_nothing_was_there_nothing_is_told() -> None:
    told = spot(Accounts(WrittenSource(), Terms()))
    assert (told.expected, told.what_if, told.eligible_share) == (None, [], None)
    assert told.reason == "insufficient_history"
    assert spot(four_hosts(), config=SpotConfig(lost_work_ns=0, restart_ns=0)).what_if
    bare = SpotConfig(lost_work_ns=0, restart_ns=0)
    assert spot(four_hosts(), config=bare).break_even_interruptions_per_month is None


@given(st.fractions(0, 1), st.fractions(0, 3), st.integers(1, 10**9))
def test_between_all_and_nothing_cost_goes_straight(
    part: Fraction, factor: Fraction, now: int
) -> None:
    whole = Fraction(now)
    ends = expected_cost(whole, Fraction(0), factor), expected_cost(whole, Fraction(1), factor)
    assert ends == (whole, whole * factor)
    assert expected_cost(whole, part, factor) == ends[0] + (ends[1] - ends[0]) * part


def test_a_schedule_counts_from_its_instant_to_the_next() -> None:
    window = Window(JANUARY_NS, JANUARY_NS + 24 * HOUR_NS)
    day, night = counted(OFFICE, window, {JANUARY_NS // HOUR_NS + 17: 2})
    # 08:00 to 17:30, and the night of before until then; from 17:30 on two are needed for half an
    # hour, and the night names one.
    assert day.counted_ns == 19 * HOUR_NS // 2 and night.counted_ns == 29 * HOUR_NS // 2
    assert (day.short_ns, night.short_ns) == (0, HOUR_NS // 2)
    assert day.worker_ns == 3 * day.counted_ns
    assert night.worker_ns == night.counted_ns + HOUR_NS // 2


def test_of_two_that_open_at_once_the_later_counts() -> None:
    both = ScalingConfig("UTC", (Schedule("a", "0 0 * * *", 1), Schedule("b", "0 0 * * *", 2)))
    first, second = counted(both, Window(JANUARY_NS, JANUARY_NS + 24 * HOUR_NS), {})
    assert (first.counted_ns, second.counted_ns) == (0, 24 * HOUR_NS)


def test_a_night_of_fewer_workers_saves_what_they_cost() -> None:
    told = scheduled_scaling(four_hosts(), "10d", OFFICE)
    # Ten days of 9.5 hours of three workers and 14.5 of one, at 72 an hour; it was four.
    assert told.current_cost == Decimal("69120.00")
    assert told.expected_cost == Decimal("30960.00")
    assert told.expected_savings == Decimal("38160.00")
    assert told.savings_percent == Decimal("55.2")
    assert [one.hours for one in told.schedules] == [Decimal("95.00"), Decimal("145.00")]
    assert told.schedules[0].next_start == "2024-02-10T08:00:00Z"


def test_what_is_held_is_never_scaled_away() -> None:
    told = scheduled_scaling(four_hosts(31), "10d", OFFICE)
    assert told.expected_savings == Decimal("0.00")
    assert [one.hours_short for one in told.schedules] == [one.hours for one in told.schedules]


def test_without_schedules_or_hours_it_says_why() -> None:
    assert scheduled_scaling(four_hosts()).reason == "no_schedules"
    bare = Accounts(WrittenSource(), Terms())
    assert scheduled_scaling(bare, "24h", OFFICE).reason == "insufficient_history"
    with pytest.raises(InvalidParameter, match="92d"):
        scheduled_scaling(four_hosts(), "93d", OFFICE)
