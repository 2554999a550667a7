# SPDX-License-Identifier: Apache-2.0
"""A world from one seed: agent, reaper, devices, tenants, an operator and everything that can go
wrong between them.

Rule: first harm (the storm: kills, reboots, torn commits, dead reaper, failing devices), then
health (the calm: everything is repaired, tenants stop, and whatever was held must drain by itself
within a bound). Safety is judged over all of it by the auditor; that the calm ends is liveness. The
same seed gives the same trace, line for line.

Does not judge: `auditor` does, and the fakes where they know better than any record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

import msgspec
import trio

from leased.terms.command import Acquire, Command
from leased.terms.identity import TenantId
from leased.terms.lease import Level
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.policy import (
    Borrowing,
    Budget,
    CapacityLimit,
    Period,
    Policy,
    Preemption,
    TenantLimits,
)
from leased.terms.reply import Granted, Inventoried, Reply
from leased.terms.resource import ResourceKind
from tests.doubles.second_opinion import judge_files
from tests.sim.agent import Agent, Site, read_chain
from tests.sim.auditor import Ack, Auditor
from tests.sim.clock import SimClock
from tests.sim.disk import MemoryDisk
from tests.sim.faults import AgentDied, Faults
from tests.sim.hardware import PAGE_BYTES, SimDevices
from tests.sim.reaper import SimReaper
from tests.sim.tenants import Operator, Tenant

TICK_NS = 100 * NS_PER_MS
TENANTS = 6
LEASES_MAX_OF_TENANT = 8
ANSWER_S_MAX = 60
DRAIN_S_MAX = 90


def _limits(*, memory_pages: int | None = None) -> TenantLimits:
    """Every level, so that one preempts the other and is preempted itself."""
    quota = CapacityLimit(ResourceKind.MEM, (memory_pages or 0) * PAGE_BYTES)
    return TenantLimits(
        leases_max=LEASES_MAX_OF_TENANT,
        level_max=Level.CRITICAL,
        waiting_max=3,
        capacities=() if memory_pages is None else (quota,),
        budgets=tuple(Budget(period, ResourceKind.CPU, None, 10**24) for period in Period),
    )


POLICY = Policy(
    ttl_ns_min=100 * NS_PER_MS,
    ttl_ns_default=NS_PER_S,
    ttl_ns_max_scavenger=5 * NS_PER_S,
    ttl_ns_max_standard=30 * NS_PER_S,
    ttl_ns_max_guaranteed=40 * NS_PER_S,
    grace_ns_release=NS_PER_S,
    grace_ns_preempt=2 * NS_PER_S,
    grace_ns_max=5 * NS_PER_S,
    leases_max=24,
    waiting_max=6,
    wait_ns_max=20 * NS_PER_S,
    closed_leases_kept=64,
    tenant_default=_limits(),
    tenants=(
        (TenantId("tenant-0"), _limits(memory_pages=48)),
        (TenantId("tenant-1"), _limits(memory_pages=24)),
    ),
    borrowing=Borrowing(enabled=True, grace_ns=2 * NS_PER_S),
    preemption=Preemption(runtime_ns_min_standard=500 * NS_PER_MS, cooldown_ns=2 * NS_PER_S),
)
"""One tenant has no quota, the others may borrow what is idle of each other's; all have budgets,
which are never used up: what counts is when they begin anew."""


class Outcome(msgspec.Struct, frozen=True):
    """What a run came to."""

    seed: int
    breaches: tuple[str, ...]
    trace: tuple[str, ...]
    records: int
    leases: int
    agent_runs: int
    boots: int
    faults: dict[str, int]
    replies: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """The trace in 16 digits: equal seeds, equal fingerprints."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]


