# SPDX-License-Identifier: Apache-2.0
"""The sender: requests from the buffer to an OTLP receiver, by HTTP/1.1 over TLS.

Rule: one request at a time, each with a deadline; a receiver that is away, or asks us to wait, is
tried again later each time, or when it said (Retry-After), and nothing is lost meanwhile but what
the buffer drops. What it will not have (any other refusal) is not sent twice: it is counted, and
said once. Redirects are not followed. Certificates are read anew for each connection, so they may
be replaced at any time.

Does not encode (`otlp`) and trusts nothing in an answer beyond its status, Retry-After and how many
of the points sent were not taken.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import h11
import trio

from leased.ports import Clock, Entropy
from leased.service.telemetry.buffer import Batch, Buffer
from leased.service.telemetry.otlp import rejected_points
from leased.service.telemetry.streaming import Endpoint, Streaming, parse_endpoint
from leased.terms.moment import NS_PER_S
from leased.terms.pieces import Pieces

RETRIED: Final = (429, 502, 503, 504)
"""The statuses for which the protocol says: try again."""

BACKOFF_NS: Final = 1 * NS_PER_S
RETRY_AFTER_NS_MAX: Final = 3600 * NS_PER_S
ANSWER_BYTES_MAX: Final = 65_536
READ_BYTES: Final = 16_384
WHY_CHARS_MAX: Final = 200
"""Of what a receiver says for itself. It goes into our log, as one line."""

_NO_NETWORK: Final = (errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES)
_BROKEN: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    h11.RemoteProtocolError,
    ssl.SSLError,
    OSError,
)


class _Unanswered(Exception):
    """The receiver could not be asked, or did not answer; `why` is for the operator."""


class _Answer(NamedTuple):
    """What came back."""

    status: int
    retry_after: str
    body: bytes


class Sender:
    """Runs until cancelled."""

    def __init__(
        self,
        *,
        settings: Streaming,
        buffer: Buffer,
        clock: Clock,
        entropy: Entropy,
        version: str,
        count: Callable[[str, int], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._endpoint = parse_endpoint(settings.endpoint)
        self._buffer = buffer
        self._clock = clock
        self._entropy = entropy
        self._agent = f"leased/{version}"
        self._count = count
        self._say = say
        self._connection: _Connection | None = None
        self._failures = 0
        self._lost_before = 0
        self._refused = ""

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                batch = await self._buffer.oldest()
                pause_ns = await self._deliver(batch)
                if pause_ns:
                    await self._clock.sleep_until(self._clock.now().boot_ns + pause_ns)
        finally:
            await self._hang_up()

    async def _deliver(self, batch: Batch) -> int:
        """Send one request; how long to wait before the next."""
        try:
            answer = await self._ask(batch.body)
        except _Unanswered as error:
            return self._fail(str(error))
        if answer.status in RETRIED:
            asked_ns = self._asked_ns(answer.retry_after)
            return max(asked_ns, self._fail(f"it answered {answer.status}"))
        self._buffer.take(batch)
        if answer.status == 200:
            self._succeed()
            points, why = rejected_points(answer.body)
            points = min(points, batch.points)
        else:
            points, why = batch.points, f"it answered {answer.status}"
        if points:
            self._refuse(points, why)
        return 0

    # -- how it goes -------------------------------------------------------------------------------

    def _fail(self, why: str) -> int:
        """Count a failure; how long to wait."""
        if not self._failures:
            self._lost_before = self._buffer.dropped_points
            self._say(f"telemetry: {self._settings.endpoint} takes nothing ({why}); it is kept")
        self._failures += 1
        longest_ns = min(BACKOFF_NS << min(self._failures - 1, 20), self._settings.retry_ns_max)
        # Between half of it and all of it, so that a fleet does not come back in step.
        share = int.from_bytes(self._entropy()[:2], "big")
        return longest_ns // 2 + longest_ns * share // (2 << 16)

    def _succeed(self) -> None:
        if self._failures:
            lost = self._buffer.dropped_points - self._lost_before
            what = f"{lost} points were lost" if lost else "nothing was lost"
            self._say(f"telemetry: {self._settings.endpoint} takes it again; {what}")
        self._failures = 0

    def _refuse(self, points: int, why: str) -> None:
        self._count("refused", points)
        why = "".join(char if char.isprintable() else " " for char in why[:WHY_CHARS_MAX])
        if why != self._refused:
            self._say(f"telemetry: {self._settings.endpoint} would not have {points} points: {why}")
        self._refused = why

    def _asked_ns(self, retry_after: str) -> int:
        """How long a receiver asks us to wait: seconds, or a date."""
        if retry_after.isascii() and retry_after.isdecimal():
            return min(int(retry_after[:9]) * NS_PER_S, RETRY_AFTER_NS_MAX)
        try:
            until_s = int(parsedate_to_datetime(retry_after).timestamp())
        except (ValueError, OverflowError):
            return 0
        left_ns = until_s * NS_PER_S - self._clock.now().wall_ns
        return max(0, min(left_ns, RETRY_AFTER_NS_MAX))

    # -- HTTP --------------------------------------------------------------------------------------

    async def _ask(self, body: bytes) -> _Answer:
        """One request and its answer. A connection that the receiver closed while it was idle is
        opened anew, once. Raises _Unanswered."""
        idle = self._connection is not None
        try:
            with trio.fail_after(self._settings.timeout_ns / NS_PER_S):
                try:
                    return await self._exchange(body)
                except (trio.BrokenResourceError, h11.RemoteProtocolError):
                    if not idle:
                        raise
                    await self._hang_up()
                    return await self._exchange(body)
        except _BROKEN as error:
            await self._hang_up()
            raise _Unanswered(_explain(error)) from error

    async def _exchange(self, body: bytes) -> _Answer:
        if self._connection is None:
            self._connection = await _connect(self._endpoint, self._settings)
        headers = (
            ("Host", self._endpoint.authority),
            ("User-Agent", self._agent),
            ("Content-Type", "application/x-protobuf"),
            ("Content-Encoding", "gzip"),
            ("Content-Length", str(len(body))),
        )
        answer = await self._connection.ask(self._endpoint.path, headers, body)
        if self._connection.over:
            await self._hang_up()
        return answer

    async def _hang_up(self) -> None:
        """Close without waiting for the peer."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await trio.aclose_forcefully(connection.stream)


