# SPDX-License-Identifier: Apache-2.0
"""The Prometheus text format: families of samples as lines.

Rule: a family is declared once, with its type and what it means; samples in the order of their
labels. A value is written exactly: integers and decimals as they are.

Does not know what is measured (`metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Value = int | Decimal | Fraction
Samples = Mapping[tuple[str, ...], Value]
_DIGITS: Final = 9


def family(
    name: str, kind: str, meaning: str, labels: tuple[str, ...], samples: Samples
) -> Iterable[str]:
    """The lines of one family; none if it has no samples."""
    if not samples:
        return
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for values, value in sorted(samples.items()):
        pairs = ",".join(
            f'{label}="{_escaped(one)}"' for label, one in zip(labels, values, strict=True)
        )
        yield f"{name}{'{' + pairs + '}' if pairs else ''} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: Value) -> str:
    if isinstance(value, Fraction):
        scaled = round(value * 10**_DIGITS)
        return format(Decimal(scaled).scaleb(-_DIGITS), "f")
    return format(value, "f") if isinstance(value, Decimal) else str(value)
