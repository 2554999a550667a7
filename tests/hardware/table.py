# SPDX-License-Identifier: Apache-2.0
"""The table of what was measured on GPUs, from the results of the hardware suite.

    python -m tests.hardware.table [--write]

Rule: only what was measured on a real GPU is in it; the mock's results never are. What was not run
says so, with a reason where the suite gave one, and a claim that failed is shown as one.

Does not run anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hardware.case import FAILED, HELD, NOT_RUN, Case
from tests.hardware.suite import FORMAT, RESULTS, cases

EVIDENCE = Path(__file__).resolve().parents[1] / "EVIDENCE.md"
BEGIN, END = "<!-- hardware evidence: begin -->", "<!-- hardware evidence: end -->"
_UNITS = (
    ("_bytes", 1 << 30, "GiB"),
    ("_gib_per_s", 1, "GiB/s"),
    ("_ms", 1, "ms"),
    ("_us", 1, "µs"),
)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """What was measured, one document a GPU model, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text("utf-8"))
        if told["format"] != FORMAT:
            raise ValueError(f"{path}: format {told['format']}, not {FORMAT}")
        if told["evidence"] == "measured":
            found.append(told)
    return sorted(found, key=lambda told: str(told["gpu"]))


def make(results: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> str:
    """The table."""
    heads = [f"{told['gpu']}, driver {told['driver']}, {told['on']}" for told in results]
    rows = ["| claim | " + " | ".join(heads or ["on a GPU"]) + " |"]
    rows.append("|---" * (1 + max(1, len(results))) + "|")
    for one in cases:
        cells = [_cell(one, told) for told in results] or [NOT_RUN]
        rows.append(f"| {one.claim} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(one: Case, told: Mapping[str, Any]) -> str:
    found = next((it for it in told["cases"] if it["case"] == one.name), None)
    if found is None:
        return NOT_RUN
    if found["verdict"] == NOT_RUN:
        return f"{NOT_RUN}: {found['why']}"
    measured = found["measured"]
    shown = ", ".join(_show(name, measured[name]) for name in one.headline if name in measured)
    if found["verdict"] == FAILED:
        return f"**failed**: {found['why']}"
    return f"{HELD}: {shown}" if shown else HELD


def _show(name: str, value: int | str) -> str:
    for ending, divisor, unit in _UNITS:
        if name.endswith(ending) and isinstance(value, int):
            number = f"{value / divisor:.1f}" if divisor > 1 else str(value)
            return f"{name.removesuffix(ending).replace('_', ' ')} {number} {unit}"
    return f"{name.replace('_', ' ')} {value}"


def inserted(document: str, table: str) -> str:
    """A document with the table between its marks."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def current() -> str:
    """The table of the results in the tree."""
    return make(read_results(RESULTS), cases())


def main() -> int:
    """Print it, or put it into tests/EVIDENCE.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into tests/EVIDENCE.md")
    options = parser.parse_args()
    table = current()
    if options.write:
        EVIDENCE.write_text(inserted(EVIDENCE.read_text("utf-8"), table), "utf-8")
    else:
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
