# SPDX-License-Identifier: Apache-2.0
"""What an SQL engine must do here, and the statements that it is given.

Rule: one file of SQL for every engine (sql/metering.sql). An engine brings `idiv`, the tables of
the projection, and arithmetic that raises where a number does not fit: one that wraps would make
wrong bills without an error, so it is refused at its start.

Does not know which engine it is (`duck`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Protocol

from leased.terms.errors import InvariantError, StateError

PROJECTION: Final[dict[str, tuple[str, ...]]] = {
    "acts": (
        *("log", "seq", "boot", "lease_hi", "lease_lo", "act", "at_ns", "sealed_ns"),
        *("deadline_ns", "terms", "ref"),
    ),
    "holds": (*("log", "seq", "slot", "party_hi", "party_lo", "capacity"),),
    "lives": (
        *("log", "seq", "slot", "boot", "granted_ns", "torn_ns", "ended_ns", "released_ns"),
        *("party_hi", "party_lo", "capacity"),
    ),
}
"""The tables of the projection, in the order of a block's files."""

PARTY_COLUMNS: Final = (
    *("party_hi", "party_lo", "kind", "tier", "priority", "probe", "tenant", "tag"),
)
"""The table `parties`: of all logs, each at least once."""

SMALL_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "boots": ("log", "boot", "start_ns", "end_ns", "last"),
    "eras": ("log", "boot", "start_ns", "end_ns", "label_ns", "final"),
    "others": ("log", "pool", "kind", "tier", "capacity", "s", "e"),
    "hours": ("hour",),
}
"""Tables that are made for each run, all of 64-bit integers."""

RESULTS: Final[dict[str, tuple[str, ...]]] = {
    "usage": ("hour", "pool", "tenant", "kind", "tier", "priority", "tag", "cap_ns"),
    "peaks": ("tenant", "kind", "tier", "hour", "held"),
    "fleet_peaks": ("tenant", "kind", "tier", "hour", "held"),
    "tasks": ("tenant", "hour", "done"),
    "contributors": ("log", "tenant", "day"),
    "held": ("log", "pool", "tenant", "kind", "tier", "capacity"),
    "quiet": ("log", "s", "e"),
}
"""What a run ends with; the other statements lead there."""

OVERFLOWS: Final = (
    "SELECT SUM(x) FROM (SELECT CAST(99999999999999999999999999999999999999 AS DECIMAL(38,0)) AS x"
    " UNION ALL SELECT CAST(1 AS DECIMAL(38,0))) t",
    "SELECT SUM(x) OVER (ORDER BY n) FROM (SELECT 1 AS n,"
    " CAST(99999999999999999999999999999999999999 AS DECIMAL(38,0)) AS x"
    " UNION ALL SELECT 2, CAST(1 AS DECIMAL(38,0))) t",
    "SELECT CAST(9999999999999999999 AS DECIMAL(38,0)) * CAST(x AS DECIMAL(38,0))"
    " FROM (SELECT 9223372036854775807 AS x) t"
    " UNION ALL SELECT CAST(99999999999999999999999999999999999999 AS DECIMAL(38,0)) * 10",
    "SELECT a + 1 FROM (SELECT CAST(9223372036854775807 AS BIGINT) AS a) t",
)
"""Each must raise."""

EXACT: Final = (
    ("SELECT CAST(1125899906842624 AS DECIMAL(38,0)) * CAST(31557600000000000 AS DECIMAL(38,0))",
     1125899906842624 * 31557600000000000),
    ("SELECT SUM(wide(x)) FROM (SELECT 9223372036854775807 AS x"
     " UNION ALL SELECT 9223372036854775807) t", 2 * 9223372036854775807),
    ("SELECT MAX(y) FROM (SELECT SUM(wide(x)) OVER (ORDER BY x ROWS BETWEEN UNBOUNDED PRECEDING"
     " AND CURRENT ROW) AS y FROM (SELECT 9223372036854775807 AS x UNION ALL"
     " SELECT 9223372036854775806) t) u", 9223372036854775807 + 9223372036854775806),
    ("SELECT idiv(7199999999999, 3600000000000)", 1),
    ("SELECT idiv(9223372036854775807, 3600000000000)", 9223372036854775807 // 3600000000000),
)  # fmt: skip
"""Each must be that, to the last digit."""

Rows = Sequence[Sequence[Any]]
_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


class Overflow(ArithmeticError):
    """A sum does not fit in 38 digits: the engine said so, and nothing of the run is used."""


class EngineGone(StateError):
    """The engine cannot be reached, refused, or lost a query: nothing of the run is used, and what
    was there before still counts. The collector goes on, and tries again."""


class Engine(Protocol):
    """An SQL engine: narrow, so that it can be another one."""

    def query(self, sql: str) -> Rows:
        """The rows of a statement. Raises Overflow, EngineGone."""
        ...

    def arrow(self, sql: str) -> Any:
        """The rows of a statement as an arrow table."""
        ...

    def load(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        """A table of 64-bit integers."""
        ...

    def load_files(self, name: str, paths: Sequence[Path], more: Any) -> None:
        """The rows of Parquet files, and of an arrow table of the same columns."""
        ...

    def derive(self, name: str, sql: str) -> None:
        """A table, or view, of a statement's rows. Raises Overflow."""
        ...

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        ...


MakeEngine = Callable[[], Engine]


def statements() -> dict[str, str]:
    """Every statement of sql/metering.sql by its name, in order."""
    text = files("leased.collector.metering").joinpath("sql/metering.sql").read_text("utf-8")
    parts = _NAME.split(text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def check_engine(engine: Engine) -> int:
    """How many checks passed. Raises InvariantError for an engine that must not compute bills."""
    for sql in OVERFLOWS:
        try:
            rows = engine.query(sql)
        except Overflow:
            continue
        raise InvariantError(f"the SQL engine wrapped instead of raising: {sql} gave {rows!r}")
    for sql, expected in EXACT:
        ((found,),) = engine.query(sql)
        if found != expected:
            raise InvariantError(f"the SQL engine is not exact: {sql} gave {found!r}")
    return len(OVERFLOWS) + len(EXACT)


def meter(engine: Engine) -> None:
    """Run the statements. The tables of the projection are there."""
    for name, sql in statements().items():
        engine.derive(name, sql)
