# SPDX-License-Identifier: Apache-2.0
"""Heads that other collectors have cosigned, kept until they can be compared with what is held
here, and the trees that make comparing cheap.

Rule: a head is kept before the page that told of it counts, so that none is lost by a crash; it is
forgotten once it was found to be of the very tree that is held. Collectors that share a fleet keep
heads in their manifest, for who hears of a head need not be who has the log. A tree is built on the
last one that was remembered below it: what was pulled since is read, and not the whole log.

Does not judge (`gossip`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final

from leased.chain.tree import EMPTY, Frontier
from leased.collector.archive.archive import Archive
from leased.collector.archive.database import Database
from leased.collector.gossip import PeerHead

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


class Trees(Database):
    """Trees of logs, in the state directory of one collector. For the thread that stores."""

    def __init__(self, archive: Archive) -> None:
        """Raises StateError."""
        self._archive = archive
        self._waiting: dict[str, int] = {}
        super().__init__(archive.own / DATABASE)

    def _prepare(self, path: Path, *, read_only: bool) -> None:
        self.connection.executescript(_SCHEMA)

    def waits(self, log_id: str) -> bool:
        """Whether there is anything to compare. Costs nothing."""
        return bool(self._waiting.get(log_id))

    def known(self, heads: Sequence[PeerHead]) -> list[PeerHead]:
        """Those of logs that are in the manifest."""
        known = {entry.log_id for entry in self._archive.manifest.logs()}
        return [one for one in heads if one.log_id.hex() in known]

    def remember(self, log_id: str, tree: Frontier) -> None:
        """A tree to build on. Raises StateError."""
        ask, peaks = self._ask, b"".join(tree.peaks)
        ask("INSERT OR REPLACE INTO trees VALUES (?, ?, ?)", (log_id, tree.size, peaks))
        ask(
            "DELETE FROM trees WHERE log_id = ?1 AND size NOT IN "
            "(SELECT size FROM trees WHERE log_id = ?1 ORDER BY size DESC LIMIT ?2)",
            (log_id, TREES_KEPT),
        )

    def root_at(self, log_id: str, size: int) -> bytes:
        """The root of the first `size` records that are held. Raises StateError."""
        row = self._ask(
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


def write_heads(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Make a database in which these wait (log, peer, sequence, origin, size, root, time,
    signature). Raises sqlite3.Error, OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_SCHEMA)
        connection.executemany("INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()


class Heads(Trees):
    """The heads of a collector that has its fleet alone."""

    def __init__(self, archive: Archive) -> None:
        """Raises StateError."""
        super().__init__(archive)
        self.refresh()

    def refresh(self) -> None:
        """Look what waits to be compared."""
        rows = self._ask("SELECT log_id, count(*) FROM heads GROUP BY log_id")
        self._waiting = dict(rows.fetchall())

    def add(self, heads: Sequence[PeerHead]) -> None:
        """Keep heads of logs that are known here; durable on return."""
        heads = self.known(heads)
        with self.transaction():
            for one in heads:
                log_id = one.log_id.hex()
                values = (log_id, one.peer, one.sequence, one.origin, one.size, one.root)
                done = self._ask(
                    "INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*values, one.time_s, one.signature),
                )
                self._waiting[log_id] = self._waiting.get(log_id, 0) + done.rowcount

    def of(self, log_id: str) -> list[PeerHead]:
        """What is to be compared with a log, in the order in which it came."""
        rows = self._ask(
            "SELECT peer, sequence, origin, size, root, time_s, signature FROM heads "
            "WHERE log_id = ? ORDER BY rowid",
            (log_id,),
        ).fetchall()
        raw = bytes.fromhex(log_id)
        return [PeerHead(row[0], row[1], raw, *row[2:]) for row in rows]

    def settle(self, log_id: str, heads: Sequence[PeerHead]) -> None:
        """These, and no other that came meanwhile, were of the tree that is held: forget them."""
        for one in heads:
            done = self._ask(
                "DELETE FROM heads WHERE log_id = ? AND peer = ? AND sequence = ?",
                (log_id, one.peer, one.sequence),
            )
            self._waiting[log_id] = max(0, self._waiting.get(log_id, 0) - done.rowcount)


class SharedHeads(Trees):
    """The heads of collectors that share a fleet, in their manifest. What waits is looked up with
    each beat of `sharing`."""

    def __init__(self, archive: Archive) -> None:
        """Raises StateError, ManifestGone."""
        super().__init__(archive)
        # What waited while the fleet was this collector's alone.
        fields = "log_id, peer, sequence, origin, size, root, time_s, signature"
        rows = self._ask(f"SELECT {fields} FROM heads ORDER BY rowid").fetchall()
        if rows:
            self._manifest.add_heads(rows)
            self._ask("DELETE FROM heads")
        self.refresh()

    def refresh(self) -> None:
        """Look what waits to be compared. Raises ManifestGone."""
        self._waiting = self._manifest.heads_waiting()

    def add(self, heads: Sequence[PeerHead]) -> None:
        """Keep heads of logs that are known here; durable on return. Raises ManifestGone."""
        rows = [
            (one.log_id.hex(), one.peer, one.sequence, one.origin, one.size)
            + (one.root, one.time_s, one.signature)
            for one in self.known(heads)
        ]
        if rows:
            self._manifest.add_heads(rows)
            self.refresh()

    def of(self, log_id: str) -> list[PeerHead]:
        """What is to be compared with a log, in the order in which it came. Raises ManifestGone."""
        raw = bytes.fromhex(log_id)
        rows = self._manifest.heads_of(log_id)
        return [PeerHead(row[0], row[1], raw, *row[2:]) for row in rows]

    def settle(self, log_id: str, heads: Sequence[PeerHead]) -> None:
        """These, and no other that came meanwhile, were of the tree that is held: forget them.
        Raises ManifestGone, PartLost."""
        if heads:
            self._manifest.settle_heads(log_id, [(one.peer, one.sequence) for one in heads])
            self.refresh()

    @property
    def _manifest(self) -> Any:
        return self._archive.manifest


def open_heads(archive: Archive) -> Heads | SharedHeads:
    """Those of a state directory. Raises StateError."""
    return SharedHeads(archive) if archive.shared else Heads(archive)
