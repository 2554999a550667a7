# SPDX-License-Identifier: Apache-2.0
"""Answers as CSV: what others call their cost centres runs in nobody's spreadsheet."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from decimal import Decimal

from leased.ctl.answer_text import show_answer
from leased.ctl.console import Console


def shown(*rows: dict[str, object]) -> list[dict[str, str]]:
    out = io.StringIO()
    show_answer({"rows": list(rows)}, Namespace(json=False, csv=True), Console(out, io.StringIO()))
    return list(csv.DictReader(io.StringIO(out.getvalue())))


def test_what_a_spreadsheet_would_take_for_a_formula_is_text():
    names = ('=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "@SUM(A1)", "-2-3", "\tx")
    rows = shown(*({"cost_center": name, "cost": Decimal(1)} for name in names))
    assert [row["cost_center"] for row in rows] == [f"'{name}" for name in names]


def test_numbers_stay_numbers_and_truth_is_written_as_in_json():
    (row,) = shown({"cost": Decimal("-1.50"), "cost_exact": "-1.5", "final": True, "tier": None})
    assert row == {"cost": "-1.50", "cost_exact": "-1.5", "final": "true", "tier": ""}
