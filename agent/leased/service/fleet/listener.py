# SPDX-License-Identifier: Apache-2.0
"""The node's door to its fleet: mutual TLS, and who is at the other end.

Rule: nothing is read of a request before the certificate of its sender is known to be of the
fleet's CA. Each connection is a task of its own with limits on all it does; what one of them does
wrong ends that one. Over the limit, whoever has the most connections loses the oldest of them, and
all who have shown no certificate, or one that may ask nothing here, count as one: so nobody keeps a
collector out, with a certificate or without. Where nobody has two, the newcomer is closed before
the handshake, which is what costs.

Does not know what is asked (`routes`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import formatdate
from functools import partial
from typing import Any, Final

import msgspec
import trio

from leased.chain.certificate import Identity, Role, read_certificate
from leased.ports import Clock
from leased.service.fleet.config import Listening
from leased.service.fleet.tls import HANDSHAKE_ERRORS, Credentials
from leased.service.fleet.web import Answer, Refuse, Request, converse
from leased.terms.crowd import Crowd
from leased.terms.errors import CallerError, StateError
from leased.terms.moment import NS_PER_S

BACKLOG: Final = 64
PULL_SOCKET: Final = "pull"
"""FileDescriptorName= of leased-pull.socket."""

_UNPROVEN: Final = ""
"""Whose connections are that have shown no certificate that may ask."""

Stream = trio.SSLStream[trio.SocketStream]

Attend = Callable[[Identity | None, Request], Awaitable[Answer]]
"""Answers a request of somebody of the fleet; None: of the CA, but of no role."""


def open_sockets(listening: Listening, handed: Mapping[str, Sequence[int]]) -> list[socket.socket]:
    """The sockets that collectors come to: those that systemd handed over (the agent's unit may
    make none itself), else bound here. Raises StateError."""
    fds = handed.get(PULL_SOCKET, ())
    if fds:
        return [socket.socket(fileno=fd) for fd in fds]
    host = listening.address or None
    try:
        if host is None and socket.has_dualstack_ipv6():
            return [_bind(socket.AF_INET6, ("::", listening.port))]
        found = socket.getaddrinfo(
            host, listening.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return [_bind(family, where) for family, _, _, _, where in found]
    except OSError as error:
        hint = ""
        if error.errno in (errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES):
            hint = "; under systemd the socket is made by leased-pull.socket: enable it"
        raise StateError(
            f"listener: {listening.address or '*'}:{listening.port}: {error.strerror}{hint}"
        ) from error


def _bind(family: int, where: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, where[0] != "::")
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class NodeListener:
    """Serves until cancelled. `credentials` may be replaced at any time: they count for the
    connections that come."""

    def __init__(
        self,
        *,
        sockets: Sequence[socket.socket],
        credentials: Credentials,
        limits: Listening,
        attend: Attend,
        refuse: Refuse,
        clock: Clock,
    ) -> None:
        self.credentials = credentials
        self.limits = limits
        self._sockets = sockets
        self._attend, self._refuse = attend, refuse
        self._clock = clock
        self._crowd: Crowd[trio.CancelScope] = Crowd(_UNPROVEN)
        self.connections = self.refused = self.handshakes_failed = 0

    @property
    def ports(self) -> list[int]:
        """Where it listens."""
        return [sock.getsockname()[1] for sock in self._sockets]

    async def run(self) -> None:
        """Accept and serve until cancelled."""
        listeners = []
        for sock in self._sockets:
            sock.setblocking(False)
            listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
        await trio.serve_listeners(self._welcome, listeners)

    async def _welcome(self, raw: trio.SocketStream) -> None:
        """One connection, from the first byte to the last."""
        if self.connections >= self.limits.connections_max and not self._make_room():
            self.refused += 1
            await _drop(raw)
            return
        self.connections += 1
        stream = trio.SSLStream(
            raw, self.credentials.context, server_side=True, https_compatible=True
        )
        scope = trio.CancelScope()
        try:
            with scope:
                await self._serve(stream, scope)
        finally:
            self._crowd.leave(scope)
            self.connections -= 1
            await _drop(raw)

    def _make_room(self) -> bool:
        """End the oldest connection of whoever has the most; whether there was one to end."""
        oldest = self._crowd.give_up()
        if oldest is not None:
            oldest.cancel()
        return oldest is not None

    async def _shake_hands(self, stream: Stream) -> bool:
        """Whether the peer has proven who it is, in time."""
        with trio.move_on_after(self.limits.handshake_ns / NS_PER_S):
            try:
                await stream.do_handshake()
                return True
            except (trio.BrokenResourceError, *HANDSHAKE_ERRORS):
                pass
        return False

    async def _serve(self, stream: Stream, scope: trio.CancelScope) -> None:
        credentials, limits = self.credentials, self.limits
        self._crowd.put(scope, _UNPROVEN)
        if not await self._shake_hands(stream):
            self.handshakes_failed += 1
            return
        identity = _identify(stream, credentials)
        self._crowd.put(scope, _who(identity))
        await converse(stream, partial(self._answer, identity), self._refuse, limits)
        with trio.move_on_after(limits.write_ns / NS_PER_S):
            # A peer that is told why it was refused must get to read it.
            try:
                await stream.aclose()
            except (trio.BrokenResourceError, *HANDSHAKE_ERRORS):
                pass

    async def _answer(self, identity: Identity | None, request: Request) -> Answer:
        answer = await self._attend(identity, request)
        date = formatdate(self._clock.now().wall_ns // NS_PER_S, usegmt=True)
        return msgspec.structs.replace(answer, headers=(("Date", date), *answer.headers))


def _identify(stream: Stream, credentials: Credentials) -> Identity | None:
    """Who the peer is, if it is of this fleet and of a role."""
    der = stream.getpeercert(binary_form=True)
    try:
        identity = read_certificate(der or b"").identity
    except CallerError:
        return None
    return identity if identity.fleet == credentials.fleet else None


def _who(identity: Identity | None) -> str:
    """Whose a connection is, where places are given."""
    if identity is None or identity.role not in (Role.COLLECTOR, Role.SCRAPER):
        return _UNPROVEN
    return identity.uri()


async def _drop(raw: trio.SocketStream) -> None:
    """Close without waiting for anybody."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await raw.aclose()
