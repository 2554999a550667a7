# SPDX-License-Identifier: Apache-2.0
"""Rows of usage as CSV (RFC 4180), for spreadsheets.

Rule: what a spreadsheet would take for a formula is text (`terms.spreadsheet`).

Does not choose rows (`reports`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from leased.collector.accounts import answers
from leased.terms import spreadsheet

OF_LEASES: Final = ("node", "log_id", "lease_id", "first_record", "last_record", "provisional")
_COLUMNS: Final = answers.UsageRow.__struct_fields__


def csv_of(report: answers.UsageReport) -> bytes:
    """Its rows with a heading, as RFC 4180 has them."""
    by_lease = report.granularity == "lease"
    told: list[Mapping[str, Any]] = [
        msgspec.to_builtins(row, builtin_types=(Decimal,)) for row in report.rows
    ]
    out = io.StringIO()
    left_out = ("leases",) if by_lease else OF_LEASES
    writer = csv.DictWriter(out, [one for one in _COLUMNS if one not in left_out])
    writer.writeheader()
    writer.writerows(
        {key: f"{v:f}" if isinstance(v, Decimal) else spreadsheet.cell(v) for key, v in row.items()}
        for row in told
    )
    return out.getvalue().encode()
