# SPDX-License-Identifier: Apache-2.0
"""Streams: calls that answer many times, or wait for something to happen.

Rule: the subscription begins before the first question is asked, so no change falls between the
state shown and the changes that follow. A reader that is too slow gets one `gap` and is cut off;
nothing is ever left out silently. Visibility is the lessor's: a watcher sees the leases that a List
would show it.

Does not decide, and holds nothing back for a stream.
"""

from __future__ import annotations

import math

import trio

from leased.lessor.questions import visible
from leased.ports import Clock, Entropy
from leased.service.api.connection import Connection
from leased.service.log.reader import ChainReader
from leased.service.sequencer import Sequencer
from leased.service.telemetry.sampling import Telemetry
from leased.service.telling.feed import Change, Feed
from leased.terms.command import Caller, Command, ListResources
from leased.terms.errors import PermissionDenied
from leased.terms.event import (
    CordonChanged,
    HealthChanged,
    InventoryChanged,
    LeaseEvent,
    ResourceFenced,
)
from leased.terms.identity import CommandId, LeaseId, parse_id
from leased.terms.lease import Lease, LeaseState
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.reply import Changed, Inventoried, Listed, Refusal, RefusalReason, Reply
from leased.terms.sample import Sample
from leased.terms.series import SERIES
from leased.wire import objects, parameters, replies
from leased.wire.answers import encode_reply
from leased.wire.calls import to_command
from leased.wire.conversation import Call
from leased.wire.portrayal import portray_lease, portray_notice

FIRST_INTERVAL_NS = 1 * NS_PER_S
INTERVAL_NS_MIN = 100 * NS_PER_MS
"""Of samples to one watcher: it may be impatient, not greedy. They are made more seldom."""
RESOURCES_PAUSE_NS = 100 * NS_PER_MS
"""Between two lists of all resources to one watcher: where hundreds watch, each grant would wait
for as many."""
_RESOURCE_EVENTS = LeaseEvent | InventoryChanged | HealthChanged | CordonChanged | ResourceFenced


