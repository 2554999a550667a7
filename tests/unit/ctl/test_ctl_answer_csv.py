# SPDX-License-Identifier: Apache-2.0
"""Answers as CSV: what others call their cost centres runs in nobody's spreadsheet."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from decimal import Decimal

from leased.ctl.answer_text import show_answer
from leased.ctl.console import Console


def told(answer: dict[str, object], *, as_csv: bool) -> str:
    out = io.StringIO()
    show_answer(answer, Namespace(json=False, csv=as_csv), Console(out, io.StringIO()))
    return out.getvalue()


def shown(*rows: dict[str, object]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(told({"rows": list(rows)}, as_csv=True))))


def test_what_a_spreadsheet_would_take_for_a_formula_is_text():
    names = ('=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "@SUM(A1)", "-2-3", "\tx")
    rows = shown(*({"cost_center": name, "cost": Decimal(1)} for name in names))
    assert [row["cost_center"] for row in rows] == [f"'{name}" for name in names]


def test_numbers_stay_numbers_and_truth_is_written_as_in_json():
    (row,) = shown({"cost": Decimal("-1.50"), "cost_exact": "-1.5", "final": True, "tier": None})
    assert row == {"cost": "-1.50", "cost_exact": "-1.5", "final": "true", "tier": ""}


def test_small_numbers_have_their_digits_and_no_exponent():
    """In a currency of nine digits, nothing was `0E-9`."""
    row = {"cost": Decimal("0.000000000"), "peak": Decimal("0.000000009")}
    assert shown(row) == [{"cost": "0.000000000", "peak": "0.000000009"}]
    lines = told({"total": row["cost"], "rows": [row]}, as_csv=False)
    assert "total: 0.000000000\n" in lines and "0.000000009" in lines


def test_the_rows_of_a_bill_are_its_lines_however_many_logs_it_follows_from():
    """And costs by tenant are those of tenants, where there are more types than tenants."""

    def names(answer: dict[str, object]) -> list[str]:
        return [row["name"] for row in csv.DictReader(io.StringIO(told(answer, as_csv=True)))]

    one, more = [{"name": "line"}], [{"name": "log"}] * 3
    assert names({"line_items": one, "audit": more}) == ["line"]
    assert names({"line_items": [], "audit": more}) == []
    assert names({"by_tenant": one, "by_type": more}) == ["line"]
    assert names({"by_tenant": more, "groups": one}) == ["line"]


def test_where_nothing_is_of_what_was_asked_for_no_other_table_stands_in_its_place() -> None:
    """`costs` of a fleet that nobody leased of was a table of pools, under the same heading but
    for a column; `issue` of a month without a bill one of credits."""
    row = {"name": "idle", "cost": Decimal(7)}
    assert told({"by_tenant": [], "by_type": [row], "pools": [row]}, as_csv=True) == "\n"
    assert told({"bills": [], "credits_left": [row]}, as_csv=True) == "\n"
    assert told({"predictions": [], "recommendations": [row]}, as_csv=True) == "\n"


def test_what_is_empty_is_said_to_be_none() -> None:
    said = told({"strategies": {}, "tenants": [], "capacity": {"gpus": 8}}, as_csv=False)
    assert said.splitlines() == ["strategies: none", "tenants: none", "capacity: gpus 8"]
