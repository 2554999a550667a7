# SPDX-License-Identifier: Apache-2.0
"""Quantities as people write them: "60s", "16MiB", "2.5s". Integers come out: ns and bytes.

Rule: exact or refused. A quantity without its unit is refused (a bare 60 has been seconds in one
place and milliseconds in another for as long as there have been configuration files), and so is one
that is no whole number of ns or bytes.

Does not read files. `ValueError` says what is allowed; the caller adds where it stood.
"""

from __future__ import annotations

import re
from typing import Final

DURATION_UNITS: Final[tuple[tuple[str, int], ...]] = (
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
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
_QUANTITY: Final = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))? ?([A-Za-z]+)", re.ASCII)


def parse_duration(text: str) -> int:
    """ "1.5s" as ns. Raises ValueError."""
    return _parse(
        text, DURATION_UNITS, 'a duration is a number with its unit, such as "60s", "100ms" or "2h"'
    )


def parse_size(text: str) -> int:
    """ "16MiB" as bytes. Raises ValueError."""
    return _parse(
        text, SIZE_UNITS, 'a size is a number with its unit, such as "4KiB", "16MiB" or "2GiB"'
    )


def print_duration(ns: int) -> str:
    """`ns` in the largest unit that leaves it whole: 90 s is "90s", 1500 ms is "1500ms"."""
    return _print(ns, DURATION_UNITS)


def print_size(size_bytes: int) -> str:
    """`size_bytes` in the largest unit that leaves it a whole number."""
    return _print(size_bytes, SIZE_UNITS)


def _parse(text: str, units: tuple[tuple[str, int], ...], allowed: str) -> int:
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
    if rest:
        raise ValueError(f"not a whole number of {units[-1][0]}")
    return scaled


def _print(value: int, units: tuple[tuple[str, int], ...]) -> str:
    if value == 0:
        return "0" + ("s" if units is DURATION_UNITS else "B")
    for unit, scale in units:
        if value % scale == 0:
            return f"{value // scale}{unit}"
    raise AssertionError("the smallest unit divides every integer")
