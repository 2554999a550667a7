# SPDX-License-Identifier: Apache-2.0
"""A session: the agent's methods as functions, with a timeout on every one.

Rule: one logical request has one command id, made here once and sent again with every retry, so a
reply lost with a broken connection costs nothing. A broken connection is retried until the call's
own timeout; a socket nobody listens on is AgentUnavailable at once, unless this session has spoken
with the agent before (then it is restarting).

Does not hold a lease (`holding`). Time, chance and identity come in through the constructor.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import msgspec
import trio

from leased.client.connection import Connection, Disconnected, Replies
from leased.client.faults import AgentUnavailable, CallTimeout
from leased.terms.errors import InvalidParameter, ProtocolError
from leased.wire import objects, parameters, replies
from leased.wire.objects import Strict, Tolerant
from leased.wire.parameters import METHODS, Parameters

SOCKET_VARIABLE = "LEASE_SOCKET"
SOCKET = "/run/leased/io.leased"
ADMIN_SOCKET = "/run/leased/io.leased.admin"
TIMEOUT_S = 10.0
_BACKOFF_S_FIRST = 0.05
_BACKOFF_S_MAX = 1.0
_NAME_OF = {method.parameters: method.name for method in METHODS.values()}
_ENCODER = msgspec.json.Encoder()
R = TypeVar("R", bound=Tolerant)
T = TypeVar("T")
Place = str | os.PathLike[str] | None


def new_id() -> bytes:
    """16 random bytes."""
    return os.urandom(16)


def boot_clock_ns() -> int:
    """CLOCK_BOOTTIME, the agent's clock: but for time namespaces with an offset, the two agree."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Session:
    """Calls to one agent over one connection, opened again when it breaks."""

    def __init__(
        self,
        path: Place = None,
        *,
        timeout_s: float = TIMEOUT_S,
        entropy: Callable[[], bytes] = new_id,
        chance: Callable[[], float] = random.random,
        clock_ns: Callable[[], int] = boot_clock_ns,
        is_named: bool | None = None,
    ) -> None:
        """`path` None: what LEASE_SOCKET names, as of leasectl, else `SOCKET`. `chance` gives
        numbers in [0, 1) to spread retries and renewals; `is_named` None asks the kernel whether
        it proves our process.
        """
        self._path = os.fspath(path or os.environ.get(SOCKET_VARIABLE, SOCKET))
        self._connection: Connection | None = None
        self._met = False
        self._is_named = is_named
        self.timeout_s = timeout_s
        self.entropy = entropy
        self.chance = chance
        self.clock_ns = clock_ns

    def another(self) -> Session:
        """The same settings, another connection: for a watch, a wait, a held lease."""
        another = Session(
            self._path,
            timeout_s=self.timeout_s,
            entropy=self.entropy,
            chance=self.chance,
            clock_ns=self.clock_ns,
            is_named=self._is_named,
        )
        another._met = self._met
        return another

    def close(self) -> None:
        """Close the connection. Idempotent; a later call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def command_id(self) -> str:
        """A new id for one logical request."""
        return self.entropy().hex()

    # ---- any method ----------------------------------------------------------------------------

    async def ask(
        self,
        asked: Parameters,
        reply: type[R],
        *,
        timeout_s: float | None = None,
        pidfd_of: int | None = None,
        prove: bool = False,
    ) -> R:
        """Like `ask_with_fds`, and close the descriptors of the reply."""
        answer, fds = await self.ask_with_fds(
            asked, reply, timeout_s=timeout_s, pidfd_of=pidfd_of, prove=prove
        )
        for fd in fds:
            os.close(fd)
        return answer

    async def ask_with_fds(
        self,
        asked: Parameters,
        reply: type[R],
        *,
        timeout_s: float | None = None,
        pidfd_of: int | None = None,
        prove: bool = False,
    ) -> tuple[R, list[int]]:
        """Call the method of `asked`: its reply, and the descriptors of that, which the caller
        then owns.

        `prove` says something first where the kernel does not prove our process to the agent;
        `pidfd_of` sends a pidfd of another process.
        """
        message = _message_of(asked)
        raw, fds = await self._exchange(
            message, timeout_s=timeout_s, pidfd_of=pidfd_of, prove=prove
        )
        return decode_reply(raw, reply, fds), fds

    async def call(
        self,
        method: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Call any method by its full name with plain values; what `leasectl call` does."""
        raw, fds = await self._exchange(encode_call(method, arguments or {}), timeout_s=timeout_s)
        for fd in fds:
            os.close(fd)
        return _plain_values(raw)

    @asynccontextmanager
    async def follow(self, asked: Parameters, reply: type[R]) -> AsyncIterator[Following[R]]:
        """Call a method with more, on a connection of its own; iterate its replies inside.

        Leaving cancels the call.
        """
        message = _message_of(asked, more=True)
        connection = await self._open()
        try:
            async with connection.stream(message) as raws:
                yield Following(raws, lambda raw: decode_reply(raw, reply, []))
        finally:
            connection.close()

    @asynccontextmanager
    async def follow_any(
        self, method: str, arguments: dict[str, Any] | None = None
    ) -> AsyncIterator[Following[dict[str, Any]]]:
        """Like `follow`, by name and with plain values."""
        connection = await self._open()
        try:
            async with connection.stream(encode_call(method, arguments or {}, more=True)) as raws:
                yield Following(raws, _plain_values)
        finally:
            connection.close()

    # ---- the methods of io.leased.Lease and their neighbours -----------------------------------

    async def info(self) -> replies.InfoReply:
        """Who serves, and which interfaces."""
        return await self.ask(parameters.GetInfo(), replies.InfoReply)

    async def interface(self, name: str) -> str:
        """The IDL of an interface."""
        asked = parameters.GetInterfaceDescription(name)
        return (await self.ask(asked, replies.DescriptionReply)).description

    async def describe(self, lease_id: str) -> objects.Lease:
        """One lease as it is."""
        return (await self.ask(parameters.Describe(lease_id), replies.DescribeReply)).lease

    async def access(self, lease_id: str) -> list[objects.Access]:
        """What a holder of the lease must know to use it; nothing once it has ended."""
        return (await self.ask(parameters.Describe(lease_id), replies.DescribeReply)).access

    async def leases(self, *, closed: bool = False) -> replies.ListReply:
        """Our leases and the requests that wait."""

        async def once() -> replies.ListReply:
            listed = replies.ListReply([], [])
            async with self.follow(parameters.List(closed or None), replies.ListReply) as pages:
                async for page in pages:
                    listed.leases.extend(page.leases)
                    listed.waiting.extend(page.waiting)
            return listed

        return await self._persist(once, None)

    async def renew(
        self, lease_id: str, *, ttl_ns: int | None = None, timeout_s: float | None = None
    ) -> replies.RenewReply:
        """Move the deadline."""
        asked = parameters.Renew(lease_id, self.command_id(), ttl_ns)
        return await self.ask(asked, replies.RenewReply, timeout_s=timeout_s)

    async def release(self, lease_id: str) -> objects.Lease:
        """Give a lease back now."""
        return (
            await self.ask(parameters.Release(lease_id, self.command_id()), replies.LeaseReply)
        ).lease

    async def done(self, lease_id: str) -> objects.Lease:
        """Say that a lease we were told to leave can go."""
        return (
            await self.ask(parameters.Done(lease_id, self.command_id()), replies.LeaseReply)
        ).lease

    async def extend(self, lease_id: str, needed_ns: int) -> objects.Lease:
        """Let the notice of a lease that has to go end `needed_ns` from now. Raises Refused."""
        asked = parameters.Extend(lease_id, needed_ns, self.command_id())
        return (await self.ask(asked, replies.LeaseReply)).lease

    async def join(self, lease_id: str) -> replies.JoinReply:
        """Move this process into the lease's cgroup."""
        return await self.ask(parameters.Join(lease_id), replies.JoinReply, prove=True)

    async def join_with_fds(self, lease_id: str) -> tuple[replies.JoinReply, list[int]]:
        """Like `join`, with the lease's descriptors, which the caller then owns."""
        return await self.ask_with_fds(parameters.Join(lease_id), replies.JoinReply, prove=True)

    async def plan(
        self,
        resources: Sequence[objects.Ask],
        *,
        ttl_ns: int | None = None,
        priority: str | None = None,
    ) -> replies.PlanReply:
        """What asking for `resources` would give now."""
        asked = parameters.Plan(list(resources), ttl_ns, priority)  # type: ignore[arg-type]
        return await self.ask(asked, replies.PlanReply)

    async def why(self, lease_id: str) -> replies.WhyReply:
        """Why a lease ended or a request waits."""
        return await self.ask(parameters.Why(lease_id), replies.WhyReply)

    async def wait(
        self, lease_id: str, *, until: str | None = None, timeout_s: float | None = None
    ) -> objects.Lease:
        """Return when the lease is as far as `until` (active, ended, closed), or Refused."""
        timeout_ns = None if timeout_s is None else int(timeout_s * 1e9)
        asked = parameters.Wait(lease_id, until, timeout_ns)  # type: ignore[arg-type]
        patience_s = float("inf") if timeout_s is None else timeout_s + self.timeout_s
        waiting = self.another()
        try:
            return (await waiting.ask(asked, replies.LeaseReply, timeout_s=patience_s)).lease
        finally:
            waiting.close()

    async def devices(self) -> replies.DeviceListReply:
        """What the host has and how it is used."""
        return await self.ask(parameters.DeviceList(), replies.DeviceListReply)

    async def holders(self, resource_id: str | None = None) -> list[objects.Holder]:
        """Who uses a resource (None: each of them), lease or no lease."""
        return (await self.ask(parameters.Holders(resource_id), replies.HoldersReply)).holders

    # ---- inside --------------------------------------------------------------------------------

    async def _open(self) -> Connection:
        try:
            sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            try:
                await sock.connect(self._path)
            except BaseException:
                sock.close()
                raise
        except OSError as error:  # no descriptor is free, or nobody listens
            raise AgentUnavailable.at(self._path, error) from error
        self._met = True
        return Connection(sock)

    async def _exchange(
        self,
        message: bytes,
        *,
        timeout_s: float | None = None,
        pidfd_of: int | None = None,
        prove: bool = False,
    ) -> tuple[msgspec.Raw, list[int]]:
        """One call over the connection, which is opened anew if it has to be."""

        async def once() -> tuple[msgspec.Raw, list[int]]:
            if self._connection is None or self._connection.closed:
                self._connection = await self._open()
            return await self._send(self._connection, message, pidfd_of, prove)

        return await self._persist(once, timeout_s)

    async def _persist(self, once: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
        """`once`, again while the connection breaks. Raises CallTimeout after `timeout_s`."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        backoff_s = _BACKOFF_S_FIRST
        with trio.move_on_after(limit_s):
            while True:
                try:
                    return await once()
                except AgentUnavailable as error:
                    if not isinstance(error, Disconnected) and not self._met:
                        raise
                await trio.sleep(backoff_s * (1 - self.chance() / 2))
                backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)
        raise CallTimeout(f"the agent did not answer in {limit_s:g} s")

    async def _send(
        self, connection: Connection, message: bytes, pidfd_of: int | None, prove: bool
    ) -> tuple[msgspec.Raw, list[int]]:
        if prove and not connection.answered:
            is_named = connection.is_named() if self._is_named is None else self._is_named
            if not is_named:
                await connection.call(_message_of(parameters.GetInfo()))
        if pidfd_of is None:
            return await connection.call(message)
        pidfd = os.pidfd_open(pidfd_of)
        try:
            return await connection.call(message, [pidfd])
        finally:
            os.close(pidfd)


class Following(Generic[T]):
    """The replies of a call with more, decoded."""

    def __init__(self, raws: Replies, decode: Callable[[msgspec.Raw], T]) -> None:
        self._raws = raws
        self._decode = decode

    def __aiter__(self) -> Following[T]:
        return self

    async def __anext__(self) -> T:
        return self._decode(await self._raws.__anext__())


@asynccontextmanager
async def connect(path: Place = None, **settings: Any) -> AsyncIterator[Session]:
    """A session for a block; `path` and `settings` are those of Session."""
    session = Session(path, **settings)
    try:
        yield session
    finally:
        session.close()


def _plain_values(raw: msgspec.Raw) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the agent's reply is not an object: {error}") from error


def _message_of(asked: Parameters, *, more: bool = False) -> bytes:
    return encode_call(_NAME_OF[type(asked)], asked, more=more)


def encode_call(method: str, arguments: Strict | dict[str, Any], *, more: bool = False) -> bytes:
    """The message of a call, NUL and all. Raises InvalidParameter for what is no text."""
    header: dict[str, Any] = {"method": method, "parameters": arguments}
    if more:
        header["more"] = True
    try:
        return _ENCODER.encode(header) + b"\0"
    except UnicodeEncodeError as error:
        raise InvalidParameter("parameters", f"{ascii(error.object):.80} is no UTF-8") from error


def decode_reply(raw: msgspec.Raw, reply: type[R], fds: Sequence[int]) -> R:
    """The reply as its struct; if it is none, `fds` are closed. Raises ProtocolError."""
    try:
        return msgspec.json.decode(raw, type=reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"the agent's reply is not what its interface says: {error}") from error
