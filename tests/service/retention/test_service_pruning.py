# SPDX-License-Identifier: Apache-2.0
"""Pruning by an agent that runs for days of simulated time: its log does not grow for want of a
restart, and whatever a restart finds is whole. `LEASED_PRUNING_DAYS=14` is the long form."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext

import msgspec
import pytest
import trio

from leased.chain.note import COSIGNATURE_V1, NoteKey
from leased.durable.reader import read_log
from leased.durable.scan import segment_names
from leased.service.evidence import NO_COMMAND
from leased.service.fleet.config import Countersigner, Listening
from leased.service.log.pruning import Identity, Pruning
from leased.service.log.rotation import Rotation
from leased.terms import event as e
from leased.terms.command import Fence, NoteCountersigned, NotePruned, Unfence
from leased.terms.event import ResourceFenced
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Done, Granted
from tests.doubles.desk import OPERATOR, Desk
from tests.doubles.serving import Agent, Host

pytestmark = pytest.mark.autojump

HOUR, DAY = 3600, 24 * 3600
SEGMENT_BYTES = 16 * 1024
"""Twenty minutes of these days."""
LEASE_S = 600.0
DAYS = int(os.environ.get("LEASED_PRUNING_DAYS", "1"))
WEST = Countersigner("west", NoteKey("west", b"w" * 32, COSIGNATURE_V1))
EAST = Countersigner("east", NoteKey("east", b"e" * 32, COSIGNATURE_V1))
OTHERS = Listening(collectors=(WEST, EAST))


async def _at_once(call: Callable[..., object], *arguments: object) -> object:
    await trio.lowlevel.checkpoint()
    return call(*arguments)


class Days:
    """A host with a lease every ten minutes, and collectors that keep up more or less."""

    def __init__(self) -> None:
        self.host = Host(segment_bytes=SEGMENT_BYTES)
        self.free_bytes = 1 << 40
        self.retention_s = HOUR
        self.acking = {"west": 0.0, "east": 1.0 * HOUR}
        """How far behind each is; a collector that is not here does not acknowledge."""
        self.said: list[str] = []
        self._sizes: list[tuple[float, int]] = []
        self._asked: dict[str, int] = {}

    @property
    def segments(self) -> list[str]:
        return segment_names(self.host.disk.names())

    def pruning(self, agent: Agent) -> Pruning:
        return Pruning(
            agent.opened,
            Identity(b"n" * 16, "test"),
            listening=lambda: OTHERS,
            retention_ns=self.retention_s * NS_PER_S,
            free_bytes_min=1 << 30,
            clock=self.host.clock,
            ask=agent.sequencer.ask_own,
            say=self.said.append,
            aside=_at_once,
            free=lambda _: self.free_bytes,
        )

    async def live(self, agent: Agent, seconds: float) -> int:
        """So long; the most segments that there were."""
        most = 0
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pruning(agent).run)
                while True:
                    agent.opened.journal.reserve_ok(1)
                    agent.opened.journal.spares.try_fill()  # as their thread does
                    granted = await agent.ask(self.host.acquire(ttl_s=60))
                    assert isinstance(granted, Granted), granted
                    await trio.sleep(LEASE_S)
                    await self._acknowledge(agent)
                    most = max(most, len(self.segments))
        return most

    async def _acknowledge(self, agent: Agent) -> None:
        now = trio.current_time()
        self._sizes.append((now, agent.opened.journal.head.size))
        for one in OTHERS.collectors:
            behind = self.acking.get(one.name)
            sizes = [size for at, size in self._sizes if behind is not None and at <= now - behind]
            if sizes and sizes[-1] > self._asked.get(one.name, 0):
                self._asked[one.name] = sizes[-1]
                key_id = int.from_bytes(one.key.key_id, "big")
                root = agent.opened.pages().tree(sizes[-1], agent.opened.journal.anchored).root()
                fields = {"size": sizes[-1], "root": root, "key_id": key_id, "time_s": 1}
                await agent.sequencer.ask_own(
                    NoteCountersigned(NO_COMMAND, **fields, signature=bytes(64))
                )

    def judged(self) -> list[e.Event]:
        """What an auditor reads of it; every lease followed."""
        read = read_log(self.host.disk.directory, disk=self.host.disk, leases=True)
        return [event for _, event, _ in read.events()]


async def test_days_do_not_fill_the_disk() -> None:
    days = Days()
    async with days.host.standing(), days.host.agent() as agent:
        most = await days.live(agent, DAYS * DAY)
        filled = agent.opened.journal.anchored.segment_no
    # Three an hour, of which two are not old or not acknowledged; the newest two always stay.
    assert most <= 10 < 50 * DAYS < filled, (most, filled)
    assert len(days.said) > 20 * DAYS
    events = days.judged()
    assert any(isinstance(event, e.Pruned) for event in events)


async def test_what_a_restart_finds_is_whole() -> None:
    days = Days()
    async with days.host.standing():
        for run in range(1, 4):
            async with days.host.agent() as agent:
                assert agent.lessor.table.epoch == run
                assert agent.lessor.table.policy_hash == b"p" * 32
                assert agent.lessor.table.pools.inventory.resources
                await days.live(agent, 4 * HOUR + 777 * run)
            [*_, last] = [one for one in days.judged() if isinstance(one, e.NodeStarted)]
            assert (last.epoch, last.node_id) == (run, b"n" * 16)
    assert len(days.said) > 5


async def test_a_lease_that_goes_on_keeps_its_records() -> None:
    days = Days()
    async with days.host.standing():
        async with days.host.agent() as agent:
            await days.live(agent, 3 * HOUR)
            long = await agent.ask(days.host.acquire(ttl_s=HOUR))
            assert isinstance(long, Granted)
            days.retention_s, days.free_bytes, days.acking = 1, 0, {"west": 0.0, "east": 0.0}
            await days.live(agent, 0.9 * HOUR)
            assert int(days.segments[0][4:20], 16) <= long.sequence
            await days.live(agent, HOUR)
            assert int(days.segments[0][4:20], 16) > long.sequence, "its end lets it go"
            held = await agent.ask(days.host.acquire(ttl_s=HOUR))
            assert isinstance(held, Granted)
            await days.live(agent, 0.9 * HOUR)
        async with days.host.agent() as agent:
            assert agent.at(held.lease.lease_id).lease_id == held.lease.lease_id
    days.judged()


async def test_what_was_put_back_of_a_fence_holds_nothing_and_adds_nothing() -> None:
    """The fence goes, and the record that it was lifted stays for a while: of no fence."""
    days = Days()
    days.acking["east"] = 0.0
    async with days.host.standing():
        async with days.host.agent() as agent:
            await days.live(agent, HOUR)
            [pool] = agent.lessor.table.pools.by_id.values()
            name, ids = pool.resource_id, Desk().command_id
            for pages in (4, 2):
                fence = Fence(ids(), OPERATOR, name, pages * pool.granule)
                assert await agent.ask(fence) == Done()
                await days.live(agent, 2 * HOUR)
            fenced = [at for at, event, _ in read_events(days) if isinstance(event, ResourceFenced)]
            assert int(days.segments[0][4:20], 16) <= fenced[0], "it is needed"
            assert await agent.ask(Unfence(ids(), OPERATOR, None, name)) == Done()
            await days.live(agent, 0.8 * HOUR)
            first = int(days.segments[0][4:20], 16)
            assert fenced[1] < first, "it is needed no more"
        [*_, lifted] = [one for _, one, _ in read_events(days) if isinstance(one, ResourceFenced)]
        assert not lifted.fenced, "this one is there yet"
        async with days.host.agent() as agent:
            [pool] = agent.lessor.table.pools.by_id.values()
            assert (pool.fenced, pool.fenced_by_operator) == (0, 0)
            assert pool.free + pool.leased == pool.capacity
            await days.live(agent, 2 * HOUR)
    days.judged()


def read_events(days: Days) -> list[tuple[int, object, object]]:
    disk = days.host.disk
    return list(read_log(disk.directory, disk=disk).events())


async def test_who_does_not_acknowledge_holds_everything() -> None:
    days = Days()
    days.acking = {"west": 0.0}
    days.free_bytes = 0
    async with days.host.standing(), days.host.agent() as agent:
        await days.live(agent, 6 * HOUR)
        assert not days.said and int(days.segments[0][4:20], 16) == 0
        days.acking["east"] = 0.0
        await days.live(agent, 2 * HOUR)
        assert days.said and len(days.segments) <= 4


async def test_a_disk_that_does_not_let_go_is_said() -> None:
    days = Days()

    def struck(verb: str, name: str) -> tuple[bool, OSError] | None:
        return (False, OSError(5, "no", name)) if verb == "unlink" else None

    async with days.host.standing():
        async with days.host.agent() as agent:
            days.host.disk.fault = struck
            await days.live(agent, 4 * HOUR)
            assert any("could not be removed" in line for line in days.said)
        days.host.disk.fault = None
        before = len(days.segments)
        async with days.host.agent() as agent:
            assert len(days.segments) < before, "the next start does it"
            await days.live(agent, HOUR)
    days.judged()


async def test_a_key_that_was_replaced_too_often_holds_the_log_and_is_told() -> None:
    days = Days()
    days.acking["east"] = 0.0
    async with days.host.standing(), days.host.agent() as agent:
        rotation = Rotation(
            opened=agent.opened,
            sealer=agent.sealer,
            submit=agent.sequencer.submit_own,
            entropy=days.host.entropy,
            unbroken=nullcontext,
            aside=_at_once,
        )
        for _ in range(11):
            await rotation.rotate()
        await days.live(agent, 2 * HOUR)
        assert days.said and not any("begin another log" in line for line in days.said)
        await rotation.rotate()
        [*_, held] = [at for at, event, _ in read_events(days) if isinstance(event, e.KeyRotated)]
        await days.live(agent, 2 * HOUR)
        told = [line for line in days.said if "begin another log" in line]
        assert len(told) == 1 and f"record {held} on" in told[0], told
        assert int(days.segments[0][4:20], 16) <= held
    days.judged()


@pytest.mark.parametrize("other", [0, 1, 2])
async def test_nothing_but_the_batch_that_says_so_moves_the_beginning(other: int) -> None:
    """Batches of others come between the plan and its record: the anchor does not move before."""
    days = Days()
    async with days.host.standing(), days.host.agent() as agent:
        days.retention_s = 10**6
        await days.live(agent, 2 * HOUR)
        size = agent.opened.journal.head.size
        removal = agent.opened.removal(acked_size=size, older_than_wall_ns=2**62, pressed=True)
        assert removal is not None
        agent.opened.stage(removal)
        for _ in range(other):
            await agent.ask(days.host.acquire())
            assert agent.opened.journal.anchored.min_seq == 0
        fields = msgspec.structs.asdict(removal)
        fields.pop("names")
        told = {"node_id": b"n" * 16, "version": "test", "filesystem": "", "durability": ""}
        await agent.sequencer.ask_own(
            NotePruned(NO_COMMAND, **fields, segments=1, acked_size=size, **told)
        )
        assert agent.opened.journal.anchored.min_seq == removal.min_seq
