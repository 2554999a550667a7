# SPDX-License-Identifier: Apache-2.0
"""Credits: what a bill gives back of them, and what is left for the next.

Rule: a credit is rounded once, half to even, to the digits of the bill, and is given once. Where
the terms do not let credits make a bill negative it gives what it can, oldest month first, and what
is left is the next one's. (Bills of version 1 ended a credit at zero: the rest of it was gone.)

Does not choose the credits of a bill (`collector.accounts.crediting`).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import msgspec

from leased.economics.amounts import rounded
from leased.economics.contracts import Credit
from leased.economics.rates import NANO

ENDED: Final = 1
"""The version of bills whose credits end with them."""


class Given(msgspec.Struct, frozen=True):
    """What a bill gave of a credit, and what it left, in 10**-decimals units."""

    credit: Credit
    amount: int
    left: int


def give(
    credits: Iterable[Credit], room: int, decimals: int, *, allow_negative: bool, version: int
) -> list[Given]:
    """What a bill of `room` units gives of each of its `credits`."""
    found: list[Given] = []
    room = max(0, room)
    for credit in credits:
        worth = rounded(Fraction(credit.nano, NANO), decimals)
        worth = max(0, worth - rounded(Fraction(credit.given_nano, NANO), decimals))
        amount = worth if allow_negative else min(worth, room)
        room -= amount
        found.append(Given(credit, amount, 0 if version == ENDED else worth - amount))
    return found


def named(credit: Credit, month: str) -> str:
    """What it is called on the bill of `month`."""
    return credit.reason if credit.month == month else f"{credit.reason} (of {credit.month})"
