# SPDX-License-Identifier: Apache-2.0
"""The route table's terms: what a route takes and gives, and the call that a handler is given.

Rule: a route says everything about itself: who may, what comes in by path, query and body (frozen
structs that forbid what they do not name), what goes out. The server and the OpenAPI document are
made from the same rows.

Does not speak HTTP (`application`) and does nothing (`quotas` and its neighbours).
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from leased.collector.api.problems import Problem

JSON: Final = "application/json"


class Scope(enum.StrEnum):
    """What a caller may be allowed."""

    READ = "read"
    """Quotas, usage, allocations, capacity, the fleet, who is told what."""

    COST = "cost"
    """Costs and bills."""

    QUOTA = "quota"
    """Change quotas and schedules."""

    WEBHOOK = "webhook"
    """Say who is told what, and send it again."""

    NODE = "node"
    """Fetch the policy of a node."""


class Caller(msgspec.Struct, frozen=True):
    """Who asks. `tenants` None: all of them; `node` is the id of a node that asks for itself."""

    name: str
    scopes: frozenset[Scope]
    tenants: frozenset[str] | None = None
    node: str | None = None
    authenticated: bool = True

    def require_tenant(self, tenant: str) -> None:
        """Raises Problem 404: whether a tenant exists is nobody's business but its own."""
        if self.tenants is not None and tenant not in self.tenants:
            raise Problem(404, f"There is no tenant {tenant} that you may see.", parameter="tenant")

    def require_all(self) -> None:
        """Raises Problem 403 to who may see some tenants only."""
        if self.tenants is not None:
            raise Problem(403, "This is about the whole fleet; your token is for some tenants.")

    def sees(self, tenant: str) -> bool:
        """Whether the caller may see a tenant."""
        return self.tenants is None or tenant in self.tenants


class Call(msgspec.Struct, frozen=True):
    """One request, read."""

    caller: Caller
    path: Any
    query: Any
    body: Any
    now_ns: int
    headers: Mapping[str, str] = {}

    def require_match(self, tag: str, *, is_there: bool) -> None:
        """Raises Problem 412 if the request insists on another entity tag than `tag`, on one where
        there is none yet, or on none."""
        wanted, other = self.headers.get("if-match"), self.headers.get("if-none-match")
        known = {"ETag": tag} if is_there else {}
        if wanted is not None and not (is_there and matches(wanted, tag)):
            now = f"It is {tag} now. Read it again, and change that."
            raise Problem(412, now if is_there else "There is none yet.", headers=known)
        if other is not None and is_there and matches(other, tag):
            raise Problem(412, f"It is there already, and is {tag}.", headers=known)


def matches(header: str, tag: str) -> bool:
    """Whether one of the entity tags in a header is `tag`, or it is `*`; weak ones count as strong
    ones here, for what they name is made from the same values."""
    return header == "*" or any(one.strip().removeprefix("W/") == tag for one in header.split(","))


class Answer(msgspec.Struct, frozen=True):
    """What a handler gives back: a value to be encoded, bytes of a media type, or a stream of them.
    `tag` is the entity tag of what the value says apart from when it was asked; `kept` is what an
    Idempotency-Key brings back in place of a value that is shown once. `then`: what is sent in its
    place, once it is there; who waits for that takes no thread."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = {}
    raw: bytes | None = None
    media_type: str = JSON
    stream: AsyncIterator[bytes] | None = None
    tag: str | None = None
    kept: Any = None
    then: Callable[[], Awaitable[Answer]] | None = None


class Route(msgspec.Struct, frozen=True):
    """One method of one path. `writes` is carried out in the register's transaction, with
    Idempotency-Key; `slow` in a thread; `also` are further media types of the answer."""

    method: str
    path: str
    act: Callable[..., Answer | Awaitable[Answer]]
    summary: str
    answer: Any
    scope: Scope | None = Scope.READ
    takes_path: type[msgspec.Struct] | None = None
    takes_query: type[msgspec.Struct] | None = None
    takes_body: type[msgspec.Struct] | None = None
    status: int = 200
    writes: bool = False
    slow: bool = False
    conditional: bool = False
    problems: tuple[int, ...] = ()
    also: tuple[str, ...] = ()
    about: str = "governance"

    @property
    def name(self) -> str:
        """The operation's id."""
        words = [word.strip("{}") for word in self.path.split("/")[2:] if word]
        return "_".join([self.method.lower(), *words]).replace("-", "_")
