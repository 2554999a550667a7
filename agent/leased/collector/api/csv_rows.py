# SPDX-License-Identifier: Apache-2.0
"""Rows of usage as CSV (RFC 4180), for spreadsheets.

Rule: what a spreadsheet would take for a formula is text.

Does not choose rows (`reports`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from leased.collector.accounts import answers


def csv_of(rows: Sequence[msgspec.Struct]) -> bytes:
    """Rows with a heading, as RFC 4180 has them."""
    told: list[Mapping[str, Any]] = [
        msgspec.to_builtins(row, builtin_types=(Decimal,)) for row in rows
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(answers.UsageRow.__struct_fields__))
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in told)
    return out.getvalue().encode()


def _cell(value: Any) -> Any:
    """What a spreadsheet would take for a formula is text."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
