# SPDX-License-Identifier: Apache-2.0
"""Acquisition: ask for a lease, hold it for a block, give it back at its end.

Rule: whatever ends the block, the descriptors are closed and the lease is given back; so is what
was granted to a request that we gave up. A loss that nobody was told of is a LeaseLost at the end
of the block. What no agent was there to take is given back after the block, as long as it lives:
whoever is bound to it would end with it.

Does not keep the lease alive meanwhile (`holding`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import trio

from leased.client.faults import AgentUnavailable, CallTimeout, LeaseLost, Refused
from leased.client.holding import Holding
from leased.client.session import Place, Session
from leased.client.wants import want
from leased.terms.errors import InvalidParameter, LeasedError
from leased.terms.moment import NS_PER_S
from leased.wire import objects, parameters, replies

RELEASE_TIMEOUT_S = 5.0
TAKE_BACK_TIMEOUT_S = 1.0
"""Whoever gives up waits for no more than this: mostly it is the agent that does not answer."""

STOPPING = "stopping"
ASK_AGAIN_S = 0.5
"""After an agent that stops; it answers so until it is gone."""

GIVEN_UP = (trio.Cancelled, KeyboardInterrupt, CallTimeout)


@asynccontextmanager
async def acquire(
    path: Place | Session = None,
    *,
    resources: Sequence[objects.Ask] | None = None,
    ttl: float | None = None,
    wait: float = 0,
    grace: float | None = None,
    priority: str | None = None,
    workload: str | None = None,
    tag: objects.AccountingTag | None = None,
    bind: str | None = None,
    command_id: str | None = None,
    watch: bool = True,
    **wants: Any,
) -> AsyncIterator[Holding]:
    """Hold a lease over all of `resources` (or of `want(**wants)`) for a block. Durations are
    seconds.

    Raises Refused if it cannot be had (within `wait`), AgentUnavailable, and LeaseLost at the end
    of a block that was not told before. `watch` False: learn of notices by the notify descriptor
    alone.
    """
    session = path.another() if isinstance(path, Session) else Session(path)
    asked = parameters.Acquire(
        resources=list(resources) if resources is not None else want(**wants),
        command_id=command_id or session.command_id(),
        ttl_ns=_ns(ttl, "ttl"),
        priority=priority,  # type: ignore[arg-type]
        wait_ns=_ns(wait, "wait") or None,
        grace_ns=_ns(grace, "grace"),
        workload=workload,
        accounting_tag=tag,
        bind=bind,  # type: ignore[arg-type]
    )
    try:
        granted, fds = await request(session, asked, session.timeout_s + wait)
        held = Holding(session, granted, fds)
        try:
            async with _held(held, watch):
                yield held
        finally:
            held.close()
    finally:
        session.close()
    if held.unspoken_loss:
        held.check()


async def request(
    session: Session, asked: parameters.Acquire, patience_s: float
) -> tuple[replies.AcquireReply, list[int]]:
    """Ask for a lease; the descriptors are the caller's. What was granted when we gave up, and
    nobody was told of, is given back. What is being made ready (much memory is touched, a namespace
    erased) is waited for as long as an agent that answers says so: its deadline ends that. Whoever
    waits when the agent stops asks the next one, which has a queue of its own."""
    ends = trio.current_time() + patience_s
    while True:
        try:
            return await session.ask_with_fds(
                asked, replies.AcquireReply, timeout_s=patience_s, prove=True
            )
        except Refused as refused:
            wait_ns = _left_ns(ends - session.timeout_s)
            if refused.refusal.reason != STOPPING or not asked.wait_ns or wait_ns <= 0:
                raise
            await trio.sleep(ASK_AGAIN_S * (1 - session.chance() / 2))
            asked = msgspec.structs.replace(asked, wait_ns=wait_ns)
            patience_s = ends - trio.current_time()
            continue
        except GIVEN_UP as why:
            with trio.CancelScope(shield=True):
                made = await _made(session, asked)
                live = [lease for lease in made if lease.runtime.ended is None]
                prepared = any(lease.runtime.state == "granted" for lease in live)
                if not (prepared and isinstance(why, CallTimeout)):
                    for lease in live:
                        await _take_back(session, lease)
                    if made and not live and isinstance(why, CallTimeout):
                        raise _over(made[-1]) from why
                    raise
        patience_s = session.timeout_s


async def _made(session: Session, asked: parameters.Acquire) -> list[objects.Lease]:
    """What there is of the request. Its connection has ended with our wait, and with it a request
    that nobody has looked at yet: it is all that there will be."""
    with suppress(LeasedError), trio.move_on_after(TAKE_BACK_TIMEOUT_S):
        for closed in (False, True):  # the many that are over only where it must be
            told = (await session.leases(closed=closed)).leases
            if made := [one for one in told if one.context.command_id == asked.command_id]:
                return made
    return []


def _over(lease: objects.Lease) -> LeaseLost:
    """The agent does answer, and will not have this one ready any more."""
    why = f"{lease.runtime.ended} before it was ready: ask for more time, or for less"
    return LeaseLost(lease.lease_id, why)


async def _take_back(session: Session, lease: objects.Lease) -> None:
    """If the agent does not answer, its deadline ends it, or the end of what it is bound to."""
    with suppress(LeasedError), trio.move_on_after(TAKE_BACK_TIMEOUT_S):
        await session.release(lease.lease_id)


@asynccontextmanager
async def _held(held: Holding, watch: bool) -> AsyncIterator[None]:
    """The block with its background; the exception of the block comes out as it is."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.keep)
            nursery.start_soon(held.guard)
            nursery.start_soon(held.heed if watch else _nothing)
            try:
                yield
            finally:
                await _give_back(held)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        lone: BaseException = group
        while isinstance(lone, BaseExceptionGroup) and len(lone.exceptions) == 1:
            lone = lone.exceptions[0]
        raise lone from lone.__cause__


async def _nothing() -> None:
    return


async def _give_back(held: Holding) -> None:
    if held.given_back or held.lost.is_set():
        return
    with trio.CancelScope(shield=True), trio.move_on_after(RELEASE_TIMEOUT_S):
        try:
            return await held.release()
        except AgentUnavailable:
            pass
        except LeasedError:
            return  # It is over already.
    held.owed = trio.Event()
    trio.lowlevel.spawn_system_task(_give_back_late, held, held.owed)


async def _give_back_late(held: Holding, done: trio.Event) -> None:
    """Until an agent has taken it, or its deadline has passed; ends with the program's loop."""
    session = held.another_session()
    try:
        while session.clock_ns() < held.deadline_ns:
            try:
                await session.release(held.lease_id)
            except AgentUnavailable:
                await trio.sleep(ASK_AGAIN_S)
            except LeasedError:
                return
            else:
                return
    finally:
        session.close()
        done.set()


def _left_ns(ends: float) -> int:
    return round((ends - trio.current_time()) * NS_PER_S)


def _ns(seconds: float | None, parameter: str) -> int | None:
    if seconds is None:
        return None
    try:
        return round(seconds * NS_PER_S)
    except (TypeError, ValueError, OverflowError) as error:  # "60s", nan, inf
        raise InvalidParameter(parameter, f"{seconds!r} is no number of seconds") from error
