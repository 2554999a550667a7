# SPDX-License-Identifier: Apache-2.0
"""Windows: when a schedule is open.

Rule: a window opens at an instant that the cron line names on the clock of its time zone, and is
open for its duration as it elapses: ten hours stay ten hours when the clocks change.

Does not read a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_S: Final = 1_000_000_000
FIELDS: Final = 5


def check(cron: str, timezone: str) -> None:
    """Raises ValueError saying what is wrong."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        why = f'there is no "{timezone}"; write it like "Europe/Berlin"'
        raise ValueError(f"timezone: {why}") from None
    if len(cron.split()) != FIELDS:
        raise ValueError('schedule: five fields, such as "0 8 * * 1-5"')
    try:
        next(CronSim(cron, datetime(2026, 1, 1, tzinfo=zone)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"schedule: {error or 'it never comes'}") from None


def last_opening_ns(cron: str, timezone: str, now_ns: int) -> int | None:
    """The last instant at or before `now_ns` that the line names."""
    # To the second, upwards: the search finds what lies before where it starts.
    return _first(cron, timezone, -(-(now_ns + 1) // _NS_PER_S), reverse=True)


def next_opening_ns(cron: str, timezone: str, now_ns: int) -> int | None:
    """The first instant after `now_ns` that the line names."""
    return _first(cron, timezone, now_ns // _NS_PER_S, reverse=False)


def _first(cron: str, timezone: str, second: int, *, reverse: bool) -> int | None:
    start = (_EPOCH + timedelta(seconds=second)).astimezone(ZoneInfo(timezone))
    try:
        found = next(CronSim(cron, start, reverse=reverse))
    except (StopIteration, CronSimError):
        return None
    since = found.astimezone(UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * _NS_PER_S
