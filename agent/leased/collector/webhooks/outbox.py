# SPDX-License-Identifier: Apache-2.0
"""The outbox: what is to be told to whom, what was, and what could not be.

Rule: a fact goes in in the transaction of what it tells about, or of the cursor that says how far
was looked; so it is told if and only if that is durable. A delivery leaves its state `pending` only
after the receiver has answered, or when it is given up: then it is `dead`, and stays to be
replayed. Each receiver's deliveries are taken in the order of the facts.

Works on the register's database, in its transactions. Does not send (`courier`).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import msgspec

from leased.collector.webhooks.facts import Fact, Kind, body_of, wants
from leased.collector.webhooks.signing import Secret

PENDING_MAX: Final = 50_000
"""For one tenant, in equal parts for its receivers: so much waits, and so much that was given up is
kept."""

SWEEP_ROWS: Final = 5_000
SCHEMA: Final = """
CREATE TABLE webhooks (id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE messages (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
    kind TEXT NOT NULL, made_ns INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE deliveries (webhook TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL, due_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL,
    status INTEGER, why TEXT NOT NULL, PRIMARY KEY (webhook, number)) WITHOUT ROWID;
CREATE INDEX deliveries_by_state ON deliveries (state, webhook, number);
CREATE INDEX deliveries_by_number ON deliveries (number);
CREATE TABLE cursors (name TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
"""
_FULL: Final = ("dead", "too much was waiting for this receiver")
_DUE: Final = "CASE WHEN {0}attempts > 0 AND {0}at_ns > ? THEN 0 ELSE {0}due_ns END"
"""What was tried later than now was tried before our own clock was set back: it waits no more."""

_FIRST: Final = (
    f"SELECT {_DUE.format('')} FROM deliveries WHERE state = 'pending' AND webhook = ?"
    " ORDER BY number LIMIT 1"
)
_NEXT: Final = (
    f"SELECT d.number, m.id, m.made_ns, d.attempts, d.at_ns, m.body, {_DUE.format('d.')}"
    " FROM deliveries d JOIN messages m USING (number)"
    " WHERE d.state = 'pending' AND d.webhook = ? ORDER BY d.number LIMIT 1"
)
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class Webhook(msgspec.Struct, frozen=True, omit_defaults=True):
    """A receiver. `tenants` None: everybody's facts, and the fleet's; `disabled` says why nothing
    is sent to it ("": something is)."""

    id: str
    url: str
    events: tuple[str, ...]
    secrets: tuple[Secret, ...]
    created_ns: int
    actor: str
    tenants: tuple[str, ...] | None = None
    description: str = ""
    disabled: str = ""

    def __repr__(self) -> str:
        return f"Webhook({self.id!r})"

    def hears(self, fact: Fact) -> bool:
        """Whether a fact is for it. What was before it is not."""
        if self.disabled or fact.wall_ns < self.created_ns or not wants(self.events, fact.kind):
            return False
        return self.tenants is None or fact.tenant in self.tenants


class Delivery(msgspec.Struct, frozen=True):
    """One message for one receiver."""

    webhook: str
    number: int
    message: str
    kind: str
    state: str
    attempts: int
    made_ns: int
    due_ns: int
    at_ns: int
    status: int | None
    why: str


class Parcel(msgspec.Struct, frozen=True):
    """What is sent next to a receiver."""

    webhook: Webhook
    number: int
    message: str
    made_ns: int
    attempts: int
    at_ns: int
    body: bytes


class Room:
    """How much may wait for each receiver, of those that there are."""

    def __init__(
        self, webhooks: Sequence[Webhook], most: int, waiting: Callable[[str], int]
    ) -> None:
        self._most, self._waiting = most, waiting
        self._of = Counter(who for one in webhooks for who in one.tenants or ())
        self._left: dict[str, int] = {}

    def part(self, webhook: Webhook) -> int:
        """A receiver's part of what its tenant has."""
        among = max((self._of[who] for who in webhook.tenants or ()), default=1)
        return max(1, self._most // max(1, among))

    def take(self, webhook: Webhook) -> bool:
        """Room for one more; False: there is none."""
        if webhook.id not in self._left:
            self._left[webhook.id] = self.part(webhook) - self._waiting(webhook.id)
        self._left[webhook.id] -= 1
        return self._left[webhook.id] >= 0


class Outbox:
    """The tables, by way of an open connection. `source` is who tells, as CloudEvents have it."""

    def __init__(
        self, connection: sqlite3.Connection, source: str, pending_max: int = PENDING_MAX
    ) -> None:
        self._connection, self._source, self._pending_max = connection, source, pending_max

    # -- receivers ---------------------------------------------------------------------------------

    def webhooks(self) -> list[Webhook]:
        """Every receiver, by id."""
        rows = self._rows("SELECT document FROM webhooks ORDER BY id")
        return [msgspec.json.decode(row[0], type=Webhook) for row in rows]

    def webhook(self, id: str) -> Webhook | None:
        """One of them."""
        rows = self._rows("SELECT document FROM webhooks WHERE id = ?", id)
        return msgspec.json.decode(rows[0][0], type=Webhook) if rows else None

    def put_webhook(self, webhook: Webhook) -> None:
        """Keep a receiver, in place of what it was."""
        self._do("INSERT OR REPLACE INTO webhooks VALUES (?, ?)", webhook.id, _encoded(webhook))

    def settle_webhooks(self, now_ns: int) -> list[Webhook]:
        """Every receiver that something is sent to. Who came while our own clock was ahead came
        now, or it would hear of nothing until that time."""
        for one in self.webhooks():
            if one.created_ns > now_ns:
                self.put_webhook(msgspec.structs.replace(one, created_ns=now_ns))
        return [one for one in self.webhooks() if not one.disabled]

    def remove_webhook(self, id: str) -> None:
        """Take a receiver away, with all that was to be sent to it."""
        self._do("DELETE FROM webhooks WHERE id = ?", id)
        self._do("DELETE FROM deliveries WHERE webhook = ?", id)

    # -- facts, within a transaction ---------------------------------------------------------------

    def put(
        self, fact: Fact, webhooks: Sequence[Webhook] | None = None, room: Room | None = None
    ) -> bool:
        """Let everybody who wants to hear a fact hear it, once; whether there is anybody. `room` is
        what there is in this transaction, where many are put."""
        found = self.webhooks() if webhooks is None else webhooks
        hearers = [one for one in found if one.hears(fact)]
        if not hearers:
            return False
        row = self._connection.execute(
            "INSERT INTO messages (id, kind, made_ns, body) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING RETURNING number",
            (fact.id, str(fact.kind), fact.wall_ns, body_of(fact, self._source)),
        ).fetchone()
        if row is None:
            return True
        room = room or self.room()
        for one in hearers:
            state, why = ("pending", "") if room.take(one) else _FULL
            self._do(
                "INSERT INTO deliveries VALUES (?, ?, ?, 0, 0, ?, NULL, ?)",
                *(one.id, row[0], state, fact.wall_ns, why),
            )
        return True

    def room(self) -> Room:
        """What there is for what waits, for as long as this transaction lasts."""
        return Room(self.webhooks(), self._pending_max, lambda id: self.count("pending", id))

    def cursor(self, name: str) -> str | None:
        """How far was looked, by what is looked at."""
        rows = self._rows("SELECT position FROM cursors WHERE name = ?", name)
        return rows[0][0] if rows else None

    def cursors(self, prefix: str) -> dict[str, str]:
        """All whose names begin so."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        found = self._rows("SELECT * FROM cursors WHERE name >= ? AND name < ?", prefix, end)
        return dict(found)

    def set_cursor(self, name: str, position: str) -> None:
        """Say how far was looked."""
        self._do("INSERT OR REPLACE INTO cursors VALUES (?, ?)", name, position)

    def drop_cursor(self, name: str) -> None:
        """Forget it."""
        self._do("DELETE FROM cursors WHERE name = ?", name)

    # -- deliveries --------------------------------------------------------------------------------

    def due(self, now_ns: int, busy: Collection[str]) -> tuple[list[Webhook], int | None]:
        """Receivers whose next delivery is due and that are not `busy`, and when the next of the
        others is."""
        due, later = [], []
        for one in self.webhooks():
            rows = [] if one.disabled or one.id in busy else self._rows(_FIRST, now_ns, one.id)
            for (due_ns,) in rows:
                if due_ns <= now_ns:
                    due.append(one)
                else:
                    later.append(due_ns)
        return due, min(later, default=None)

    def next(self, webhook_id: str, now_ns: int) -> Parcel | None:
        """The first that waits for a receiver, if it is due."""
        webhook = self.webhook(webhook_id)
        if webhook is None or webhook.disabled:
            return None
        rows = self._rows(_NEXT, now_ns, webhook_id)
        if not rows or rows[0][-1] > now_ns:
            return None
        return Parcel(webhook, *rows[0][:-1])

    def settle(
        self, parcel: Parcel, state: str, now_ns: int, *, due_ns: int, status: int | None, why: str
    ) -> None:
        """What came of an attempt. A delivery that was taken away, or asked for once more,
        meanwhile stays as it is."""
        self._do(
            "UPDATE deliveries SET state = ?, attempts = attempts + 1, due_ns = ?, at_ns = ?,"
            " status = ?, why = ? WHERE webhook = ? AND number = ? AND state = 'pending'"
            " AND at_ns = ?",
            *(state, due_ns, now_ns, status, why, parcel.webhook.id, parcel.number, parcel.at_ns),
        )

    def deliveries(
        self, webhook_id: str, *, state: str | None, before: int | None, count: int
    ) -> list[Delivery]:
        """The newest first."""
        which = "" if state is None else "AND d.state = ?"
        rows = self._rows(
            "SELECT d.webhook, d.number, m.id, m.kind, d.state, d.attempts, m.made_ns, d.due_ns,"
            " d.at_ns, d.status, d.why FROM deliveries d JOIN messages m USING (number)"
            f" WHERE d.webhook = ? AND d.number < ? {which} ORDER BY d.number DESC LIMIT ?",
            *(webhook_id, before if before is not None else 2**62),
            *(() if state is None else (state,)),
            count,
        )
        return [Delivery(*row) for row in rows]

    def replay(self, webhook_id: str, now_ns: int, *, message: str | None, since_ns: int) -> int:
        """Send again: one message, or every dead one that happened since. How many."""
        which = "state = 'dead' AND made_ns >= ?" if message is None else "messages.id = ?"
        return self._do(
            "UPDATE deliveries SET state = 'pending', attempts = 0, due_ns = 0, at_ns = ?,"
            " why = '' FROM messages WHERE messages.number = deliveries.number AND webhook = ?"
            f" AND {which}",
            *(now_ns, webhook_id, since_ns if message is None else message),
        )

    def count(self, state: str, webhook_id: str | None = None) -> int:
        """How many deliveries are in a state."""
        which = "" if webhook_id is None else "AND webhook = ?"
        values = (state,) if webhook_id is None else (state, webhook_id)
        return int(
            self._rows(f"SELECT COUNT(*) FROM deliveries WHERE state = ? {which}", *values)[0][0]
        )

    def trim(self) -> dict[str, int]:
        """Forget the oldest of what was given up where that is too much, some of it; how many of
        each receiver."""
        gone, room = {}, self.room()
        for one in self.webhooks():
            over = self.count("dead", one.id) - room.part(one)
            if over > 0:
                gone[one.id] = self._do(
                    "DELETE FROM deliveries WHERE webhook = ?1 AND number IN (SELECT number FROM"
                    " deliveries WHERE state = 'dead' AND webhook = ?1 ORDER BY number LIMIT ?2)",
                    *(one.id, min(over, SWEEP_ROWS)),
                )
        return gone

    def sweep(self, delivered_before_ns: int, dead_before_ns: int) -> int:
        """Forget what is over since long, some of it; how many deliveries went."""
        gone = 0
        for state, before_ns in (("delivered", delivered_before_ns), ("dead", dead_before_ns)):
            gone += self._do(
                "DELETE FROM deliveries WHERE (webhook, number) IN (SELECT webhook, number FROM"
                " deliveries WHERE state = ? AND at_ns < ? LIMIT ?)",
                *(state, before_ns, SWEEP_ROWS),
            )
        self._do(
            "DELETE FROM messages WHERE number IN (SELECT number FROM messages m WHERE made_ns < ?"
            " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.number = m.number) LIMIT ?)",
            *(max(delivered_before_ns, dead_before_ns), SWEEP_ROWS),
        )
        return gone

    def _rows(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(text, values).fetchall()

    def _do(self, text: str, *values: object) -> int:
        return self._connection.execute(text, values).rowcount


def _encoded(webhook: Webhook) -> bytes:
    return _ENCODER.encode(webhook)


def test_fact(webhook: Webhook, now_ns: int) -> Fact:
    """Something to be told so that somebody sees that it arrives."""
    data = {"webhook": webhook.id, "said": "This is a test."}
    tenant = None if webhook.tenants is None else webhook.tenants[0]
    return Fact(Kind.TEST, f"{webhook.id}/{now_ns}", webhook.id, tenant, now_ns, data)
