# SPDX-License-Identifier: Apache-2.0
"""The manifest: one SQLite database that says which segments count and how far each log goes.

Rule: a log's cursor moves only by compare-and-swap, in the same transaction that names the
segment; whoever lost the race is told (`CursorMoved`) and has changed nothing. WAL and
synchronous=FULL: a commit that returned is durable.

Tables, for whoever reads them with SQL: `logs` (one row per log: cursor, last signed size,
verdict), `segments` (one row per file, `first_seq` to `last_seq` inclusive), `nodes` (where each is
reached and which log of it is followed) and `resolutions` (operators' signed words). Ids and hashes
are lower-case hex. `state` is what the verifier carries from page to page; it can hold the key of
an epoch, which is why the file is readable by its owner only.

Does not touch segment files (`segments`).
"""

from __future__ import annotations

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.head import Head
from leased.collector.archive.database import Database
from leased.collector.archive.segments import Segment
from leased.terms.errors import EX_UNAVAILABLE, StateError
from leased.terms.moment import NS_PER_S

DATABASE: Final = "collector.sqlite"
VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE logs (
    log_id        TEXT PRIMARY KEY,
    node          TEXT NOT NULL,
    name          TEXT NOT NULL,
    origin        TEXT NOT NULL,
    next_seq      INTEGER NOT NULL,
    head          TEXT NOT NULL,
    signed_size   INTEGER NOT NULL,
    note          TEXT NOT NULL,
    cosigned_size INTEGER NOT NULL,
    verdict       TEXT NOT NULL,
    why           TEXT NOT NULL,
    since_ns      INTEGER NOT NULL,
    contact_ns    INTEGER NOT NULL,
    state         BLOB NOT NULL
) STRICT;
CREATE INDEX logs_by_node ON logs (node);
CREATE TABLE nodes (
    name   TEXT PRIMARY KEY,
    url    TEXT NOT NULL,
    log_id TEXT NOT NULL REFERENCES logs (log_id)
) STRICT;
CREATE TABLE resolutions (
    number  INTEGER PRIMARY KEY,
    log_id  TEXT NOT NULL REFERENCES logs (log_id),
    note    TEXT NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE segments (
    log_id    TEXT NOT NULL REFERENCES logs (log_id),
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    node      TEXT NOT NULL,
    head      TEXT NOT NULL,
    path      TEXT NOT NULL UNIQUE,
    sha256    TEXT NOT NULL,
    bytes     INTEGER NOT NULL,
    PRIMARY KEY (log_id, first_seq)
) STRICT, WITHOUT ROWID;
"""
_LOG_FIELDS: Final = (
    "log_id, node, name, origin, next_seq, head, signed_size, note, cosigned_size, verdict, why, "
    "since_ns, contact_ns, state"
)
_SEGMENT_FIELDS: Final = "node, log_id, first_seq, last_seq, head, path, sha256, bytes"


AHEAD_NS: Final = 10 * NS_PER_S
"""What is heard while an answer is made is not ahead of it."""


class LogEntry(msgspec.Struct, frozen=True):
    """One log as the collector knows it. `head` is the cursor; `note` the node's newest signed
    note that held, of `signed_size` records; `cosigned_size` what this collector has cosigned;
    `verdict` and `why` since `since_ns`; `contact_ns` the last answer that held. Wall clocks."""

    log_id: str
    node: str
    name: str
    origin: str
    head: Head
    signed_size: int = 0
    note: str = ""
    cosigned_size: int = 0
    verdict: str = "OK"
    why: str = ""
    since_ns: int = 0
    contact_ns: int = 0
    state: bytes = b""

    def age_ns(self, now_ns: int) -> int | None:
        """How long ago it was heard of; None: never, or not known, for our own clock was ahead."""
        ago_ns = now_ns - self.contact_ns
        return max(0, ago_ns) if self.contact_ns and ago_ns > -AHEAD_NS else None

    def __repr__(self) -> str:
        return f"LogEntry({self.log_id!r}, {self.name!r}, {self.head.text()}, {self.verdict})"


class CursorMoved(StateError):
    """Somebody else has moved the log's cursor. Nothing was stored; read it again."""


class ManifestGone(StateError):
    """The database does not answer. Whether the last transaction counts is not known; the cursor
    tells, once it answers again."""

    exit_status = EX_UNAVAILABLE


class ManifestTables(ABC):
    """What both kinds of manifest do, in SQL that both understand."""

    duplicate: type[Exception]
    """What the driver raises where a key is there already."""

    age = "rowid"
    """The column that grows with each row."""

    @abstractmethod
    def close(self) -> None:
        """Close the database. Idempotent."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """All of what is done inside, or nothing. Raises StateError."""

    @abstractmethod
    def hold(self, part: int) -> None:
        """Within a transaction: see that nobody takes a part over before it ends. Raises
        PartLost."""

    @abstractmethod
    def _ask(self, text: str, values: Sequence[object] = ()) -> Any:
        """Carry out one statement; its rows can be fetched."""

    def logs(self) -> list[LogEntry]:
        """Every log, by name and then by age."""
        rows = self._rows(f"SELECT {_LOG_FIELDS} FROM logs ORDER BY name, {self.age}")
        return [_entry(row) for row in rows]

    def log(self, log_id: str) -> LogEntry | None:
        """One log."""
        rows = self._rows(f"SELECT {_LOG_FIELDS} FROM logs WHERE log_id = ?", log_id)
        return _entry(rows[0]) if rows else None

    def add_log(self, entry: LogEntry) -> None:
        """Take a log in. Raises StateError if it is there already."""
        values = [
            *(entry.log_id, entry.node, entry.name, entry.origin, entry.head.size),
            *(entry.head.hash.hex(), entry.signed_size, entry.note, entry.cosigned_size),
            *(entry.verdict, entry.why, entry.since_ns, entry.contact_ns, entry.state),
        ]
        marks = ", ".join("?" * len(values))
        try:
            self._ask(f"INSERT INTO logs ({_LOG_FIELDS}) VALUES ({marks})", values)
        except self.duplicate as error:
            raise StateError(f"log {entry.log_id} is known already") from error

    def nodes(self) -> list[tuple[str, str, str]]:
        """(name, url, log_id) of every node that is followed."""
        return self._rows("SELECT name, url, log_id FROM nodes ORDER BY name")

    def replaced(self) -> frozenset[str]:
        """The logs in whose place another of the same node is followed: nothing more comes."""
        rows = self._rows(
            "SELECT log_id FROM logs WHERE log_id NOT IN (SELECT log_id FROM nodes) AND node IN"
            " (SELECT l.node FROM logs l JOIN nodes n ON n.log_id = l.log_id)"
        )
        return frozenset(log_id for (log_id,) in rows)

    def follow(self, name: str, url: str, log_id: str) -> None:
        """Follow a log at a node, in place of what was followed there."""
        self._ask(
            "INSERT INTO nodes (name, url, log_id) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET url = excluded.url, log_id = excluded.log_id",
            (name, url, log_id),
        )

    def leave(self, name: str) -> bool:
        """Follow a node no longer; what was pulled stays. False: it was not followed."""
        left: int = self._ask("DELETE FROM nodes WHERE name = ?", (name,)).rowcount
        return left == 1

    def add_resolution(self, log_id: str, note: str) -> None:
        """Leave an operator's signed word for whoever has the archive open."""
        self._ask("INSERT INTO resolutions (log_id, note) VALUES (?, ?)", (log_id, note))

    def resolutions(self, log_id: str) -> list[tuple[int, str]]:
        """(number, note) of those that were not applied yet."""
        return self._rows(
            "SELECT number, note FROM resolutions WHERE log_id = ? AND applied = 0", log_id
        )

    def applied(self, number: int) -> None:
        """A resolution was judged, and applied or thrown away."""
        self._ask("UPDATE resolutions SET applied = 1 WHERE number = ?", (number,))

    def move(self, log_id: str, before: Head, after: Head, **fields: Any) -> None:
        """Move the cursor and set `fields` with it. Raises CursorMoved."""
        self._swap(log_id, before, {"next_seq": after.size, "head": after.hash.hex(), **fields})

    def set(self, log_id: str, at: Head, **fields: Any) -> None:
        """Set `fields` of a log whose cursor is `at`. Raises CursorMoved."""
        self._swap(log_id, at, fields)

    def _swap(self, log_id: str, before: Head, fields: dict[str, Any]) -> None:
        names = ", ".join(f"{name} = ?" for name in fields)
        done = self._ask(
            f"UPDATE logs SET {names} WHERE log_id = ? AND next_seq = ? AND head = ?",
            [*fields.values(), log_id, before.size, before.hash.hex()],
        )
        if done.rowcount != 1:
            raise CursorMoved(f"log {log_id} is not at {before.text()} any more; read it again")

    def add_segment(self, segment: Segment) -> None:
        """Name a segment."""
        values = [getattr(segment, name) for name in _SEGMENT_FIELDS.split(", ")]
        marks = ", ".join("?" * len(values))
        self._ask(f"INSERT INTO segments ({_SEGMENT_FIELDS}) VALUES ({marks})", values)

    def forget_segments(self, segments: Sequence[Segment]) -> None:
        """Take segments out that another holds now."""
        for one in segments:
            where = (one.log_id, one.first_seq)
            self._ask("DELETE FROM segments WHERE log_id = ? AND first_seq = ?", where)

    def segments(self, log_id: str | None = None, from_seq: int = 0) -> list[Segment]:
        """Segments that hold record `from_seq` or a later one, in order; of one log or of all."""
        which = "" if log_id is None else "AND log_id = ?"
        rows = self._rows(
            f"SELECT {_SEGMENT_FIELDS} FROM segments WHERE last_seq >= ? {which} "
            "ORDER BY log_id, first_seq",
            *((from_seq,) if log_id is None else (from_seq, log_id)),
        )
        return [Segment(*row) for row in rows]

    def _rows(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._ask(text, values).fetchall()
        return rows


class Manifest(Database, ManifestTables):
    """The open SQLite database."""

    duplicate = sqlite3.IntegrityError

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        super().__init__(directory / DATABASE, read_only=read_only)

    def _prepare(self, path: Path, *, read_only: bool) -> None:
        ask = self.connection.execute
        if not read_only:
            ask("PRAGMA foreign_keys = ON")
        version = ask("PRAGMA user_version").fetchone()[0]
        if version == 0 and not read_only:
            self.connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
            )
        elif version != VERSION:
            raise StateError(f"{path}: version {version} of the manifest; this release has 1")

    def _advice(self, path: Path, error: OSError | sqlite3.Error) -> str:
        if not path.exists():
            return (
                "no node was ever enrolled here: `leased-collector enrol` does, or give another "
                "--state"
            )
        if not os.access(path, os.R_OK):
            return "it is not yours to read: ask as root, or as its owner"
        return super()._advice(path, error)

    def hold(self, part: int) -> None:
        """Who is alone has all of them."""


def _entry(row: tuple[Any, ...]) -> LogEntry:
    log_id, node, name, origin, next_seq, head, *rest = row
    return LogEntry(log_id, node, name, origin, Head(next_seq, bytes.fromhex(head)), *rest)
