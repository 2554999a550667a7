# SPDX-License-Identifier: Apache-2.0
"""The exchange with the reaper: one connection after another, packets out, packets in, and nobody
waiting for ever.

Rule: what is asked in the same turn of the event loop goes out in one packet. The reaper answers
within `answer_s` or the connection is given up and made anew; what was not answered is asked again
(every request may be repeated), after whatever the owner wants to be asked first. The reaper hears
of us every HEARTBEAT_S, which keeps its backstop away from leases whose cut was asked for here.

Does not know what a lease is: `Owner` does.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import trio

from leased.hardware.descriptors import close_all, passing, taken
from leased.service.reaper import protocol
from leased.service.reaper.tickets import Chunk, Ticket
from leased.terms.errors import DeviceError, ProtocolError
from leased.terms.teardown import CutReport

HEARTBEAT_S: Final = 0.5
LOOKS: Final = 10
"""So often, while an answer may take, is looked for those that took too long."""

RECONNECT_S: Final = 0.05
ARMS_PER_PACKET: Final = 128
_CONTROL: Final = socket.CMSG_SPACE(4 * (protocol.FDS_MAX + 3))


class Page(NamedTuple):
    """One page of LIST, its descriptors with it."""

    listed: list[protocol.Listed]
    fds: tuple[int, ...]
    cursor: int


class Owner(Protocol):
    """Whoever asks."""

    def ask_again(self, unanswered: list[Chunk]) -> list[Chunk]:
        """A new connection stands: what to ask on it before anything else."""
        ...

    def lost_touch(self) -> None:
        """The connection has ended: what is shared with the reaper may be another's by now."""
        ...

    def reported(self, reports: Sequence[CutReport]) -> None:
        """Cuts that were asked for have ended."""
        ...

    def revoked(self, chunk: Chunk, status: int, boot_ns: int) -> None:
        """The first answer to a REVOKE; at status 0 the report is still to come."""
        ...

    def waiting_tickets(self) -> list[Ticket]:
        """Tickets that wait for a report and are in no packet any more."""
        ...


