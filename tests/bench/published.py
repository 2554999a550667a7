# SPDX-License-Identifier: Apache-2.0
"""The published figures: `python -m tests.bench.published FILE...` takes what `tests/bench/run`
left in `results`, keeps it in `published.json`, and writes two tables from it: all of them into
`tests/EVIDENCE.md`, what leads and every missed bar into the README.

Rule: published figures are rendered from raw figures that are in the repository, by the same lines
that a run prints; a missed bar is published like one that was kept. A test compares.

Does not measure.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench import table
from tests.bench.chain import chain_lines
from tests.bench.loadgen import Figures
from tests.bench.quota import quota_lines

KEPT: Final = Path(__file__).with_name("published.json")
README: Final = Path(__file__).parents[2] / "README.md"
EVIDENCE: Final = Path(__file__).parents[1] / "EVIDENCE.md"
BEGIN: Final = "<!-- figures:begin -->\n"
END: Final = "<!-- figures:end -->"

LINES: Final[Mapping[str, tuple[str, Any]]] = {
    "throughput": ("grants and renewals", table.throughput_lines),
    "expiry": ("the end of leases", table.expiry_lines),
    "policy": ("policy", table.policy_lines),
    "policy_load": ("policy under load", table.policy_load_lines),
    "scrub": ("overwriting memory", table.scrub_lines),
    "kinds": ("each kind", table.kind_lines),
    "regions": ("RDMA", table.region_lines),
    "gpu": ("GPU", table.gpu_lines),
    "chain": ("the chain", chain_lines),
    "restart": ("restart", table.restart_lines),
    "pull": ("a collector pulls", table.pull_lines),
    "collect": ("a collector keeps", table.collect_lines),
    "api": ("the collector's API", table.api_lines),
    "idle": ("idle", table.idle_lines),
    "metering": ("metering", table.metering_lines),
    "quota": ("a quota on its way to a node", quota_lines),
}
"""Of each part of a run: what it is called, and what makes lines of its figures."""

OPTION_OF: Final = {"policy_load": "policy"}
"""What `--only` calls a part, where not by its own name."""

LEADING: Final = (
    "renew/s, 64 clients, to etcd",
    "deadline to cut, 1 x 4 KiB, agent alive",
    "deadline to cut, 1000 x 4 KiB, agent killed",
    "deadline to proof, 1 x 262144 KiB",
    "release to proof, a full scrub",
    "policy: grant",
    "verify, all that leasectl does, 1",
    "restart to serving, 1,000",
    "metering: raw segments to",
    "API reads",
    "a PATCHed quota",
)
"""The beginnings of the lines that the README shows, missed or not."""


def lines_of(figures: Figures) -> list[table.Line]:
    """All lines of a run, in the order of `LINES`."""
    parts = [part for part in LINES if part in figures]
    return [line for part in parts for line in LINES[part][1](figures[part])]


def publish(kept: dict[str, Any], found: Figures, day: str) -> dict[str, Any]:
    """`kept` with the parts that `found` measured in place of what they were; a part that measured
    nothing (no such hardware) replaces nothing."""
    about = {"machine": found["machine"], "short": found["short"], "day": day}
    measured = {part: {"figures": found[part], **about} for part in LINES if found.get(part)}
    return {part: one for part in LINES if (one := (kept | measured).get(part)) is not None}


def markdown(kept: Mapping[str, Any]) -> str:
    """All of them: a heading row per part with how it was measured, a row per line."""
    rows = ["| what | figure | bar | raw |", "|---|---|---|---|"]
    for part, one in kept.items():
        name, make = LINES[part]
        rows.append(f"| **{name}** |  |  | {_how(part, one)} |")
        rows += [f"{_row(line)} {line.raw} |" for line in make(one["figures"])]
    return _times(rows)


def leading(kept: Mapping[str, Any]) -> str:
    """What the README says: how many bars are met; then those that are not, and the `LEADING`."""
    lines = [line for part, one in kept.items() for line in LINES[part][1](one["figures"])]
    barred = [line for line in lines if line.held is not None]
    met = sum(1 for line in barred if line.held)
    shown = [line for line in lines if line.held is False or line.what.startswith(LEADING)]
    rows = [f"**{met} of {len(barred)} bars are met.**", ""]
    rows += ["| what | figure | bar |", "|---|---|---|", *map(_row, shown)]
    return _times(rows)


def _row(line: table.Line) -> str:
    missed = " **missed**" if line.held is False else ""
    return f"| {line.what} | {line.value} | {line.bar}{missed} |"


def _times(rows: Sequence[str]) -> str:
    return re.sub(r"(?<=\d) x\b", " ×", "\n".join(rows)) + "\n"


def _how(part: str, one: Mapping[str, Any]) -> str:
    options = ("--short " if one["short"] else "") + f"--only {OPTION_OF.get(part, part)}"
    kernel = ".".join(one["machine"]["kernel"].split(".")[:2])
    return f"`{options}`, {one['day']}, Linux {kernel}, {one['machine']['commit']}"


def written(document: str, generated: str) -> str:
    """A document with a table in it."""
    before, rest = document.split(BEGIN)
    return before + BEGIN + generated + END + rest.split(END)[1]


def main(paths: list[str]) -> int:
    """Take the files, oldest first."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for path in sorted(map(Path, paths), key=lambda one: one.name):
        day = f"{path.name[:4]}-{path.name[4:6]}-{path.name[6:8]}"
        kept = publish(kept, json.loads(path.read_text()), day)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    EVIDENCE.write_text(written(EVIDENCE.read_text(), markdown(kept)))
    README.write_text(written(README.read_text(), leading(kept)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
