# SPDX-License-Identifier: Apache-2.0
"""The fit behind the forecast, against curves whose terms are known and against numpy."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from leased.collector.planning import forecast
from leased.collector.planning.forecast import YEAR_DAYS, YEARLY_DAYS_MIN, backtest, fit, value

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


@pytest.mark.parametrize("days", [YEARLY_DAYS_MIN, 730])
def test_a_year_is_found_once_there_was_one(days: int) -> None:
    whole = seasonal(days + 90)
    fitted = fit(whole[:days], FIRST_DAY)
    off = [abs(value(fitted, FIRST_DAY + at) - whole[at]) for at in range(days, days + 90)]
    assert len(fitted) == 12 and max(off) < 1e-6


def test_with_less_than_that_there_is_no_year() -> None:
    days = YEARLY_DAYS_MIN - 1
    whole = seasonal(days + 90)
    fitted = fit(whole[:days], FIRST_DAY)
    assert len(fitted) == 8
    assert max(abs(value(fitted, FIRST_DAY + at) - whole[at]) for at in range(days, days + 90)) > 20


def test_it_is_the_least_squares_that_numpy_finds() -> None:
    series = seasonal(500, noise=12)
    rows = np.array([forecast._row(FIRST_DAY + at) for at in range(500)])
    wanted, *_ = np.linalg.lstsq(rows, np.array(series), rcond=None)
    assert np.allclose(fit(series, FIRST_DAY), wanted, rtol=1e-7, atol=1e-7)


def test_the_backtest_fits_what_there_was_of_the_days_until_then() -> None:
    series = seasonal(460, noise=4)
    found = backtest(series, FIRST_DAY, 30)
    step = found[30][0] and max(1, (459 - 28) // 60 + 1)
    for number in (0, 10, 50):
        origin = 28 + number * step
        ahead, predicted, came = found[number * 30]
        assert (ahead, came) == (1, series[origin])
        assert predicted == pytest.approx(value(fit(series[:origin], FIRST_DAY), FIRST_DAY + origin))


def test_three_years_take_no_longer_than_somebody_waits() -> None:
    series = seasonal(forecast.HISTORY_DAYS_MAX, noise=9)
    began = time.process_time()
    backtest(series, FIRST_DAY, 90)
    assert time.process_time() - began < 2
