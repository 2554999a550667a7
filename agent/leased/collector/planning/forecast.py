# SPDX-License-Identifier: Apache-2.0
"""Forecast: how much will be held at once, from how much was.

Rule: demand is the peak of each day, fitted by least squares to a trend, the days of the week and,
from 400 days of history on, the time of the year (two harmonics: less than a year says nothing of a
year). How sure that is is measured, not assumed: the same fit is made from earlier days (rolling
origins), with the terms that it would have had then, and compared with what came. With less than
four weeks of history it predicts nothing and says so.

Floats are at home here and in no other place: nothing of this is ever billed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Advice, Forecast, Prediction
from leased.collector.accounts.periods import DAY_NS, Window
from leased.economics.pools import UNIT, Pool
from leased.terms.errors import InvalidParameter
from leased.terms.resource import ResourceKind

HISTORY_DAYS_MIN = 28
HISTORY_DAYS_MAX = 1_096
"""Three years: what was before says little of what will be."""

YEARLY_DAYS_MIN = 400
YEAR_DAYS = 365.25
HARMONICS = (1, 2)
PLAIN_TERMS = 8
ORIGINS_MAX = 60
LEAD_DAYS = 15
NEAR_DAYS = 7
QUANTILE = 0.9
CLOSE = 0.1
METHOD = "linear_regression_with_seasonality"
EPOCH = date(1970, 1, 1)


def forecast(accounts: Accounts, horizon: str = "90d", kind: str = "cpu") -> Forecast:
    """Predictions for the first of each month within `horizon`."""
    length_ns = periods.duration(horizon, "horizon")
    days = length_ns // DAY_NS
    if not days:
        raise InvalidParameter("horizon", "at least a day")
    which = _kind(kind)
    first_day, series = _daily_peaks(accounts, which)
    now_ns = accounts.now_ns()
    reach = accounts.reach(Window(0, max(0, now_ns // DAY_NS * DAY_NS)))
    if len(series) < HISTORY_DAYS_MIN:
        return Forecast(horizon, METHOD, [], [], len(series), 0, "insufficient_history", reach)
    after = first_day + len(series)
    residuals = backtest(series, first_day, days)
    fitted = fit(series, first_day)
    predictions = [
        _prediction(day, value(fitted, day), day - after + 1, residuals)
        for day in range(after, after + days)
        if (EPOCH + timedelta(day)).day == 1
    ]
    advice = _advice(accounts, which, fitted, range(after, after + days))
    return Forecast(horizon, METHOD, predictions, advice, len(series), len(residuals), None, reach)


class Sums:
    """What least squares need of the days so far: as days come, each is added once."""

    def __init__(self) -> None:
        size = PLAIN_TERMS + 2 * len(HARMONICS)
        self.days = 0
        self._normal = [[0.0] * size for _ in range(size)]
        self._right = [0.0] * size

    def add(self, day: int, demand: float) -> None:
        """One more. `day` counts from 1970."""
        row = _row(day)
        for into, x in zip(self._normal, row, strict=True):
            for column, y in enumerate(row):
                into[column] += x * y
        for index, x in enumerate(row):
            self._right[index] += x * demand
        self.days += 1

    def fitted(self) -> list[float]:
        """Coefficients of: a constant, the day, six days of the week; and of the time of the year,
        if there was one."""
        size = len(self._right) if self.days >= YEARLY_DAYS_MIN else PLAIN_TERMS
        return _solve([row[:size] for row in self._normal[:size]], self._right[:size])


def fit(series: Sequence[float], first_day: int) -> list[float]:
    """The coefficients of a whole history. `first_day` counts from 1970."""
    sums = Sums()
    for index, demand in enumerate(series):
        sums.add(first_day + index, demand)
    return sums.fitted()


def value(coefficients: Sequence[float], day: int) -> float:
    """What the fit says of a day; demand is not negative."""
    row = _row(day)[: len(coefficients)]
    return max(0.0, sum(c * x for c, x in zip(coefficients, row, strict=True)))


def backtest(
    series: Sequence[float], first_day: int, horizon: int
) -> list[tuple[int, float, float]]:
    """(days ahead, predicted, what came) for fits from earlier days."""
    found: list[tuple[int, float, float]] = []
    last = len(series) - 1
    step = max(1, (last - HISTORY_DAYS_MIN) // ORIGINS_MAX + 1)
    origins = range(HISTORY_DAYS_MIN, last + 1, step)
    sums = Sums()
    for origin in origins:
        for index in range(sums.days, origin):
            sums.add(first_day + index, series[index])
        fitted = sums.fitted()
        for ahead in range(1, min(horizon, len(series) - origin) + 1):
            index = origin + ahead - 1
            found.append((ahead, value(fitted, first_day + index), series[index]))
    return found


def _prediction(
    day: int, expected: float, ahead: int, residuals: Sequence[tuple[int, float, float]]
) -> Prediction:
    """`expected` with what the backtest says of predictions so far ahead, or as far as it goes."""
    farthest = max((found for found, _, _ in residuals), default=0)
    at = min(ahead, farthest)
    near = [(p, y) for found, p, y in residuals if abs(found - at) <= NEAR_DAYS]
    misses = sorted(abs(y - p) for p, y in near)
    index = min(len(misses) - 1, int(QUANTILE * len(misses))) if misses else -1
    width = misses[index] if misses else expected
    close = sum(abs(y - p) <= CLOSE * p for p, y in near)
    return Prediction(
        (EPOCH + timedelta(day)).isoformat(),
        _number(expected),
        Decimal(close * 100 // len(near)).scaleb(-2) if near else Decimal(0),
        _number(max(0.0, expected - width)),
        _number(expected + width),
    )


def _advice(
    accounts: Accounts, kind: ResourceKind, fitted: Sequence[float], days: range
) -> list[Advice]:
    """Grow before the day on which the fit passes what there is."""
    there = [
        one for one in accounts.source.held() if one.pool is Pool.PROVISIONED and one.kind is kind
    ]
    total = sum(one.capacity for one in there) / UNIT[kind]
    workers = len({one.node_id for one in there})
    if not workers:
        return []
    highest = max(value(fitted, day) for day in days)
    crossing = next((day for day in days if value(fitted, day) > total), None)
    if crossing is None:
        return []
    per_worker = total / workers
    add = int(-(-(highest - total) // per_worker))
    when = EPOCH + timedelta(max(days.start, crossing - LEAD_DAYS))
    name = (EPOCH + timedelta(crossing)).strftime("%B")
    reason = f"Predicted demand exceeds current capacity by {name}"
    return [Advice("scale_up", when.isoformat(), max(1, add), reason)]


def _daily_peaks(accounts: Accounts, kind: ResourceKind) -> tuple[int, list[float]]:
    """(first day since 1970, the most that was held at once on each whole day since)."""
    now_ns = accounts.now_ns()
    last_day = now_ns // DAY_NS
    first_day = -(-accounts.source.first_ns() // DAY_NS)
    first_day = max(first_day, last_day - HISTORY_DAYS_MAX)
    if last_day <= first_day:
        return first_day, []
    window = (first_day * DAY_NS, last_day * DAY_NS)
    hours: dict[int, int] = {}
    for key, held in accounts.source.peaks(window, "").items():
        if key.kind is kind:
            hours[key.hour] = hours.get(key.hour, 0) + held
    days = [0.0] * (last_day - first_day)
    for hour, held in hours.items():
        index = hour // 24 - first_day
        days[index] = max(days[index], held / UNIT[kind])
    return first_day, days


def _row(day: int) -> list[float]:
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    angle = 2.0 * math.pi * day / YEAR_DAYS
    turns = [turn(number * angle) for number in HARMONICS for turn in (math.sin, math.cos)]
    days = [1.0 if weekday == index else 0.0 for index in range(1, 7)]
    # From a day of these years on: the numbers are small, and their squares keep their digits.
    return [1.0, (day - 20_000) / 1000.0, *days, *turns]


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss with pivots; a column that says nothing gets 0."""
    size = len(right)
    rows = [[*row, y] for row, y in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(rows[index][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        head = rows[column][column]
        if abs(head) < 1e-12:
            rows[column] = [0.0] * (size + 1)
            rows[column][column] = 1.0
            continue
        rows[column] = [x / head for x in rows[column]]
        for index in range(size):
            factor = rows[index][column]
            if index != column and factor:
                rows[index] = [
                    x - factor * y for x, y in zip(rows[index], rows[column], strict=True)
                ]
    return [row[-1] for row in rows]


def _number(amount: float) -> Decimal:
    return Decimal(round(amount * 10)).scaleb(-1)


def _kind(name: str) -> ResourceKind:
    try:
        return ResourceKind[name.upper()] if name.isascii() else ResourceKind[""]
    except KeyError:
        names = ", ".join(kind.name.lower() for kind in ResourceKind)
        raise InvalidParameter("kind", f"one of {names}") from None