class World:
    """Everything of one run. `calm` ends the storm."""

    def __init__(self, seed: int, ticks: int) -> None:
        self.seed = seed
        self._ticks = ticks
        root = Random(seed)
        self._random = Random(root.getrandbits(64))
        self.clock = SimClock()
        self.faults = Faults(Random(root.getrandbits(64)))
        self.reaper = SimReaper(self.clock, self.faults)
        self.devices = SimDevices(self.clock, self.faults, self.reaper.accessible)
        self.reaper.devices = self.devices
        self.disk = MemoryDisk()
        self._site = Site(
            self.clock,
            self.disk,
            self.devices,
            self.reaper,
            self.faults,
            POLICY,
            Random(root.getrandbits(64)),
        )
        self.tenants = [
            Tenant(self, 1000 + number, Random(root.getrandbits(64))) for number in range(TENANTS)
        ]
        self.operator = Operator(self, Random(root.getrandbits(64)))
        self.agent: Agent | None = None
        self._process: Agent | None = None
        self.acks: list[Ack] = []
        self.calm = False
        self.trace: list[str] = []
        self.breaches: list[str] = []
        self._waiters: dict[int, tuple[trio.Event, list[Reply]]] = {}
        self._calls = 0
        self._runs = 0
        self._boots = 1
        self._stopping = False
        self._power_cut = False
        self._served = trio.Event()
        self._replies: dict[str, int] = {}

    # -- the story --------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Storm, calm, judgement."""
        async with trio.open_nursery() as world:
            world.start_soon(self.reaper.run)
            world.start_soon(self._keep_agent)
            async with trio.open_nursery() as people:
                people.start_soon(self.operator.run)
                for tenant in self.tenants:
                    people.start_soon(tenant.run)
                people.start_soon(self._storm)
            await self._drain()
            world.cancel_scope.cancel()
        return self._judge()

    async def _storm(self) -> None:
        ends_s = self._ticks * TICK_NS / NS_PER_S
        while trio.current_time() < ends_s:
            await trio.sleep(self._random.randrange(300, 3000) / 1000)
            harm = self._random.choices(
                (
                    self._kill_agent,
                    self._kill_reaper,
                    self._reboot,
                    self._step_wall,
                    self._suspend,
                ),
                (5, 4, 1, 2, 1),
            )[0]
            await harm()
        self.faults.heal()
        self.reaper.come_back()
        self.calm = True
        self.note("calm")

    async def _kill_agent(self) -> None:
        if self._process is not None:
            self.note("kill agent")
            self._process.kill()

    async def _kill_reaper(self) -> None:
        self.note("kill reaper")
        self.reaper.die()
        down_ms = self._random.randrange(5, 1500)
        if self._random.random() < 0.1:
            down_ms += 11_000  # longer than any call to it waits
        await trio.sleep(down_ms / 1000)
        self.reaper.come_back()

    async def _reboot(self) -> None:
        """Power off: agent, reaper, holders and memory are gone at one instant."""
        self.note("reboot")
        self._power_cut = True
        if self._process is not None:
            self._process.kill()
        else:
            self._end_process()
        self.reaper.rebooted()
        self.devices.rebooted()
        self.clock.reboot()
        self._boots += 1
        for tenant in self.tenants:
            tenant.held.clear()

    async def _step_wall(self) -> None:
        self.clock.step_wall(self._random.choice((-1, 1)) * self._random.randrange(10**14))

    async def _suspend(self) -> None:
        asleep_ns = self._random.choice((1, 50, 2_000, 60_000)) * NS_PER_MS
        self.note(f"asleep for {asleep_ns} ns")
        self.clock.suspend(asleep_ns)
        self.reaper.suspended(asleep_ns)

    async def _drain(self) -> None:
        """P9: everything comes to its end, and then everything is free."""
        usage: Reply | None = None
        with trio.move_on_after(DRAIN_S_MAX) as patience:
            while usage is None or not _all_free(usage):
                await trio.sleep(1)
                await self.operator.unfence_all()
                usage = await self.operator.usage()
        if patience.cancelled_caught:
            self.breach(f"not drained {DRAIN_S_MAX} s after the storm: {usage}")
        if self.devices.occupied:
            self.breach(f"{len(self.devices.occupied)} leases still occupy devices")
        await trio.sleep(5)
        if self.reaper.slots:
            self.breach(f"the reaper still holds {len(self.reaper.slots)} leases")
        self._stopping = True
        if self.agent is not None:
            self.agent.kill()

    async def _keep_agent(self) -> None:
        """systemd: whenever the agent ends, start it again."""
        while not self._stopping:
            await self.reaper.reached()
            self._process = agent = self._make_agent()
            self._runs += 1
            try:
                await agent.boot()
                self.agent = agent
                self._served.set()
                self.note(f"agent {self._runs} serves")
                await agent.run()
            except* (AgentDied, OSError) as death:
                self.note(f"agent died: {death.exceptions[0]!r}")
            self.agent = self._process = None
            self._end_process()
            if self._served.is_set():  # else somebody waits for it still: this one died at boot
                self._served = trio.Event()
            self.devices.agent_died()
            self._break_connections()
            await trio.sleep(self._random.randrange(1, 3000) / 1000)

    def _make_agent(self) -> Agent:
        return Agent(self._site)

    def _end_process(self) -> None:
        if self._power_cut:
            self._power_cut = False
            self.disk.power_cut(self.faults)
        else:
            self.disk.process_died()

    async def serving(self) -> None:
        """Return when an agent serves."""
        await self._served.wait()

    @staticmethod
    def policy(number: int) -> Policy:
        """Other quotas, lent or not."""
        first, second = number % 4, number // 4 % 4
        return msgspec.structs.replace(
            POLICY,
            tenants=(
                (TenantId("tenant-0"), _limits(memory_pages=(8, 24, 48, 64)[first])),
                (TenantId("tenant-1"), _limits(memory_pages=(0, 8, 24, 40)[second])),
            ),
            borrowing=Borrowing(enabled=number % 2 == 0, grace_ns=NS_PER_S),
        )

    # -- the people's side ------------------------------------------------------------------------

    async def call(
        self, command: Command, *, patience_s: float = ANSWER_S_MAX
    ) -> tuple[Reply | None, bool]:
        """Ask the agent. (reply, whether the connection broke); (None, False) if the caller hung
        up.
        """
        agent = self.agent
        if agent is None:
            return None, True
        number, self._calls = self._calls, self._calls + 1
        answered, box = trio.Event(), list[Reply]()
        self._waiters[number] = (answered, box)

        def deliver(reply: Reply) -> None:
            if box:
                self.breach(f"{type(command).__name__} was answered twice")
            box.append(reply)
            answered.set()

        self.note(f"ask {number} {type(command).__name__}")
        agent.submit(command, deliver)
        with trio.move_on_after(patience_s) as patience:
            await answered.wait()
        del self._waiters[number]
        if patience.cancelled_caught:
            if patience_s >= ANSWER_S_MAX:
                self.breach(f"{type(command).__name__} was not answered in {patience_s} s")
            if isinstance(command, Acquire):
                self._hang_up(agent, command, deliver)
            return None, False
        reply = box[0] if box else None
        if reply is not None:
            name = type(reply).__name__ + getattr(getattr(reply, "reason", None), "name", "")
            self._replies[name] = self._replies.get(name, 0) + 1
            self.note(f"told {number} {name}")
        return reply, not box

    def _hang_up(self, agent: Agent, command: Acquire, deliver: Callable[[Reply], None]) -> None:
        agent.sequencer.forget_waiter(command.command_id, deliver)

    def _break_connections(self) -> None:
        for answered, _ in list(self._waiters.values()):
            answered.set()

    # -- notes ------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.clock.true_ns()} {text}")

    def breach(self, text: str) -> None:
        """Something that must not be, seen from the outside."""
        self.breaches.append(f"{text} (at {self.clock.true_ns()} ns)")

    def judge_grant(self, request: Acquire, reply: Granted) -> None:
        """What was granted is what was asked, is armed, and is not over already."""
        lease = reply.lease
        if lease.command_id != request.command_id or lease.subject.uid != request.caller.uid:
            self.breach("a grant answered another request")
        if not reply.attached:
            asked: dict[int, int] = {}
            got: dict[int, int] = {}
            for ask in request.asks:
                asked[ask.kind] = asked.get(ask.kind, 0) + ask.capacity
            for allotment in lease.subject.allotments:
                got[allotment.kind] = got.get(allotment.kind, 0) + allotment.capacity
            if asked != got:
                self.breach(f"asked for {asked}, granted {got}")

    def _judge(self) -> Outcome:
        records = read_chain(self.disk)
        auditor = Auditor()
        for number in range(3):
            auditor.limit(f"tenant-{number}", LEASES_MAX_OF_TENANT)
        for record in records:
            auditor.observe(record)
        self.breaches += auditor.judge(self.acks, self.reaper.told, self.reaper.cuts)
        if auditor.open_leases():
            self.breach(f"{len(auditor.open_leases())} leases are still open in the chain")
        self.trace += [f"{one.sequence} {one.hash.hex()}" for one in records]
        try:
            judge_files(self.disk.copied())
        except AssertionError as error:
            self.breach(str(error))
        return self._outcome(len(records), len(auditor.leases))

    def fallen(self, why: str) -> Outcome:
        """What the run came to if it could not be ended."""
        self.breaches.append(f"fell over: {why}")
        return self._outcome(0, 0)

    def _outcome(self, records: int, leases: int) -> Outcome:
        return Outcome(
            self.seed,
            tuple(self.breaches),
            tuple(self.trace),
            records,
            leases,
            self._runs,
            self._boots,
            self.faults.met,
            dict(sorted(self._replies.items())),
        )


def _all_free(usage: Reply) -> bool:
    assert isinstance(usage, Inventoried)
    return all(one.leased == one.teardown == one.fenced == 0 for one in usage.use)
