# SPDX-License-Identifier: Apache-2.0
"""The register: quotas, overrides and schedules, every change of them sealed, in one database.

Rule: a change and its seal are one transaction, durable before it is answered. The seals are a
chain: each row's hash is over the hash before and the row's own canonical text, so that a row that
was altered, dropped or moved is found (`check`). The head of that chain stands in every policy that
nodes are handed, and so in the logs of the nodes.

Does not decide what a change means (`quotas`) and does not know the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from leased.collector.archive.database import Database
from leased.collector.governance.quotas import Override, Quota, Schedule
from leased.collector.governance.shares import Given
from leased.collector.webhooks.outbox import SCHEMA as OUTBOX
from leased.terms.errors import ChainError, StateError
from leased.terms.moment import DAY_NS

DATABASE: Final = "register.sqlite"
VERSION: Final = 3
REPLIES_KEPT_NS: Final = DAY_NS
_DOMAIN: Final = b"leased governance change v1\0"
_SCHEMA: Final = """
CREATE TABLE quotas (tenant TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE overrides (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL,
    expires_ns INTEGER NOT NULL, document BLOB NOT NULL);
CREATE INDEX overrides_by_tenant ON overrides (tenant, number);
CREATE TABLE schedules (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL,
    document BLOB NOT NULL);
CREATE INDEX schedules_by_tenant ON schedules (tenant, number);
CREATE TABLE changes (sequence INTEGER PRIMARY KEY, document BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE replies (caller TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL,
    status INTEGER NOT NULL, headers BLOB NOT NULL, body BLOB NOT NULL, kept_ns INTEGER NOT NULL,
    PRIMARY KEY (caller, key)) WITHOUT ROWID;
CREATE INDEX replies_by_age ON replies (kept_ns);
CREATE TABLE policies (generation INTEGER PRIMARY KEY, digest BLOB NOT NULL, note TEXT NOT NULL,
    document TEXT NOT NULL, issued_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL);
"""
_SHARES: Final = """
CREATE TABLE IF NOT EXISTS shares (node TEXT NOT NULL, generation INTEGER NOT NULL,
    document BLOB NOT NULL, PRIMARY KEY (node, generation)) WITHOUT ROWID;
"""
_STEPS: Final = {0: _SCHEMA + OUTBOX + _SHARES, 1: OUTBOX + _SHARES, 2: _SHARES}
"""What makes a database of this release of one of a version: 0 is none, 1 had no webhooks, 2 no
limits of the whole fleet."""

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
T = TypeVar("T")


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change, as it is sealed. `document` is the JSON of what it left behind."""

    sequence: int
    id: str
    wall_ns: int
    actor: str
    action: str
    tenant: str
    reason: str
    document: str


class Sealed(msgspec.Struct, frozen=True):
    """A change and the hash of its place in the chain."""

    change: Change
    hash: bytes


class Reply(msgspec.Struct, frozen=True):
    """What a request with an idempotency key was answered. `request` is the hash of it."""

    request: bytes
    status: int
    headers: dict[str, str]
    body: bytes


class Issued(msgspec.Struct, frozen=True):
    """A policy that nodes were handed."""

    generation: int
    digest: bytes
    note: str
    document: str
    issued_ns: int
    expires_ns: int


def seal(previous: bytes, document: bytes) -> bytes:
    """The hash of a change after the one whose hash is `previous` (32 zeros: the first)."""
    return hashlib.sha256(_DOMAIN + previous + document).digest()


class Register(Database):
    """The open database."""

    busy_ms = 5_000

    def __init__(self, directory: Path) -> None:
        """Open, make what is missing. Raises StateError."""
        super().__init__(directory / DATABASE)

    def _prepare(self, path: Path, *, read_only: bool) -> None:
        version = self._version()
        if version in _STEPS:
            self._step(version)
        elif version != VERSION:
            raise StateError(f"{path}: version {version}; this release has {VERSION}")

    def _version(self) -> int:
        version: int = self._ask("PRAGMA user_version").fetchone()[0]
        return version

    def _step(self, version: int) -> None:
        """Make it a database of this release, unless another process was faster."""
        with self.transaction():
            if self._version() == version:
                for statement in _STEPS[version].split(";"):
                    self._ask(statement)
                self._ask(f"PRAGMA user_version = {VERSION}")

    # -- what there is -----------------------------------------------------------------------------

    def tenants(self) -> list[str]:
        """Every tenant that anything was said about, sorted."""
        rows = self._rows(
            "SELECT tenant FROM quotas UNION SELECT tenant FROM overrides"
            " UNION SELECT tenant FROM schedules ORDER BY 1"
        )
        return [row[0] for row in rows]

    def quota(self, tenant: str) -> Quota | None:
        """The base of a tenant; None: nothing was said."""
        rows = self._rows("SELECT document FROM quotas WHERE tenant = ?", tenant)
        return msgspec.json.decode(rows[0][0], type=Quota) if rows else None

    def quotas(self) -> list[Quota]:
        """Every base, by tenant."""
        return self._documents(Quota, "SELECT document FROM quotas ORDER BY tenant")

    def overrides(self, tenant: str | None = None) -> list[Override]:
        """Overrides that have not been swept away, in the order in which they were made."""
        return self._of(Override, "overrides", tenant)

    def schedules(self, tenant: str | None = None) -> list[Schedule]:
        """Schedules, in the order in which they were made."""
        return self._of(Schedule, "schedules", tenant)

    def changes(self, *, before: int | None, count: int, tenant: str | None = None) -> list[Sealed]:
        """The last `count` changes, the newest first, below the sequence `before`."""
        found: list[Sealed] = []
        rows = self._ask(
            "SELECT document, hash FROM changes WHERE sequence < ? ORDER BY sequence DESC",
            (before if before is not None else 2**62,),
        )
        for document, digest in rows:
            change = msgspec.json.decode(document, type=Change)
            if tenant is None or change.tenant == tenant:
                found.append(Sealed(change, digest))
                if len(found) == count:
                    break
        return found

    def documents_of(self, action: str) -> Iterator[tuple[int, str]]:
        """What each change of a kind left behind, and when it was made, Unix ns; the oldest
        first."""
        rows = self._rows("SELECT document FROM changes ORDER BY sequence")
        for (document,) in rows:
            if action.encode() in document:
                change = msgspec.json.decode(document, type=Change)
                if change.action == action:
                    yield change.wall_ns, change.document

    def head(self) -> tuple[int, bytes]:
        """How many changes there are, and the hash of the last."""
        rows = self._rows("SELECT sequence, hash FROM changes ORDER BY sequence DESC LIMIT 1")
        return (rows[0][0] + 1, rows[0][1]) if rows else (0, bytes(32))

    def check(self) -> int:
        """Verify the chain of changes; how many there are. Raises ChainError naming the first that
        does not hold."""
        previous, count = bytes(32), 0
        for sequence, document, digest in self._ask(
            "SELECT sequence, CAST(document AS BLOB), CAST(hash AS BLOB) FROM changes"
            " ORDER BY sequence"
        ):
            if sequence != count or seal(previous, document) != digest:
                raise ChainError(
                    "CHAIN_BROKEN", "a change of the register does not hold", sequence=count
                )
            previous, count = digest, count + 1
        return count

    # -- changes, within a transaction -------------------------------------------------------------

    def record(
        self,
        *,
        id: str,
        wall_ns: int,
        actor: str,
        action: str,
        tenant: str,
        reason: str,
        left: msgspec.Struct | None,
    ) -> Sealed:
        """Seal a change."""
        count, previous = self.head()
        document = _ENCODER.encode(left).decode() if left is not None else ""
        change = Change(count, id, wall_ns, actor, action, tenant, reason, document)
        encoded = _ENCODER.encode(change)
        digest = seal(previous, encoded)
        self._ask("INSERT INTO changes VALUES (?, ?, ?)", (count, encoded, digest))
        return Sealed(change, digest)

    def put_quota(self, quota: Quota) -> None:
        """Set the base of a tenant."""
        self._ask(
            "INSERT OR REPLACE INTO quotas VALUES (?, ?)", (quota.tenant, _ENCODER.encode(quota))
        )

    def add_override(self, override: Override) -> None:
        """Keep an override."""
        self._ask(
            "INSERT INTO overrides (id, tenant, expires_ns, document) VALUES (?, ?, ?, ?)",
            (override.id, override.tenant, override.expires_ns, _ENCODER.encode(override)),
        )

    def add_schedule(self, schedule: Schedule) -> None:
        """Keep a schedule."""
        self._ask(
            "INSERT INTO schedules (id, tenant, document) VALUES (?, ?, ?)",
            (schedule.id, schedule.tenant, _ENCODER.encode(schedule)),
        )

    def remove(self, table: str, id: str) -> bool:
        """Take an override or a schedule away; whether it was there."""
        assert table in ("overrides", "schedules")
        gone: int = self._ask(f"DELETE FROM {table} WHERE id = ?", (id,)).rowcount
        return gone == 1

    def sweep(self, now_ns: int) -> None:
        """Forget overrides that ended more than a day ago, and replies that nobody will ask for."""
        self._ask(
            "DELETE FROM overrides WHERE expires_ns < ?", (now_ns - REPLIES_KEPT_NS,)
        )
        self._ask(
            "DELETE FROM replies WHERE kept_ns < ?", (now_ns - REPLIES_KEPT_NS,)
        )

    # -- replies -----------------------------------------------------------------------------------

    def reply(self, caller: str, key: str) -> Reply | None:
        """What the caller was answered under this key."""
        rows = self._rows(
            "SELECT request, status, headers, body FROM replies WHERE caller = ? AND key = ?",
            *(caller, key),
        )
        if not rows:
            return None
        request, status, headers, body = rows[0]
        return Reply(request, status, msgspec.json.decode(headers), body)

    def keep_reply(self, caller: str, key: str, reply: Reply, now_ns: int) -> None:
        """Remember an answer, in the transaction of what it answers."""
        headers = msgspec.json.encode(reply.headers)
        self._ask(
            "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)",
            (caller, key, reply.request, reply.status, headers, reply.body, now_ns),
        )

    # -- policies ----------------------------------------------------------------------------------

    def issued(self) -> Issued | None:
        """The policy that nodes are handed now."""
        rows = self._rows("SELECT * FROM policies ORDER BY generation DESC LIMIT 1")
        return Issued(*rows[0]) if rows else None

    def issue(self, policy: Issued, kept: int = 64) -> None:
        """Keep a policy, and the `kept` before it."""
        self._ask(
            "INSERT INTO policies VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(policy)
        )
        self._ask(
            "DELETE FROM policies WHERE generation NOT IN"
            " (SELECT generation FROM policies ORDER BY generation DESC LIMIT ?)",
            (kept + 1,),
        )

    # -- shares ------------------------------------------------------------------------------------

    def shares(self) -> list[Given]:
        """What nodes were given of the fleet's limits and may still have, in the order in which it
        was handed out."""
        return self._documents(Given, "SELECT document FROM shares ORDER BY generation, node")

    def give(self, given: Sequence[Given], gone: Iterable[tuple[str, int]]) -> None:
        """Keep what is about to be handed out; forget what no node can have any more (by node and
        generation)."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO shares VALUES (?, ?, ?)",
            [(one.node, one.generation, _ENCODER.encode(one)) for one in given],
        )
        self.connection.executemany(
            "DELETE FROM shares WHERE node = ? AND generation = ?", list(gone)
        )

    # -- inside ------------------------------------------------------------------------------------

    def _of(self, kind: Callable[..., T], table: str, tenant: str | None) -> list[T]:
        where = "" if tenant is None else "WHERE tenant = ?"
        text = f"SELECT document FROM {table} {where} ORDER BY number"
        return self._documents(kind, text, *(() if tenant is None else (tenant,)))

    def _documents(self, kind: Callable[..., T], text: str, *values: object) -> list[T]:
        decoder = msgspec.json.Decoder(kind)
        return [decoder.decode(row[0]) for row in self._rows(text, *values)]

    def _rows(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._ask(text, values).fetchall()
        return rows
