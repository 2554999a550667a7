# SPDX-License-Identifier: Apache-2.0
"""Invites: one-time tokens by which nodes enrol themselves, in place of a file that is carried.

Rule: an invite is for one node under one name, for a short time, and once; only the SHA-256 of its
secret is kept. It is used up in the same transaction that keeps what it was used for. The very same
request again gets the same answer (an answer can be lost); any other one is a replay. What an
invite cannot do: follow another log where one is followed already.

Does not answer requests (`api.enrolling`) and signs no certificates.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.invitation import Invitation
from leased.collector.archive.database import Database
from leased.terms.moment import DAY_NS

DATABASE: Final = "invites.sqlite"
KEPT_NS: Final = 30 * DAY_NS
"""How long what became of an invite is remembered after its end."""

_FIELDS: Final = "id, name, url, node_id, hosts, expires_ns, used_ns"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS invites (
    id         TEXT PRIMARY KEY,
    secret     TEXT NOT NULL,
    name       TEXT NOT NULL,
    url        TEXT NOT NULL,
    node_id    TEXT NOT NULL,
    hosts      TEXT NOT NULL,
    expires_ns INTEGER NOT NULL,
    used_ns    INTEGER NOT NULL DEFAULT 0,
    request    TEXT NOT NULL DEFAULT '',
    answer     BLOB NOT NULL DEFAULT x''
) STRICT;
"""


class Why(enum.StrEnum):
    """Why an invite does not let one in."""

    UNKNOWN = "invite-unknown"
    EXPIRED = "invite-expired"
    USED = "invite-used"
    OTHER_NODE = "invite-other-node"


class Denied(Exception):
    """The invite does not let this request in. Nothing has changed."""

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(detail)
        self.why = why


class Invite(msgspec.Struct, frozen=True):
    """For whom it is: what the node is called here, where it listens, which node it must be ("":
    any), and the host names of its certificate."""

    id: str
    name: str
    url: str
    node_id: str
    hosts: tuple[str, ...]
    expires_ns: int
    used_ns: int = 0


class Invites(Database):
    """The invites of a state directory."""

    journal = "DELETE"

    def __init__(self, directory: Path) -> None:
        """Raises StateError."""
        super().__init__(directory / DATABASE)

    def _prepare(self, path: Path, *, read_only: bool) -> None:
        self.connection.executescript(_SCHEMA)

    def make(self, invite: Invite, secret: str, now_ns: int) -> None:
        """Keep a new invite; forget those that were over long ago. Raises StateError."""
        ask = self._ask
        values = (invite.id, _hash(secret), invite.name, invite.url, invite.node_id)
        ask("DELETE FROM invites WHERE expires_ns < ?", (now_ns - KEPT_NS,))
        ask(
            "INSERT INTO invites (id, secret, name, url, node_id, hosts, expires_ns) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*values, " ".join(invite.hosts), invite.expires_ns),
        )

    def use(
        self,
        told: Invitation,
        node_id: str,
        request: bytes,
        now_ns: int,
        act: Callable[[Invite], bytes],
    ) -> bytes:
        """Use an invite up for a request of `node_id`: `act` carries it out and returns the answer,
        which is kept with it. What `act` raises leaves the invite as it was. Raises Denied."""
        digest = sha256(request).hexdigest()
        with self.transaction():
            found = self._find(told.id, told.secret)
            if found is None:
                raise Denied(Why.UNKNOWN, "No such invite. Ask whoever runs the collector for one.")
            invite, held, answer = found
            if invite.used_ns and held == digest:
                return answer
            _check(invite, node_id, now_ns)
            answer = act(invite)
            self._ask(
                "UPDATE invites SET used_ns = ?, request = ?, answer = ? WHERE id = ?",
                (now_ns, digest, answer, invite.id),
            )
        return answer

    def remembered(self) -> list[Invite]:
        """All that are remembered, the newest first; without their secrets, which nobody has."""
        rows = self._ask(f"SELECT {_FIELDS} FROM invites ORDER BY expires_ns DESC, id").fetchall()
        return [_invite(*row) for row in rows]

    def withdraw(self, number: str) -> bool:
        """Make an invite useless. False: there is no unused one of this id."""
        done: int = self._ask(
            "DELETE FROM invites WHERE id = ? AND used_ns = 0", (number,)
        ).rowcount
        return done == 1

    def _find(self, number: str, secret: str) -> tuple[Invite, str, bytes] | None:
        row = self._ask(
            f"SELECT secret, request, answer, {_FIELDS} FROM invites WHERE id = ?", (number,)
        ).fetchone()
        # Compared in constant time: who guesses learns nothing of the hash.
        if row is None or not secrets.compare_digest(row[0], _hash(secret)):
            return None
        _, request, answer, *fields = row
        return _invite(*fields), request, bytes(answer)


def _invite(
    number: str, name: str, url: str, node_id: str, hosts: str, expires_ns: int, used_ns: int
) -> Invite:
    return Invite(number, name, url, node_id, tuple(hosts.split()), expires_ns, used_ns)


def draw(entropy: Callable[[], bytes], ca_sha256: str) -> Invitation:
    """A new invitation. `entropy` gives 16 bytes."""
    return Invitation(entropy().hex()[:16], (entropy() + entropy()).hex(), ca_sha256)


def _check(invite: Invite, node_id: str, now_ns: int) -> None:
    """Raises Denied."""
    if invite.used_ns:
        detail = f"This invite was used, for {invite.name}. Each is good for one node, once"
        raise Denied(Why.USED, f"{detail}: ask for a new one (`leased-collector invite`).")
    if now_ns >= invite.expires_ns:
        detail = "This invite has expired. Ask for a new one (`leased-collector invite`)."
        raise Denied(Why.EXPIRED, detail)
    if invite.node_id and invite.node_id != node_id:
        detail = f"This invite is for node {invite.node_id}, and this is {node_id}"
        raise Denied(Why.OTHER_NODE, f"{detail}: use it there, or ask for one of this node's own.")


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
