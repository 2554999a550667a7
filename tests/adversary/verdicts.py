# SPDX-License-Identifier: Apache-2.0
"""What each system said to each manipulation, as JSON lines, and the table of them in
tests/EVIDENCE.md.

    python tests/adversary/verdicts.py FILE...   merge FILEs into results.jsonl, write the table

Rule: the table says what was run and nothing else; what a run saw has been asserted by its test.

Does not judge (`ours`, `fss`, `slog`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.adversary.attacks import ATTACKS, MISSED, NONE, Attack

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
EVIDENCE = HERE.parent / "EVIDENCE.md"
BEGIN, END = "<!-- adversary:begin -->", "<!-- adversary:end -->"
SYSTEMS = ("ours", "fss", "slog")
SHOWN_BY = {"log": "the log alone", "key": "what was enrolled", "head": "the collector's memory"}


def record(attack: str, system: str, verdict: str) -> None:
    """Append it to the file that LEASED_ADVERSARY names; nowhere if it names none."""
    path = os.environ.get("LEASED_ADVERSARY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([attack, system, verdict]) + "\n")


def table(found: Mapping[tuple[str, str], str]) -> str:
    """The table, also of what was not run."""
    rows = ["| | manipulation | leased | shown by | journald FSS 252 | syslog-ng slog 3.38 |"]
    rows.append("|---|---|---|---|---|---|")
    for number, attack in enumerate(ATTACKS, 1):
        cells = [_cell(attack, system, found) for system in SYSTEMS]
        shown = SHOWN_BY.get(attack.found, "")
        rows.append(
            f"| {number} | {attack.what} | {cells[0]} | {shown} | {cells[1]} | {cells[2]} |"
        )
    return "\n".join(rows)


def _cell(attack: Attack, system: str, found: Mapping[tuple[str, str], str]) -> str:
    if system != "ours" and getattr(attack, system) == NONE:
        return NONE
    said = found.get((attack.name, system), "not run")
    return f"**{said}**" if said == MISSED else said


def put(text: str, generated: str) -> str:
    """`text` with the table between its marks. Raises ValueError if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def main() -> None:
    """A later result of a manipulation and system replaces an earlier one."""
    found: dict[tuple[str, str], str] = {}
    for path in [RESULTS, *map(Path, sys.argv[1:])]:
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            attack, system, verdict = json.loads(line)
            found[attack, system] = verdict
    order = [(attack.name, system) for attack in ATTACKS for system in SYSTEMS]
    kept = [(*key, found[key]) for key in order if key in found]
    RESULTS.write_text("".join(json.dumps(one) + "\n" for one in kept), "utf-8")
    EVIDENCE.write_text(put(EVIDENCE.read_text("utf-8"), table(found)), "utf-8")


if __name__ == "__main__":
    main()
