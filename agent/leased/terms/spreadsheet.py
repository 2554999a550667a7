# SPDX-License-Identifier: Apache-2.0
"""Cells of a CSV file, for spreadsheets: what others call their jobs is text there.

Rule: what a spreadsheet would take for a formula is text, and a number stays one; true and false
are written as JSON has them.

Does not write files, and does not quote: that is `csv`'s.
"""

from __future__ import annotations

import re
from typing import Any, Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_NUMBER: Final = re.compile(r"-[0-9]+(\.[0-9]+)?\Z")


def cell(value: Any) -> Any:
    """`value`, so that `csv` writes what a spreadsheet reads as it was meant."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value[:1] in _FORMULA and not _NUMBER.match(value):
        return "'" + value
    return value
