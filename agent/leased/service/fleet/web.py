# SPDX-License-Identifier: Apache-2.0
"""A conversation in HTTP/1.1 over any byte stream: requests in, answers out, one at a time.

Rule: nothing waits for ever: not for a head, a body, the next request or a reader of an answer; and
nothing grows: heads, bodies and the rate of requests have limits. What is not HTTP gets one answer
that says so and the end of the connection. Pipelined requests wait in the kernel's buffer until
their turn.

Does not know what a request means (`routes`) nor who asks (`listener`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import msgspec
import trio

from leased.service.fleet.config import Listening
from leased.terms.errors import CallerError
from leased.terms.moment import NS_PER_S
from leased.terms.pieces import PIECE_BYTES, Pieces

HEAD_BYTES_MAX: Final = 16_384
BODY_BYTES_MAX: Final = 65_536
READ_BYTES: Final = 16_384
WRITE_BYTES: Final = 262_144
"""A reader has `write_ns` for each of these: 26 KB/s at the least with the default of 10 s."""

PARAMETERS_MAX: Final = 16
ENDS: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


class Request(msgspec.Struct, frozen=True):
    """One request. Names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Answer(msgspec.Struct, frozen=True):
    """One answer. `closes`: nothing more is taken on this connection."""

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    closes: bool = False


Attend = Callable[[Request], Awaitable[Answer]]
Refuse = Callable[[int, str], Answer]
"""What to say of a request that never came to be one: status, and what to do about it."""


async def converse(
    stream: trio.abc.Stream, attend: Attend, refuse: Refuse, limits: Listening
) -> None:
    """Answer requests until the peer closes, breaks the protocol or keeps us waiting. Raises
    nothing of the stream's own: a connection that breaks has ended, and so has one in which h11
    does not let us answer."""
    conversation = _Conversation(stream, limits)
    try:
        while await conversation.serve_one(attend, refuse):
            pass
    except (*ENDS, h11.LocalProtocolError):
        pass


class _Conversation:
    """One connection."""

    def __init__(self, stream: trio.abc.Stream, limits: Listening) -> None:
        self._stream = stream
        self._limits = limits
        self._peer = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._bodiless = False
        self._second = 0
        self._in_second = 0

    async def serve_one(self, attend: Attend, refuse: Refuse) -> bool:
        """Take one request and answer it; whether another may follow. Raises what `converse`
        catches."""
        try:
            request = await self._request()
        except h11.RemoteProtocolError as error:
            hint = error.error_status_hint
            what = "the head of a request" if hint == 431 else "HTTP/1.1"
            await self._send(refuse(hint, f"{what}: {error}"), closes=True)
            return False
        except _TooMuch as error:
            await self._send(refuse(error.status, str(error)), closes=True)
            return False
        except CallerError as error:
            answer = refuse(400, str(error))
        else:
            if request is None:
                return False
            if self._paced():
                answer = await attend(request)
            else:
                # Told at once, it would be asked again at once.
                await trio.sleep(self._second + 1 - trio.current_time())
                answer = _slow_down(refuse)
        return await self._send(answer, closes=answer.closes)

    def _paced(self) -> bool:
        """Whether the request is within what a connection may ask in a second."""
        second = int(trio.current_time())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        return self._in_second <= self._limits.requests_per_s_max

    # -- in ----------------------------------------------------------------------------------------

    async def _request(self) -> Request | None:
        """The next request; None: the peer has gone, or said nothing for too long."""
        self._bodiless = False
        if self._peer.trailing_data == (b"", False):
            with trio.move_on_after(self._limits.idle_ns / NS_PER_S) as idle:
                await self._receive()
            if idle.cancelled_caught:
                return None
        with trio.move_on_after(self._limits.head_ns / NS_PER_S) as slow:
            head = await self._event()
            if isinstance(head, h11.ConnectionClosed):
                return None
            assert isinstance(head, h11.Request)
            self._bodiless = head.method == b"HEAD"
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
            }
            body, pieces = bytearray(), Pieces(BODY_BYTES_MAX)
            if self._peer.they_are_waiting_for_100_continue:
                await self._write(
                    self._peer.send(h11.InformationalResponse(status_code=100, headers=[]))
                )
            while not isinstance(event := await self._event(), h11.EndOfMessage):
                if isinstance(event, h11.ConnectionClosed):
                    return None
                assert isinstance(event, h11.Data)
                body += event.data
                if not pieces.fit(len(event.data)):
                    why = f"a body has {BODY_BYTES_MAX} bytes at most, in pieces of {PIECE_BYTES}"
                    raise _TooMuch(413, why)
            return _parse(
                head.method.decode("latin-1"), head.target.decode("latin-1"), headers, bytes(body)
            )
        if slow.cancelled_caught:
            raise _TooMuch(408, "the request did not come in time")
        return None

    async def _event(self) -> object:
        """What the peer says next."""
        while True:
            event = self._peer.next_event()
            if event is not h11.NEED_DATA:
                return event
            await self._receive()

    async def _receive(self) -> None:
        self._peer.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))

    # -- out ---------------------------------------------------------------------------------------

    async def _send(self, answer: Answer, *, closes: bool) -> bool:
        """Send an answer; whether the connection goes on."""
        state: object = self._peer.our_state
        if state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        headers = [*answer.headers]
        if answer.status != 304:
            headers.append(("Content-Length", str(len(answer.body))))
        if answer.content_type:
            headers.append(("Content-Type", answer.content_type))
        if closes:
            headers.append(("Connection", "close"))
        body = b"" if self._bodiless else answer.body
        await self._write(
            self._peer.send(h11.Response(status_code=answer.status, headers=headers)) or b"", body
        )
        if body:
            # Told of by its length; it has gone out as it is.
            self._peer.send_with_data_passthrough(h11.Data(data=body))
        self._peer.send(h11.EndOfMessage())
        if closes or self._peer.our_state is h11.MUST_CLOSE:
            return False
        if self._peer.their_state is not h11.DONE:
            return False
        self._peer.start_next_cycle()
        return True

    async def _write(self, head: bytes | None, body: bytes = b"") -> None:
        """Write, in pieces that the peer has to take in time."""
        first = (head or b"") + body[:WRITE_BYTES]
        await self._write_piece(first)
        with memoryview(body) as rest:
            for at in range(WRITE_BYTES, len(body), WRITE_BYTES):
                await self._write_piece(rest[at : at + WRITE_BYTES])

    async def _write_piece(self, piece: bytes | memoryview) -> None:
        with trio.fail_after(self._limits.write_ns / NS_PER_S):
            await self._stream.send_all(piece)


class _TooMuch(Exception):
    """The connection ends here, with this status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _slow_down(refuse: Refuse) -> Answer:
    answer = refuse(429, "too many requests in a second on this connection")
    return msgspec.structs.replace(answer, headers=(*answer.headers, ("Retry-After", "1")))


def _parse(method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
    """Take the target apart. Raises CallerError."""
    try:
        parts = urlsplit(target)
        path = unquote(parts.path, errors="strict")
        pairs = parse_qsl(
            parts.query,
            keep_blank_values=True,
            strict_parsing=bool(parts.query),
            errors="strict",
            max_num_fields=PARAMETERS_MAX,
        )
    except ValueError as error:
        raise CallerError(f"{target[:80]!r}: {error}") from error
    query = dict(pairs)
    if len(query) < len(pairs):
        raise CallerError(f"{target[:80]!r}: a parameter stands there twice")
    return Request(method, path, query, headers, body)
