# SPDX-License-Identifier: Apache-2.0
"""FOCUS rows as Parquet: typed columns, for tools that read tables and not text.

Rule: what is empty is null; amounts are decimals, exact to twelve digits after the point and never
floating; instants are timestamps in UTC.

Does not know what a row says (`focus`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from leased.terms.errors import InvalidParameter

AMOUNT: Final = pyarrow.decimal128(38, 12)
_DIGITS: Final = Decimal(1).scaleb(-12)
_WIDE: Final = Context(prec=38, rounding=ROUND_HALF_EVEN)
_AMOUNTS: Final = ("Cost", "Price", "Quantity")
_INSTANTS: Final = ("PeriodStart", "PeriodEnd")


def parquet_of(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> bytes:
    """One Parquet file. Raises InvalidParameter."""
    told = list(rows)
    arrays, fields = [], []
    for name in columns:
        kind = _kind(name)
        arrays.append(pyarrow.array([_cell(row[name], kind) for row in told], kind))
        fields.append(pyarrow.field(name, kind))
    out = io.BytesIO()
    table = pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields))
    parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def _kind(name: str) -> Any:
    if name.endswith(_AMOUNTS):
        return AMOUNT
    if name.endswith(_INSTANTS):
        return pyarrow.timestamp("us", tz="UTC")
    return pyarrow.string()


def _cell(text: str, kind: Any) -> Any:
    if not text:
        return None
    if kind == AMOUNT:
        try:
            return Decimal(text).quantize(_DIGITS, context=_WIDE)
        except InvalidOperation:
            why = "a figure of this bill has more digits than decimals of Parquet: ask for CSV"
            raise InvalidParameter("format", why) from None
    if kind == pyarrow.string():
        return text
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