class Exchange:
    """Asks the reaper. `run` must be running for anything to be answered."""

    def __init__(
        self,
        socket_path: Path,
        owner: Owner,
        *,
        restart: Callable[[], Awaitable[object]] | None,
        answer_s: float,
    ) -> None:
        self._path = str(socket_path)
        self._owner = owner
        self._restart = restart
        self._answer_s = answer_s
        self._socket: socket.socket | None = None
        self._serial = 0
        self._waiting: deque[Chunk] = deque()
        self._sent: dict[int, tuple[list[Chunk], float]] = {}
        self._sender: trio.lowlevel.Task | None = None
        self._room = bytearray(protocol.PACKET_BYTES_MAX)
        self._foreign: DeviceError | None = None  # a reaper that this agent cannot talk to

    # -- the connection ---------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._socket is not None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until cancelled. Reports started once the first one stands."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire)
                while True:
                    sock = await self._connect()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    with sock:
                        await self._serve(sock)
                    await trio.sleep(RECONNECT_S)
        finally:
            for ticket in self._tickets():
                ticket.close(DeviceError("reaper", errno.ESHUTDOWN, "the link is closed"))

    async def _connect(self) -> socket.socket:
        while True:
            try:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError:  # out of descriptors: whoever asks is told so in his own time
                await trio.sleep(RECONNECT_S)
                continue
            try:
                sock.setblocking(False)
                sock.connect(self._path)
                return sock
            except (ConnectionRefusedError, FileNotFoundError):
                sock.close()
                if self._restart is not None:
                    await self._restart_once()
            except OSError:
                sock.close()
            await trio.sleep(RECONNECT_S)

    async def _restart_once(self) -> None:
        assert self._restart is not None
        try:
            await self._restart()
        except DeviceError:  # whoever starts it says so; callers time out meanwhile
            await trio.sleep(RECONNECT_S)

    async def _serve(self, sock: socket.socket) -> None:
        """Use one connection until it breaks."""
        self._socket = sock
        unanswered = [chunk for chunks, _ in self._sent.values() for chunk in chunks]
        self._sent.clear()
        # Taken out while the owner looks, so that it sees every chunk that still waits, once.
        unanswered += self._waiting
        self._waiting = deque(self._owner.ask_again(unanswered))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_loop, sock, nursery.cancel_scope)
            nursery.start_soon(self._heartbeat)
            await self._receive_loop(sock)
            nursery.cancel_scope.cancel()
        self._socket = None
        self._owner.lost_touch()

    # -- out --------------------------------------------------------------------------------------

    def put(self, chunk: Chunk) -> None:
        """Ask; the answers go to the chunk's ticket."""
        self._waiting.append(chunk)
        if self._sender is not None:
            task, self._sender = self._sender, None
            trio.lowlevel.reschedule(task)

    def put_now(self, chunks: Sequence[Chunk]) -> None:
        """Ask without a turn of the event loop. For chunks without descriptors. With other
        questions under way, or no connection, this is `put`."""
        sock = self._socket
        if sock is None or self._sent or self._waiting:
            for chunk in chunks:
                self.put(chunk)
            return
        self._waiting.extend(chunks)
        # An OSError is found by the receive loop too, and what was asked is asked again.
        with contextlib.suppress(OSError):
            for packet, _ in self._packets():
                sock.send(packet)

    async def _send_loop(self, sock: socket.socket, broken: trio.CancelScope) -> None:
        while True:
            for packet, chunks in self._packets():
                try:
                    await self._send(sock, packet, chunks)
                except OSError:
                    broken.cancel()
                    return
            self._sender = trio.lowlevel.current_task()

            def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
                self._sender = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(give_up)

    def _packets(self) -> Iterator[tuple[bytes, list[Chunk]]]:
        """Merge what waits, in order, into packets of one kind each."""
        waiting = self._waiting
        while waiting:
            chunk = waiting.popleft()
            if not chunk.ticket.open:
                continue
            kind, count, fds = chunk.kind, chunk.entries, len(chunk.fds)
            chunks = [chunk]
            most = ARMS_PER_PACKET if kind == protocol.ARM else protocol.ENTRIES_MAX.get(kind, 1)
            while waiting and waiting[0].kind == kind:
                following = waiting[0]
                if count + following.entries > most or fds + len(following.fds) > protocol.FDS_MAX:
                    break
                waiting.popleft()
                if following.ticket.open:
                    count += following.entries
                    fds += len(following.fds)
                    chunks.append(following)
            self._serial = self._serial % 0xFFFFFFFF + 1
            expires = trio.current_time() + self._answer_s
            self._sent[self._serial] = (chunks, expires)
            body = chunks[0].body if len(chunks) == 1 else b"".join([each.body for each in chunks])
            entries = 0 if kind in (protocol.PING, protocol.BOARD) else count
            yield protocol.encode(kind, self._serial, entries, body), chunks

    async def _send(self, sock: socket.socket, packet: bytes, chunks: list[Chunk]) -> None:
        fds = [fd for chunk in chunks for fd in chunk.fds]
        while True:
            try:
                sock.sendmsg([packet], passing(fds))
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)

    async def _heartbeat(self) -> None:
        while True:
            ticket = Ticket(1, trio.current_time() + self._answer_s)
            self.put(Chunk(protocol.PING, b"", 1, ticket))
            await trio.sleep(HEARTBEAT_S)

    # -- in ---------------------------------------------------------------------------------------

    async def _receive_loop(self, sock: socket.socket) -> None:
        """Until the connection ends or says something that cannot be."""
        while True:
            try:
                if not self._receive(sock):
                    return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
            except OSError:
                return

    def _receive(self, sock: socket.socket) -> bool:
        """Take one packet; False when the connection has ended or must end."""
        length, control, _, _ = sock.recvmsg_into([self._room], _CONTROL, socket.MSG_CMSG_CLOEXEC)
        fds = tuple(taken(control))
        if length == 0:
            return False
        try:
            packet = protocol.decode(memoryview(self._room)[:length])
            self._foreign = None
            self._take(packet, fds)
        except (ProtocolError, ValueError) as error:
            if isinstance(error, protocol.OtherVersion):
                self._foreign = DeviceError("reaper", errno.EPROTONOSUPPORT, str(error))
            close_all(fds)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            return False
        return True

    def _take(self, packet: protocol.Packet, fds: tuple[int, ...]) -> None:
        if packet.kind == protocol.CUT:
            self._owner.reported(protocol.decode_reports(packet))
            return
        chunks, _ = self._sent.pop(packet.serial, ((), 0.0))
        if not chunks:
            raise ProtocolError(f"reaper: an answer to nothing (serial {packet.serial})")
        first = chunks[0]
        if packet.kind == protocol.ERROR:
            error = DeviceError("reaper", -packet.status, "the request was refused")
            for chunk in chunks:
                chunk.ticket.close(error)
        elif packet.kind == protocol.PING | protocol.REPLY:
            first.ticket.answer(0, [protocol.decode_pong(packet)])
        elif packet.kind == protocol.BOARD | protocol.REPLY:
            first.ticket.answer(0, [fds])
        elif packet.kind == protocol.LIST | protocol.REPLY:
            page = Page(protocol.decode_listed(packet), fds, packet.status)
            lost = sum(one.has_pidfd + one.memfds for one in page.listed) != len(fds)
            if lost or not first.ticket.open:
                close_all(fds)
            if lost:
                # We had no room for them; without them a lease would look smaller than it is.
                first.ticket.close(DeviceError("reaper", errno.EMFILE, "descriptors were lost"))
            first.ticket.answer(0, [page])
        else:
            self._take_statuses(packet, chunks)

    def _take_statuses(self, packet: protocol.Packet, chunks: Sequence[Chunk]) -> None:
        statuses = protocol.decode_statuses(packet, sum([chunk.entries for chunk in chunks]))
        if packet.kind == protocol.REVOKE | protocol.REPLY:
            for chunk, status in zip(chunks, statuses, strict=True):
                self._owner.revoked(chunk, status, packet.boot_ns)
            return
        at = 0
        for chunk in chunks:
            chunk.ticket.answer(chunk.at, statuses[at : at + chunk.entries])
            at += chunk.entries

    # -- what takes too long ----------------------------------------------------------------------

    async def _expire(self) -> None:
        while True:
            await trio.sleep(self._answer_s / LOOKS)
            now = trio.current_time()
            if self._socket is not None and any(due <= now for _, due in self._sent.values()):
                # Unresponsive: whatever it still does, this connection is over.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            for ticket in self._tickets():
                if ticket.expires <= now:
                    ticket.close(self._foreign)

    def _tickets(self) -> list[Ticket]:
        tickets = [chunk.ticket for chunks, _ in self._sent.values() for chunk in chunks]
        tickets += [chunk.ticket for chunk in self._waiting]
        return tickets + self._owner.waiting_tickets()
