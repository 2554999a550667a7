# SPDX-License-Identifier: Apache-2.0
"""One delivery over HTTP/1.1: look, connect, send, read the status.

Rule: the address that is connected to is the one that was looked at. TLS is verified against the
host's name; a redirect is a failure, for where it leads was never configured. Of an answer its head
counts, whatever becomes of its body: at most 64 KiB of that are read, for a second, and thrown
away. Whoever sends brings the deadline.

Does not try again (`courier`) and does not resolve names (`names`).
"""

from __future__ import annotations

import email.utils
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final

import h11
import msgspec
import trio

from leased.collector.webhooks.guard import Network, Target, refusal
from leased.terms.moment import NS_PER_S
from leased.terms.pieces import Pieces

READ_BYTES: Final = 16 * 1024
HEAD_BYTES_MAX: Final = 16 * 1024
BODY_BYTES_MAX: Final = 64 * 1024
REST_S_MAX: Final = 1
"""For the rest of an answer whose head is there."""

Address = tuple[Any, Any, int, str, tuple[Any, ...]]
"""As a resolver tells it."""


class Undelivered(Exception):
    """Nothing was heard of the receiver that counts as an answer; says why, without the URL."""


class Heard(msgspec.Struct, frozen=True):
    """What a receiver answered. `after_ns` is how long it asks to wait."""

    status: int
    after_ns: int = 0


class Line:
    """A connection to one receiver, for deliveries one after the other."""

    def __init__(self, stream: trio.abc.Stream, target: Target) -> None:
        self._stream, self._target = stream, target
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)

    @property
    def reusable(self) -> bool:
        """Whether another may follow."""
        return self._http.our_state is h11.IDLE

    async def post(self, headers: Sequence[tuple[str, str]], body: bytes, now_ns: int) -> Heard:
        """Send a body and hear the answer. Raises Undelivered."""
        fixed = [("Host", self._target.authority), ("Content-Length", str(len(body)))]
        request = h11.Request(method="POST", target=self._target.path, headers=[*fixed, *headers])
        try:
            sent = (self._http.send(request) or b"") + (self._http.send(h11.Data(data=body)) or b"")
            await self._stream.send_all(sent + (self._http.send(h11.EndOfMessage()) or b""))
            head = await self._hear()
        except (OSError, trio.BrokenResourceError, h11.ProtocolError) as error:
            raise Undelivered(str(error) or type(error).__name__) from error
        with trio.move_on_after(REST_S_MAX):
            try:
                await self._pass_over()
            except (OSError, trio.BrokenResourceError, h11.ProtocolError):
                pass  # it was answered; what follows goes over another connection
        told = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
        return Heard(head.status_code, retry_after_ns(told.get("retry-after", ""), now_ns))

    async def _hear(self) -> h11.Response:
        announced = Pieces(HEAD_BYTES_MAX)
        while not isinstance(event := self._http.next_event(), h11.Response):
            if isinstance(event, h11.InformationalResponse) and not announced.fit():
                raise Undelivered("it announces answers without end")
            if event is h11.NEED_DATA:
                data = await self._stream.receive_some(READ_BYTES)
                if not data:
                    raise Undelivered("the connection ended before the answer")
                self._http.receive_data(bytes(data))
        return event

    async def _pass_over(self) -> None:
        """Read the rest of an answer, so that another delivery may follow on the connection."""
        pieces = Pieces(BODY_BYTES_MAX)
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))
            elif isinstance(event, h11.Data):
                if not pieces.fit(len(event.data)):
                    return
            else:
                if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                    self._http.start_next_cycle()
                return

    async def aclose(self) -> None:
        """Close it, without ceremony."""
        await trio.aclose_forcefully(self._stream)


async def connect(
    target: Target,
    found: Iterable[Address],
    allowed: Sequence[Network],
    context: ssl.SSLContext,
) -> Line:
    """A connection to where a target's name leads. Raises Undelivered."""
    why = "its name has no address"
    for family, kind, protocol, _, address in found:
        why_not = refusal(str(address[0]), allowed, secure=target.secure)
        if why_not:
            why = why_not
            continue
        try:
            return await _connect(target, (family, kind, protocol), address, context)
        except Undelivered as error:
            why = str(error)
    raise Undelivered(why)


async def _connect(
    target: Target, how: tuple[int, int, int], address: tuple[object, ...], context: ssl.SSLContext
) -> Line:
    line = trio.socket.socket(*how)
    try:
        await line.connect(address)
        stream: trio.abc.Stream = trio.SocketStream(line)
        if target.secure:
            secure = trio.SSLStream(
                stream, context, server_hostname=target.host, https_compatible=True
            )
            await secure.do_handshake()
            stream = secure
        return Line(stream, target)
    except (OSError, trio.BrokenResourceError) as error:
        line.close()
        cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
        why = getattr(cause, "verify_message", "") or getattr(cause, "reason", "")
        raise Undelivered(str(why or getattr(cause, "strerror", "") or cause)) from error
    except BaseException:
        line.close()
        raise


def retry_after_ns(text: str, now_ns: int) -> int:
    """How long Retry-After says to wait: seconds, or a date. What it cannot mean is 0."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return int(text[:9]) * NS_PER_S
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return 0
    if until.tzinfo is None:
        return 0
    return max(0, int(until.timestamp()) * NS_PER_S - now_ns)
