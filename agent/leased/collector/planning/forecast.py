# SPDX-License-Identifier: Apache-2.0
"""Forecast: how much will be held at once, from how much was.

Rule: demand is the peak of each day, and what it will be is what the fit says that was closest
before (`trend`). How sure that is is measured, not assumed: by what such fits from earlier days
said, and what came. With less than four weeks of history it predicts nothing and says so. Of a kind
with several tiers (memory), the peak of an hour is the sum of what each tier had at its most in it:
not less than was ever held, and more only where tiers change places within one hour.

Does not scale anything: it recommends.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from functools import partial

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Advice, Forecast, Prediction
from leased.collector.accounts.periods import Window
from leased.collector.planning.history import begun_ns
from leased.collector.planning.trend import (
    HISTORY_DAYS_MAX,
    HISTORY_DAYS_MIN,
    Residual,
    choose,
    value,
)
from leased.economics.pools import UNIT, UNIT_NAME, Pool
from leased.terms.errors import InvalidParameter
from leased.terms.moment import DAY_NS
from leased.terms.resource import ResourceKind

LEAD_DAYS = 15
NEAR_DAYS = 7
QUANTILE = 0.9
CLOSE = 0.1
METHOD = "linear_regression_with_seasonality"
EPOCH = date(1970, 1, 1)
_KINDS = {kind.name.lower(): kind for kind in ResourceKind}


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
    told = partial(Forecast, horizon, METHOD, kind=which.name.lower(), unit=UNIT_NAME[which])
    if len(series) < HISTORY_DAYS_MIN:
        return told([], [], len(series), 0, "insufficient_history", reach)
    after = first_day + len(series)
    fitted, residuals = choose(series, first_day, days)
    predictions = [
        _prediction(which, day, value(fitted, day), day - after + 1, residuals)
        for day in range(after, after + days)
        if (EPOCH + timedelta(day)).day == 1
    ]
    advice = _advice(accounts, which, fitted, range(after, after + days))
    return told(predictions, advice, len(series), len(residuals), None, reach)


def _prediction(
    kind: ResourceKind, day: int, expected: float, ahead: int, residuals: Sequence[Residual]
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
        date=(EPOCH + timedelta(day)).isoformat(),
        confidence=Decimal(close * 100 // len(near)).scaleb(-2) if near else Decimal(0),
        lower=_number(max(0.0, expected - width)),
        upper=_number(expected + width),
        **{f"predicted_{kind.name.lower()}_demand": _number(expected)},
    )


def _advice(
    accounts: Accounts, kind: ResourceKind, fitted: Sequence[float], days: range
) -> list[Advice]:
    """Grow before the day on which the fit passes what there is."""
    there = [
        one for one in accounts.held() if one.pool is Pool.PROVISIONED and one.kind is kind
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
    first_day = -(-begun_ns(accounts) // DAY_NS)
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


def _number(amount: float) -> Decimal:
    return Decimal(round(amount * 10)).scaleb(-1)


def _kind(name: str) -> ResourceKind:
    found = _KINDS.get(name.lower()) if name.isascii() else None
    if found is None:
        raise InvalidParameter("kind", f"one of {', '.join(_KINDS)}")
    return found
