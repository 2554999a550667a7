# SPDX-License-Identifier: Apache-2.0
"""The doors of an agent under test, and those who come through them, all in one trio run.

Rule: a `Visitor` speaks bare JSON and descriptors and understands nothing; who it is, the kernel
says (`as_uid` changes the effective uid for the moment of the connect, which is when SO_PEERCRED is
taken). Doors are bound and connected with plain sockets: trio does that in a thread, during which a
clock that jumps would jump.
"""

from __future__ import annotations

import array
import contextlib
import json
import math
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import trio
import trio.testing

from leased.service.config import Sockets
from leased.wire.description import TENANT_INTERFACES
from tests.doubles.host import not_proven
from tests.doubles.serving import Agent, Host
from tests.doubles.varlink_calls import described
from tests.doubles.wire_peer import message

PATIENCE_S = 900


class Visitor:
    """One connection to an agent."""

    def __init__(
        self,
        path: Path,
        *,
        uid: int | None = None,
        buffer_bytes: int | None = None,
        connect: Callable[[socket.socket, str], None] = socket.socket.connect,
    ):
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        with as_uid(uid):
            connect(plain, str(path))
        plain.setblocking(False)
        self.sock = trio.socket.from_stdlib_socket(plain)
        self.fds: list[int] = []
        self._buffer = b""

    def close(self) -> None:
        """Hang up, and drop what came."""
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """These bytes, with these descriptors."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert await self.sock.sendmsg([data], rights) == len(data)

    async def ask(
        self, method: str, *, more: bool = False, fds: Sequence[int] = (), **named: Any
    ) -> None:
        """Send a call and wait for nothing."""
        await self.send(message(method, more=more, **named), fds)

    async def answer(self) -> dict[str, Any]:
        """The next message, whole. Raises EOFError at the end of the connection."""
        while b"\0" not in self._buffer:
            data, ancillary, _, _ = await self.sock.recvmsg(1 << 18, socket.CMSG_SPACE(64 * 4))
            for _, _, content in ancillary:
                self.fds.extend(array.array("i", content))
            if not data:
                raise EOFError("the agent closed the connection")
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        return found

    async def call(self, method: str, **named: Any) -> dict[str, Any]:
        """One call, one answer that is no error: its parameters."""
        await self.ask(method, **named)
        answer = await self.answer()
        assert "error" not in answer, answer
        parameters: dict[str, Any] = answer["parameters"]
        return parameters

    async def refused(self, method: str, **named: Any) -> tuple[str, dict[str, Any]]:
        """One call, one error: its name and parameters."""
        await self.ask(method, **named)
        answer = await self.answer()
        assert "error" in answer, answer
        return answer["error"].rpartition(".")[2], answer["parameters"]

    async def ended(self) -> bool:
        """Whether the agent closes the connection without another word."""
        try:
            await self.answer()
        except (EOFError, ConnectionError):
            return True
        return False


def memory(pages: int = 1) -> list[dict[str, Any]]:
    """The resources of an Acquire."""
    return [{"kind": "mem", "capacity": pages * 4096}]


@contextlib.contextmanager
def as_uid(uid: int | None) -> Iterator[None]:
    """Be somebody else for a moment."""
    if uid is None:
        yield
        return
    if os.geteuid() != 0:
        not_proven("what another uid sees", "only root can be somebody else")
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class House:
    """An agent with its doors open. `visit` comes in by one of them."""

    def __init__(self, host: Host, agent: Agent, directory: Path) -> None:
        self.host = host
        self.agent = agent
        self.directory = directory
        self._visitors: list[Visitor] = []

    def visit(self, *, uid: int | None = None, operator: bool = False) -> Visitor:
        """Connect."""
        name = "admin" if operator else "user"
        visitor = Visitor(self.directory / name, uid=uid)
        self._visitors.append(visitor)
        return visitor

    def dispose(self) -> None:
        """Until what was sent here is closed, and who closes it gone: other threads do that."""
        assert self.agent.listener is not None
        while os.geteuid() in self.agent.listener.disposal._owing:
            os.sched_yield()

    def leave(self) -> None:
        """Everybody goes."""
        for visitor in self._visitors:
            visitor.close()


class WaitForThreads(trio.abc.Instrument):
    """A clock that jumps when every task waits does not while a task waits for a thread, which a
    slow disk holds for as long as it likes.
    """

    def __init__(self, clock: trio.abc.Clock) -> None:
        self._clock = clock if isinstance(clock, trio.testing.MockClock) else None
        self._threshold_s = self._clock.autojump_threshold if self._clock is not None else 0.0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Look whether the step has sent a thread, or was what one had been waited for."""
        if self._clock is None:
            return
        out = trio.to_thread.current_default_thread_limiter().borrowed_tokens
        threshold_s = math.inf if out else self._threshold_s
        if self._clock.autojump_threshold != threshold_s:
            self._clock.autojump_threshold = threshold_s


@contextlib.asynccontextmanager
async def open_house(
    directory: Path,
    *,
    limits: Sockets | None = None,
    host: Host | None = None,
    names_peers: bool = True,
    **settings: int,
) -> AsyncIterator[House]:
    """A host, an agent, and its doors in `directory` (which everybody may enter). Unless the kernel
    `names_peers` it is as one before 6.5, where they are known by what they say."""
    # All the way up: another worker may be at it, and has begun at the bottom, too.
    for walk in (directory, *directory.parents):
        if not walk.stat().st_mode & 0o001:
            walk.chmod(walk.stat().st_mode | 0o011)
    doors = []
    for name, operator in (("user", False), ("admin", True)):
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.bind(str(directory / name))
        (directory / name).chmod(0o666)
        plain.listen(64)
        service = described() if operator else described(TENANT_INTERFACES)
        doors.append((plain, service, operator))
    waiting = WaitForThreads(trio.lowlevel.current_clock())
    trio.lowlevel.add_instrument(waiting)
    try:
        async with (
            (host or Host()).standing() as standing,
            standing.agent(**settings) as agent,
            trio.open_nursery() as nursery,
        ):
            await agent.serve_on(nursery, doors, directory, limits)
            assert agent.listener is not None
            agent.listener.names_peers = agent.listener.names_peers and names_peers
            house = House(standing, agent, directory)
            try:
                with trio.fail_after(PATIENCE_S):
                    yield house
            finally:
                house.leave()
                nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(waiting)
        for plain, _, _ in doors:
            plain.close()
