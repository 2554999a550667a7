# SPDX-License-Identifier: Apache-2.0
"""The listener: every local conversation, in one task.

Rule: one nested epoll serves all sockets (decisions/0007): what is ready is read, turned into calls
and left on the sequencer's channel; answers are written by whoever has them with a non-blocking
send. Nothing is buffered beyond what one conversation may have unanswered, and a peer that does not
read its answers is cut off after `write_timeout_ns`. A connection belongs to the peer that the
kernel named when it was accepted; its descriptors are closed with it.

Does not know what a method means (`methods`) and does not parse (`wire.conversation`).
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import trio

from leased.ports import Clock
from leased.service import peers
from leased.service.config import Sockets
from leased.service.holders import Holders
from leased.service.sequencer import Deliver
from leased.terms.command import Caller
from leased.terms.errors import LeasedError, PermissionDenied
from leased.terms.identity import CommandId
from leased.terms.moment import NS_PER_S
from leased.wire.calls import encode_error
from leased.wire.conversation import Call, Conversation
from leased.wire.description import Service

READ_BYTES = 64 * 1024
FDS_MAX = 16
SWEEP_NS = 1 * NS_PER_S
_ANCILLARY_BYTES = socket.CMSG_SPACE(FDS_MAX * 4)
_CONTINUE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Dispatch(Protocol):
    """What the listener hands calls to."""

    def begin(self, connection: Connection, call: Call, fds: list[int]) -> None:
        """Carry out a call; answer it through `connection.answer`, now or later. Takes over
        `fds`."""
        ...

    def abandon(self, connection: Connection) -> None:
        """The connection is gone: nobody waits for its answers any more."""
        ...


class Connection:
    """One accepted socket with its conversation. `scope` cancels the tasks that serve its long
    calls."""

    __slots__ = (
        "_listener",
        "_owned_fds",
        "_received_fds",
        "_scopes",
        "_unsent",
        "caller",
        "closed",
        "conversation",
        "drained",
        "enrolled",
        "pidfd",
        "sock",
        "stalled_ns",
        "waiting",
    )

    def __init__(
        self, listener: Listener, sock: socket.socket, caller: Caller, conversation: Conversation
    ) -> None:
        self._listener = listener
        self.sock = sock
        self.caller = caller
        self.conversation = conversation
        self.pidfd: int | None = peers.peer_pidfd(sock)
        self._scopes: set[trio.CancelScope] = set()
        self.enrolled = False
        self.waiting: dict[Deliver, CommandId] = {}
        self.closed = False
        self.drained = trio.Event()
        self.drained.set()
        self.stalled_ns: int | None = None
        self._received_fds: deque[int] = deque()
        self._owned_fds: set[int] = set()
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()

    def prove(self, sent: int | None) -> None:
        """Make sure that the peer's process is proven by a pidfd; `sent` is the one it sent. Raises
        PermissionDenied."""
        if self.pidfd is None and sent is not None:
            peers.check_sent_pidfd(sent, self.caller)
            self.pidfd = os.dup(sent)
        if self.pidfd is not None and not self.enrolled:
            self._listener.holders.enrol(self.caller.pid, self.pidfd)
            self.enrolled = True

    @property
    def proven_pid(self) -> int:
        """The caller's pid if a pidfd proves it, else 0."""
        return self.caller.pid if self.pidfd is not None else 0

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """A task's work for this connection: cancelled when the connection ends."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)

    def answer(
        self, call: Call, wire: bytes, fds: Sequence[int] = (), *, continues: bool = False
    ) -> None:
        """Give an answer; what may be sent is sent. After the end of the connection: nothing. Takes
        over `fds`."""
        if self.closed:
            _close_all(fds)
            return
        self._owned_fds.update(fds)
        self.conversation.answer(call, wire, fds, continues=continues)
        self.flush()

    def hang_up(self) -> None:
        """End the connection from our side."""
        self._listener.close(self)

    def flush(self) -> None:
        """Send what the conversation has ready, as far as the socket takes it."""
        for wire, fds in self.conversation.take():
            if self._unsent:
                self._unsent.append((wire, fds))
            else:
                self._send(wire, fds)
            if self.closed:
                return
        if self.conversation.finished and not self._unsent:
            self._listener.close(self)

    def flush_unsent(self) -> None:
        """The socket takes bytes again."""
        while self._unsent and not self.closed:
            wire, fds = self._unsent.popleft()
            before = len(self._unsent)
            self._send(wire, fds, first=True)
            if len(self._unsent) > before:
                return
        if not self.closed:
            self.drained.set()
            self.stalled_ns = None
            self._listener.watch(self, writable=False)
            self.flush()

    def _send(self, wire: bytes, fds: Sequence[int], *, first: bool = False) -> None:
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                sent = self.sock.sendmsg([wire], rights, _CONTINUE)
            else:
                sent = self.sock.send(wire, _CONTINUE)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._listener.close(self)
            return
        if fds and sent:
            _close_all(fds)
            self._owned_fds.difference_update(fds)
        if sent < len(wire):
            # Descriptors went with the first byte, if any byte went.
            rest = (wire[sent:], fds if sent == 0 else ())
            if first:
                self._unsent.appendleft(rest)
            else:
                self._unsent.append(rest)
            if self.stalled_ns is None:
                self.drained = trio.Event()
                self.stalled_ns = self._listener.clock.now().boot_ns
                self._listener.watch(self, writable=True)

    def read(self) -> list[tuple[Call, list[int]]]:
        """Read once; the calls that are complete, each with its descriptors. An end closes the
        connection."""
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                READ_BYTES, _ANCILLARY_BYTES, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return []
        except OSError:
            self._listener.close(self)
            return []
        count = 0
        if ancillary:
            received = array.array("i")
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
            count = len(received)
            self._received_fds.extend(received)
        if not data or flags & socket.MSG_CTRUNC:
            self._listener.close(self)
            return []
        calls = self.conversation.receive(data, count)
        taken: list[tuple[Call, list[int]]] = []
        for call in calls:
            self._drop_received(call.fd_skip)
            taken.append((call, [self._received_fds.popleft() for _ in range(call.fd_count)]))
        self._drop_received(self.conversation.take_refused_fds())
        if self.conversation.fault is not None or not calls:
            self.flush()
        return taken

    def _drop_received(self, count: int) -> None:
        for _ in range(count):
            os.close(self._received_fds.popleft())

    def release(self) -> None:
        """Close everything this connection owns. Called once, by the listener."""
        self.closed = True
        for scope in tuple(self._scopes):
            scope.cancel()
        self.drained.set()
        self.sock.close()
        _close_all(self._received_fds)
        _close_all(self._owned_fds)
        self._received_fds.clear()
        self._owned_fds.clear()
        if self.pidfd is not None:
            if self.enrolled:
                self._listener.holders.dismiss(self.caller.pid)
            os.close(self.pidfd)


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
        begin_turn: Callable[[], None] = lambda: None,
        end_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`begin_turn` and `end_turn` bracket the reading of whatever is ready."""
        self.holders = holders
        self._begin_turn, self._end_turn = begin_turn, end_turn
        self.clock = clock
        self._dispatch = dispatch
        self._limits = limits
        self.tenant_of = tenant_of
        self._epoll = select.epoll()
        self._doors = {
            sock.fileno(): (sock, service, operator) for sock, service, operator in doors
        }
        self._connections: dict[int, Connection] = {}
        # By door as well: what root runs as a tenant must not shut root out as the operator.
        self._per_uid: dict[tuple[int, bool], int] = {}
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
                    self._begin_turn()
                    for fd, mask in self._epoll.poll(0):
                        self._serve(fd, mask)
                    self._end_turn()
        finally:
            for connection in tuple(self._connections.values()):
                self.close(connection)
            self._epoll.close()

    def _serve(self, fd: int, mask: int) -> None:
        connection = self._connections.get(fd)
        if connection is None:
            if fd in self._doors:
                self._accept(*self._doors[fd])
            return
        if mask & select.EPOLLOUT:
            connection.flush_unsent()
        if mask & ~select.EPOLLOUT and not connection.closed:
            for call, fds in connection.read():
                if connection.closed:  # the answer to an earlier call found nobody there
                    _close_all(fds)
                else:
                    self._dispatch.begin(connection, call, fds)

    def _accept(self, door: socket.socket, service: Service, operator: bool) -> None:
        try:
            sock, _ = door.accept()
        except OSError:
            # The peer has already gone, or we are out of descriptors: the door stays ready and we
            # come again.
            return
        sock.setblocking(False)
        try:
            caller = peers.identify(sock, tenant_of=self.tenant_of, operator=operator)
            self._admit(caller)
            connection = Connection(self, sock, caller, self._converse(service))
        except LeasedError as refused:
            with contextlib.suppress(OSError):
                sock.send(encode_error(refused), _CONTINUE)
            sock.close()
            return
        except OSError:
            # Who it is cannot be asked: the peer has gone, or we are out of descriptors.
            sock.close()
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
        # Operators are few and come when things are bad: tenants cannot shut them out.
        if not caller.operator and len(self._connections) >= self._limits.connections_max:
            raise PermissionDenied(
                f"{len(self._connections)} connections are open, the limit of this host"
            )
        held = self._per_uid.get((caller.uid, caller.operator), 0)
        if held >= self._limits.connections_per_uid_max:
            raise PermissionDenied(f"uid {caller.uid} has {held} connections open, its limit")

    def watch(self, connection: Connection, *, writable: bool) -> None:
        """Ask for (or no longer for) the moment at which the socket takes bytes again."""
        mask = select.EPOLLIN | (select.EPOLLOUT if writable else 0)
        self._epoll.modify(connection.sock.fileno(), mask)

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
        self._dispatch.abandon(connection)

    async def _sweep(self) -> None:
        """Cut off peers that do not read what they asked for."""
        while True:
            now = self.clock.now().boot_ns
            await self.clock.sleep_until(now + SWEEP_NS)
            overdue = self.clock.now().boot_ns - self._limits.write_timeout_ns
            for connection in tuple(self._connections.values()):
                if connection.stalled_ns is not None and connection.stalled_ns < overdue:
                    self.close(connection)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
