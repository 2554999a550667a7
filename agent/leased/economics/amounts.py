# SPDX-License-Identifier: Apache-2.0
"""Amounts: exact fractions of a currency or a quantity, their one rounding, and their division into
parts that add up.

Rule: an amount is a Fraction until it is rounded, once, half to even. Parts of a whole are rounded
by the largest remainder, ties to the earlier part, so that they add up to the whole exactly. No
float, anywhere.

Does not know what is priced.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from math import floor, lcm
from typing import Final

QUANTITY_DECIMALS: Final = 9


def rounded(amount: Fraction, decimals: int) -> int:
    """`amount` in 10**-decimals units, half to even."""
    scale: int = 10**decimals
    return round(amount * scale)


def fixed(amount: int, decimals: int) -> str:
    """`amount` of 10**-decimals units as a decimal string with exactly `decimals` digits."""
    if not decimals:
        return str(amount)
    whole, rest = divmod(abs(amount), 10**decimals)
    return f"{'-' if amount < 0 else ''}{whole}.{rest:0{decimals}d}"


def exact(amount: Fraction) -> str:
    """Every digit of `amount` as a decimal; "n/d" in lowest terms where the digits do not end."""
    rest = amount.denominator
    twos = fives = 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{amount.numerator}/{amount.denominator}"
    decimals = max(twos, fives)
    return fixed(int(amount * 10**decimals), decimals)


def units(text: str, decimals: int) -> int:
    """Undo `fixed`: a decimal string as units of 10**-decimals. Raises ValueError."""
    whole, _, fraction = text.removeprefix("-").partition(".")
    amount = int(whole) * int(10**decimals) + int(fraction.ljust(decimals, "0") or 0)
    return -amount if text.startswith("-") else amount


def decimal(amount: Fraction, decimals: int = QUANTITY_DECIMALS) -> str:
    """`amount` rounded to at most `decimals` digits, without trailing zeros: for people."""
    text = fixed(rounded(amount, decimals), decimals)
    return text.rstrip("0").rstrip(".") if "." in text else text


def split(total: int, weights: Sequence[Fraction | int]) -> list[int]:
    """`total` in integer parts in proportion to `weights` (none negative), by the largest
    remainder; all of it. Equal parts where every weight is zero; nothing of nothing."""
    if not weights:
        return []
    shares = wholes(weights)
    if not any(shares):
        shares = [1] * len(shares)
    whole = sum(shares)
    parts, rests = map(list, zip(*(divmod(total * share, whole) for share in shares), strict=True))
    order = sorted(range(len(parts)), key=lambda i: (-rests[i], i))
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return parts


def nearest(total: int, amounts: Sequence[Fraction]) -> list[int]:
    """`amounts`, of which `total` is the rounded sum, as integers that add up to it, some of them
    below zero: each cut, and what is left to the largest remainders."""
    parts = [floor(amount) for amount in amounts]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - amounts[i], i))
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return parts


def wholes(amounts: Collection[Fraction | int]) -> list[int]:
    """Whole numbers in the same proportion. There may be a hundred thousand: these are added up and
    compared many times faster than fractions are."""
    over = lcm(*(one.denominator for one in amounts))
    return [one.numerator * (over // one.denominator) for one in amounts]
