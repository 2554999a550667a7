# SPDX-License-Identifier: Apache-2.0
"""Problems: what is wrong with a request, as RFC 9457 has it.

Rule: every answer that is no success is one of these, in `application/problem+json`, with a type
that does not change and a sentence that says what to do. 400 is what the schema excludes, 422 what
it cannot express.

Does not log.
"""

from __future__ import annotations

from typing import Final

import msgspec

MEDIA_TYPE: Final = "application/problem+json"
TYPES: Final = {
    400: ("malformed", "The request is malformed"),
    401: ("unauthenticated", "Who asks is not known"),
    403: ("forbidden", "This is not allowed to whom asks"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The path does not know this method"),
    406: ("not-acceptable", "None of the accepted media types is to be had"),
    408: ("timeout", "The request did not come in time"),
    409: ("conflict", "The request contradicts what is"),
    412: ("precondition-failed", "What it should change has changed"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is not JSON"),
    422: ("unprocessable", "The request cannot be meant"),
    429: ("too-many-requests", "Too many requests"),
    500: ("internal", "The collector made a mistake"),
    503: ("unavailable", "Not now"),
}


class ProblemBody(msgspec.Struct, frozen=True, rename={"kind": "type"}, omit_defaults=True):
    """A problem, as it is sent. `parameter` is what of the request it is about."""

    kind: str
    title: str
    status: int
    detail: str
    parameter: str | None = None


class Problem(Exception):
    """A request that is not carried out. Nothing has changed."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        parameter: str | None = None,
        headers: dict[str, str] | None = None,
        kind: str = "",
    ) -> None:
        """`kind` is a narrower type than that of the status."""
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}
        slug, title = TYPES[status]
        name = f"urn:leased:problem:{kind or slug}"
        self.body = ProblemBody(name, title, status, detail, parameter)

    def encoded(self) -> bytes:
        """The body."""
        return msgspec.json.encode(self.body)


def unread() -> Problem:
    """A collector that has just been started reads what it has."""
    return Problem(503, "No node's records have been read yet.", headers={"Retry-After": "2"})
