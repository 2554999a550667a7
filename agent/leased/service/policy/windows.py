# SPDX-License-Identifier: Apache-2.0
"""Windows: which schedules of a policy are open, and when the wall's clock changes what it says.

Rule: a window opens at every instant that its cron line names in its time zone, and is open for its
duration in real time, so one that opens before a clock change is neither longer nor shorter for it.
An instant that a clock change leaves out comes when the clock goes on, one that comes twice counts
once; instants and zones are computed by cronsim and the system's zone database.

Does not fold limits (`terms.policy_turn`) and does not watch the time (`calendar`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Period, Policy, Schedule
from leased.terms.policy_check import schedules_of

_FOLD = timedelta(hours=3)
_NEVER = 1 << 63
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check_windows(policy: Policy) -> Policy:
    """Return `policy` if every cron line and every time zone in it is one. Raises ConfigError."""
    _zone("policy.timezone", policy.timezone)
    for key, _, schedule in schedules_of(policy):
        where = f"policy.{key}.schedules.{schedule.name}"
        _zone(f"{where}.timezone", schedule.timezone)
        try:
            next(_instants(schedule.cron, schedule.timezone, 0))
        except CronSimError as error:
            raise ConfigError(f"{where}.cron = {schedule.cron}: {error}") from error
        except StopIteration:
            raise ConfigError(f"{where}.cron = {schedule.cron}: never comes") from None
    return policy


def open_windows(policy: Policy, wall_ns: int) -> tuple[str, ...]:
    """The full names of the schedules that are open."""
    return tuple(
        name for _, name, schedule in schedules_of(policy) if _almanac_of(schedule).at(wall_ns)[0]
    )


def next_window_ns(policy: Policy, wall_ns: int) -> int | None:
    """When a window opens next, or one that is open may close."""
    ends = [_almanac_of(schedule).at(wall_ns)[1] for _, _, schedule in schedules_of(policy)]
    return min((end_ns for end_ns in ends if end_ns is not None), default=None)


def begins_ns(period: Period, wall_ns: int, timezone: str) -> int:
    """When the period that `wall_ns` is in began: at midnight in `timezone`, weeks on Monday."""
    return _midnight_ns(_first_day(period, _local(wall_ns, timezone)), timezone)


def ends_ns(period: Period, wall_ns: int, timezone: str) -> int:
    """When the period that `wall_ns` is in ends."""
    first = _first_day(period, _local(wall_ns, timezone))
    if period is Period.MONTH:
        following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    else:
        following = first + timedelta(days=1 if period is Period.DAY else 7)
    return _midnight_ns(following, timezone)


def _first_day(period: Period, local: datetime) -> datetime:
    day = datetime(local.year, local.month, local.day)
    if period is Period.WEEK:
        return day - timedelta(days=day.weekday())
    return day if period is Period.DAY else day.replace(day=1)


def _midnight_ns(day: datetime, timezone: str) -> int:
    """When a day begins: at its midnight, the first of two; where the clock jumps over it, when it
    jumps.
    """
    return _ns(day.replace(tzinfo=ZoneInfo(timezone)))


def _zone(where: str, name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"{where} = {name}: no such time zone on this host") from error


def _local(wall_ns: int, timezone: str) -> datetime:
    return (_EPOCH + timedelta(microseconds=wall_ns // 1000)).astimezone(ZoneInfo(timezone))


def _ns(instant: datetime) -> int:
    return (instant.astimezone(UTC) - _EPOCH) // timedelta(seconds=1) * NS_PER_S


def _instants(cron: str, timezone: str, after_ns: int) -> Iterator[int]:
    """Every instant that a cron line names after `after_ns`."""
    begin = _local(max(0, after_ns), timezone)
    if begin.fold:  # from before the hour that comes twice, so that it is seen to
        begin = (begin.astimezone(UTC) - _FOLD).astimezone(begin.tzinfo)
    return (at_ns for at_ns in map(_ns, CronSim(cron, begin)) if at_ns > after_ns)


class Almanac:
    """What one cron line says, and for how long it is known. Many tenants share one."""

    def __init__(self, cron: str, timezone: str, duration_ns: int) -> None:
        self._cron, self._timezone, self._duration_ns = cron, timezone, duration_ns
        self._from_ns = self._until_ns = 0
        self._open = False

    def at(self, wall_ns: int) -> tuple[bool, int | None]:
        """Whether a window is open, and until when that is certain."""
        if not self._from_ns <= wall_ns < self._until_ns:
            first_ns = next(
                _instants(self._cron, self._timezone, wall_ns - self._duration_ns), None
            )
            ends = [next(_instants(self._cron, self._timezone, wall_ns), None)]
            self._open = first_ns is not None and first_ns <= wall_ns
            if first_ns is not None and self._open:
                ends.append(first_ns + self._duration_ns)
            self._from_ns = wall_ns
            self._until_ns = min((end_ns for end_ns in ends if end_ns is not None), default=_NEVER)
        return self._open, None if self._until_ns == _NEVER else self._until_ns


@functools.lru_cache(maxsize=4096)
def _almanac(cron: str, timezone: str, duration_ns: int) -> Almanac:
    return Almanac(cron, timezone, duration_ns)


def _almanac_of(schedule: Schedule) -> Almanac:
    return _almanac(schedule.cron, schedule.timezone, schedule.duration_ns)
