# SPDX-License-Identifier: Apache-2.0
"""The fit behind the forecast, against curves whose terms are known and against numpy."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from leased.collector.planning.trend import (
    HISTORY_DAYS_MAX,
    TERMS,
    YEAR_DAYS,
    YEARLY,
    YEARLY_DAYS_MIN,
    Model,
    backtest,
    choose,
    fit,
    terms_of,
    value,
)

FIRST_DAY = 20_100


def seasonal(days: int, *, noise: float = 0.0, seed: int = 1) -> list[float]:
    """A trend, a week and a year, of two harmonics."""
    source = random.Random(seed)

    def at(day: int) -> float:
        angle = 2 * math.pi * day / YEAR_DAYS
        year = 60 * math.sin(angle) - 30 * math.cos(angle) + 15 * math.cos(2 * angle)
        week = (0, 3, 5, 4, -2, -20, -25)[(day + 3) % 7]
        return 300 + 0.1 * (day - FIRST_DAY) + year + week + source.gauss(0, noise)

    return [at(FIRST_DAY + index) for index in range(days)]


def off(series: list[float], fitted: list[float], days: int) -> float:
    """The worst miss of the last so many days."""
    after = len(series) - days
    return max(abs(value(fitted, FIRST_DAY + at) - series[at]) for at in range(after, len(series)))


@pytest.mark.parametrize("days", [YEARLY_DAYS_MIN, 730])
def test_a_year_is_found_once_there_was_one(days: int) -> None:
    whole = seasonal(days + 90)
    fitted, _ = choose(whole[:days], FIRST_DAY, 90)
    assert len(fitted) == TERMS and off(whole, fitted, 90) < 1e-6


def test_with_less_than_that_there_is_no_year() -> None:
    whole = seasonal(YEARLY_DAYS_MIN - 1 + 90)
    fitted, _ = choose(whole[: YEARLY_DAYS_MIN - 1], FIRST_DAY, 90)
    assert len(fitted) == 8 and off(whole, fitted, 90) > 20


def test_a_fleet_that_was_idle_for_years_and_grows_now_is_no_season() -> None:
    """What is closest from earlier days is believed, not what has the most terms."""
    whole = [0.0] * 600 + [150 + 0.6 * day for day in range(420 + 60)]
    fitted, residuals = choose(whole[:1020], FIRST_DAY, 60)
    assert len(fitted) == 8 and off(whole, fitted, 60) < 1e-6
    assert max(one.ahead for one in residuals) == 60


def test_it_is_the_least_squares_that_numpy_finds() -> None:
    series = seasonal(500, noise=12)
    for model in (YEARLY, YEARLY._replace(window=450, terms=8)):
        days = range(max(0, 500 - model.window), 500)
        rows = np.array([terms_of(FIRST_DAY + at)[: model.terms] for at in days])
        wanted, *_ = np.linalg.lstsq(rows, np.array([series[at] for at in days]), rcond=None)
        assert np.allclose(fit(series, FIRST_DAY, model), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("model", [YEARLY, YEARLY._replace(window=100, terms=8, days_min=28)])
def test_the_backtest_fits_the_days_until_then(model: Model) -> None:
    series = seasonal(560, noise=4)
    found = backtest(series, FIRST_DAY, 30, model)
    assert len(found) > 10 and min(found) >= model.days_min
    for origin, residuals in found.items():
        fitted = fit(series[:origin], FIRST_DAY, model)
        for ahead, predicted, came in residuals:
            at = origin + ahead - 1
            assert came == series[at]
            assert predicted == pytest.approx(value(fitted, FIRST_DAY + at))


def test_three_years_take_no_longer_than_somebody_waits() -> None:
    series = seasonal(HISTORY_DAYS_MAX, noise=9)
    began = time.process_time()
    choose(series, FIRST_DAY, 90)
    assert time.process_time() - began < 2
