# SPDX-License-Identifier: Apache-2.0
"""Who asks: by a bearer token, by a certificate of the fleet, or from this host without either.

Rule: tokens are kept as SHA-256 only (they are 256 random bits, so nothing slower is needed) and
found by it, not compared. A request without credentials is somebody on this host (its connection
comes over loopback, and it asks for the host by a loopback name, which a page that had its name
rebound to 127.0.0.1 does not) and may what the configuration says: read, by default.

Does not read files (`credentials`) and does not check certificates (TLS has).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from leased.collector.api.problems import Problem
from leased.collector.api.routes import Caller, Scope

READS: Final = frozenset((Scope.READ, Scope.COST))
LOOPBACK: Final = {
    "none": frozenset(),
    "read": READS,
    "write": READS | {Scope.QUOTA, Scope.WEBHOOK},
}
"""What somebody on this host may without credentials."""

_LOCAL_PEERS: Final = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_LOCAL_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="leased-collector"'}
NAME_CHARS_MAX: Final = 100
SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))


class Token(msgspec.Struct, frozen=True):
    """A bearer token by its hash."""

    name: str
    sha256: str
    scopes: frozenset[Scope]
    tenants: frozenset[str] | None = None
    node: str | None = None
    expires_wall_ns: int | None = None

    def __post_init__(self) -> None:
        # It is sealed with every change that is made by it, and shown.
        if not (self.name.isprintable() and 0 < len(self.name) <= NAME_CHARS_MAX):
            raise ValueError(f"name: 1 to {NAME_CHARS_MAX} characters that can be seen")


def hash_of(token: str) -> str:
    """As it is kept."""
    return hashlib.sha256(token.encode()).hexdigest()


class Gate:
    """Says who asks. `tokens` may be set anew at any time."""

    def __init__(self, tokens: tuple[Token, ...], loopback: str) -> None:
        self.loopback = LOOPBACK[loopback]
        self.take(tokens)

    def take(self, tokens: tuple[Token, ...]) -> None:
        """These and no others count from now on."""
        self._by_hash = {token.sha256: token for token in tokens}

    def caller(
        self,
        method: str,
        headers: Mapping[str, str],
        peer: str,
        certificate: Caller | None,
        now_ns: int,
    ) -> Caller:
        """Who makes this request. Raises Problem 401 or 403."""
        given = headers.get("authorization")
        if given is not None:
            return self._by_token(given, now_ns)
        if certificate is not None:
            return certificate
        if peer not in _LOCAL_PEERS or not self.loopback:
            raise Problem(401, "Send a bearer token, or a certificate.", headers=CHALLENGE)
        if not _LOCAL_HOST.fullmatch(headers.get("host", "")):
            raise Problem(401, "Without a token, ask for localhost by its name.", headers=CHALLENGE)
        if method not in SAFE and not _is_same_origin(headers):
            raise Problem(403, "A page of another origin may change nothing here.")
        return Caller(f"local:{peer}", self.loopback, authenticated=False)

    def _by_token(self, given: str, now_ns: int) -> Caller:
        kind, _, secret = given.partition(" ")
        token = self._by_hash.get(hash_of(secret.strip())) if kind.lower() == "bearer" else None
        if token is None:
            raise Problem(401, "This token is not known.", headers=CHALLENGE)
        if token.expires_wall_ns is not None and token.expires_wall_ns <= now_ns:
            raise Problem(401, f"The token {token.name} has expired.", headers=CHALLENGE)
        return Caller(f"token:{token.name}", token.scopes, token.tenants, token.node)


def _is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser, if it is one, says that our own page asks."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
