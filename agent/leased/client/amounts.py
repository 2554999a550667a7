# SPDX-License-Identifier: Apache-2.0
"""Amounts: capacities in raw units as people read them.

Rule: never rounded to something else: what is no whole number of a larger unit is told in a smaller
one.

Does not read what people write (`wants`, and `asks` of leasectl).
"""

from __future__ import annotations

from typing import Final

from leased.terms.moment import NS_PER_MS

SIZES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
RATES: Final = {"bit": 1, "Kbit": 1_000, "Mbit": 1_000_000, "Gbit": 1_000_000_000}
MILLI: Final = 1_000


def size(count: int) -> str:
    """Bytes for people, never rounded to something else: "1536MiB", "4097B"."""
    for unit, scale in reversed(SIZES.items()):
        if count >= scale and count % scale == 0:
            return f"{count // scale}{unit}"
    return f"{count}B"


def amount(kind: str, capacity: int) -> str:
    """A capacity of `kind` for people."""
    if kind in ("mem", "block"):
        return size(capacity)
    if kind in ("cpu", "gpu"):
        return str(capacity // MILLI) if capacity % MILLI == 0 else f"{capacity}m"
    for unit, scale in reversed(RATES.items()):
        if capacity >= scale and capacity % scale == 0:
            return f"{capacity // scale}{unit}"
    return f"{capacity}bit"


def told(what: str, number: int) -> str:
    """A number of a refusal in the unit of `what`: a kind, a resource, "ns"; else as it is."""
    kind = what.split(":")[0]
    if kind in ("mem", "block", "cpu", "gpu", "net"):
        return amount(kind, number)
    if what == "ns" and number % NS_PER_MS == 0:
        seconds, ms = divmod(number // NS_PER_MS, 1_000)
        return f"{ms} ms" if not seconds else f"{seconds}.{ms:03}".rstrip("0").rstrip(".") + " s"
    return str(number)
