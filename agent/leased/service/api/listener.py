# SPDX-License-Identifier: Apache-2.0
"""The listener: every local conversation, in one task.

Rule: one nested epoll serves all sockets (decisions/0007): what is ready is read, turned into calls
and left on the sequencer's channel; answers are written by whoever has them with a non-blocking
send. A peer that does not read its answers is cut off after `write_timeout_ns`. What is little is
answered within the turn that read it (decisions/0011).

Does not know what a method means (`dispatch`) and does not parse (`wire.conversation`).
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from leased.ports import Clock
from leased.service.api import peers
from leased.service.api.connection import SEND_FLAGS, Calls, Connection
from leased.service.api.disposal import OWED_MAX, Disposal
from leased.service.api.outbox import Outbox
from leased.service.api.receiving import receive_many
from leased.service.config import Sockets
from leased.service.holders import Holders
from leased.terms.command import Caller
from leased.terms.errors import LeasedError, PermissionDenied
from leased.terms.moment import NS_PER_S
from leased.wire.answers import encode_error
from leased.wire.conversation import Call, Conversation
from leased.wire.description import Service

LINGER_NS = 50_000
"""A client that renews again at once does so within this; a turn of the event loop costs more."""

LINGER_NS_MAX = 2_000_000
"""For so long one client after the other may be served before the other tasks have their turn."""

SWEEP_NS = 1 * NS_PER_S

TOGETHER = 64
"""Connections that are read by one call: what they sent is in memory until it is their turn."""

GONE = select.EPOLLHUP | select.EPOLLERR
"""Of a peer that closed its end, or died; one that shut down its sending half is still there."""

NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Why nobody can be let in, whoever waits."""


class Dispatch(Protocol):
    """What the listener hands calls to."""

    def begin(self, connection: Connection, call: Call, fds: list[int]) -> None:
        """Carry out a call; answer it through `connection.answer`, now or later. Takes over
        `fds`."""
        ...

    def abandon(self, connection: Connection) -> None:
        """The connection is gone: nobody waits for its answers any more."""
        ...