class _Connection:
    """One connection to the receiver."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_BYTES)
        self.over = False

    async def ask(self, path: str, headers: tuple[tuple[str, str], ...], body: bytes) -> _Answer:
        """One exchange. Raises what `_BROKEN` lists."""
        head = h11.Request(method="POST", target=path, headers=list(headers))
        parts = (head, h11.Data(data=body), h11.EndOfMessage())
        await self.stream.send_all(b"".join(self._peer.send(part) or b"" for part in parts))
        status, retry_after, told, pieces = 0, "", bytearray(), Pieces(ANSWER_BYTES_MAX)
        while True:
            event = self._peer.next_event()
            if event is h11.NEED_DATA:
                self._peer.receive_data(bytes(await self.stream.receive_some(READ_BYTES)))
            elif isinstance(event, h11.Response):
                status = event.status_code
                retry_after = dict(event.headers).get(b"retry-after", b"").decode("latin-1")
            elif isinstance(event, h11.Data | h11.InformationalResponse):
                data = event.data if isinstance(event, h11.Data) else b""
                told += data
                if not pieces.fit(len(data)):
                    raise OSError(errno.EMSGSIZE, "the answer does not end")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise OSError(errno.ECONNRESET, "it closed the connection")
        self.over = (self._peer.our_state, self._peer.their_state) != (h11.DONE, h11.DONE)
        if not self.over:
            self._peer.start_next_cycle()
        return _Answer(status, retry_after, bytes(told))


async def _connect(endpoint: Endpoint, settings: Streaming) -> _Connection:
    """Raises what `_BROKEN` lists."""
    context = _context(settings) if endpoint.tls else None
    raw = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    if context is None:
        return _Connection(raw)
    stream = trio.SSLStream(raw, context, server_hostname=endpoint.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(raw)
        raise
    return _Connection(stream)


def _context(settings: Streaming) -> ssl.SSLContext:
    """What is trusted, and what is shown. Raises OSError (an SSLError is one)."""
    context = ssl.create_default_context(cafile=settings.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate:
        context.load_cert_chain(settings.certificate, settings.key)
    return context


def _explain(error: BaseException) -> str:
    """Why it could not be asked, in words an operator can act on."""
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else None
    if isinstance(cause, ssl.SSLError | OSError):
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError) and error.errno in _NO_NETWORK:
        return f"{error.strerror}; under systemd the agent has no network: see leased.toml(5)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
