# SPDX-License-Identifier: Apache-2.0
"""A connection: one accepted socket with its conversation, and everything that ends with it.

Rule: it belongs to the peer that the kernel named when it was accepted; its descriptors are closed
with it, whoever they were meant for, and those that it sent by `disposal`. Users' are not taken
(decisions 0098 and 0235). What cannot be sent at once waits, at most one message per call that may
be unanswered, and the connection notes since when.

Does not wait for anything and does not know what a call means: `Keeper` reads and writes it when
the socket is ready.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import trio

from leased.hardware.descriptors import close_all, taken
from leased.ports import Clock
from leased.service.api import peers
from leased.service.api.disposal import OWED_MAX, Disposal
from leased.service.api.outbox import Outbox
from leased.service.api.receiving import READ_BYTES, SAW_FDS
from leased.service.api.sending import Letter, send_many
from leased.service.api.speaker import ROOM, Speaker
from leased.service.batch import Deliver
from leased.service.holders import Holders
from leased.terms.command import Caller
from leased.terms.identity import CommandId
from leased.wire.conversation import Call, Conversation

FDS_MAX = 16
_FDS_SENT_MAX = 253
"""Of one message, by the kernel. There is room for all of them: what does not fit is closed by who
reads."""
_ANCILLARY_BYTES = ROOM + socket.CMSG_SPACE(_FDS_SENT_MAX * 4)
# As numbers: each `|` of two of the module's flags makes an object of an enumeration.
SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_READ_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_LOOK_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_TRUNCATED = int(socket.MSG_CTRUNC)
_READ = memoryview(bytearray(READ_BYTES))
_INTO = (_READ,)
"""Every read of one connection alone goes here and is copied out."""
Calls = list[tuple[Call, list[int]]]
"""Each with the descriptors that are its own."""


class Keeper(Protocol):
    """Whoever accepted the connection."""

    holders: Holders
    clock: Clock
    outbox: Outbox
    disposal: Disposal
    names_peers: bool

    def watch(self, connection: Connection, *, writable: bool) -> None:
        """Ask for (or no longer for) the moment at which the socket takes bytes again."""
        ...

    def allot(self, uid: int, held: int, wanted: int) -> bool:
        """Count what a user has sent of a request, in place of what was held. False: too much."""
        ...

    def close(self, connection: Connection) -> None:
        """End it. Idempotent."""
        ...


class Connection:
    """One accepted socket with its conversation. `scope` cancels the tasks that serve its long
    calls."""

    __slots__ = (
        "_keeper",
        "_known",
        "_moved",
        "_owned_fds",
        "_received_fds",
        "_scopes",
        "_speaker",
        "_unfinished",
        "_unsent",
        "caller",
        "closed",
        "conversation",
        "drained",
        "enrolled",
        "gone",
        "pidfd",
        "reads_alone",
        "sock",
        "stalled_ns",
        "waiting",
    )

    def __init__(
        self, keeper: Keeper, sock: socket.socket, caller: Caller, conversation: Conversation
    ) -> None:
        self._keeper = keeper
        self.sock = sock
        self.caller = caller
        self.conversation = conversation
        self.pidfd: int | None = peers.peer_pidfd(sock) if keeper.names_peers else None
        self._speaker = None if keeper.names_peers else Speaker(sock, caller.pid)
        self.reads_alone = caller.operator or not keeper.names_peers
        self._scopes: set[trio.CancelScope] = set()
        self.enrolled = False
        self._known = True
        self.waiting: dict[Call, tuple[CommandId, Deliver]] = {}
        self.closed = self.gone = False
        self.drained = trio.Event()
        self.drained.set()
        self.stalled_ns: int | None = None
        self._received_fds: deque[int] = deque()
        self._unfinished = 0
        self._owned_fds: set[int] = set()
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._moved: trio.Event | None = None

    def enrol(self) -> None:
        """Have the peer's process watched, if a pidfd proves it."""
        if self.pidfd is not None and not self.enrolled:
            self.enrolled = self._keeper.holders.enrol(self.caller.pid, self.pidfd)
            self._known = self.enrolled

    @property
    def proven_pid(self) -> int:
        """The caller's pid if a pidfd proves it, else 0. When that process has ended, whoever
        inherited the connection is somebody else, and so is who has the number now."""
        if self.pidfd is None or not self._known:
            return 0
        if self.enrolled:
            lives = self._keeper.holders.lives(self.caller.pid)
        else:
            lives = not peers.has_exited(self.pidfd)
        return self.caller.pid if lives else 0

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
            close_all(fds)
            return
        self._owned_fds.update(fds)
        self.conversation.answer(call, wire, fds, continues=continues)
        if self._moved is not None and not continues:
            self._moved.set()
            self._moved = None
        if not self._keeper.outbox.note(self):
            self.flush()

    async def settle(self, call: Call) -> None:
        """Return when the peer has taken what `call` was answered so far: not before earlier calls
        have their answers, behind which it waits."""
        while call.held:
            if self._moved is None:
                self._moved = trio.Event()
            await self._moved.wait()
        await self.drained.wait()

    def hang_up(self) -> None:
        """End the connection from our side."""
        self._keeper.close(self)

    def flush(self) -> None:
        """Send what the conversation has ready, as far as the socket takes it."""
        letter = self.draw()
        if letter is not None:
            self._send_from(letter)

    def draw(self) -> Letter | None:
        """What is to be sent next: all of it, then `sent` is told. None: nothing is, or the socket
        takes nothing now."""
        self._unsent += self.conversation.take()
        return None if self.stalled_ns is not None else self._next()

    def sent(self, count: int) -> None:
        """What was drawn has been handed to the socket: `count` bytes were taken, or -errno. Its
        descriptors have been closed if any byte was. What comes behind it is sent."""
        if self._part_with(count):
            letter = self._next()
            if letter is not None:
                self._send_from(letter)

    def flush_unsent(self) -> None:
        """The socket takes bytes again."""
        if self._unsent:
            self._send_from(Letter(self.sock.fileno(), *self._unsent[0]))
        if not self.closed and not self._unsent:
            self.drained.set()
            self.stalled_ns = None
            self._keeper.watch(self, writable=False)
            self.flush()

    def _next(self) -> Letter | None:
        if self._unsent:
            return Letter(self.sock.fileno(), *self._unsent[0])
        if self.conversation.finished:
            self._keeper.close(self)
        return None

    def _send_from(self, letter: Letter) -> None:
        """Send this letter and those behind it."""
        following: Letter | None = letter
        while following is not None:
            taken = self._part_with(self._send(following))
            following = self._next() if taken else None

    def _send(self, letter: Letter) -> int:
        """As `send_many` does it, for one."""
        if letter.fds:
            [count] = send_many([letter])
            return count
        try:
            return self.sock.send(letter.wire, SEND_FLAGS)
        except OSError as error:
            return -(error.errno or errno.EIO)

    def _part_with(self, count: int) -> bool:
        """Strike out of the first letter what was taken of it; whether that was all."""
        if self.closed:
            return False
        if count < 0 and count != -errno.EAGAIN:
            self._keeper.close(self)
            return False
        wire, fds = self._unsent[0]
        if fds and count > 0:
            self._owned_fds.difference_update(fds)
        if count == len(wire):
            self._unsent.popleft()
            return True
        if count > 0:
            self._unsent[0] = (wire[count:], ())
        if self.stalled_ns is None:
            self.drained = trio.Event()
            self.stalled_ns = self._keeper.clock.now().boot_ns
            self._keeper.watch(self, writable=True)
        return False

    def read(self, *, gone: bool) -> Calls:
        """Read once, an operator's descriptors with it: the calls that are complete, each with its
        own. At the end a peer that is `gone` is closed; one that only sends no more has its answers
        first."""
        if not self.caller.operator:
            return self.receive(self._receive_words(), gone=gone)
        self.gone = gone
        try:
            length, count, flags = self._receive()
        except BlockingIOError:
            return []
        except OSError:
            length, count, flags = 0, 0, _TRUNCATED
        if flags & _TRUNCATED:
            self._keeper.close(self)
            return []
        return self._take_in(bytes(_READ[:length]), count, gone=gone)

    def receive(self, received: bytes | int, *, gone: bool) -> Calls:
        """Take in what `receive_many` read."""
        self.gone = gone
        if isinstance(received, bytes):
            return self._take_in(received, 0, gone=gone)
        if received == SAW_FDS:
            # The connection ends with them unread: what never became ours nobody has to close.
            self.conversation.break_off("descriptors are not taken")
            self.flush()
        if received != -errno.EAGAIN:
            self._keeper.close(self)
        return []

    def _take_in(self, data: bytes, fd_count: int, *, gone: bool) -> Calls:
        if not data:
            self._end(gone=gone)
            return []
        conversation = self.conversation
        calls = conversation.receive(data, fd_count)
        unfinished = conversation.unfinished
        if unfinished != self._unfinished:
            self._allot(unfinished)
        shared = self._share_out(calls) if self.caller.operator else [(call, []) for call in calls]
        if conversation.fault is not None or not calls:
            self.flush()
        return shared

    def _share_out(self, calls: Sequence[Call]) -> Calls:
        """Each call with the descriptors that came for it; those of none are dropped."""
        shared: Calls = []
        for call in calls:
            if call.fd_skip:
                self._drop_received(call.fd_skip)
            shared.append((call, [self._received_fds.popleft() for _ in range(call.fd_count)]))
        self._drop_received(self.conversation.take_refused_fds())
        if self.conversation.fault is not None:
            # No call follows that they could be for, and earlier ones may take long.
            self._drop_received(len(self._received_fds))
        return shared

    def _end(self, *, gone: bool) -> None:
        if gone:
            self._keeper.close(self)
            return
        self.conversation.ended = True
        self._keeper.watch(self, writable=bool(self._unsent))
        self.flush()

    def _receive(self) -> tuple[int, int, int]:
        """Bytes and descriptors: how many, and the flags."""
        length, control, flags, _ = self.sock.recvmsg_into(_INTO, _ANCILLARY_BYTES, _READ_FLAGS)
        if not control:
            return length, 0, flags
        self._hear(length, control)
        received = taken(control)
        self._received_fds += received
        owes_enough = received and self._keeper.disposal.owed(self.caller.uid) >= OWED_MAX
        if len(received) > FDS_MAX or owes_enough:
            flags |= _TRUNCATED
        return length, len(received), flags

    def _receive_words(self) -> bytes | int:
        """As `receive_many` does it, and tells who said it."""
        try:
            seen, control, flags, _ = self.sock.recvmsg_into(_INTO, ROOM, _LOOK_FLAGS)
            if flags & _TRUNCATED:
                return SAW_FDS
            length = self.sock.recv_into(_READ, seen, socket.MSG_DONTWAIT) if seen else 0
        except OSError as error:
            return -(error.errno or errno.EIO)
        self._hear(length, control)
        return bytes(_READ[:length])

    def _hear(self, length: int, control: Iterable[tuple[int, int, bytes]]) -> None:
        if self._speaker is not None:
            self.pidfd = self._speaker.hear(length, control)
            if self.pidfd is not None:
                self._speaker = None
                self.reads_alone = self.caller.operator

    def _allot(self, wanted: int) -> None:
        if self.caller.operator or self._keeper.allot(self.caller.uid, self._unfinished, wanted):
            self._unfinished = wanted
            return
        self.conversation.break_off(
            f"uid {self.caller.uid} has too much sent of requests that are not whole"
        )
        self._allot(0)

    def dispose(self, fds: Iterable[int]) -> None:
        """Close what the peer sent."""
        self._keeper.disposal.take(self.caller.uid, fds)

    def _drop_received(self, count: int) -> None:
        if count:
            self.dispose([self._received_fds.popleft() for _ in range(count)])

    def release(self) -> None:
        """Close everything this connection owns. Called once, by the listener."""
        self.closed = True
        for scope in tuple(self._scopes):
            scope.cancel()
        self.drained.set()
        self._keeper.disposal.part(self.caller.uid, self.sock)
        self._drop_received(len(self._received_fds))
        if self._unfinished:
            self._allot(0)
        close_all(self._owned_fds)
        self._owned_fds.clear()
        if self._speaker is not None:
            self._speaker.close()
        if self.pidfd is not None:
            if self.enrolled:
                self._keeper.holders.dismiss(self.caller.pid)
            os.close(self.pidfd)
