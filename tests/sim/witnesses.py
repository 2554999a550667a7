# SPDX-License-Identifier: Apache-2.0
"""A whole node and two collectors in simulated time, and a nemesis between them: it restores the
host from an earlier copy, clones it and shows each collector another one, wipes it, wipes a
collector, loses and repeats messages, parts them, and sets clocks.

Rule: what judges is real: the agent's writer and door, the collectors' ingest, verdicts, witness
and own log, and their reading of each other. The oracle is the records: where what a collector
holds is not how the log that it is shown begins, or the two hold different ones, somebody must have
a sticky verdict at the end; where nobody tampered, nobody may have one; and a quorum is never said
to have what one of its members has not. One seed, one story.

Does not listen or encrypt: the network is a function call that may fail.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import trio

from leased.chain.quorum import vouched
from leased.durable.log import open_log
from leased.service.batch import Told
from leased.terms.command import Command, NoteCountersigned
from leased.terms.event import EventId, HeadCountersigned, NodeStarted, Refused
from leased.terms.identity import CommandId, TenantId
from leased.terms.reply import Done, Reply
from tests.sim.agent import ORIGIN, Agent, Site, read_chain
from tests.sim.collectors import NAMES, NODE_ID, POLICY, Door, SimCollector, countersigned
from tests.sim.disk import MemoryDisk
from tests.sim.tenants import Tenant
from tests.sim.world import Outcome, World

TAMPERINGS = ("restore", "split", "wipe", "wipe collector")
TICKS = 120
SETTLE_S = 30


class WitnessedAgent(Agent):
    """The agent of the simulation, with its door."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.door = Door(
            self._opened,
            latest=lambda: self._sealer.frontier,
            node_id=NODE_ID,
            ask=self.sequencer.ask_own,
            clock=site.clock,
        )

    async def boot(self) -> None:
        await super().boot()
        self.door.acks.restore()

    def _tell(self, told: Told) -> None:
        super()._tell(told)
        self.door.acks.tell(told.events, told.sequences)
        self.door.log.wake()


class Clone:
    """A copy of the host that goes on by itself: it has the key, and writes what it likes."""

    def __init__(self, world: WitnessWorld, disk: MemoryDisk, random: Random) -> None:
        self.disk, self._random = disk, random
        # Its clock goes on from the same moment, whatever becomes of the other host.
        self._clock = copy.copy(world.clock)
        opened = open_log(
            disk.directory,
            moment=self._clock.now(),
            entropy=self._entropy,
            machine_id=b"m" * 16,
            origin=ORIGIN,
            background=False,
            disk=disk,
        )
        self._opened, self._sealer = opened, opened.sealer()
        self.door = Door(
            opened,
            latest=lambda: self._sealer.frontier,
            node_id=NODE_ID,
            ask=self._ask,
            clock=self._clock,
        )
        # As every agent that finds a log: else it would be told by the clock of another boot.
        self._seal(
            NodeStarted(
                EventId(self._entropy()), self._clock.now().boot_id, b"n" * 16, 1, "clone", "", ""
            )
        )

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self._random.randrange(100, 1500) / 1000)
            tenant, command = TenantId("research"), CommandId(self._entropy())
            self._seal(Refused(EventId(self._entropy()), tenant, 1000, command, 5, 8, 7, 8))

    async def _ask(self, command: Command) -> Reply:
        assert isinstance(command, NoteCountersigned)
        self._seal(countersigned(command, self._entropy))
        return Done()

    def _seal(self, event: Any) -> None:
        moment = self._clock.now()
        batch = self._sealer.seal([(event, moment)], moment=moment)
        self._opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment)
        self.door.acks.tell([event], batch.sequences)

    def _entropy(self) -> bytes:
        return self._random.randbytes(16)


