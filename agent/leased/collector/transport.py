# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 over mutual TLS, the client's side: one connection to one node.

Rule: TLS 1.3, both sides with a certificate of the fleet's CA; the node on the other end is the one
whose id was enrolled, by the URI in its certificate and not by its host name. An answer is read
whole or not at all, up to a limit; whoever asks brings the deadline.

Does not know what is asked for (`asking`) and does not try again.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from leased.chain.certificate import NAME, Certificate, Role, read_certificate
from leased.durable.reading import read_file
from leased.terms.errors import EX_UNAVAILABLE, CallerError, ConfigError, LeasedError

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
PORT: Final = 7443
READ_BYTES: Final = 256 * 1024
HEAD_BYTES_MAX: Final = 16 * 1024
_OF_TIME: Final = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


class Unreachable(LeasedError):
    """The node did not answer, or not as a node of this fleet does. Says nothing about its log."""

    wire = "io.leased.Collector.Unreachable"
    exit_status = EX_UNAVAILABLE


class Answer(msgspec.Struct, frozen=True):
    """One answer. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Endpoint(msgspec.Struct, frozen=True):
    """Where a log is served, and by whom: a node by its id, or a collector by its name."""

    host: str
    port: int
    name: str
    role: Role = Role.NODE


def parse_url(url: str, node_id: str) -> Endpoint:
    """An endpoint from `https://host[:port]`, or from `https://host[:port]/collector/<name>` for
    the own log of another collector. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORT
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error
    whose, _, name = parts.path.strip("/").partition("/")
    other = whose == Role.COLLECTOR.value and NAME.fullmatch(name) is not None
    if parts.scheme != "https" or not parts.hostname or (whose and not other) or parts.query:
        why = (
            "a node's address is https://host:port, a collector's https://host:port/collector/NAME"
        )
        raise ConfigError(f"{url}: {why}")
    if other:
        return Endpoint(parts.hostname, port, name, Role.COLLECTOR)
    return Endpoint(parts.hostname, port, node_id)


def check_url(url: str, node_id: str) -> Endpoint:
    """The same of what an operator brings: with a user or a password it is refused, and not
    repeated; it would be kept, shown and never used. Raises ConfigError."""
    if "@" in url:
        raise ConfigError("no user and no password in an address: a node has a certificate")
    return parse_url(url, node_id)


def client_context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """What the collector shows, and how it judges nodes. Raises ConfigError."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.check_hostname = False  # the node id in the certificate is checked instead
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one
        why = getattr(error, "reason", None) or error.strerror or error
        raise ConfigError(
            f"pull: {ca}, {certificate} and {key} do not go together or cannot be read ({why})"
        ) from error
    return context


def read_pem(path: Path) -> Certificate:
    """What the first certificate of a file says. Raises OSError, ValueError, CallerError."""
    raw = read_file(path)
    pem = raw[raw.index(_BEGIN) : raw.index(_END) + len(_END)].decode("ascii")
    return read_certificate(ssl.PEM_cert_to_DER_cert(pem))


class Watched:
    """Files, and whether they are others than when they were asked about last."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether they are. Costs a stat of each."""
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


class Credentials:
    """`client_context` of these files as they are now: a run outlives its certificate. What cannot
    be used leaves in force what was, and connections that are there go on as they began. That a
    certificate is over, or not valid yet, is told once: a node that refuses it says nothing that
    could be shown."""

    def __init__(self, ca: str, certificate: str, key: str, tell: Callable[[str], None]) -> None:
        """Raises ConfigError."""
        self._files = (ca, certificate, key)
        self._watched = Watched(*self._files)
        self._context = client_context(*self._files)
        self._tell = tell
        self._told_off = False

    @property
    def context(self) -> ssl.SSLContext:
        """For a connection that begins now."""
        if self._watched.changed():
            try:
                self._context = client_context(*self._files)
                self._told_off = False
                self._tell("certificate, key and CA were read anew")
            except ConfigError as error:
                self._tell(f"{error}; those of before stay in force")
        if not self._told_off and (off := self._off()):
            self._told_off = True
            self._tell(off)
        return self._context

    def _off(self) -> str:
        """What is wrong with the certificate by now; "" if nothing is."""
        path, now_s = self._files[1], time.time()
        try:
            found = read_pem(Path(path))
        except (OSError, CallerError, ValueError):
            return ""  # what is in force is another, that could be read
        if found.not_before_s <= now_s <= found.not_after_s:
            return ""
        by = f"by this host's clock ({datetime.fromtimestamp(now_s, UTC):%Y-%m-%d})"
        if now_s < found.not_before_s:
            return f"{path} is not valid yet, {by}: look at the clock"
        return (
            f"{path} is over, {by}: if that is right, nodes refuse it: `leasectl pki renew {path}`"
        )


