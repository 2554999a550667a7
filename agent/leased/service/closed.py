# SPDX-License-Identifier: Apache-2.0
"""The agent whose log cannot be used: it grants nothing, says why to everybody who asks, and opens
the log again when that is possible.

Rule: fail closed. No table is kept and no driver is called, so nothing can be granted, renewed or
reused, and collectors are told the verdict; what was leased before ends by the reaper, which needs
no log, and is proven clean once there is one again. The log is opened anew each time, by the whole
of recovery: nothing that was read before a failure is believed after it.

Does not repair: what recovery refuses is the operator's to act on, and the refusal says how.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import trio

from leased.chain.certificate import Identity
from leased.ports import Clock
from leased.service.api.connection import Connection
from leased.service.api.doors import Door
from leased.service.api.listener import Listener
from leased.service.config import Config
from leased.service.fleet.config import Listening
from leased.service.fleet.listener import PULL_SOCKET, NodeListener, open_sockets
from leased.service.fleet.routes import problem, refuse
from leased.service.fleet.tls import load
from leased.service.fleet.web import Answer, Request
from leased.service.holders import Holders
from leased.service.lifeline import Lifeline
from leased.service.telling.journald import Journald
from leased.service.telling.narration import CRITICAL
from leased.terms.errors import ChainError, ConfigError, LogBusy, StateError
from leased.terms.reply import Refusal, RefusalReason
from leased.wire import parameters
from leased.wire.answers import encode_error, encode_reply
from leased.wire.conversation import Call

FIRST_RETRY_S = 5
RETRY_S_MAX = 300
"""A log that a full disk or a read-only mount made unusable is tried again soon, and one that does
not hold costs a verification of the whole chain each time."""

UNUSABLE = "LOG_UNUSABLE"
"""The verdict of what is no finding about the chain: the disk, the directory, its file system."""

_WANTED = (
    parameters.Acquire,
    parameters.Join,
    parameters.Renew,
    parameters.Release,
    parameters.Done,
    parameters.Extend,
    parameters.Plan,
)
"""Methods that have a word for it: the refusal `audit_unavailable`. The others get the verdict."""

Opened = TypeVar("Opened")


class Closed:
    """Serves the doors with nothing but the reason (`Dispatch` of the listener)."""

    def __init__(self, fault: StateError | ChainError, clock: Clock) -> None:
        self._clock = clock
        self.fault = fault

    @property
    def verdict(self) -> str:
        """What recovery said, as one word."""
        return self.fault.verdict if isinstance(self.fault, ChainError) else UNUSABLE

    def begin(self, connection: Connection, call: Call, fds: list[int]) -> None:
        """Refuse the call."""
        if fds:
            connection.dispose(fds)
        if isinstance(call.parameters, _WANTED):
            refusal = Refusal(RefusalReason.AUDIT_UNAVAILABLE, what=self.verdict, requested=1)
            connection.answer(call, encode_reply(call, refusal, self._clock.now()))
            return
        known = isinstance(self.fault, ChainError)
        fault = self.fault if known else ChainError(UNUSABLE, str(self.fault))
        connection.answer(call, encode_error(fault))

    def abandon(self, connection: Connection) -> None:
        """Nobody waits for anything."""

    async def attend(self, identity: Identity | None, request: Request) -> Answer:
        """Say the same to the fleet: 503 with the verdict (PULL.md section 3)."""
        if identity is None:
            return problem(403, "role", "a certificate of no role in this fleet may not ask this")
        told = (("Retry-After", "5"), ("Leased-Log-State", "failed"))
        return problem(503, "unavailable", str(self.fault), *told, verdict=self.verdict)


async def keep_closed(
    fault: StateError | ChainError,
    *,
    open_log: Callable[[], Opened],
    config: Config,
    node_id: bytes,
    doors: Sequence[Door],
    handed: Mapping[str, Sequence[int]],
    clock: Clock,
    lifeline: Lifeline,
    journald: Journald,
) -> Opened | None:
    """Serve closed until `open_log` succeeds (what it returns), or until the agent is told to stop
    (None). It is tried after a while, after twice as long and so on, and at once on SIGHUP. Raises
    LogBusy: another agent has the log by now."""
    closed = Closed(fault, clock)
    opened: Opened | None = None
    delay_s = FIRST_RETRY_S
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            _serve(nursery, closed, config, doors, clock)
            try:
                for port in _serve_fleet(nursery, closed, config.listener, node_id, handed, clock):
                    journald.say(f"collectors may connect to port {port}, and are told the verdict")
            except (ConfigError, StateError) as shut:
                journald.say(f"collectors cannot connect: {shut}", priority=CRITICAL)
            nursery.start_soon(lifeline.run, trio.lowlevel.checkpoint, config.timing.heartbeat_ns)
            nursery.start_soon(journald.run)
            _say(closed, lifeline, journald)
            while opened is None:
                asked = None
                with trio.move_on_after(delay_s):
                    asked = await anext(signals)
                if asked in (signal.SIGTERM, signal.SIGINT):
                    lifeline.stopping("stopping; the log could not be used")
                    break
                delay_s = FIRST_RETRY_S if asked else min(2 * delay_s, RETRY_S_MAX)
                opened = await _try(open_log, closed)
                if opened is None and asked:
                    _say(closed, lifeline, journald)
            nursery.cancel_scope.cancel()
    if opened is not None:
        journald.say("the log can be used again; what was leased meanwhile is proven clean first")
    return opened


async def _try(open_log: Callable[[], Opened], closed: Closed) -> Opened | None:
    try:
        return await trio.to_thread.run_sync(open_log)
    except LogBusy:
        raise
    except (StateError, ChainError) as again:
        closed.fault = again
        return None


def _serve(
    nursery: trio.Nursery,
    closed: Closed,
    config: Config,
    doors: Sequence[Door],
    clock: Clock,
) -> None:
    holders = Holders(lambda _command, _deliver=None: None, lambda _lease_id: None)
    listener = Listener(
        doors=doors,
        dispatch=closed,
        holders=holders,
        clock=clock,
        limits=config.sockets,
        tenant_of=config.tenant_of,
        cgroup_root=config.hardware.cgroup_root,
    )
    nursery.start_soon(listener.run)


def _serve_fleet(
    nursery: trio.Nursery,
    closed: Closed,
    listening: Listening,
    node_id: bytes,
    handed: Mapping[str, Sequence[int]],
    clock: Clock,
) -> Sequence[int]:
    """Let collectors in, if they may come at all, and return at which ports. What systemd handed
    over stays open for the agent that follows. Raises ConfigError or StateError."""
    if not listening.on:
        return ()
    credentials = load(listening, node_id=node_id, wall_ns=clock.now().wall_ns)
    copies = {PULL_SOCKET: [os.dup(fd) for fd in handed.get(PULL_SOCKET, ())]}
    listener = NodeListener(
        sockets=open_sockets(listening, copies),
        credentials=credentials,
        limits=listening,
        attend=closed.attend,
        refuse=refuse,
        clock=clock,
    )
    nursery.start_soon(listener.run)
    return listener.ports


def _say(closed: Closed, lifeline: Lifeline, journald: Journald) -> None:
    lifeline.ready(f"FAILED, nothing is granted: {closed.fault}")
    journald.say(
        f"the log cannot be used: {closed.fault}. Nothing is granted or renewed; leases end at"
        " their deadlines. `systemctl reload leased` tries again at once",
        priority=CRITICAL,
        LEASED_LOG_STATE="failed",
        LEASED_VERDICT=closed.verdict,
    )