class WitnessWorld(World):
    """One seed: a node, two collectors, and for most seeds a tampering. The two flags are for the
    test of the test: collectors that do not compare notes, and one that cosigns what it forgets."""

    gossips = True
    remembers = True

    def __init__(self, seed: int, ticks: int = TICKS) -> None:
        super().__init__(seed, ticks)
        random = Random(seed ^ 0x5EED)
        self.tampering = random.choice((None, None, None, *TAMPERINGS, "split", "restore"))
        self.parted: set[str] = set()
        self.clone: Clone | None = None
        self.split: str = random.choice(NAMES)
        self._pending: Callable[[], None] | None = None
        self._nemesis_random = random
        self.tenants: list[Tenant] = self.tenants[:2]
        self.collectors: dict[str, SimCollector] = {}
        self.enrolled = trio.Event()
        self._copies: list[dict[str, bytes]] = []

    # -- the story ---------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Storm, calm, judgement."""
        async with trio.open_nursery() as world:
            world.start_soon(self.reaper.run)
            world.start_soon(self._keep_agent)
            world.start_soon(self._nemesis, world)
            await self.serving()
            for name in NAMES:
                self.collectors[name] = SimCollector(
                    self, name, Random(self._nemesis_random.getrandbits(64))
                )
            self._enrol()
            for collector in self.collectors.values():
                world.start_soon(collector.run)
            async with trio.open_nursery() as people:
                people.start_soon(self.operator.run)
                for tenant in self.tenants:
                    people.start_soon(tenant.run)
                people.start_soon(self._storm)
            self.parted.clear()
            await trio.sleep(SETTLE_S)
            await self._drain()
            world.cancel_scope.cancel()
        return self._judge()

    def _enrol(self) -> None:
        assert isinstance(self.agent, WitnessedAgent)
        for name, collector in self.collectors.items():
            collector.enrol("node", self.agent._opened, NODE_ID)
            for other, peer in self.collectors.items():
                if other != name:
                    log = peer.witness.log
                    collector.enrol(other, log, other.encode().ljust(16, b"."))
        self.enrolled.set()

    def door_of(self, whom: str, asker: str) -> Door | None:
        """Whom one reaches by a name now."""
        if whom in NAMES:
            return self.collectors[whom].door
        if self.clone is not None and asker == self.split:
            return self.clone.door
        agent = self.agent
        return agent.door if isinstance(agent, WitnessedAgent) else None

    def _make_agent(self) -> Agent:
        return WitnessedAgent(self._site)

    def _end_process(self) -> None:
        if isinstance(self.agent, WitnessedAgent):
            self.agent.door.alive = False
        super()._end_process()
        if self._pending is not None:
            act, self._pending = self._pending, None
            act()

    async def _nemesis(self, world: trio.Nursery) -> None:
        """Parts collectors now and then, copies the disk, and once does what nobody may."""
        random = self._nemesis_random
        await self.enrolled.wait()
        ends_s = self._ticks / 10
        at_s = trio.current_time() + random.uniform(0.4, 0.9) * (ends_s - trio.current_time())
        while True:
            await trio.sleep(random.uniform(0.3, 1.5))
            if self.calm:
                return
            self._copies.append(self.disk.copied())
            for collector in self.collectors.values():
                if random.random() < 0.1:
                    collector.clock.step_wall(random.choice((-1, 1)) * random.randrange(10**14))
            self.parted ^= {random.choice(NAMES)} if random.random() < 0.3 else set()
            if trio.current_time() >= at_s:
                await self._tamper(world)
                at_s = float("inf")

    async def _tamper(self, world: trio.Nursery) -> None:
        random = self._nemesis_random
        match self.tampering:
            case "restore":
                copy = random.choice(self._copies[-8:])
                await self._with_a_reboot(lambda: self.disk.put_back(copy))
            case "wipe":
                await self._with_a_reboot(lambda: self.disk.put_back({}))
            case "wipe collector":
                self.collectors[random.choice(NAMES)].wipe()
            case "split":
                disk = MemoryDisk()
                disk.put_back(self.disk.copied())
                self.clone = Clone(self, disk, Random(random.getrandbits(64)))
                world.start_soon(self.clone.run)
        self.note(f"tampered: {self.tampering}")

    async def _with_a_reboot(self, act: Callable[[], None]) -> None:
        self._pending = act
        await self._reboot()

    # -- the judgement -----------------------------------------------------------------------------

    def _judge(self) -> Outcome:
        if self.tampering is None:
            outcome = super()._judge()
        else:
            # What the host was made to forget, its tenants have been told.
            self.breaches.clear()
            outcome = self._outcome(len(read_chain(self.disk)), 0)
        verdicts = {
            f"{name} of {whom}": followed
            for name, one in self.collectors.items()
            for whom, followed in one.followed.items()
        }
        sticky = {who: one.verdict for who, one in verdicts.items() if one.verdict.sticky}
        if self.tampering is None:
            for who in sticky:
                self.breach(f"{who}: {sticky[who]}, and nobody tampered: {verdicts[who].why}")
        elif self._is_visible() and not sticky:
            self.breach(f"{self.tampering}: nobody has found it")
        for name in NAMES:
            self.met(f"{self.tampering}: {'found' if sticky else 'not visible'}")
            self._judge_quorum(name)
        self.trace += [f"{who}: {one.verdict} {len(one.hashes)}" for who, one in verdicts.items()]
        return Outcome(
            outcome.seed,
            tuple(self.breaches),
            tuple(self.trace),
            outcome.records,
            outcome.leases,
            outcome.agent_runs,
            outcome.boots,
            self.faults.met,
            outcome.replies,
        )

    def met(self, what: str) -> None:
        """Count it."""
        self.faults.met[what] = self.faults.met.get(what, 0) + 1

    def _shown(self, name: str) -> MemoryDisk:
        """The disk whose log a collector is shown."""
        return self.clone.disk if self.clone is not None and name == self.split else self.disk

    def _is_visible(self) -> bool:
        """Whether what the collectors hold contradicts what is there, or each other."""
        held = {name: one.followed["node"].hashes for name, one in self.collectors.items()}
        for name, hashes in held.items():
            there = [one.hash for one in read_chain(self._shown(name))]
            if there[: len(hashes)] != hashes:
                return True
        west, east = held.values()
        shorter = min(len(west), len(east))
        wiped = any(one.wiped for one in self.collectors.values())
        return west[:shorter] != east[:shorter] or wiped

    def _judge_quorum(self, name: str) -> None:
        """What the log that a collector is shown says that both have, both have (a collector that
        was wiped had it)."""
        chain = read_chain(self._shown(name))
        newest: dict[int, HeadCountersigned] = {}
        for one in chain:
            if isinstance(one.event, HeadCountersigned):
                held = newest.get(one.event.key_id)
                if held is None or one.event.size > held.size:
                    newest[one.event.key_id] = one.event
        origin = self.collectors["west"].followed["node"].state.pinned.origin
        if self.tampering == "wipe":
            return  # another log, which nobody was told of
        size = POLICY.reached(vouched(POLICY, origin, list(newest.values())), len(chain))
        if size:
            self.met("quorum")
        self.trace.append(f"quorum of what {name} is shown: {size} of {len(chain)}")
        for collector in self.collectors.values():
            hashes = collector.followed["node"].hashes
            if not collector.wiped and hashes[:size] != [one.hash for one in chain[:size]]:
                self.breach(f"a quorum for {size} records, and {collector.name} has others")


class Silent(WitnessWorld):
    """The collectors do not read each other."""

    gossips = False


class Forgetful(WitnessWorld):
    """One collector cosigns and keeps nothing."""

    remembers = False