class Connection:
    """One connection. Requests follow each other. After any error it is closed and of no use."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], endpoint: Endpoint) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._host = f"{endpoint.host}:{endpoint.port}"

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._http.our_state is h11.IDLE

    async def ask(
        self,
        method: str,
        target: str,
        *,
        body: bytes = b"",
        body_bytes_max: int,
        before_body: Callable[[], Awaitable[object]] | None = None,
    ) -> Answer:
        """Send a request and read its whole answer. `before_body` is awaited when the answer has
        begun: whoever waits for long takes room for it only then. Raises Unreachable."""
        try:
            await self._send(method, target, body)
            return await self._receive(body_bytes_max, before_body)
        except (OSError, trio.BrokenResourceError, h11.ProtocolError) as error:
            raise Unreachable(f"{self._host}: {error or type(error).__name__}") from error

    async def aclose(self) -> None:
        """Close it, without ceremony."""
        await trio.aclose_forcefully(self._stream)

    async def _send(self, method: str, target: str, body: bytes) -> None:
        headers = [("Host", self._host), ("Accept", "application/vnd.leased.records, */*")]
        if body:
            headers += [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        sent = self._http.send(h11.Request(method=method, target=target, headers=headers))
        if body:
            sent += self._http.send(h11.Data(data=body))
        await self._stream.send_all(sent + self._http.send(h11.EndOfMessage()))

    async def _receive(
        self, body_bytes_max: int, before_body: Callable[[], Awaitable[object]] | None
    ) -> Answer:
        head, body = None, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._stream.receive_some(READ_BYTES)
                if not data:
                    raise Unreachable(f"{self._host}: the connection ended before the answer")
                self._http.receive_data(bytes(data))
            elif isinstance(event, h11.InformationalResponse):
                raise Unreachable(f"{self._host}: {event.status_code}, which nobody asked for")
            elif isinstance(event, h11.Response):
                head = event
                self._check_length(head, body_bytes_max)
                if before_body is not None:
                    await before_body()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        assert head is not None, "h11 gives the head first"
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return Answer(head.status_code, headers, bytes(body))

    def _check_length(self, head: h11.Response, body_bytes_max: int) -> None:
        """Every answer of a node says how long it is (PULL.md section 1). One in pieces may have
        millions of a byte, each of which costs as much as a page. Raises Unreachable."""
        told = dict(head.headers)
        length = told.get(b"content-length")
        if length is None or b"transfer-encoding" in told:
            raise Unreachable(f"{self._host}: an answer that does not say its Content-Length")
        if len(length) > 12 or int(length) > body_bytes_max:
            raise Unreachable(f"{self._host}: an answer above {body_bytes_max} bytes")


async def connect(endpoint: Endpoint, context: ssl.SSLContext, fleet: str) -> Connection:
    """Connect, shake hands, and look who it is. Raises Unreachable."""
    where = f"{endpoint.host}:{endpoint.port}"
    try:
        tcp = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except OSError as error:
        raise Unreachable(f"{where}: {error.strerror or error}") from error
    stream = trio.SSLStream(tcp, context, https_compatible=True)
    try:
        await stream.do_handshake()
        der = stream.getpeercert(binary_form=True)
        identity = read_certificate(der or b"").identity
        if (identity.role, identity.name) != (endpoint.role, endpoint.name):
            whom = f"{endpoint.role.value} {endpoint.name}"
            raise Unreachable(f"{where}: {identity.uri()} answers for {whom}")
        if identity.fleet != fleet:
            raise Unreachable(f"{where}: a node of the fleet {identity.fleet}, not of {fleet}")
    except CallerError as error:
        await trio.aclose_forcefully(stream)
        raise Unreachable(f"{where}: {error}") from error
    except (OSError, trio.BrokenResourceError) as error:
        await trio.aclose_forcefully(stream)
        raise Unreachable(f"{where}: TLS: {_refusal(error.__cause__ or error)}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return Connection(stream, endpoint)


def _refusal(cause: BaseException) -> str:
    """Why a handshake failed. The clock that judges is ours: it may be the one that is off."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        by = ", by this host's clock" if cause.verify_code in _OF_TIME else ""
        return f"{cause.verify_message}{by}"
    return str(getattr(cause, "reason", None) or cause)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
