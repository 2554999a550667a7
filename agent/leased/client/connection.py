# SPDX-License-Identifier: Apache-2.0
"""A connection: one Varlink socket, one call at a time.

Rule: a call that did not come to its end (cancelled, timed out, broken) leaves the connection
closed, never out of step. Descriptors that come with a reply belong to the caller; those nobody
took are closed.

Does not retry, reconnect or time anything (`session`).
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from leased.client.faults import AgentUnavailable, fault_of
from leased.terms.errors import ProtocolError
from leased.wire.framing import Framing

REPLY_BYTES_MAX = 64 * 1024 * 1024
FDS_MAX = 64
SO_PEERPIDFD = 77
_READ_BYTES = 65536
_ANY = msgspec.json.Decoder(dict[str, Any])


class ReplyMessage(msgspec.Struct):
    """What a reply looks like; keys that are unknown are overlooked."""

    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    error: str | None = None
    continues: bool | None = None
    why: str | None = msgspec.field(default=None, name="io.leased.why")


_MESSAGE = msgspec.json.Decoder(ReplyMessage)


class Disconnected(AgentUnavailable):
    """The connection ended during a call, which may or may not have been carried out."""


class Connection:
    """One connected AF_UNIX stream socket; owns it."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._lock = trio.Lock()
        self._framing = Framing(REPLY_BYTES_MAX)
        self._messages: list[bytes] = []
        self._fds: list[int] = []
        self.closed = False
        self.answered = False

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took. Idempotent."""
        self.closed = True
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def is_named(self) -> bool:
        """Whether the kernel proves our process to the agent: else it is proven by what it says
        after the first answer.
        """
        try:
            raw = self._socket.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        except OSError:
            return False
        os.close(int.from_bytes(raw, "little", signed=True))
        return True

    async def call(self, message: bytes, fds: Sequence[int] = ()) -> tuple[msgspec.Raw, list[int]]:
        """Send one message and return its reply's parameters and descriptors. Raises what the reply
        says, Disconnected.
        """
        async with self._lock:
            replied = False
            try:
                await self._send(message, fds)
                reply = await self.next_reply()
                replied = not reply.continues
            finally:
                if not replied:
                    self.close()
            taken, self._fds = self._fds, []
        if reply.error is not None:
            for fd in taken:
                os.close(fd)
        _raise_error(reply)
        return reply.parameters, taken

    async def tell(self, message: bytes) -> None:
        """Send a oneway message."""
        async with self._lock:
            sent = False
            try:
                await self._send(message, ())
                sent = True
            finally:
                if not sent:
                    self.close()

    @asynccontextmanager
    async def stream(self, message: bytes) -> AsyncIterator[Replies]:
        """Send a message with `more`; iterate its replies inside. Leaving early closes the
        connection.
        """
        async with self._lock:
            replies = Replies(self)
            try:
                await self._send(message, ())
                yield replies
            finally:
                if not replies.ended:
                    self.close()

    async def _send(self, message: bytes, fds: Sequence[int]) -> None:
        if self.closed:
            raise Disconnected("the connection is closed")
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                sent = await self._socket.sendmsg([message], rights)
            else:
                sent = await self._socket.send(message)
            while sent < len(message):
                sent += await self._socket.send(memoryview(message)[sent:])
        except OSError as error:
            raise Disconnected(f"the agent closed the connection: {error.strerror}") from error

    async def next_reply(self) -> ReplyMessage:
        """Read the next message. For the one whose call it is."""
        while not self._messages:
            await self._read()
        message = self._messages.pop(0)
        self.answered = True
        try:
            return _MESSAGE.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"the agent's reply is not Varlink: {error}") from error

    async def _read(self) -> None:
        try:
            data, control, flags, _ = await self._socket.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise Disconnected(f"the agent closed the connection: {error.strerror}") from error
        self._fds += descriptors_of(control)
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError(f"the agent sent more than {FDS_MAX} descriptors")
        if not data:
            raise Disconnected("the agent closed the connection")
        self._messages.extend(self._framing.receive(data))
        if self._framing.overrun:
            raise ProtocolError("the agent's reply is longer than allowed")


class Replies:
    """The replies to one call with `more`, in order. `ended` once the last has come."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.ended = False

    def __aiter__(self) -> Replies:
        return self

    async def __anext__(self) -> msgspec.Raw:
        if self.ended:
            raise StopAsyncIteration
        reply = await self._connection.next_reply()
        self.ended = not reply.continues
        _raise_error(reply)
        return reply.parameters


def descriptors_of(control: Sequence[tuple[int, int, bytes]]) -> array.array[int]:
    """The descriptors that came beside bytes."""
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return fds


def _raise_error(reply: ReplyMessage) -> None:
    """Raise what an error reply says."""
    if reply.error is None:
        return
    try:
        parameters = _ANY.decode(reply.parameters)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        parameters = {}
    raise fault_of(reply.error, parameters, reply.why or "")
