# SPDX-License-Identifier: Apache-2.0
"""The library without async: for scripts and programs that have no event loop.

    with plain.acquire(mem="1GiB", ttl=60) as held:
        work(held.mem())
        held.check()

Rule: a thread of its own runs the very same Trio code, so that renewals, notices and surrender are
the same. `check` raises LeaseLost once the lease is lost: call it between steps of work, because
nothing can cancel a thread. A process that was forked meanwhile has no part in it: what it asks of
the lease is LeaseLost, for nothing tells it how the lease is.

Does not work from inside a Trio program: use `leased.client` there.
"""

from __future__ import annotations

import atexit
import mmap
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import outcome
import trio

from leased.client import acquisition, holding
from leased.client.faults import LeaseLost
from leased.client.session import Place, Session, connect
from leased.wire import objects

T = TypeVar("T")


class PlainHolding:
    """A lease held by the thread behind it."""

    def __init__(self, held: holding.Holding, token: trio.lowlevel.TrioToken) -> None:
        self._held = held
        self._token = token
        self._owner = os.getpid()
        self.leave = trio.Event()

    @property
    def lease(self) -> objects.Lease:
        """The lease as the agent last described it."""
        return self._held.lease

    @property
    def lease_id(self) -> str:
        """The lease's id, 32 hex digits."""
        return self._held.lease_id

    @property
    def notice(self) -> objects.Notice | None:
        """What we were told if we should leave, else None."""
        return self._held.notice.value

    def mem(self, resource_id: str | None = None) -> mmap.mmap:
        """The leased memory, mapped."""
        return self._held.mem(resource_id)

    @property
    def access(self) -> list[objects.Access]:
        """What we must know to use what we hold, resource by resource."""
        return self._held.access

    @property
    def environment(self) -> dict[str, str]:
        """The same as a program that we start should see it."""
        return self._held.environment

    def fd(self, purpose: str, resource_id: str | None = None) -> int:
        """The descriptor for `purpose` (memory, block); it stays ours. Raises KeyError."""
        return self._held.fd(purpose, resource_id)

    def devices(self, kind: str = "gpu") -> list[str]:
        """The resources of one kind."""
        return self._held.devices(kind)

    def check(self) -> None:
        """Raise LeaseLost if the lease is lost, or was given back."""
        self._must_be_ours()
        self._held.check()

    def renew(self, ttl_ns: int | None = None) -> None:
        """Renew now."""
        self._ask(self._held.renew, ttl_ns)

    def extend(self, needed_ns: int) -> None:
        """Once told to leave: let the notice end so long from now. Raises Refused, LeaseLost."""
        self._ask(self._held.extend, needed_ns)

    def end(self) -> None:
        """Let the thread give the lease back and end."""
        try:
            self._token.run_sync_soon(self.leave.set)
        except trio.RunFinishedError:
            pass  # It has ended by itself; why is in its result.

    def release(self) -> None:
        """Give it back now."""
        self._ask(self._held.release)

    def _ask(self, method: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Raises LeaseLost if the block has ended, and with it the thread that would ask."""
        self._must_be_ours()
        try:
            trio.from_thread.run(method, *arguments, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            why = self._held.lost_why or holding.GIVEN_BACK
            raise LeaseLost(self.lease_id, why) from error

    def _must_be_ours(self) -> None:
        if os.getpid() != self._owner:
            raise LeaseLost(self.lease_id, f"it is process {self._owner}'s, which forked this one")


@contextmanager
def acquire(path: Place | Session = None, **wants: Any) -> Iterator[PlainHolding]:
    """Hold a lease for a block; the arguments and errors are those of `leased.client.acquire`.

    A block that is still open when the interpreter ends is left then. A lease that no agent was
    there to take back at the end of its block is given back by the thread later.
    """
    began: queue.SimpleQueue[trio.lowlevel.TrioToken] = queue.SimpleQueue()
    given_up, left = threading.Event(), threading.Event()
    ready: queue.SimpleQueue[PlainHolding | None] = queue.SimpleQueue()
    wanted = trio.CancelScope()
    owner = os.getpid()
    plain = None
    ended: list[outcome.Outcome[None]] = []

    async def hold() -> None:
        token = trio.lowlevel.current_trio_token()
        began.put(token)
        if given_up.is_set():
            return
        with wanted:
            async with acquisition.acquire(path, **wants) as held:
                plain = PlainHolding(held, token)
                ready.put(plain)
                await plain.leave.wait()
            if held.owed is not None:
                left.set()
                await held.owed.wait()

    def hold_and_tell() -> None:
        ended.append(outcome.capture(trio.run, hold))
        ready.put(None)
        left.set()

    def leave() -> None:
        if os.getpid() != owner:
            return  # The thread is the parent's, and so is the lease.
        if plain is not None:
            plain.end()
        else:  # Interrupted, at the latest while it waited.
            given_up.set()
            with suppress(queue.Empty, trio.RunFinishedError):
                began.get_nowait().run_sync_soon(wanted.cancel)
        left.wait()
        if ended:
            thread.join()

    # A daemon, for the interpreter waits for all others before it calls `leave`.
    thread = threading.Thread(target=hold_and_tell, name="leased-holder", daemon=True)
    atexit.register(leave)
    try:
        thread.start()
        plain = ready.get()
        if plain is not None:
            yield plain
    finally:
        atexit.unregister(leave)
        leave()
    if os.getpid() == owner and ended:
        ended[0].unwrap()


def run(path: Place, work: Callable[[Session], Awaitable[T]], **settings: Any) -> T:
    """Run `work` with a session: `run(None, lambda session: session.devices())`."""

    async def go() -> T:
        async with connect(path, **settings) as session:
            return await work(session)

    return trio.run(go)


def call(
    path: Place, method: str, arguments: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Call one method by name."""
    return run(path, lambda session: session.call(method, arguments), **settings)
