# SPDX-License-Identifier: Apache-2.0
"""The rows of the route table for people: the console's files, and the stream that it follows.

Rule: files are for anybody (there is nothing in them); the stream is for whoever may read, and
tells a caller no more than its tenants. It says what is there at once, then whenever that changes,
at most once a second, and something at least every quarter of a minute, so that a connection that
is dead is found.

Does not compute what it tells (`views`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

import msgspec
import trio

from leased.collector.accounts.answers import Reach
from leased.collector.accounts.reaching import nameless
from leased.collector.api.books import Books
from leased.collector.api.fleet_answers import LeaseSeen, NodeSeen
from leased.collector.api.routes import Answer, Call, Caller, Route
from leased.collector.api.views import Views
from leased.collector.console import POLICY, Page, pages

EVENT_STREAM: Final = "text/event-stream"
APART_S: Final = 1.0
ALIVE_S: Final = 15.0
LEASES_MAX: Final = 2_000
"""More than a person looks through; the count is told beside them."""

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


class Look(msgspec.Struct, frozen=True):
    """What the stream carries: leases by their remaining time, at most `LEASES_MAX` of `count`."""

    nodes: list[NodeSeen]
    leases: list[LeaseSeen]
    count: int
    as_of: str
    reach: Reach


class Stream:
    """The handler."""

    def __init__(self, books: Books, views: Views, wall_ns: Callable[[], int]) -> None:
        self._books, self._views, self._wall_ns = books, views, wall_ns

    async def follow(self, call: Call) -> Answer:
        """Server-sent events until the client goes."""
        return Answer(stream=self._looks(call.caller), media_type=EVENT_STREAM)

    async def _looks(self, caller: Caller) -> AsyncIterator[bytes]:
        while True:
            changed = self._books.changed
            yield b"event: look\ndata: " + _ENCODER.encode(self._look(caller)) + b"\n\n"
            await trio.sleep(APART_S)
            with trio.move_on_after(ALIVE_S):
                await changed.wait()

    def _look(self, caller: Caller) -> Look:
        now_ns = self._wall_ns()
        seen = self._views.nodes_at(now_ns)
        leases = self._views.leases_of(caller, None, now_ns)
        leases.sort(key=lambda one: (one.remaining_ms, one.lease_id))
        nodes, reach = seen.nodes, seen.reach
        if caller.tenants is not None:
            nodes, reach = [], nameless(reach)
        return Look(nodes, leases[:LEASES_MAX], len(leases), seen.as_of, reach)


def _serve(page: Page, call: Call) -> Answer:
    del call
    headers = {"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"}
    return Answer(raw=page.content, media_type=page.media_type, tag=page.tag, headers=headers)


def routes(stream: Stream) -> list[Route]:
    """The rows of the table."""
    static = [
        Route("GET", page.path, partial(_serve, page), "A file of the console", None, scope=None)
        for page in pages()
    ]
    return [
        *static,
        Route(
            "GET",
            "/v1/stream",
            stream.follow,
            "Nodes and leases, whenever they change",
            None,
            also=(EVENT_STREAM,),
            about="nodes",
            problems=(503,),
        ),
    ]
