# SPDX-License-Identifier: Apache-2.0
"""Quantities as people write them: "60s", "16MiB", "20%", "100/s", "2026-04-01T00:00:00Z". Integers
come out: ns, bytes, per mille, an amount per time, ns since the Unix epoch.

Rule: exact or refused. A quantity without its unit is refused (a bare 60 has been seconds in one
place and milliseconds in another for as long as there have been configuration files), and so is one
that is no whole number of what it is counted in.

Does not read files. `ValueError` says what is allowed; the caller adds where it stood.
"""

from __future__ import annotations

import re
from typing import Final

WHOLE_PM: Final = 1000
DURATION_UNITS: Final[tuple[tuple[str, int], ...]] = (
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
)
SIZE_UNITS: Final[tuple[tuple[str, int], ...]] = (
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
)
BIT_RATE_UNITS: Final[tuple[tuple[str, int], ...]] = (
    ("Tbit", 10**12),
    ("Gbit", 10**9),
    ("Mbit", 10**6),
    ("Kbit", 10**3),
    ("bit", 1),
)
_PER: Final = {"s": 1_000_000_000, "min": 60_000_000_000, "h": 3_600_000_000_000}
_QUANTITY: Final = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))? ?([A-Za-z]+)", re.ASCII)
_PERCENT: Final = re.compile(r"(\d{1,6})(?:\.(\d))? ?%", re.ASCII)
_RATE: Final = re.compile(r"(\d{1,9}) ?/ ?(s|min|h)", re.ASCII)
_THOUSANDTHS: Final = re.compile(r"(\d{1,15})m", re.ASCII)
_DECIMAL: Final = re.compile(r"(\d{1,12})(?:\.(\d{1,3}))?", re.ASCII)
_INSTANT: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?"
    r"(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
MILLI: Final = 1_000


def parse_duration(text: str) -> int:
    """ "1.5s" as ns. Raises ValueError."""
    return _parse(
        text, DURATION_UNITS, 'a duration is a number with its unit, such as "60s", "100ms" or "2h"'
    )


def parse_size(text: str, *, rounded_up: bool = False) -> int:
    """ "16MiB" as bytes; a fraction of a byte is refused, or `rounded_up`. Raises ValueError."""
    allowed = 'a size is a number with its unit, such as "4KiB", "16MiB" or "2GiB"'
    return _parse(text, SIZE_UNITS, allowed, rounded_up=rounded_up)


def parse_bit_rate(text: str) -> int:
    """ "10Gbit" as bit/s. Raises ValueError."""
    return _parse(
        text, BIT_RATE_UNITS, 'a bit rate is a number with its unit, such as "10Gbit" or "500Mbit"'
    )


def parse_milli(value: object) -> int:
    """Whole devices or cores (4), or thousandths of one ("500m", "1.5"), as thousandths. Raises
    ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value * MILLI
    if isinstance(value, str):
        thousandths = _THOUSANDTHS.fullmatch(value)
        if thousandths is not None:
            return int(thousandths[1])
        decimal = _DECIMAL.fullmatch(value)
        if decimal is not None:
            return int(decimal[1]) * MILLI + int((decimal[2] or "").ljust(3, "0"))
    raise ValueError('a whole number (4), thousandths ("500m") or a decimal in quotes ("1.5")')


def parse_share(text: str) -> int:
    """ "20%" or "12.5%" as per mille. Raises ValueError."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise ValueError('a share is a percentage, such as "20%" or "2.5%"')
    return int(match[1]) * 10 + int(match[2] or 0)


def parse_rate(text: str) -> tuple[int, int]:
    """ "100/s" as (100, ns of a second); "30/min" and "500/h" too. Raises ValueError."""
    match = _RATE.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError('a rate is a number per time, such as "100/s", "30/min" or "500/h"')
    return int(match[1]), _PER[match[2]]


def parse_instant(text: str) -> int:
    """An RFC 3339 instant, with its offset from UTC, as ns since the Unix epoch. Raises
    ValueError."""
    allowed = 'an instant with its offset from UTC, such as "2026-04-01T00:00:00Z"'
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError(allowed)
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hour, offset_minute = match.groups()[6:]
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if (
        not year >= 1970
        or not 1 <= month <= 12
        or not 1 <= day <= (29 if month == 2 and leap else _MONTH_DAYS[month - 1])
        or hour > 23
        or minute > 59
        or second > 59
        or int(offset_hour or 0) > 23
        or int(offset_minute or 0) > 59
    ):
        raise ValueError(f"there is no such instant; {allowed}")
    offset_s = (int(offset_hour or 0) * 60 + int(offset_minute or 0)) * 60
    seconds = _days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second
    seconds += offset_s if sign == "-" else -offset_s
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def print_instant(wall_ns: int) -> str:
    """`wall_ns` in UTC, to the second."""
    days, seconds = divmod(wall_ns // 1_000_000_000, 86_400)
    # Howard Hinnant's civil_from_days, for days from 1970 on: years begin in March.
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    day, month = of_year - (153 * shifted + 2) // 5 + 1, shifted + (3 if shifted < 10 else -9)
    year += era * 400 + (month <= 2)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{year:04}-{month:02}-{day:02}T{clock}Z"


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of the proleptic Gregorian calendar."""
    year -= month <= 2
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + of_year - 719_468


def print_duration(ns: int) -> str:
    """`ns` in the largest unit that leaves it whole: 90 s is "90s", 1500 ms is "1500ms"."""
    return _print(ns, DURATION_UNITS)


def print_share(per_mille: int) -> str:
    """`per_mille` as a percentage."""
    whole, tenth = divmod(per_mille, 10)
    return f"{whole}.{tenth}%" if tenth else f"{whole}%"


def print_size(size_bytes: int) -> str:
    """`size_bytes` in the largest unit that leaves it a whole number."""
    return _print(size_bytes, SIZE_UNITS)


def print_bit_rate(bits_per_s: int) -> str:
    """`bits_per_s` in the largest unit that leaves it a whole number."""
    return _print(bits_per_s, BIT_RATE_UNITS)


def _parse(
    text: str, units: tuple[tuple[str, int], ...], allowed: str, *, rounded_up: bool = False
) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(allowed)
    whole, fraction, name = match.groups()
    scale = dict(units).get(name)
    if scale is None:
        known = ", ".join(unit for unit, _ in reversed(units))
        raise ValueError(f'"{name}" is not a unit; one of {known} is')
    digits = fraction or ""
    scaled, rest = divmod(int(whole + digits) * scale, int(10 ** len(digits)))
    if rest and not rounded_up:
        raise ValueError(f"not a whole number of {units[-1][0]}")
    return scaled + bool(rest)


def _print(value: int, units: tuple[tuple[str, int], ...]) -> str:
    if value == 0:
        return "0s" if units is DURATION_UNITS else f"0{units[-1][0]}"
    for unit, scale in units:
        if value % scale == 0:
            return f"{value // scale}{unit}"
    raise AssertionError("the smallest unit divides every integer")
