# SPDX-License-Identifier: Apache-2.0
"""Heads that other collectors have cosigned, kept until they can be compared with what is held
here, and the trees that make comparing cheap.

Rule: a head is kept before the page that told of it counts, so that none is lost by a crash; it is
forgotten once it was found to be of the very tree that is held. A tree is built on the last one
that was remembered below it: what was pulled since is read, and not the whole log.

Does not judge (`gossip`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from leased.chain.tree import EMPTY, Frontier
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifest import BUSY_MS
from leased.collector.gossip import PeerHead
from leased.terms.errors import StateError

DATABASE: Final = "heads.sqlite"
TREES_KEPT: Final = 64
"""Of each log: one for each cosignature, so an hour."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS heads (
    log_id TEXT NOT NULL, peer TEXT NOT NULL, sequence INTEGER NOT NULL, origin TEXT NOT NULL,
    size INTEGER NOT NULL, root BLOB NOT NULL, time_s INTEGER NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (log_id, peer, sequence)
) STRICT;
CREATE TABLE IF NOT EXISTS trees (
    log_id TEXT NOT NULL, size INTEGER NOT NULL, peaks BLOB NOT NULL, PRIMARY KEY (log_id, size)
) STRICT, WITHOUT ROWID;
"""
_HASH_BYTES: Final = 32


class Heads:
    """The heads and trees of a state directory. For the thread that stores."""

    def __init__(self, archive: Archive) -> None:
        """Raises StateError."""
        self._archive = archive
        path: Path = archive.directory / DATABASE
        try:
            if not path.exists():
                # Made by us first: SQLite would make it readable by others. Never later: closing a
                # descriptor of a database lets go of the process' locks on it.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in (f"busy_timeout = {BUSY_MS}", "journal_mode = WAL", "synchronous = FULL"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{path}: {error}; give the collector's state directory") from error
        rows = self._connection.execute("SELECT log_id, count(*) FROM heads GROUP BY log_id")
        self._waiting: dict[str, int] = dict(rows.fetchall())

    def waits(self, log_id: str) -> bool:
        """Whether there is anything to compare. Costs nothing."""
        return bool(self._waiting.get(log_id))

    def add(self, heads: Sequence[PeerHead]) -> None:
        """Keep heads of logs that are known here; durable on return."""
        known = {entry.log_id for entry in self._archive.manifest.logs()}
        heads = [one for one in heads if one.log_id.hex() in known]
        self._connection.execute("BEGIN IMMEDIATE")
        for one in heads:
            log_id = one.log_id.hex()
            values = (log_id, one.peer, one.sequence, one.origin, one.size, one.root)
            done = self._connection.execute(
                "INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, one.time_s, one.signature),
            )
            self._waiting[log_id] = self._waiting.get(log_id, 0) + done.rowcount
        self._connection.execute("COMMIT")

    def of(self, log_id: str) -> list[PeerHead]:
        """What is to be compared with a log, in the order in which it came."""
        rows = self._connection.execute(
            "SELECT peer, sequence, origin, size, root, time_s, signature FROM heads "
            "WHERE log_id = ? ORDER BY rowid",
            (log_id,),
        ).fetchall()
        raw = bytes.fromhex(log_id)
        return [PeerHead(row[0], row[1], raw, *row[2:]) for row in rows]

    def settle(self, log_id: str, size: int) -> None:
        """Those of at most `size` records were of the tree that is held: forget them."""
        done = self._connection.execute(
            "DELETE FROM heads WHERE log_id = ? AND size <= ?", (log_id, size)
        )
        self._waiting[log_id] = max(0, self._waiting.get(log_id, 0) - done.rowcount)

    def remember(self, log_id: str, tree: Frontier) -> None:
        """A tree to build on."""
        ask = self._connection.execute
        peaks = b"".join(tree.peaks)
        ask("INSERT OR REPLACE INTO trees VALUES (?, ?, ?)", (log_id, tree.size, peaks))
        ask(
            "DELETE FROM trees WHERE log_id = ?1 AND size NOT IN "
            "(SELECT size FROM trees WHERE log_id = ?1 ORDER BY size DESC LIMIT ?2)",
            (log_id, TREES_KEPT),
        )

    def root_at(self, log_id: str, size: int) -> bytes:
        """The root of the first `size` records that are held. Raises StateError."""
        row = self._connection.execute(
            "SELECT size, peaks FROM trees WHERE log_id = ? AND size <= ? "
            "ORDER BY size DESC LIMIT 1",
            (log_id, size),
        ).fetchone()
        tree = EMPTY
        if row is not None:
            peaks = [row[1][at : at + _HASH_BYTES] for at in range(0, len(row[1]), _HASH_BYTES)]
            tree = Frontier(row[0], tuple(peaks))
        leaves: list[bytes] = []
        if tree.size < size:
            leaves.extend(islice(self._archive.hashes(log_id, tree.size), size - tree.size))
        return (tree.extended(leaves) if leaves else tree).root()

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._connection.close()
