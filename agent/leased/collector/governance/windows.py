# SPDX-License-Identifier: Apache-2.0
"""Windows: when a schedule is open.

Rule: a window opens at an instant that the cron line names on the clock of its time zone, and is
open for its duration as it elapses: ten hours stay ten hours when the clocks change. An instant
that a clock change leaves out comes when the clock goes on, one that comes twice counts once. Nodes
open the same windows by themselves (`service.policy.windows`); a property test holds the two
together.

Does not read a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from leased.terms.moment import HOUR_NS, NS_PER_S

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FOLD_NS: Final = 3 * HOUR_NS
_OF_A_HOST: Final = ("localtime", "posixrules", "Factory")
"""Names that stand for another zone on each host."""
FIELDS: Final = 5


def check(cron: str, timezone: str) -> None:
    """Raises ValueError saying what is wrong."""
    try:
        if timezone in _OF_A_HOST:
            raise ValueError
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        why = f'there is no "{timezone}"; write it like "Europe/Berlin"'
        raise ValueError(f"timezone: {why}") from None
    if len(cron.split()) != FIELDS:
        raise ValueError('schedule: five fields, such as "0 8 * * 1-5"')
    try:
        next(CronSim(cron, datetime(2026, 1, 1, tzinfo=zone)))
    except (CronSimError, StopIteration) as error:
        why = str(error).rstrip(".") or "it never comes"
        raise ValueError(f'schedule: {why}; five fields, such as "0 8 * * 1-5"') from None


def last_opening_ns(cron: str, timezone: str, now_ns: int) -> int | None:
    """The last instant at or before `now_ns` that the line names."""
    # Backwards to about where it is, then forwards: an hour that comes twice is only seen so.
    before = next(_named(cron, timezone, now_ns - _FOLD_NS, reverse=True), None)
    last = before
    for at_ns in _instants(cron, timezone, (now_ns if before is None else before) - 2 * _FOLD_NS):
        if at_ns > now_ns:
            break
        last = at_ns
    return last


def next_opening_ns(cron: str, timezone: str, now_ns: int) -> int | None:
    """The first instant after `now_ns` that the line names."""
    return next(_instants(cron, timezone, now_ns), None)


def _instants(cron: str, timezone: str, after_ns: int) -> Iterator[int]:
    """Every instant that a line names after `after_ns`."""
    # From before the hour that comes twice, so that it is seen to.
    from_ns = after_ns - _FOLD_NS if _local(timezone, after_ns).fold else after_ns
    return (at_ns for at_ns in _named(cron, timezone, from_ns, reverse=False) if at_ns > after_ns)


def _named(cron: str, timezone: str, from_ns: int, *, reverse: bool) -> Iterator[int]:
    try:
        for found in CronSim(cron, _local(timezone, from_ns), reverse=reverse):
            since = found.astimezone(UTC) - _EPOCH
            yield (since.days * 86_400 + since.seconds) * NS_PER_S
    except CronSimError:
        return


def _local(timezone: str, at_ns: int) -> datetime:
    return (_EPOCH + timedelta(seconds=at_ns // NS_PER_S)).astimezone(ZoneInfo(timezone))
