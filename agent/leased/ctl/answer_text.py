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

_ASKED: Final = ("groups", "line_items")
"""A bill without a line has no row, and costs by group have those of the groups."""


def show_answer(told: dict[str, Any], options: argparse.Namespace, console: Console) -> None:
    """Print an answer as it is asked for."""
    if options.json:
        console.document(told)
    elif options.csv:
        console.say(_csv(told).rstrip("\n"))
    else:
        _tell(told, console)


def _csv(told: Mapping[str, Any]) -> str:
    """What was asked for, as CSV with a heading: the first rows of an answer, unless it has what
    stands in their place."""
    tables = (rows for rows in told.values() if _is_table(rows))
    asked = next((told[name] for name in _ASKED if name in told), None)
    rows: list[dict[str, Any]] = next(tables, []) if asked is None else asked
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: spreadsheet.cell(_plain(row[name])) for name in row} for row in rows
        )
    return out.getvalue()


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
