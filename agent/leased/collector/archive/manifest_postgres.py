# SPDX-License-Identifier: Apache-2.0
"""The manifest of several collectors: the tables of `manifest` in PostgreSQL, and beside them who
has which part of the fleet.

Rule: a part is leased, on the server's clock. Whoever takes a part over raises its epoch, and every
transaction that moves a cursor or names a segment first holds the row of its part and compares:
what a collector that was thought dead sends later is refused (`PartLost`) and has changed nothing.
The cursor's compare-and-swap stays the second lock. A commit that returned is durable
(synchronous_commit is set, whatever the server's default).

A server that is gone is `ManifestGone`, and each call tries once to reach it again.

Does not decide who gets which part (`parts`) and does not touch segment files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from leased.collector.archive.manifest import CursorMoved, LogEntry, ManifestGone, ManifestTables
from leased.collector.archive.parts import PARTS, part_of
from leased.collector.archive.segments import Segment
from leased.terms.errors import StateError

VERSION: Final = 1
CONNECT_S: Final = 5
STATEMENT_MS: Final = 30_000
_SCHEMA: Final = """
CREATE TABLE leased_manifest (version INTEGER NOT NULL);
CREATE TABLE logs (
    number        BIGINT GENERATED ALWAYS AS IDENTITY,
    part          INTEGER NOT NULL DEFAULT -1,
    log_id        TEXT PRIMARY KEY,
    node          TEXT NOT NULL,
    name          TEXT NOT NULL,
    origin        TEXT NOT NULL,
    next_seq      BIGINT NOT NULL,
    head          TEXT NOT NULL,
    signed_size   BIGINT NOT NULL,
    note          TEXT NOT NULL,
    cosigned_size BIGINT NOT NULL,
    verdict       TEXT NOT NULL,
    why           TEXT NOT NULL,
    since_ns      BIGINT NOT NULL,
    contact_ns    BIGINT NOT NULL,
    state         BYTEA NOT NULL
);
CREATE INDEX logs_by_node ON logs (node);
CREATE TABLE nodes (
    name   TEXT COLLATE "C" PRIMARY KEY,
    url    TEXT NOT NULL,
    log_id TEXT NOT NULL REFERENCES logs (log_id)
);
CREATE TABLE resolutions (
    number  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    log_id  TEXT NOT NULL REFERENCES logs (log_id),
    note    TEXT NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE segments (
    log_id    TEXT COLLATE "C" NOT NULL REFERENCES logs (log_id),
    first_seq BIGINT NOT NULL,
    last_seq  BIGINT NOT NULL,
    node      TEXT NOT NULL,
    head      TEXT NOT NULL,
    path      TEXT NOT NULL UNIQUE,
    sha256    TEXT NOT NULL,
    bytes     BIGINT NOT NULL,
    PRIMARY KEY (log_id, first_seq)
);
CREATE TABLE collectors (
    holder TEXT PRIMARY KEY,
    until  TIMESTAMPTZ NOT NULL
);
CREATE TABLE parts (
    part   INTEGER PRIMARY KEY,
    epoch  BIGINT NOT NULL DEFAULT 0,
    holder TEXT NOT NULL DEFAULT '',
    until  TIMESTAMPTZ NOT NULL DEFAULT '-infinity'
);
"""

_HEADS: Final = """
CREATE TABLE heads (
    number    BIGINT GENERATED ALWAYS AS IDENTITY,
    log_id    TEXT NOT NULL REFERENCES logs (log_id),
    peer      TEXT NOT NULL,
    sequence  BIGINT NOT NULL,
    origin    TEXT NOT NULL,
    size      BIGINT NOT NULL,
    root      BYTEA NOT NULL,
    time_s    BIGINT NOT NULL,
    signature BYTEA NOT NULL,
    PRIMARY KEY (log_id, peer, sequence)
);
"""
"""What other collectors have cosigned (`collector.heads`). A manifest of before has it added."""


class PartLost(CursorMoved):
    """The part of this log is another collector's by now. Nothing was stored."""


class PostgresManifest(ManifestTables):
    """A connection to the database."""

    duplicate = psycopg.errors.UniqueViolation
    age = "number"

    def __init__(self, database: str, *, read_only: bool = False) -> None:
        """`database` is a libpq connection string. Raises ManifestGone, StateError."""
        self._database = database
        self._read_only = read_only
        self._lock = threading.RLock()
        self._depth = 0
        self._epochs: dict[int, int] = {}
        self._held = ""
        self.connection = self._connect()
        try:
            self._prepare()
        except BaseException:
            self.connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `ManifestTables`."""
        with self._lock, self._told():
            self._reach()
            self._depth += 1
            try:
                with self.connection.transaction():
                    yield
            finally:
                self._depth -= 1

    @contextmanager
    def still(self) -> Iterator[None]:
        """All that is read inside is of one moment. Raises ManifestGone."""
        with self.transaction():
            self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield

    def add_log(self, entry: LogEntry) -> None:
        """See `ManifestTables`."""
        with self.transaction():
            super().add_log(entry)
            where = (part_of(entry.node), entry.log_id)
            self._ask("UPDATE logs SET part = ? WHERE log_id = ?", where)

    def add_segment(self, segment: Segment) -> None:
        """See `ManifestTables`. Raises PartLost."""
        with self.transaction():
            self._fence(segment.log_id)
            super().add_segment(segment)

    def forget_segments(self, segments: Sequence[Segment]) -> None:
        """See `ManifestTables`. Raises PartLost."""
        with self.transaction():
            for log_id in {one.log_id for one in segments}:
                self._fence(log_id)
            super().forget_segments(segments)

    def hold(self, part: int) -> None:
        """See `ManifestTables`. Raises PartLost."""
        rows = self._rows("SELECT part, epoch, holder FROM parts WHERE part = ? FOR SHARE", part)
        self._compare(rows, f"part {part}")

    # ---- heads that others have cosigned ---------------------------------------------------------

    def add_heads(self, rows: Sequence[Sequence[object]]) -> None:
        """Keep heads: log, peer, sequence, origin, size, root, time, signature. Those that are
        known already are left out."""
        with self.transaction():
            for row in rows:
                self._ask(
                    "INSERT INTO heads (log_id, peer, sequence, origin, size, root, time_s, "
                    "signature) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    row,
                )

    def heads(self) -> list[Any]:
        """All of them, as `add_heads` takes them."""
        if self._rows("SELECT to_regclass('heads') IS NULL")[0][0]:
            return []
        return self._rows(
            "SELECT log_id, peer, sequence, origin, size, root, time_s, signature FROM heads "
            "ORDER BY number"
        )

    def heads_waiting(self) -> dict[str, int]:
        """How many there are of each log."""
        return dict(self._rows("SELECT log_id, count(*) FROM heads GROUP BY log_id"))

    def heads_of(self, log_id: str) -> list[Any]:
        """Peer, sequence, origin, size, root, time and signature of each, as they came."""
        return self._rows(
            "SELECT peer, sequence, origin, size, root, time_s, signature FROM heads "
            "WHERE log_id = ? ORDER BY number",
            log_id,
        )

    def settle_heads(self, log_id: str, heads: Sequence[tuple[str, int]]) -> None:
        """Forget these (peer, sequence). Raises PartLost: who has the log now compares them."""
        with self.transaction():
            self._fence(log_id)
            for peer, sequence in heads:
                self._ask(
                    "DELETE FROM heads WHERE log_id = ? AND peer = ? AND sequence = ?",
                    (log_id, peer, sequence),
                )

    # ---- parts -----------------------------------------------------------------------------------

    def live(self, holder: str, ttl_s: float) -> list[str]:
        """Say that `holder` lives, and lengthen what it has; who lives."""
        with self.transaction():
            for table in ("collectors", "parts"):
                # Said before the server's clock was set back: the dead would live until that time.
                self._ask(
                    f"UPDATE {table} SET until = clock_timestamp() + ? * INTERVAL '1 second' "
                    "WHERE until > clock_timestamp() + ? * INTERVAL '2 seconds'",
                    (ttl_s, ttl_s),
                )
            self._ask(
                "INSERT INTO collectors (holder, until) VALUES (?, clock_timestamp() + ? * "
                "INTERVAL '1 second') ON CONFLICT (holder) DO UPDATE SET until = excluded.until",
                (holder, ttl_s),
            )
            self._ask("DELETE FROM collectors WHERE until < clock_timestamp() - INTERVAL '1 day'")
            self._ask(
                "UPDATE parts SET until = clock_timestamp() + ? * INTERVAL '1 second' "
                "WHERE holder = ?",
                (ttl_s, holder),
            )
            return [
                one
                for (one,) in self._rows(
                    "SELECT holder FROM collectors WHERE until > clock_timestamp() ORDER BY holder"
                )
            ]

    def take(self, holder: str, wanted: Iterable[int], ttl_s: float) -> list[int]:
        """Take those of `wanted` that nobody has any more, each in a new epoch; which they were.
        From here on this manifest writes as `holder`."""
        with self.transaction():
            rows = self._rows(
                "UPDATE parts SET holder = ?, epoch = epoch + 1, until = clock_timestamp() + ? * "
                "INTERVAL '1 second' WHERE part = ANY(?) AND holder <> ? AND "
                "until < clock_timestamp() RETURNING part, epoch",
                *(holder, ttl_s, sorted(wanted), holder),
            )
        self._held = holder
        self._epochs |= dict(rows)
        return sorted(part for part, _ in rows)

    def held(self, holder: str) -> frozenset[int]:
        """The parts that are a collector's, whether its time is over or not."""
        return frozenset(
            part for (part,) in self._rows("SELECT part FROM parts WHERE holder = ?", holder)
        )

    def release(self, holder: str, parts: Iterable[int]) -> None:
        """Give parts back, for others to take at once."""
        given = sorted(parts)
        self._ask(
            "UPDATE parts SET holder = '', until = '-infinity' WHERE holder = ? AND part = ANY(?)",
            (holder, given),
        )
        for part in given:
            self._epochs.pop(part, None)

    def leave_fleet(self, holder: str) -> None:
        """Give everything back and be gone."""
        with self.transaction():
            self.release(holder, self.held(holder))
            self._ask("DELETE FROM collectors WHERE holder = ?", (holder,))

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.connection.close()

    # ---- below -----------------------------------------------------------------------------------

    def _swap(self, log_id: str, before: Any, fields: dict[str, Any]) -> None:
        with self.transaction():
            self._fence(log_id)
            super()._swap(log_id, before, fields)

    def _fence(self, log_id: str) -> None:
        """Hold the row of a log's part, so that nobody takes it over before this commits. Raises
        PartLost."""
        rows = self._rows(
            "SELECT p.part, p.epoch, p.holder FROM logs l JOIN parts p ON p.part = l.part "
            "WHERE l.log_id = ? FOR SHARE OF p",
            log_id,
        )
        self._compare(rows, f"log {log_id}")

    def _compare(self, rows: Sequence[tuple[Any, ...]], what: str) -> None:
        """See that the one part of `rows` is held as it was taken. Raises PartLost."""
        for part, epoch, holder in rows:
            if holder == self._held and self._epochs.get(part) == epoch:
                return
            raise PartLost(f"{what}: part {part} is {holder or 'nobody'}'s, not this one's")
        raise CursorMoved(f"{what} is not known")

    def _ask(self, text: str, values: Sequence[object] = ()) -> Any:
        with self._lock, self._told():
            self._reach()
            return self.connection.execute(text.replace("?", "%s"), values)

    def _reach(self) -> None:
        # Within a transaction a new connection would be another transaction.
        if not self._depth and (self.connection.closed or self.connection.broken):
            self.connection = self._connect()

    def _connect(self) -> Any:
        try:
            return psycopg.connect(
                self._database,
                autocommit=True,
                connect_timeout=CONNECT_S,
                application_name="leased-collector",
                options=f"-c statement_timeout={STATEMENT_MS} -c synchronous_commit=on"
                f" -c default_transaction_read_only={'on' if self._read_only else 'off'}",
            )
        except psycopg.OperationalError as error:
            raise ManifestGone(f"the manifest's database: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise StateError(f"the manifest's database: {_first_line(error)}") from error

    def _prepare(self) -> None:
        with self.transaction():
            there = self._rows("SELECT to_regclass('leased_manifest') IS NOT NULL")[0][0]
            if not there and self._read_only:
                raise StateError("the manifest's database is empty: `leased-collector share`")
            if not there:
                self.connection.execute("SELECT pg_advisory_xact_lock(7226)")
                there = self._rows("SELECT to_regclass('leased_manifest') IS NOT NULL")[0][0]
            if not there:
                self.connection.execute(_SCHEMA)
                self._ask("INSERT INTO leased_manifest (version) VALUES (?)", (VERSION,))
                self._ask("INSERT INTO parts (part) SELECT generate_series(0, ?)", (PARTS - 1,))
            if not self._read_only:
                self._prepare_heads()
            ((version,),) = self._rows("SELECT version FROM leased_manifest")
            if version != VERSION:
                raise StateError(f"version {version} of the manifest; this release has {VERSION}")

    def _prepare_heads(self) -> None:
        if self._rows("SELECT to_regclass('heads') IS NULL")[0][0]:
            self.connection.execute("SELECT pg_advisory_xact_lock(7226)")
        if self._rows("SELECT to_regclass('heads') IS NULL")[0][0]:
            self.connection.execute(_HEADS)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The driver's errors as ours."""
        try:
            yield
        except self.duplicate:
            raise
        except psycopg.OperationalError as error:
            raise ManifestGone(f"the manifest's database: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise StateError(f"the manifest's database: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
