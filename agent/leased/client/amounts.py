# SPDX-License-Identifier: Apache-2.0
"""Amounts: capacities in raw units as people read them.

Rule: never rounded to something else: what is no whole number of a larger unit is told in a smaller
one.

Does not read what people write (`wants`, and `asks` of leasectl).
"""

from __future__ import annotations

from leased.terms.moment import NS_PER_MS
from leased.terms.quantity import MILLI, print_bit_rate, print_size


def amount(kind: str, capacity: int) -> str:
    """A capacity of `kind` for people."""
    if kind in ("mem", "block"):
        return print_size(capacity)
    if kind in ("cpu", "gpu"):
        return str(capacity // MILLI) if capacity % MILLI == 0 else f"{capacity}m"
    return print_bit_rate(capacity)


def told(what: str, number: int) -> str:
    """A number of a refusal in the unit of `what`: a kind, a resource, "ns"; else as it is."""
    kind = what.split(":")[0]
    if kind in ("mem", "block", "cpu", "gpu", "net"):
        return amount(kind, number)
    if what == "ns" and number % NS_PER_MS == 0:
        seconds, ms = divmod(number // NS_PER_MS, 1_000)
        return f"{ms} ms" if not seconds else f"{seconds}.{ms:03}".rstrip("0").rstrip(".") + " s"
    return str(number)
