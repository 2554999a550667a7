# SPDX-License-Identifier: Apache-2.0
"""A small agent on a real AF_UNIX socket: Conversation and calls over Trio, a table of leases
behind it.

Rule: it argues back like the real one (a capacity it has not is refused, a stranger's id is
missing, a late renewal loses) and shows what it was sent (`seen`). Faults are asked for: `hang`,
`drop_reply`, `keep_reply`, `refuse`.

Does not cut, seal or meter anything, and knows one node with one tier of memory and one GPU.
"""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import trio

from leased.terms import reply as answers
from leased.terms.command import Caller, Command
from leased.terms.errors import LeasedError
from leased.terms.identity import TenantId
from leased.terms.lease import Lease
from leased.terms.resource import ResourceKind
from leased.wire import objects, parameters, replies
from leased.wire.answers import encode_error, encode_reply
from leased.wire.calls import to_command
from leased.wire.conversation import Call, Conversation
from leased.wire.portrayal import portray_lease
from leased.wire.replies import encode
from tests.doubles.lease_table import LeaseTable
from tests.doubles.varlink_calls import described


class Seen(msgspec.Struct):
    """One call as it arrived."""

    call: Call
    command: Command | None


class Sender:
    """Writes what a conversation has to say, in order."""

    def __init__(self, sock: trio.socket.SocketType, conversation: Conversation) -> None:
        self._socket = sock
        self._conversation = conversation
        self._lock = trio.Lock()

    async def say(
        self, call: Call, wire: bytes, fds: Sequence[int] = (), *, continues: bool = False
    ) -> None:
        """Answer and send."""
        self._conversation.answer(call, wire, fds, continues=continues)
        await self.flush()

    async def flush(self) -> None:
        """Send what is ready."""
        async with self._lock:
            for wire, fds in self._conversation.take():
                rights = (
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                )
                sent = await self._socket.sendmsg([wire], rights)
                while sent < len(wire):
                    sent += await self._socket.send(wire[sent:])


