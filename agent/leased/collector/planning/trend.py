# SPDX-License-Identifier: Apache-2.0
"""Trend: a series by the day, fitted by least squares, and how good such fits have been.

Rule: a fit is of a constant, the day and the days of the week, over the last 400 days at most; from
400 days on also one over three years with the time of the year (two harmonics). Which of the two is
believed is measured: the one that would have been closer from earlier days (rolling origins); where
there are too few of those to say, it is the one with the year. With less than four weeks there is
no fit.

Floats are at home here and in `forecast`, and in no other place: nothing of this is ever billed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

HISTORY_DAYS_MIN: Final = 28
HISTORY_DAYS_MAX: Final = 1_096
"""Three years: what was before says little of what will be."""

YEARLY_DAYS_MIN: Final = 400
YEAR_DAYS: Final = 365.25
HARMONICS: Final = (1, 2)
PLAIN_TERMS: Final = 8
TERMS: Final = PLAIN_TERMS + 2 * len(HARMONICS)
ORIGINS_MAX: Final = 60


class Model(NamedTuple):
    """How a fit is made: over so many days, with so many terms, of a history of at least so many
    days."""

    window: int
    terms: int
    days_min: int


PLAIN: Final = Model(YEARLY_DAYS_MIN, PLAIN_TERMS, HISTORY_DAYS_MIN)
YEARLY: Final = Model(HISTORY_DAYS_MAX, TERMS, YEARLY_DAYS_MIN)


class Residual(NamedTuple):
    """What was predicted `ahead` days before, and what came."""

    ahead: int
    predicted: float
    came: float


class Sums:
    """What least squares need of the days of a window: as they come and go, each counts once."""

    def __init__(self) -> None:
        self._normal = [[0.0] * TERMS for _ in range(TERMS)]
        self._right = [0.0] * TERMS

    def count(self, day: int, demand: float, sign: int = 1) -> None:
        """One more; with a sign of -1 one less. `day` counts from 1970."""
        row = terms_of(day)
        for into, x in zip(self._normal, row, strict=True):
            for column, y in enumerate(row):
                into[column] += sign * x * y
        for index, x in enumerate(row):
            self._right[index] += sign * x * demand

    def fitted(self, terms: int) -> list[float]:
        """The first so many coefficients."""
        return _solve([row[:terms] for row in self._normal[:terms]], self._right[:terms])


def terms_of(day: int) -> list[float]:
    """What a day is told by: 1, the day, six days of the week, and the time of the year."""
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    angle = 2.0 * math.pi * day / YEAR_DAYS
    turns = [turn(number * angle) for number in HARMONICS for turn in (math.sin, math.cos)]
    days = [1.0 if weekday == index else 0.0 for index in range(1, 7)]
    # From a day of these years on: the numbers are small, and their squares keep their digits.
    return [1.0, (day - 20_000) / 1000.0, *days, *turns]


def value(coefficients: Sequence[float], day: int) -> float:
    """What a fit says of a day; demand is not negative."""
    row = terms_of(day)[: len(coefficients)]
    return max(0.0, sum(c * x for c, x in zip(coefficients, row, strict=True)))


def fit(series: Sequence[float], first_day: int, model: Model = PLAIN) -> list[float]:
    """The coefficients of a model. `first_day` counts from 1970."""
    sums = Sums()
    from_index = max(0, len(series) - model.window)
    for index in range(from_index, len(series)):
        sums.count(first_day + index, series[index])
    return sums.fitted(model.terms)


def backtest(
    series: Sequence[float], first_day: int, horizon: int, model: Model = PLAIN
) -> dict[int, list[Residual]]:
    """What the model would have said from earlier days, by how many days there were then."""
    found: dict[int, list[Residual]] = {}
    last = len(series) - 1
    step = max(1, (last - HISTORY_DAYS_MIN) // ORIGINS_MAX + 1)
    sums, begin, end = Sums(), 0, 0
    for origin in range(HISTORY_DAYS_MIN, last + 1, step):
        if origin < model.days_min:
            continue
        for index in range(end, origin):
            sums.count(first_day + index, series[index])
        for index in range(begin, origin - model.window):
            sums.count(first_day + index, series[index], -1)
        begin, end = max(begin, origin - model.window), origin
        fitted = sums.fitted(model.terms)
        found[origin] = [
            Residual(at - origin + 1, value(fitted, first_day + at), series[at])
            for at in range(origin, min(origin + horizon, len(series)))
        ]
    return found


def choose(
    series: Sequence[float], first_day: int, horizon: int
) -> tuple[list[float], list[Residual]]:
    """The coefficients of the model that is believed, and what came of it before."""
    plain = backtest(series, first_day, horizon)
    if len(series) < YEARLY_DAYS_MIN:
        return fit(series, first_day), _all(plain)
    yearly = backtest(series, first_day, horizon, YEARLY)
    both = {origin: plain[origin] for origin in yearly}
    if _miss(yearly) > _miss(both):
        return fit(series, first_day), _all(plain)
    # From before there was a year it is what was believed then.
    return fit(series, first_day, YEARLY), _all(plain | yearly)


def _all(found: Mapping[int, Sequence[Residual]]) -> list[Residual]:
    return [one for origin in sorted(found) for one in found[origin]]


def _miss(found: Mapping[int, Sequence[Residual]]) -> float:
    return sum(abs(one.came - one.predicted) for rows in found.values() for one in rows)


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
