# SPDX-License-Identifier: Apache-2.0
"""The receiver: OTLP over HTTP at /v1/metrics, as an ASGI application to mount or to run alone.

Rule: only nodes speak here, each for itself: who sends is known by its certificate, and a request
that says it is of another node is refused whole. Bodies are bounded, and what cannot be counted is
said (partial success), so that the sender's own stream can tell of it. A store that cannot take
more is answered with 503 and Retry-After: nodes keep their samples and come again. One node has so
many rows and so many requests at once: what others send is counted whatever it does.

Does not do TLS, and does not keep anything itself (`rollup`, `store`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from leased.collector.telemetry.decoding import (
    PACKED_BYTES_MAX,
    Decoded,
    answer,
    decode,
    unpack,
)
from leased.collector.telemetry.rollup import Folding
from leased.collector.telemetry.store import PRUNED_AT_ONCE, Store
from leased.terms.errors import CallerError, StateError

PATH: Final = "/v1/metrics"
MEDIA_TYPE: Final = "application/x-protobuf"
BODY_S_MAX: Final = 30
FLUSH_S: Final = 10
PRUNE_EVERY: Final = 60
RETRY_S: Final = 30
AT_ONCE_MAX: Final = 2
"""Requests of one node: it sends one after the other, and comes again where it was not answered."""

Identify = Callable[[Mapping[str, Any]], str | None]
"""Which node an ASGI scope is of (hex); None: no node."""


def node_of(scope: Mapping[str, Any]) -> str | None:
    """The node whose certificate the connection showed, where the collector's own server has it."""
    caller = scope.get("state", {}).get("certificate")
    node = getattr(caller, "node", None)
    return node if isinstance(node, str) else None


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, why: str, retry_s: int = 0) -> None:
        super().__init__(why)
        self.status, self.why, self.retry_s = status, why, retry_s


class Receiver:
    """One ASGI application, and the task that keeps what it received (`run`)."""

    def __init__(
        self,
        store: Store,
        *,
        wall_ns: Callable[[], int],
        newest_ns: Callable[[], int],
        identify: Identify = node_of,
    ) -> None:
        """`newest_ns` is when the newest record of any node was sealed: samples are not forgotten
        by a clock that is ahead of that."""
        self._store = store
        self._wall_ns, self._newest_ns = wall_ns, newest_ns
        self._identify = identify
        self._folding = Folding()
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._trouble = ""
        self._excess = False
        self._of_node: Counter[str] = Counter()
        self.requests = self.points = self.rejected = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            body = await self._receive(scope, receive)
        except Refused as refused:
            await _refuse(send, refused)
            return
        await _send(send, 200, body)

    def close(self) -> None:
        """Nothing waits here."""

    async def run(self) -> None:
        """Keep what was received, every ten seconds and at the end. Where there is more to take
        away than goes at once, it goes on with the next round."""
        rounds = 0
        try:
            while True:
                await trio.sleep(FLUSH_S)
                rounds += 1
                prune = self._excess or rounds % PRUNE_EVERY == 0
                await trio.to_thread.run_sync(self._keep, prune, limiter=self._one_at_a_time)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._keep, False)

    def _keep(self, prune: bool) -> None:
        """Append, and prune now and then. A store that fails is tried again with the next rows:
        these are lost, as telemetry may be."""
        now_ns = self._wall_ns()
        try:
            self._store.append(self._folding.take(now_ns), now_ns=now_ns)
            if prune:
                gone = self._store.prune(min(now_ns, self._newest_ns()))
                self._excess = gone >= PRUNED_AT_ONCE
            self._trouble = ""
        except StateError as error:
            self._trouble = str(error)

    # -- one request -------------------------------------------------------------------------------

    async def _receive(self, scope: Any, receive: Any) -> bytes:
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        if scope["path"] != PATH:
            raise Refused(404, f"only {PATH} is here")
        if scope["method"] != "POST":
            raise Refused(405, "POST")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise Refused(415, f"Content-Type: {MEDIA_TYPE}")
        node = self._identify(scope)
        if node is None:
            raise Refused(401, "show a node's certificate of this fleet")
        if self._trouble:
            raise Refused(503, self._trouble, RETRY_S)
        if self._of_node[node] >= AT_ONCE_MAX:
            raise Refused(429, "one request after the other", 1)
        self._of_node[node] += 1
        try:
            body = await _read(receive)
            told = await trio.to_thread.run_sync(
                self._count,
                body,
                headers.get("content-encoding", "").lower(),
                node,
                limiter=self._one_at_a_time,
            )
        finally:
            self._of_node[node] -= 1
            self._of_node += Counter()  # without those that are 0
        return answer(told.rejected, told.why)

    def _count(self, body: bytes, encoding: str, node: str) -> Decoded:
        try:
            told = decode(unpack(body, encoding), self._wall_ns())
        except CallerError as error:
            raise Refused(400, str(error)) from error
        if told.node != node:
            raise Refused(403, f"a request of node {told.node[:40]}, sent by node {node}")
        full = self._folding.fold(told.points)
        self.requests += 1
        self.points += len(told.points) - full
        self.rejected += told.rejected + full
        why = told.why or ("the collector follows no more series, or of this node" if full else "")
        return Decoded(told.node, (), told.rejected + full, why)


class Mounted:
    """The receiver at its path, and another application everywhere else."""

    def __init__(self, receiver: Receiver, rest: Any) -> None:
        self._receiver, self._rest = receiver, rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Whose request it is."""
        ours = scope["type"] == "http" and scope["path"] == PATH
        await (self._receiver if ours else self._rest)(scope, receive, send)

    def close(self) -> None:
        """End what waits."""
        self._rest.close()


async def _read(receive: Any) -> bytes:
    body = bytearray()
    with trio.move_on_after(BODY_S_MAX):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request ended early")
            body += message.get("body", b"")
            if len(body) > PACKED_BYTES_MAX:
                raise Refused(413, f"a body has {PACKED_BYTES_MAX} bytes at most")
            if not message.get("more_body", False):
                return bytes(body)
    raise Refused(408, "the body did not come in time")


async def _refuse(send: Any, refused: Refused) -> None:
    headers = [(b"retry-after", str(refused.retry_s).encode())] if refused.retry_s else []
    await _send(send, refused.status, _status(refused.why), headers)


async def _send(
    send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    told = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})


def _status(why: str) -> bytes:
    """A google.rpc.Status with a message (field 2), which is what the protocol answers with."""
    text = why.encode()[:120].decode(errors="ignore").encode()  # no half letter: it is a string
    return b"\x12" + bytes([len(text)]) + text