class SmallAgent(LeaseTable):
    """The table, and what tests ask of it. `now_ns` is the boot clock."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(now_ns)
        self.service = described()
        self.seen: list[Seen] = []
        self.heard = b""
        self.refuse: dict[type, answers.Refusal] = {}
        self.hang: list[type] = []
        self.drop_reply: list[type] = []
        self.keep_reply: list[type] = []
        self.notify_fds = False
        self.connections = 0
        self._watchers: list[trio.MemorySendChannel[bytes]] = []

    # ---- what tests do -------------------------------------------------------------------------

    def calls(self, kind: type) -> list[Seen]:
        """The calls of one method, in order of arrival."""
        return [seen for seen in self.seen if type(seen.call.parameters) is kind]

    def change(self, lease: Lease, notice: objects.Notice | None = None) -> None:
        """Put a lease in the table and tell every watcher."""
        self.leases[lease.lease_id] = lease
        portrayed = portray_lease(lease, self.moment())
        wire = encode(replies.WatchReply(1, [portrayed], gap=False, notice=notice), continues=True)
        for watcher in self._watchers:
            watcher.send_nowait(wire)

    # ---- serving -------------------------------------------------------------------------------

    async def serve(
        self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on `path` until cancelled."""
        # Trio binds AF_UNIX sockets in a thread, during which a clock that jumps would jump.
        plain = socket.socket(socket.AF_UNIX)
        plain.bind(path)
        plain.listen(64)
        with trio.socket.from_stdlib_socket(plain) as listener:
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    sock, _ = await listener.accept()
                    nursery.start_soon(self.converse, sock)

    async def converse(self, sock: trio.socket.SocketType) -> None:
        """One connection to its end."""
        self.connections += 1
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = array.array("i", credentials)
        caller = Caller(uid, gid, pid, TenantId("acme"))
        conversation = Conversation(self.service)
        sender = Sender(sock, conversation)
        with sock:
            async with trio.open_nursery() as nursery:
                await self._read(sock, conversation, sender, caller, nursery)
                nursery.cancel_scope.cancel()

    async def _read(
        self,
        sock: trio.socket.SocketType,
        conversation: Conversation,
        sender: Sender,
        caller: Caller,
        nursery: trio.Nursery,
    ) -> None:
        kept: list[int] = []
        while not conversation.finished:
            try:
                data, control, _, _ = await sock.recvmsg(65536, socket.CMSG_SPACE(64))
            except OSError:
                return
            if not data:
                return
            self.heard += data
            fds = array.array("i")
            for _, _, payload in control:
                fds.frombytes(payload)
            kept += fds
            for call in conversation.receive(data, len(fds)):
                mine, kept = kept[: call.fd_count], kept[call.fd_count :]
                nursery.start_soon(self._attend, sock, call, mine, sender, caller)
            try:
                await sender.flush()
            except OSError:
                return  # The client has gone.

    async def _attend(
        self,
        sock: trio.socket.SocketType,
        call: Call,
        fds: list[int],
        sender: Sender,
        caller: Caller,
    ) -> None:
        for fd in fds:
            os.close(fd)
        try:
            command = to_command(call, caller, self.draw, pid=caller.pid)
        except LeasedError as error:
            await sender.say(call, encode_error(error))
            return
        self.seen.append(Seen(call, command))
        asked = type(call.parameters)
        if asked in self.hang:
            await trio.sleep_forever()
        if asked in self.refuse:
            await sender.say(call, encode_reply(call, self.refuse[asked], self.moment()))
            return
        try:
            await self._answer(sock, call, command, sender)
        except OSError:
            pass  # The client has gone.

    async def _answer(
        self, sock: trio.socket.SocketType, call: Call, command: Command | None, sender: Sender
    ) -> None:
        asked = call.parameters
        if isinstance(asked, parameters.Watch):
            await self._watch(call, command, sender)
            sock.shutdown(socket.SHUT_RDWR)
            return
        fds: list[int] = []
        listed: list[objects.LeaseFd] = []
        reply = self.decide(command)
        if isinstance(reply, answers.Granted):
            fds, listed = self._prepare(reply.lease)
        if type(asked) in self.keep_reply:
            for fd in fds:
                os.close(fd)
            await trio.sleep_forever()
        if type(asked) in self.drop_reply:
            self.drop_reply.remove(type(asked))
            for fd in fds:
                os.close(fd)
            sock.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(asked, parameters.Join) and isinstance(reply, answers.Changed):
            environment = {"LEASE_ID": reply.lease.lease_id.hex()}
            portrayed = portray_lease(reply.lease, self.moment())
            await sender.say(call, encode(replies.JoinReply(portrayed, environment, [], [])))
            return
        await sender.say(call, encode_reply(call, reply, self.moment(), fds=listed), fds)
        for fd in fds:
            os.close(fd)

    async def _watch(self, call: Call, command: Command | None, sender: Sender) -> None:
        reply = self.decide(command)
        wire = encode_reply(call, reply, self.moment())
        if isinstance(reply, answers.Missing):
            await sender.say(call, wire)
            return
        # An agent that stops closes its streams by closing their connections.
        send, receive = trio.open_memory_channel[bytes](100)
        self._watchers.append(send)
        try:
            await sender.say(call, wire, continues=True)
            async for wire in receive:
                await sender.say(call, wire, continues=True)
        finally:
            self._watchers.remove(send)

    def _prepare(self, lease: Lease) -> tuple[list[int], list[objects.LeaseFd]]:
        fds: list[int] = []
        listed: list[objects.LeaseFd] = []
        for allotment in lease.subject.allotments:
            if allotment.kind is ResourceKind.MEM:
                fd = os.memfd_create("lease")
                os.truncate(fd, allotment.capacity)
                listed.append(objects.LeaseFd(allotment.resource_id, len(fds), "memory"))
                fds.append(fd)
        if self.notify_fds:
            reading, self.notify_fd = os.pipe()
            listed.append(objects.LeaseFd("", len(fds), "notify"))
            fds.append(reading)
        return fds, listed


@contextmanager
def small_agent_in_a_thread(path: str) -> Iterator[SmallAgent]:
    """Serve on `path` from a thread of its own, for clients that are not Trio."""
    agent = SmallAgent()
    ready = threading.Event()
    stops: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.serve, path)
            stops.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    try:
        yield agent
    finally:
        token, scope = stops[0]
        token.run_sync_soon(scope.cancel)
        thread.join()