class Streams:
    """The tasks behind Watch and Wait."""

    def __init__(
        self,
        *,
        sequencer: Sequencer,
        feed: Feed,
        telemetry: Telemetry,
        chain: ChainReader,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._sequencer = sequencer
        self._feed = feed
        self._telemetry = telemetry
        self._chain = chain
        self._clock = clock
        self._entropy = entropy

    def command_of(self, connection: Connection, call: Call) -> Command | None:
        """The command that a call means, or that its answer comes from."""
        return to_command(call, connection.caller, self._entropy)

    async def ask(self, command: Command) -> Reply:
        """Put a command through the sequencer and wait for its answer."""
        return (await self._ask_when(command))[0]

    async def _ask_when(self, command: Command) -> tuple[Reply, int]:
        """As `ask`; and the last record that the answer can show."""
        answered = trio.Event()
        got: list[tuple[Reply, int]] = []

        def deliver(reply: Reply) -> None:
            got.append((reply, max(0, self._feed.sequence)))
            answered.set()

        self._sequencer.submit(command, deliver)
        await answered.wait()
        return got[0]

    # -- leases ------------------------------------------------------------------------------------

    async def watch_leases(self, connection: Connection, call: Call) -> None:
        """io.leased.Lease.Watch"""
        asked = call.parameters
        assert isinstance(asked, parameters.Watch)
        question = to_command(call, connection.caller, self._entropy)
        assert question is not None
        only = LeaseId(parse_id(asked.lease_id, "lease_id")) if asked.lease_id is not None else None

        def wants(change: Change) -> bool:
            return bool(_shown(change, only, connection.caller))

        with self._feed.subscribe(wants=wants) as subscription:
            first, sequence = await self._ask_when(question)
            moment = self._clock.now()
            wire = encode_reply(call, first, moment, sequence=sequence)
            is_stream = isinstance(first, Changed | Listed)
            if isinstance(first, Changed) and first.lease.state is LeaseState.RECLAIMED:
                last_word = [portray_lease(first.lease, moment)]
                wire = replies.encode(replies.WatchReply(sequence, last_word, gap=False))
                is_stream = False
            await self._say(connection, call, wire, continues=is_stream)
            if not is_stream:
                return
            while True:
                change = await subscription.receive()
                last = await self._say_change(connection, call, change, only)
                if last:
                    return

    async def _say_change(
        self, connection: Connection, call: Call, change: Change, only: LeaseId | None
    ) -> bool:
        """Send what of a change the watcher may see; True if it was the last of the stream."""
        moment = self._clock.now()
        if change.gap:
            wire = replies.encode(replies.WatchReply(change.sequence, [], gap=True))
            await self._say(connection, call, wire)
            return True
        seen = _shown(change, only, connection.caller)
        closed = only is not None and seen[-1].state is LeaseState.RECLAIMED
        by_id = {lease.lease_id: lease for lease in seen}
        notices = [
            portray_notice(by_id[drain.lease_id], drain.reason, drain.drain_deadline_ns, moment)
            for drain in change.drains
            if drain.lease_id in by_id
        ]
        # A reply has room for one notice: the others follow, each in one of its own.
        for notice in notices[:-1]:
            wire = replies.encode(
                replies.WatchReply(change.sequence, [], gap=False, notice=notice), continues=True
            )
            await self._say(connection, call, wire, continues=True)
        portrayed = [portray_lease(lease, moment) for lease in seen]
        last = notices[-1] if notices else None
        reply = replies.WatchReply(change.sequence, portrayed, gap=False, notice=last)
        await self._say(
            connection, call, replies.encode(reply, continues=not closed), continues=not closed
        )
        return closed

    async def wait(self, connection: Connection, call: Call) -> None:
        """io.leased.Lease.Wait"""
        asked = call.parameters
        assert isinstance(asked, parameters.Wait)
        question = to_command(call, connection.caller, self._entropy)
        assert question is not None
        lease_id = LeaseId(parse_id(asked.lease_id, "lease_id"))
        until = asked.until or "closed"
        timeout_s = math.inf if asked.timeout_ns is None else asked.timeout_ns / NS_PER_S
        reply = await self.ask(question)
        with trio.move_on_after(timeout_s) as scope:
            while _is_ahead(reply, until):
                reply = await self._follow(question, lease_id, until)
        if scope.cancelled_caught:
            limit = asked.timeout_ns or 0
            reply = Refusal(RefusalReason.WAIT_EXPIRED, what="ns", limit=limit, usage=limit)
        connection.answer(call, encode_reply(call, reply, self._clock.now()))

    async def _follow(self, question: Command, lease_id: LeaseId, until: str) -> Reply:
        """The lease when it has come so far, or as it is when a gap was met."""

        def wants(change: Change) -> bool:
            return any(lease.lease_id == lease_id for lease in change.leases)

        with self._feed.subscribe(wants=wants) as subscription:
            reply = await self.ask(question)
            while _is_ahead(reply, until):
                change = await subscription.receive()
                if change.gap:
                    break
                for lease in change.leases:
                    if lease.lease_id == lease_id:
                        reply = Changed(lease)
            return reply

    # -- resources, chain, samples -----------------------------------------------------------------

    async def watch_resources(self, connection: Connection, call: Call) -> None:
        """io.leased.Device.Watch"""
        question = ListResources(CommandId(self._entropy()), connection.caller)
        with self._feed.signal(_concerns_resources) as changed:
            while True:
                changed.clear()  # the answer shows it
                reply, sequence = await self._ask_when(question)
                moment = self._clock.now()
                wire = encode_reply(call, reply, moment, sequence=sequence)
                is_stream = isinstance(reply, Inventoried)
                await self._say(connection, call, wire, continues=is_stream)
                if not is_stream:
                    return
                await changed.receive()
                await self._clock.sleep_until(moment.boot_ns + RESOURCES_PAUSE_NS)

    async def watch_chain(self, connection: Connection, call: Call) -> None:
        """io.leased.Audit.Watch"""
        asked = call.parameters
        assert isinstance(asked, parameters.AuditWatch)
        require_operator(connection)
        with self._feed.subscribe() as subscription:
            at = self._chain.next_seq if asked.from_sequence is None else asked.from_sequence
            while True:
                while at < self._chain.next_seq:
                    page = await self._chain.read(at, records_max=None, bytes_max=None)
                    reply = replies.AuditWatchReply(
                        page.from_sequence, page.next_sequence, page.frames, gap=False
                    )
                    await self._say(
                        connection, call, replies.encode(reply, continues=True), continues=True
                    )
                    at = page.next_sequence
                change = await subscription.receive()
                if change.gap:
                    gap = replies.AuditWatchReply(at, at, b"", gap=True)
                    await self._say(connection, call, replies.encode(gap))
                    return

    async def watch_samples(self, connection: Connection, call: Call) -> None:
        """io.leased.Telemetry.Watch"""
        asked = call.parameters
        assert isinstance(asked, parameters.TelemetryWatch)
        interval_ns = max(INTERVAL_NS_MIN, asked.interval_ns or FIRST_INTERVAL_NS)
        while True:
            samples = self.portray_samples(connection, asked.resource_id, asked.lease_id)
            reply = replies.TelemetryWatchReply(samples, dropped=0)
            await self._say(connection, call, replies.encode(reply, continues=True), continues=True)
            await self._clock.sleep_until(self._clock.now().boot_ns + interval_ns)

    def portray_samples(
        self, connection: Connection, resource_id: str | None, lease_id: str | None
    ) -> list[objects.Sample]:
        """The newest samples that the caller may see: of the host, and of its own leases."""
        wanted = LeaseId(parse_id(lease_id, "lease_id")) if lease_id is not None else None
        now_ns = self._clock.now().boot_ns
        caller = connection.caller
        return [
            _portray_sample(sample, now_ns, fresh=self._telemetry.is_fresh(sample, now_ns))
            for sample in self._telemetry.read(resource_id, wanted)
            if caller.operator or sample.uid in (None, caller.uid)
        ]

    async def _say(
        self, connection: Connection, call: Call, wire: bytes, *, continues: bool = False
    ) -> None:
        """Send one answer of a stream, and wait until the peer has taken what it was sent."""
        connection.answer(call, wire, continues=continues)
        await connection.settle(call)
        await trio.lowlevel.checkpoint()


def require_operator(connection: Connection) -> None:
    """Raises PermissionDenied."""
    if not connection.caller.operator:
        raise PermissionDenied("the chain tells of every tenant: only an operator may read it")


def _shown(change: Change, only: LeaseId | None, caller: Caller) -> list[Lease]:
    """The leases of a change that a watcher may see; of one lease, it."""
    return [
        lease
        for lease in change.leases
        if (only is None or lease.lease_id == only) and visible(lease, caller)
    ]


def _concerns_resources(change: Change) -> bool:
    return any(isinstance(event, _RESOURCE_EVENTS) for event in change.events)


def _is_ahead(reply: Reply, until: str) -> bool:
    """Whether the lease is there and has not come so far."""
    return isinstance(reply, Changed) and not _has_come(reply.lease, until)


def _has_come(lease: Lease, until: str) -> bool:
    if until == "active":
        return lease.state is not LeaseState.GRANTED
    if until == "ended":
        return lease.cut_ns is not None or lease.state >= LeaseState.SCRUBBING
    return lease.state >= LeaseState.RECLAIMED


def _portray_sample(sample: Sample, now_ns: int, *, fresh: bool) -> objects.Sample:
    described = SERIES[sample.name]
    return objects.Sample(
        name=sample.name,
        unit=described.unit,
        kind="counter" if described.counter else "gauge",
        resource_id=sample.resource_id,
        attributes=dict(sample.attributes),
        lease_id=sample.lease_id.hex() if sample.lease_id is not None else None,
        value=sample.value,
        sampled_boottime_ns=sample.sampled_ns,
        age_ns=now_ns - sample.sampled_ns,
        quality="fresh" if fresh else "stale",
    )
