# SPDX-License-Identifier: Apache-2.0
"""Scheduled scaling: what a period would have cost, had the fleet been as large as schedules say.

Rule: at each instant the schedule counts that opened last (of two at once, the later in the list),
and opens as quota schedules do (`governance.windows`). It names the least number of workers; where
the hour held more, there are as many as that took, so a schedule never takes capacity from a lease.
A worker is an average node of now. Of an hour its mean counts, not its peak.

Does not scale anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, to_decimals
from leased.collector.accounts.periods import Window
from leased.collector.governance.windows import check, last_opening_ns, next_opening_ns
from leased.collector.planning import capacity
from leased.collector.planning.history import since_begun
from leased.economics.pools import Pool
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.moment import DAY_NS, HOUR_NS
from leased.terms.quantity import print_instant
from leased.terms.reading import Keys, fields, integer, rows, section, table, text
from leased.terms.resource import ResourceKind

DAYS_MAX: Final = 92
"""A schedule of every minute is walked in seconds."""


class Schedule(msgspec.Struct, frozen=True):
    """From when `cron` names on, at least so many workers."""

    name: str
    cron: str
    min_replicas: int


class ScalingConfig(msgspec.Struct, frozen=True):
    """Schedules, all on the clock of one time zone."""

    timezone: str = "UTC"
    schedules: tuple[Schedule, ...] = ()


class ScheduleSeen(msgspec.Struct, frozen=True):
    """One schedule: when it opens next, how many hours it counted in the period, and what it would
    have cost in them; in `hours_short` of them more workers were needed than it names."""

    name: str
    cron: str
    min_replicas: int
    next_start: str | None
    hours: Decimal
    hours_short: Decimal
    expected_cost: Decimal


class ScalingPlan(msgspec.Struct, frozen=True):
    """The period as it was, and as it would have been. `reason` says why there is nothing to
    tell."""

    schedules: list[ScheduleSeen]
    timezone: str
    current_cost: Decimal
    expected_cost: Decimal | None
    expected_savings: Decimal | None
    savings_percent: Decimal | None
    workers: int
    worker_cost_hourly: Decimal
    period: str
    currency: str
    reach: Reach
    reason: str | None = None


class Share(msgspec.Struct):
    """What one schedule had of a period: ns, ns with more workers than it names, worker x ns."""

    counted_ns: int = 0
    short_ns: int = 0
    worker_ns: int = 0


def check_scaling(config: ScalingConfig) -> None:
    """Raises ConfigError for what cannot be meant."""
    at = "scheduled_scaling."
    names = [one.name for one in config.schedules]
    if len(names) != len(frozenset(names)):
        raise ConfigError(f"{at}schedules: each name once")
    for one in config.schedules:
        try:
            check(one.cron, config.timezone)
        except ValueError as error:
            raise ConfigError(f"{at}schedules.{one.name}: {error}") from None


def scheduled_scaling(
    accounts: Accounts, period: str = "30d", config: ScalingConfig | None = None
) -> ScalingPlan:
    """Of the last `period`. Raises InvalidParameter, NoData."""
    config = config or ScalingConfig()
    window = accounts.last(period)
    if window.to_ns - window.from_ns > DAYS_MAX * DAY_NS:
        raise InvalidParameter("period", f"at most {DAYS_MAX}d")
    window = since_begun(accounts, window)
    prices = capacity.node_prices(accounts, accounts.held())
    price = capacity.mean(prices)
    decimals = accounts.infrastructure().decimals
    known = bool(config.schedules) and bool(prices) and window.from_ns < window.to_ns
    shares = [Share() for _ in config.schedules]
    if known:
        shares = counted(config, window, needed(accounts, window, len(prices)))
    paid = _paid(accounts, window)
    expected = price * sum(one.worker_ns for one in shares) / HOUR_NS

    def money(amount: Fraction) -> Decimal:
        return to_decimals(amount, decimals)

    reason = None if known else "insufficient_history" if config.schedules else "no_schedules"
    saved = paid - expected
    return ScalingPlan(
        [
            _seen(schedule, share, config.timezone, accounts.now_ns(), price, decimals)
            for schedule, share in zip(config.schedules, shares, strict=True)
        ],
        config.timezone,
        money(paid),
        money(expected) if known else None,
        money(saved) if known else None,
        to_decimals(saved * 100 / paid, 1) if known and paid else None,
        len(prices),
        money(price),
        period,
        accounts.infrastructure().currency,
        accounts.reach(window),
        reason,
    )


def needed(accounts: Accounts, window: Window, workers: int) -> dict[int, int]:
    """Workers that what was not free in an hour takes, by the hour: of the kind that takes most."""
    total: dict[ResourceKind, int] = {}
    for one in accounts.held():
        if one.pool is Pool.PROVISIONED:
            total[one.kind] = total.get(one.kind, 0) + one.capacity
    used: dict[tuple[int, ResourceKind], int] = {}
    for key, amount in accounts.source.cells(window.pair).items():
        if key.pool in (Pool.TENANT, Pool.TEARDOWN, Pool.FENCED) and total.get(key.kind):
            at = (key.bucket, key.kind)
            used[at] = used.get(at, 0) + amount
    found: dict[int, int] = {}
    for (hour, kind), amount in used.items():
        takes = -(-amount * workers // (total[kind] * HOUR_NS))
        found[hour] = max(takes, found.get(hour, 0))
    return found


def counted(config: ScalingConfig, window: Window, takes: dict[int, int]) -> list[Share]:
    """What each schedule has of `window`, where hours take so many workers."""
    shares = [Share() for _ in config.schedules]
    for begin_ns, end_ns, which in _stretches(config, window):
        at_ns = begin_ns
        while at_ns < end_ns:
            hour = at_ns // HOUR_NS
            until_ns = min(end_ns, (hour + 1) * HOUR_NS)
            least, more = config.schedules[which].min_replicas, takes.get(hour, 0)
            share = shares[which]
            share.counted_ns += until_ns - at_ns
            share.short_ns += until_ns - at_ns if more > least else 0
            share.worker_ns += (until_ns - at_ns) * max(least, more)
            at_ns = until_ns
    return shares


def _stretches(config: ScalingConfig, window: Window) -> Iterable[tuple[int, int, int]]:
    """(from, to, which schedule) of `window`. Before anything has ever opened the first counts."""
    openings: list[tuple[int, int]] = []
    for which, one in enumerate(config.schedules):
        at_ns = last_opening_ns(one.cron, config.timezone, window.from_ns)
        if at_ns is None:
            at_ns = next_opening_ns(one.cron, config.timezone, window.from_ns)
        while at_ns is not None and at_ns < window.to_ns:
            openings.append((at_ns, which))
            at_ns = next_opening_ns(one.cron, config.timezone, at_ns)
    openings.sort()
    current, begin_ns = (openings[0][1] if openings else 0), window.from_ns
    for at_ns, which in openings:
        if at_ns > begin_ns:
            yield begin_ns, at_ns, current
            begin_ns = at_ns
        current = which
    yield begin_ns, window.to_ns, current


def _paid(accounts: Accounts, window: Window) -> Fraction:
    """What having all that there was did cost."""
    return sum(
        (
            capacity.infrastructure_cost(accounts, key.kind, key.tier, amount)
            for key, amount in accounts.source.sums(window.pair).items()
            if key.pool is Pool.PROVISIONED
        ),
        Fraction(0),
    )


def _seen(
    schedule: Schedule, share: Share, zone: str, now_ns: int, price: Fraction, decimals: int
) -> ScheduleSeen:
    next_ns = next_opening_ns(schedule.cron, zone, now_ns)
    return ScheduleSeen(
        schedule.name,
        schedule.cron,
        schedule.min_replicas,
        None if next_ns is None else print_instant(next_ns),
        _hours(share.counted_ns),
        _hours(share.short_ns),
        to_decimals(price * share.worker_ns / HOUR_NS, decimals),
    )


def _hours(length_ns: int) -> Decimal:
    return to_decimals(Fraction(length_ns, HOUR_NS), 2)


def _schedule(value: object) -> Schedule:
    found = fields(table(value), _SCHEDULE_KEYS, "scheduled_scaling.schedules.")
    for key in ("name", "cron", "min_replicas"):
        if key not in found:
            raise ValueError(f"needs {key}")
    return Schedule(**found)


_SCHEDULE_KEYS: Final[Keys] = {
    "name": ("name", text),
    "cron": ("cron", text),
    "min_replicas": ("min_replicas", integer),
}
KEYS: Final[Keys] = {
    "timezone": ("timezone", text),
    "schedules": ("schedules", lambda value: rows(value, _schedule)),
}
SECTION: Final = ("scheduled_scaling", section(ScalingConfig, KEYS, "scheduled_scaling."))
