# SPDX-License-Identifier: Apache-2.0
"""The server: sockets, TLS, and an orderly end around the application.

Rule: what is served over TLS is known by its certificate before the first request is read; a
connection too many is closed, not queued. Who takes nothing of an answer for half a minute has
left. At a stop the doors close first, idle connections end, and what is being answered has the time
that was configured.

Does not know routes. Framing is hypercorn's (HTTP/1.1 and HTTP/2).
"""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper
from hypercorn.utils import wrap_app

from leased.collector.api.requests import TAKE_S_MAX, origin_form
from leased.collector.api.routes import Caller
from leased.collector.api.settings import Http
from leased.terms.crowd import Crowd
from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S

BACKLOG: Final = 128
HANDSHAKE_S: Final = 10
IDLE_S: Final = 75
"""Longer than load balancers keep a connection by default, so that they close it and not we."""

PIECE_BYTES: Final = 64 * 1024
"""Each has `TAKE_S_MAX`: whoever reads 2 KiB a second is waited for, whoever reads nothing has one
of `connections_max` for nothing."""

READ_BYTES: Final = 4096
"""In one turn: a body in pieces of a byte takes 40 us for each, and others wait so long."""

HEADER_BYTES_MAX: Final = 64 * 1024
Identify = Callable[[bytes], Caller | None]
"""Who a certificate (DER) says one is; None: nobody of this fleet."""


class Connection(TCPServer):
    """One connection, with what its certificate says."""

    identify: Identify
    known: Callable[[str], None]
    """Told who it is, where a certificate says so."""

    _left = False
    _ends = math.inf
    _sending: trio.CancelScope | None = None

    async def run(self) -> None:
        """Serve it."""
        if isinstance(self.stream, trio.SSLStream):
            try:
                with trio.fail_after(HANDSHAKE_S):
                    await self.stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError):
                await trio.aclose_forcefully(self.stream)
                return
            given = self.stream.getpeercert(binary_form=True)
            if given:
                caller = self.identify(given)
                self.state = {**self.state, "certificate": caller}
                if caller is not None:
                    self.known(caller.name)
        await super().run()

    async def protocol_send(self, event: Event) -> None:
        """Pass on what the protocol says, but not that a client which left is idle."""
        if isinstance(event, RawData):
            await self._send(memoryview(event.data))
        elif not (self._left and isinstance(event, Updated)):
            await super().protocol_send(event)

    def end_by(self, at: float) -> None:
        """Send nothing after this moment, whoever waits for it."""
        self._ends = at
        if self._sending is not None:
            self._sending.deadline = min(self._sending.deadline, at)

    async def _send(self, data: memoryview) -> None:
        """Send all of it, or close. Not cut short when its request is: half a frame would be read
        as a part of the next one."""
        async with self.send_lock:
            with trio.CancelScope(shield=True) as self._sending:
                try:
                    while data:
                        self._sending.deadline = min(trio.current_time() + TAKE_S_MAX, self._ends)
                        await self.stream.send_all(data[:PIECE_BYTES])
                        data = data[PIECE_BYTES:]
                    return
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                finally:
                    self._sending = None
            await trio.aclose_forcefully(self.stream)
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        """Read until the client leaves. It is not waited for as one that is idle: until that time
        was over it would count as a connection."""
        data = b"begun"
        while data:
            try:
                data = bytes(await self.stream.receive_some(READ_BYTES))
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                data = b""
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())
        self._left = True
        await self.idle_task.stop()


class Server:
    """Listens, serves, stops. Made bound: addresses that are taken are found before anything else
    starts."""

    def __init__(
        self, application: Any, http: Http, *, directory: Path, identify: Identify
    ) -> None:
        """Raises ConfigError if it cannot listen there."""
        self._application, self._http, self._identify = application, http, identify
        self._tls = _context(http, directory) if http.tls_listen else None
        self._plain = [_bind(address, "http.listen") for address in http.listen]
        self._secure = [_bind(address, "http.tls_listen") for address in http.tls_listen]
        self._open: dict[Connection, trio.CancelScope] = {}
        self._crowd: Crowd[Connection] = Crowd()
        self._config = Config()
        self._config.h11_max_incomplete_size = HEADER_BYTES_MAX
        self._config.keep_alive_timeout = IDLE_S
        self._config.read_timeout = None
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.errorlog = logging.getLogger("leased.collector.http")

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await application(origin_form(scope), receive, send)

        self._wrapped: AppWrapper = wrap_app(answer, http.body_bytes_max, "asgi")

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as URLs."""
        return [
            f"{scheme}://{_shown(one)}"
            for scheme, sockets in (("http", self._plain), ("https", self._secure))
            for one in sockets
        ]

    async def run(self, stop: trio.Event) -> None:
        """Serve until `stop`, then end in order."""
        context = WorkerContext(None)

        async def serve(stream: Any) -> None:
            whose = _address(stream)
            if not whose or (self.connections >= self._http.connections_max and not self._spare()):
                await trio.aclose_forcefully(stream)
                return
            connection = Connection(self._wrapped, self._config, context, {}, stream)
            connection.identify = self._identify
            connection.known = partial(self._crowd.put, connection)
            self._crowd.put(connection, whose)
            scope = self._open[connection] = trio.CancelScope()
            try:
                with scope:
                    await connection
            finally:
                self._crowd.leave(connection)
                del self._open[connection]
                await trio.aclose_forcefully(stream)

        async with trio.open_nursery() as answering:
            async with trio.open_nursery() as doors:
                listen = partial(trio.serve_listeners, handler_nursery=answering)
                doors.start_soon(listen, serve, self._listeners())
                await stop.wait()
                doors.cancel_scope.cancel()
            await context.terminated.set()
            self._application.close()
            ends = trio.current_time() + self._http.stop_ns / NS_PER_S
            answering.cancel_scope.deadline = ends
            for connection in self._open:
                connection.end_by(ends)

    def _spare(self) -> bool:
        """End the oldest connection of whoever has the most; whether there was one to end."""
        oldest = self._crowd.give_up()
        if oldest is not None:
            self._open[oldest].cancel()
            oldest.end_by(trio.current_time())
        return oldest is not None

    def _listeners(self) -> list[Any]:
        def on(sock: socket.socket) -> trio.SocketListener:
            return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

        plain = [on(sock) for sock in self._plain]
        if self._tls is None:
            return plain
        secure = [
            trio.SSLListener(on(sock), self._tls, https_compatible=True) for sock in self._secure
        ]
        return [*plain, *secure]


def _bind(address: str, key: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            *(host.strip("[]"), int(port)), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, where = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(where)
        made.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"{key} = {address}: {error.strerror or error}") from error
    return made


def _context(http: Http, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(directory / http.certificate, directory / http.certificate_key)
        if http.client_ca:
            context.load_verify_locations(directory / http.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"http.certificate: {error}") from error
    return context


def _address(stream: Any) -> str:
    """Where a connection is from; "": it has ended. Of IPv6 its network: a host has all of one."""
    bare = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    try:
        host = str(bare.socket.getpeername()[0])
    except OSError:
        return ""
    if ":" not in host or "." in host:
        return host
    return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))


def _shown(one: socket.socket) -> str:
    host, port = one.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
