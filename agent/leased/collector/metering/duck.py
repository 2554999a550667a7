# SPDX-License-Identifier: Apache-2.0
"""DuckDB in process: the engine that needs nothing else.

Rule: two threads and a bound on memory, spilled to the disk beyond it, into a directory that is
each engine's own, where it is told of a place for one; nothing is downloaded, no extension is
loaded, no file but those of the projection is read. The database is in memory: what is kept is
Parquet.

Does not know what is computed (`engine`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb

from leased.collector.metering.engine import Overflow, Rows
from leased.terms.errors import StateError

THREADS: Final = 2
MEMORY: Final = "1200MiB"
Values = Sequence[object] | Mapping[str, object]
SMALL_BYTES: Final = 16 << 20
"""Of Parquet, that are held as rows: a hundred megabytes of them or so."""


class DuckEngine:
    """`engine.Engine` by DuckDB."""

    def __init__(self, *, memory: str = MEMORY, spill: Path | None = None) -> None:
        # DuckDB makes it when it needs it and takes it away. Its own choice would be the working
        # directory, which no service can write to.
        within = "" if spill is None else str(spill / f"spill-{secrets.token_hex(8)}")
        settings: dict[str, Any] = {
            "threads": THREADS,
            "memory_limit": memory,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": within,
        }
        self.connection = duckdb.connect(":memory:", config=settings)
        self.connection.execute("CREATE MACRO idiv(a, b) AS a // b")
        self.connection.execute("CREATE MACRO wide(a) AS a")  # it sums 64 bits in 128

    def query(
        self, sql: str, values: Values = (), more: Mapping[str, Any] | None = None
    ) -> Rows:
        """See `engine.Engine`. `values` by their place or name; `more` are arrow tables that this
        question alone reads. On a cursor of its own, so that several threads may ask."""
        with self.connection.cursor() as cursor:
            for name, table in (more or {}).items():
                cursor.register(name, table)
            rows: Rows = _run(cursor, sql, values, fetch=True)
            return rows

    def arrow(self, sql: str) -> Any:
        """See `engine.Engine`."""
        return _told(lambda: self.connection.sql(sql).to_arrow_table())

    def load(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        """See `engine.Engine`."""
        fields = ", ".join(f"{column} BIGINT" for column in columns)
        self._run(f"CREATE OR REPLACE TABLE {name} ({fields})")
        if rows:
            lists = [list(column) for column in zip(*rows, strict=True)]
            unnested = ", ".join(f"UNNEST(?::BIGINT[]) AS {column}" for column in columns)
            self.connection.execute(f"INSERT INTO {name} SELECT {unnested}", lists)

    def load_files(
        self, name: str, paths: Sequence[Path], more: Any, *, once: bool = False
    ) -> None:
        """See `engine.Engine`: a view where files are read `once`, or are large; a table of what is
        small, since opening a thousand files takes longer than reading them."""
        ask = "SELECT table_type = 'VIEW' FROM information_schema.tables WHERE table_name = ?"
        for (is_view,) in self.query(ask, [name]):
            self._run(f"DROP {'VIEW' if is_view else 'TABLE'} {name}")
        self.load_table(f"{name}_more", more)
        small = not once and _bytes_of(paths) <= SMALL_BYTES
        self._run(f"CREATE {'TABLE' if small else 'VIEW'} {name} AS {every_row(name, paths)}")

    def load_table(self, name: str, table: Any) -> None:
        """A table that arrow has in memory."""
        self.connection.register("arriving", table)
        self._run(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM arriving")
        self.connection.unregister("arriving")

    def add_to(self, name: str, table: Any) -> None:
        """Put the rows of an arrow table into a table that is there, as its own types."""
        self.connection.register("arriving", table)
        self._run(f"INSERT INTO {name} BY NAME SELECT * FROM arriving")
        self.connection.unregister("arriving")

    def derive(self, name: str, sql: str) -> None:
        """See `engine.Engine`."""
        self._run(f"CREATE OR REPLACE TABLE {name} AS {sql}")

    def close(self) -> None:
        """See `engine.Engine`."""
        self.connection.close()

    def _run(self, sql: str) -> Any:
        return _run(self.connection, sql, ())


def every_row(name: str, paths: Sequence[Path], union: str | None = None) -> str:
    """The rows of Parquet files, and of the table `<name>_more`."""
    more = f"SELECT * FROM {name}_more"
    if not paths:
        return more
    listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    read = f"read_parquet([{listed}], hive_partitioning = false)"
    return f"SELECT * FROM {read} {union or 'UNION ALL'} BY NAME {more}"


def _bytes_of(paths: Sequence[Path]) -> int:
    """Of all of them. One that is not there is for DuckDB to name."""
    return sum(path.stat().st_size for path in paths if path.exists())


def _run(cursor: Any, sql: str, values: Values, *, fetch: bool = False) -> Any:
    """Run a statement. Rows are fetched in here: an error may come with the last of them."""

    def asked() -> Any:
        answer = cursor.execute(sql, values)
        return answer.fetchall() if fetch else answer

    return _told(asked)


def _told(ask: Callable[[], Any]) -> Any:
    """What `ask` gives; DuckDB's errors as ours."""
    try:
        return ask()
    except (duckdb.OutOfRangeException, duckdb.ConversionException) as error:
        raise Overflow(str(error)) from error
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise StateError(f"the store: {error}") from error
    except (duckdb.BinderException, duckdb.InvalidInputException) as error:
        # Files that are whole and are not what this release writes.
        raise StateError(f"the store: {error}; `leased-collector rebuild` makes it anew") from error
