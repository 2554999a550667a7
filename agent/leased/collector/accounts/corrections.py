# SPDX-License-Identifier: Apache-2.0
"""Corrections: what issued bills would be by what is known now, as lines of the next one.

Rule: each difference is on one bill, and at the prices of the bill that it is about. Bills may have
other digits by now: it is rounded to those of the bill that it is on. Money of another currency is
in no sum: it is told, once, for people to settle.

Does not compute bills (`billing`) and does not choose them (`accounts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Final

from leased.economics.amounts import fixed, rounded
from leased.economics.billing import Bill
from leased.economics.contracts import Terms
from leased.economics.credits import ENDED

PREFIX: Final = "Correction of "


def corrections_of(
    bills: Iterable[Bill], others: Sequence[Bill], terms: Terms, again: Callable[[Bill], Bill]
) -> Iterator[tuple[str, int]]:
    """(description, 10**-decimals units of `terms`) of each of `bills` that comes out otherwise
    `again`, less what `others` that were issued say of it."""
    said = [one for bill in others for one in bill.corrections]
    for bill in bills:
        name = PREFIX + bill.period
        off = _worth(again(bill)) - _worth(bill)
        off -= sum(Fraction(amount) for text, amount in said if text == name)
        if bill.currency == terms.currency:
            amount = rounded(off, terms.decimals)
            if amount:
                yield name, amount
        elif off:
            money = f"{fixed(rounded(off, bill.decimals), bill.decimals)} {bill.currency}"
            yield from settled_apart([(bill.period, money)], others)


def settled_apart(
    found: Iterable[tuple[str, str]], others: Iterable[Bill]
) -> Iterator[tuple[str, int]]:
    """(month, words) of money that is in no sum, as lines of nothing; what `others` have told is
    not told again."""
    said = [text for bill in others for text, _ in bill.corrections]
    for month, words in found:
        told = f"{PREFIX}{month}: {words}, to be settled apart"
        if told not in said:
            yield told, 0


def _worth(bill: Bill) -> Fraction:
    """What a bill charges. What it gave of credits was given, and is not given again."""
    return Fraction(bill.total if bill.version == ENDED else bill.subtotal)


def corrected(description: str) -> str:
    """Which month a correction is of."""
    return description.removeprefix(PREFIX).partition(":")[0]
