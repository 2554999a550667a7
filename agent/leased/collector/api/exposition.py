# SPDX-License-Identifier: Apache-2.0
"""Families of Prometheus whose samples are exact numbers.

Rule: a value is written exactly, integers and decimals as they are; a fraction to nine digits.

Does not know what is measured (`metrics`), nor how a line is written (`terms.exposition`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

from leased.terms import exposition

Value = int | Decimal | Fraction
Samples = Mapping[tuple[str, ...], Value]
_DIGITS: Final = 9


def gauge(name: str, meaning: str, labels: tuple[str, ...], samples: Samples) -> Iterator[str]:
    """The lines of what goes up and down; none if it has no samples."""
    return _family(name, "gauge", meaning, labels, samples)


def counter(name: str, meaning: str, labels: tuple[str, ...], samples: Samples) -> Iterator[str]:
    """The lines of what never falls; none if it has no samples."""
    return _family(name, "counter", meaning, labels, samples)


def _family(
    name: str, kind: str, meaning: str, labels: tuple[str, ...], samples: Samples
) -> Iterator[str]:
    told = (
        (tuple(zip(labels, values, strict=True)), _number(value))
        for values, value in samples.items()
    )
    return exposition.family(name, kind, meaning, told)


def _number(value: Value) -> str:
    if isinstance(value, Fraction):
        scaled = round(value * 10**_DIGITS)
        return format(Decimal(scaled).scaleb(-_DIGITS), "f")
    return format(value, "f") if isinstance(value, Decimal) else str(value)
