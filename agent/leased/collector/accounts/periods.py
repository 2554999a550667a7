# SPDX-License-Identifier: Apache-2.0
"""Periods: "30d", "2026-01", dates and instants, as half-open stretches of label time on full
hours.

Rule: usage is kept by the hour, so every border is a full hour (UTC) or is refused; a date as an
end means the whole of that day. A month is that of the tenant's time zone, UTC by default.

Does not read a clock: what "now" is is handed in.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from leased.economics.billing import Month
from leased.terms.errors import InvalidParameter
from leased.terms.moment import DAY_NS, HOUR_NS, NS_PER_S
from leased.terms.quantity import print_instant

PERIOD_NS_MAX: Final = 800 * DAY_NS
_UNITS: Final = {"h": HOUR_NS, "d": DAY_NS, "w": 7 * DAY_NS}
_PERIOD: Final = re.compile(r"([1-9][0-9]{0,4})([hdw])\Z", re.ASCII)
_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])\Z", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END_NS: Final = (date(2200, 1, 1) - date(1970, 1, 1)).days * DAY_NS


class Window(msgspec.Struct, frozen=True):
    """[from_ns, to_ns) of label time, both on a full hour."""

    from_ns: int
    to_ns: int

    @property
    def pair(self) -> tuple[int, int]:
        """As the pure rooms take it."""
        return self.from_ns, self.to_ns

    @property
    def hours(self) -> range:
        """The hours in it."""
        return range(self.from_ns // HOUR_NS, self.to_ns // HOUR_NS)


def last(period: str, now_ns: int) -> Window:
    """The last "24h", "30d" or "2w" before the hour of `now_ns`. Raises InvalidParameter."""
    length = duration(period)
    end_ns = now_ns // HOUR_NS * HOUR_NS
    return Window(max(0, end_ns - length), end_ns)


def duration(period: str, parameter: str = "period") -> int:
    """ "24h", "30d", "2w" in ns. Raises InvalidParameter."""
    match = _PERIOD.match(period)
    length = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < length <= PERIOD_NS_MAX:
        most = f"{PERIOD_NS_MAX // DAY_NS}d"
        why = f'a number of hours, days or weeks such as "24h" or "30d", of at most {most}'
        raise InvalidParameter(parameter, why)
    return length


def month(text: str, zone: str = "UTC") -> Month:
    """ "2026-01" in a time zone. Raises InvalidParameter."""
    match = _MONTH.match(text)
    year = int(match[1]) if match else 0
    if not match or not 1970 <= year <= 2199:
        raise InvalidParameter("month", 'a month such as "2026-01", from 1970 to 2199')
    number = int(match[2])
    where = time_zone(zone)
    first = datetime(year, number, 1, tzinfo=where)
    then = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=where)
    start_ns, end_ns = label(first), label(then)
    if start_ns % HOUR_NS or end_ns % HOUR_NS:
        raise InvalidParameter("month", f"months of {zone} do not begin on a full hour of UTC")
    return Month(text, start_ns, end_ns)


def time_zone(name: str) -> tzinfo:
    """A zone by its IANA name. Raises InvalidParameter."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidParameter("time_zone", f"there is no time zone {name[:64]!r}") from None


def window(start: str, end: str) -> Window:
    """From `start` to `end`: dates (the end's whole day) or RFC 3339 instants on a full hour
    (half-open). Raises InvalidParameter."""
    from_ns, _ = _instant(start, "start")
    to_ns, whole_day = _instant(end, "end")
    to_ns += DAY_NS if whole_day else 0
    if to_ns <= from_ns:
        raise InvalidParameter("end", "the period ends before it begins")
    if to_ns - from_ns > PERIOD_NS_MAX:
        raise InvalidParameter("end", f"at most {PERIOD_NS_MAX // DAY_NS} days at once")
    return Window(from_ns, to_ns)


def months(start: str, end: str) -> list[str]:
    """The months from the first day of one to the last of another, both dates. Raises
    InvalidParameter."""
    found = window(start, end)
    first, last = month(start[:7]), month(end[:7])
    if (first.from_ns, last.to_ns) != found.pair:
        raise InvalidParameter("start", "bills are of whole months: from a first day to a last")
    named = []
    while first.from_ns < last.to_ns:
        named.append(first.name)
        first = month(month_beside(first.name, 1))
    return named


def month_beside(name: str, by: int) -> str:
    """The name of the month that is so many later (below zero: earlier) than one."""
    year, number = divmod(int(name[:4]) * 12 + int(name[5:]) - 1 + by, 12)
    return f"{year:04}-{number + 1:02}"


def label_of_day(text: str, parameter: str) -> int:
    """The label of the beginning of a date. Raises InvalidParameter."""
    return _instant(text, parameter)[0]


def exact_instant(label_ns: int) -> str:
    """A label as RFC 3339 in UTC, to the nanosecond where it is not on a full second."""
    rest = label_ns % NS_PER_S
    return print_instant(label_ns)[:-1] + (f".{rest:09}".rstrip("0") if rest else "") + "Z"


def day(label_ns: int) -> str:
    """The date of a label, in UTC."""
    return print_instant(label_ns)[:10]


def label(moment: datetime) -> int:
    """Whole seconds since 1970 in ns."""
    return int((moment - _EPOCH).total_seconds()) * NS_PER_S


def _instant(text: str, parameter: str) -> tuple[int, bool]:
    """(label, whether it is a date)."""
    why = 'a date such as "2026-01-31", or an instant such as "2026-01-31T12:00:00Z"'
    try:
        if _DATE.match(text):
            whole = date.fromisoformat(text)
            parsed, is_date = datetime(whole.year, whole.month, whole.day, tzinfo=UTC), True
        elif text.isascii() and len(text) <= 40 and "T" in text.upper():
            parsed, is_date = datetime.fromisoformat(text), False
        else:
            raise ValueError(text)
        if parsed.tzinfo is None:
            raise InvalidParameter(parameter, "an instant names its offset: end it with Z")
        at_ns = label(parsed.astimezone(UTC))
    except (ValueError, OverflowError):
        raise InvalidParameter(parameter, why) from None
    if at_ns < 0:
        raise InvalidParameter(parameter, "there are no records from before 1970")
    if at_ns > _END_NS:
        raise InvalidParameter(parameter, "there are no records from after 2199")
    if at_ns % HOUR_NS or parsed.microsecond:
        raise InvalidParameter(parameter, "usage is kept by the hour: give a full hour (UTC)")
    return at_ns, is_date
