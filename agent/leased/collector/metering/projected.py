# SPDX-License-Identifier: Apache-2.0
"""What was projected of some chains, as the beginning of a statement: for questions that are put
when somebody wants to know, and that metering does not answer.

Rule: the statements of metering say who paid for what, over the records that the hours were
computed from: what came since is cut off. A block that is written just now may be half there, so
whoever asks compares the answer with what the hours say.

Does not meter, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.metering import tables
from leased.collector.metering.blocks import Gathered, LogBlocks
from leased.collector.metering.duck import every_row
from leased.collector.metering.engine import SMALL_TABLES, statements
from leased.economics.hourly import NodeSpan

LEADING: Final = (
    *("again", "facts", "voids", "knotty", "tenancies", "marks", "stretches", "pieces"),
)
"""Of sql/metering.sql, what leads to who paid for what."""

_UNION: Final = {"parties": "UNION"}
"""A party may be in several files."""


class Projected(msgspec.Struct, frozen=True):
    """The parts of a WITH, and the arrow tables that they read, by their names."""

    parts: tuple[str, ...]
    more: dict[str, Any]


def projected(directory: Path, chains: Iterable[NodeSpan]) -> Projected | None:
    """The projection of `chains`, and who paid for what; None: nothing was projected. `directory`
    is that of what is derived."""
    gathered = Gathered()
    ends: dict[int, int] = {}
    for chain in chains:
        blocks = LogBlocks(directory, chain.log_id)
        sidecars = blocks.sidecars()
        if sidecars:
            gathered.add(blocks, sidecars)
            ends[blocks.number] = chain.watermark_ns
    if not gathered.shapes:
        return None
    small = tables.small_tables(gathered.shapes)
    # Records may have come after those that the hours were computed from.
    eras = [_until(era, ends[era[0]]) for era in small["eras"]]
    others = [(*row[:-1], min(row[-1], ends[row[0]])) for row in small["others"]]
    there, texts = list(gathered.tables()), statements()
    parts = (
        *(f"{name} AS ({every_row(name, paths, _UNION.get(name))})" for name, paths, _ in there),
        values("boots", SMALL_TABLES["boots"], small["boots"]),
        values("eras", SMALL_TABLES["eras"], eras),
        values("others", SMALL_TABLES["others"], others),
        *(f"{name} AS ({texts[name]})" for name in LEADING),
    )
    return Projected(parts, {f"{table}_more": more for table, _, more in there})


def values(name: str, columns: Sequence[str], rows: Sequence[Sequence[int]]) -> str:
    """A part of a WITH, of these integers."""
    cast = ", ".join(f"CAST(c{at} AS BIGINT) AS {column}" for at, column in enumerate(columns))
    named = ", ".join(f"c{at}" for at in range(len(columns)))
    listed = ", ".join(f"({', '.join(map(str, row))})" for row in rows)
    if not rows:
        empty = ", ".join(f"CAST(NULL AS BIGINT) AS {column}" for column in columns)
        return f"{name} AS (SELECT {empty} WHERE 1 = 0)"
    return f"{name} AS (SELECT {cast} FROM (VALUES {listed}) v({named}))"


def _until(era: Sequence[int], end_ns: int) -> tuple[int, ...]:
    """An era (log, boot, start, end, label, final), no longer than to a label."""
    log, boot, start_ns, until_ns, label_ns, final = era
    return log, boot, start_ns, min(until_ns, start_ns + end_ns - label_ns), label_ns, final