class Listener:
    """Accepts on `doors` (socket, service, operator) and serves until cancelled."""

    def __init__(
        self,
        *,
        doors: Sequence[tuple[socket.socket, Service, bool]],
        dispatch: Dispatch,
        holders: Holders,
        clock: Clock,
        limits: Sockets,
        tenant_of: peers.TenantOf,
        outbox: Outbox | None = None,
        cgroup_root: str | None = None,
        begin_turn: Callable[[], None] = lambda: None,
        end_turn: Callable[[], bool] = lambda: False,
    ) -> None:
        """`begin_turn` and `end_turn` bracket the reading of whatever is ready; the latter says
        whether all of it has been answered. `cgroup_root` is as `closer` takes it."""
        self.holders = holders
        self.outbox = outbox or Outbox()
        self.disposal = Disposal(cgroup_root)
        self.names_peers = peers.are_named()
        self._begin_turn, self._end_turn = begin_turn, end_turn
        self.clock = clock
        self._dispatch = dispatch
        self._limits = limits
        self.tenant_of = tenant_of
        self._epoll = select.epoll()
        self._doors = {
            sock.fileno(): (sock, service, operator) for sock, service, operator in doors
        }
        self._shut: list[socket.socket] = []
        self._connections: dict[int, Connection] = {}
        # By door as well: what root runs as a tenant must not shut root out as the operator.
        self._per_uid: dict[tuple[int, bool], int] = {}
        self._unfinished_of: dict[int, int] = {}
        self.unfinished_bytes = 0
        for fd, (sock, _, _) in self._doors.items():
            sock.setblocking(False)
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def run(self) -> None:
        """Serve until cancelled; closes every connection on the way out."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._serve_ready()
        finally:
            for connection in tuple(self._connections.values()):
                self.close(connection)
            self._epoll.close()

    def _serve_ready(self) -> None:
        """Serve what is ready, and who comes back at once after an answer on the spot."""
        until_ns = time.monotonic_ns() + LINGER_NS_MAX
        ready = self._epoll.poll(0)
        while ready:
            self._begin_turn()
            with self.holders.turn():
                self._serve_all(ready)
            ready = self._linger(until_ns) if self._end_turn() else []

    def _linger(self, until_ns: int) -> list[tuple[int, int]]:
        """Who is ready within LINGER_NS."""
        now_ns = time.monotonic_ns()
        until_ns = min(until_ns, now_ns + LINGER_NS)
        while now_ns < until_ns:
            ready = self._epoll.poll(0)
            if ready:
                return ready
            now_ns = time.monotonic_ns()
        return []

    def _serve_all(self, ready: Sequence[tuple[int, int]]) -> None:
        """Serve each once. Whoever sends bytes alone is read by one call."""
        several: list[tuple[Connection, bool]] = []
        for fd, mask in ready:
            connection = self._connections.get(fd)
            if connection is None:
                if fd in self._doors:
                    self._accept(*self._doors[fd])
                continue
            if mask & select.EPOLLOUT:
                connection.flush_unsent()
            if connection.closed or not mask & ~select.EPOLLOUT:
                continue
            gone = bool(mask & GONE)
            if connection.reads_alone:
                self._begin(connection, connection.read(gone=gone))
            else:
                several.append((connection, gone))
        for begin in range(0, len(several), TOGETHER):
            self._read_together(several[begin : begin + TOGETHER])

    def _read_together(self, several: Sequence[tuple[Connection, bool]]) -> None:
        # A descriptor that was closed since may be another file's by now.
        there = [one for one in several if not one[0].closed]
        received = receive_many([connection.sock.fileno() for connection, _ in there])
        for (connection, gone), one in zip(there, received, strict=True):
            if not connection.closed:
                self._begin(connection, connection.receive(one, gone=gone))

    def _begin(self, connection: Connection, calls: Calls) -> None:
        for call, fds in calls:
            if connection.closed:  # the answer to an earlier call found nobody there
                connection.dispose(fds)
            else:
                self._dispatch.begin(connection, call, fds)

    def _accept(self, door: socket.socket, service: Service, operator: bool) -> None:
        try:
            sock, _ = door.accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                # The door stays ready for as long as somebody waits there: not to turn without a
                # pause, we come again when a connection has ended, or at the next sweep.
                self._epoll.unregister(door)
                self._shut.append(door)
            return  # else the peer has already gone
        sock.setblocking(False)
        # A byte out of band is read like any other: else the kernel drops it, and closes here
        # what it came with.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        try:
            caller = peers.identify(sock, tenant_of=self.tenant_of, operator=operator)
            self._admit(caller)
            connection = Connection(self, sock, caller, self._converse(service))
        except LeasedError as refused:
            with contextlib.suppress(OSError):
                sock.send(encode_error(refused), SEND_FLAGS)
            self.disposal.part(peers.uid_of(sock), sock)
            return
        except OSError:
            # Who it is cannot be asked: the peer has gone, or we are out of descriptors.
            self.disposal.part(peers.uid_of(sock), sock)
            return
        self._connections[sock.fileno()] = connection
        whose = (caller.uid, caller.operator)
        self._per_uid[whose] = self._per_uid.get(whose, 0) + 1
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _converse(self, service: Service) -> Conversation:
        return Conversation(
            service,
            message_bytes_max=self._limits.message_bytes_max,
            pipeline_max=self._limits.calls_queued_max,
        )

    def _admit(self, caller: Caller) -> None:
        held = self._per_uid.get((caller.uid, caller.operator), 0)
        # Operators are few and come when things are bad: tenants cannot shut them out.
        if not caller.operator:
            free = self._limits.connections_max - len(self._connections)
            if free <= 0:
                raise PermissionDenied(
                    f"{len(self._connections)} connections are open, the limit of this host"
                )
            if held >= free:
                raise PermissionDenied(
                    f"uid {caller.uid} has {held} connections open, and {free} are left for all:"
                    " it gets no more of them than it leaves"
                )
        if held >= self._limits.connections_per_uid_max:
            raise PermissionDenied(f"uid {caller.uid} has {held} connections open, its limit")
        if self.disposal.owed(caller.uid) >= OWED_MAX:
            raise PermissionDenied(f"descriptors that uid {caller.uid} sent take long to close")

    def watch(self, connection: Connection, *, writable: bool) -> None:
        """Ask for (or no longer for) the moment at which the socket takes bytes again; and for what
        comes, of a peer that still sends. That it is gone is told in any case."""
        mask = 0 if connection.conversation.ended else select.EPOLLIN
        mask |= select.EPOLLOUT if writable else 0
        self._epoll.modify(connection.sock.fileno(), mask)

    def allot(self, uid: int, held: int, wanted: int) -> bool:
        """Count a request that has come in part: so many bytes in place of so many. False: its uid
        would have more of what all may have than it leaves to others."""
        own = self._unfinished_of.get(uid, 0) + wanted - held
        total = self.unfinished_bytes + wanted - held
        if wanted > held and own > self._limits.unfinished_bytes_max - total:
            return False
        self.unfinished_bytes = total
        if own:
            self._unfinished_of[uid] = own
        else:
            del self._unfinished_of[uid]
        return True

    def close(self, connection: Connection) -> None:
        """End a connection. Idempotent."""
        if connection.closed:
            return
        fd = connection.sock.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd]
        whose = (connection.caller.uid, connection.caller.operator)
        held = self._per_uid[whose] - 1
        if held:
            self._per_uid[whose] = held
        else:
            del self._per_uid[whose]
        connection.release()
        self._open_doors()
        self._dispatch.abandon(connection)

    def _open_doors(self) -> None:
        while self._shut:
            self._epoll.register(self._shut.pop(), select.EPOLLIN)

    async def _sweep(self) -> None:
        """Cut off peers that do not read what they asked for."""
        while True:
            now = self.clock.now().boot_ns
            await self.clock.sleep_until(now + SWEEP_NS)
            self._open_doors()
            overdue = self.clock.now().boot_ns - self._limits.write_timeout_ns
            for connection in tuple(self._connections.values()):
                if connection.stalled_ns is not None and connection.stalled_ns < overdue:
                    self.close(connection)
