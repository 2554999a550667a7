# SPDX-License-Identifier: Apache-2.0
"""Answers of a collector for people: what its API sends, as lines and tables, as JSON, or as CSV.

Rule: whatever has names and values can be shown; nothing of an answer is left out but what another
table of the same answer says. With --json it is what was sent.

Does not fetch anything.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from leased.ctl import render
from leased.ctl.console import Console
from leased.terms import spreadsheet

_ROWS: Final = (
    *("groups", "by_tenant", "line_items", "rows", "allocations", "bills", "nodes"),
    *("predictions", "idle_resources", "what_if", "schedules", "recommendations"),
)
"""What is asked for: of an answer, the first of these that it has, empty or not. Costs by group
have the groups, and a bill without a line has no row."""


def show_answer(told: dict[str, Any], options: argparse.Namespace, console: Console) -> None:
    """Print an answer as it is asked for."""
    if options.json:
        console.document(told)
    elif options.csv:
        console.say(_csv(told).rstrip("\n"))
    else:
        _tell(told, console)


def _csv(told: Mapping[str, Any]) -> str:
    """What was asked for, as CSV with a heading."""
    rows = _rows(told)
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: spreadsheet.cell(_plain(row[name])) for name in row} for row in rows
        )
    return out.getvalue()


def _rows(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "current" in told:  # capacity: what there is and who has it, by kind, and not what to do
        return [{"kind": kind, **row} for kind, row in told["current"]["by_kind"].items()]
    return next((told[name] for name in _ROWS if name in told), [])


def _tell(told: Mapping[str, Any], console: Console) -> None:
    """Single values first, then every table."""
    console.say(*_lines(told, ""))
    for name, value in told.items():
        if _is_table(value):
            console.say("")
            console.say(_title(name))
            heading = tuple(key.upper().replace("_", " ") for key in value[0])
            rows = [tuple(_text(cell) for cell in row.values()) for row in value]
            console.say(*render.table(heading, rows))


def _lines(told: Mapping[str, Any], above: str) -> Iterable[str]:
    """Single values, one a line; those that belong together on one."""
    for name, value in told.items():
        title = f"{above}{_title(name)}"
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            yield from _lines(value, f"{title}, ")
        elif not _is_table(value):
            yield f"{title}: {_text(value)}"


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _title(name: str) -> str:
    return name.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{_title(k)} {_text(one)}" for k, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return _list(value)
    return str(_plain(value))


def _plain(value: object) -> object:
    """A number with all of its digits, and no exponent."""
    return f"{value:f}" if isinstance(value, Decimal) else value


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(_text, values)) or "none"
