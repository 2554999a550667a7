# SPDX-License-Identifier: Apache-2.0
"""The SQLite databases of a state directory: opened, written and failing in one way.

Rule: readable by its owner only; a commit that returned is durable (synchronous=FULL). Where the
disk is full or fails, or another process has the database for too long, that is told as StateError,
and nothing of what was to be written is stored.

Does not know what is in one.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leased.durable.files import make_private
from leased.terms.errors import NO_ROOM, StateError, disk_error


class Database(ABC):
    """One connection, whose calls are not made from two threads at once."""

    journal = "WAL"
    busy_ms = 10_000

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open it, made if need be. Raises StateError."""
        self._name = path.name
        try:
            if not read_only:
                make_private(path)
            uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
            self.connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False
            )
            try:
                self.connection.execute(f"PRAGMA busy_timeout = {self.busy_ms}")
                if not read_only:
                    self.connection.execute(f"PRAGMA journal_mode = {self.journal}")
                    self.connection.execute("PRAGMA synchronous = FULL")
                self._prepare(path, read_only=read_only)
            except BaseException:
                self.connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{path}: {error}; {self._advice(path, error)}") from error

    @abstractmethod
    def _prepare(self, path: Path, *, read_only: bool) -> None:
        """See that the tables are there, and of this release. Raises StateError, sqlite3.Error."""

    def _advice(self, path: Path, error: OSError | sqlite3.Error) -> str:
        """What helps where it cannot be opened."""
        if disk_error(error) in NO_ROOM:
            return "free some space"
        return "give the collector's state directory"

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done inside, or nothing. Raises StateError where the disk fails."""
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            self.connection.execute("COMMIT")
        except BaseException as error:
            # Where there is no room SQLite may have ended it by itself.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise

    def close(self) -> None:
        """Close the database. Idempotent."""
        self.connection.close()

    def _ask(self, text: str, values: Sequence[object] = ()) -> Any:
        try:
            return self.connection.execute(text, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StateError:
        return StateError(f"{self._name}: {error}; nothing of it was stored")
