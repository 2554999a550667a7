# SPDX-License-Identifier: Apache-2.0
"""A host and the agent that serves on it: every real task of `service` over fakes, task for task as
the daemon composes them.

Rule: what outlasts one run of the agent (disk, reaper, hardware, clock) is a `Host`; an `Agent` is
one run and may be killed at any step. The log is the real one on a MemoryDisk, so a restart goes
through the real recovery. Gates hold a step back until the test opens them; they decide nothing.

Does not open sockets: `serve_on` is handed its doors.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio

from leased.chain.note import NoteKey
from leased.chain.proof import Proof
from leased.durable.log import OpenedLog, open_log
from leased.durable.reader import read_log
from leased.durable.shelf import Shelf
from leased.lessor.lessor import Lessor
from leased.ports import Holder
from leased.service import recovery
from leased.service.adoption import Adoption
from leased.service.api.dispatch import Dispatcher
from leased.service.api.handover import Handover
from leased.service.api.listener import Listener
from leased.service.api.questions import Questions
from leased.service.api.streams import Streams
from leased.service.batch import Held, Told
from leased.service.config import Config, Sockets
from leased.service.custody import Custodian
from leased.service.detachment import Detachment
from leased.service.evidence import NO_COMMAND
from leased.service.grantor import Grantor
from leased.service.holders import Holders
from leased.service.log.reader import ChainReader
from leased.service.notifier import Notifier
from leased.service.peering import Peering
from leased.service.policy.calls import PolicyCalls
from leased.service.policy.policies import Policies
from leased.service.reclaimer import Reclaimer
from leased.service.sequencer import Sequencer
from leased.service.telemetry.sampling import Telemetry
from leased.service.telling.feed import Feed
from leased.service.ticker import Ticker
from leased.service.walls import Walls
from leased.terms.command import Acquire, Caller, Command, Revoke, Stop
from leased.terms.effect import Effect
from leased.terms.errors import StateError
from leased.terms.event import Event
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import BOUND_TO_NOTHING, Lease, LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import Policy
from leased.terms.reply import Granted, Reply
from leased.terms.resource import Inventory
from leased.wire import replies
from leased.wire.description import Service
from tests.doubles.clock import FakeClock
from tests.doubles.desk import ACME, OPERATOR, ask_mem
from tests.doubles.disk import MemoryDisk
from tests.doubles.held import HeldDevices, HeldJournal, HoldingReaper
from tests.doubles.journal import DiskCommitter
from tests.doubles.logs import MACHINE, ORIGIN, CountedEntropy
from tests.doubles.observer import FileObserver
from tests.doubles.peers import FakePeers

SEGMENT_BYTES = 2 << 20
"""Large enough that no test fills one by chance: switching takes a thread."""

TENANTS = {0: "root", 1000: "acme", 1001: "acme", 2000: "beta"}
"""Who is which tenant on the sockets of `serve_on`; every other uid is nobody."""


def descriptors() -> int:
    """How many this process has open; those that only garbage holds are closed first."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Box:
    """Where one answer arrives."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self._arrived = trio.Event()

    def __call__(self, reply: Reply) -> None:
        assert not self.replies, f"answered twice: {self.replies[0]} and {reply}"
        self.replies.append(reply)
        self._arrived.set()

    async def reply(self) -> Reply:
        """The answer, when it has come."""
        await self._arrived.wait()
        return self.replies[0]


class Host:
    """Everything that outlasts a run of the agent."""

    def __init__(
        self,
        *,
        inventory: Inventory | None = None,
        policy: Policy | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.segment_bytes = segment_bytes
        self.clock: FakeClock = FakeClock()
        self.disk = MemoryDisk()
        self.policy = policy or Policy()
        self.devices = HeldDevices(inventory)
        self.observer = FileObserver(self.clock)
        self.reaper = HoldingReaper(self.clock)
        self.devices.in_use = self._in_use
        self.peers = FakePeers(self.devices)
        self.entropy = CountedEntropy()
        self._asked = 0

    def _in_use(self, lease_id: LeaseId) -> bool:
        slot = self.reaper.slots.get(lease_id)
        return slot is not None and slot.cut is None

    def command_id(self) -> CommandId:
        """A fresh one."""
        self._asked += 1
        return CommandId(b"\xc0" + self._asked.to_bytes(15, "big"))

    def acquire(
        self,
        pages: int = 1,
        *,
        caller: Caller = ACME,
        ttl_s: float = 60,
        wait_s: float = 0,
        bind_pid: int = BOUND_TO_NOTHING,
        command_id: CommandId | None = None,
        grace_s: float | None = None,
    ) -> Acquire:
        """A request for memory."""
        return Acquire(
            command_id or self.command_id(),
            caller,
            (ask_mem(pages),),
            round(ttl_s * NS_PER_S),
            wait_ns=round(wait_s * NS_PER_S),
            grace_ns=None if grace_s is None else round(grace_s * NS_PER_S),
            bind_pid=bind_pid,
        )

    def reboot(self, boot_number: int) -> None:
        """Power off and on: nothing of the last boot is left but the disk."""
        self.reaper.close()
        self.reaper.slots.clear()
        self.clock.reboot(boot_number)
        self.devices.held.clear()

    def chain(self) -> list[tuple[int, Event, Moment]]:
        """Every anchored event, judged by the real verifier."""
        return list(read_log(self.disk.directory, disk=self.disk).events())

    def sealed(self, lease_id: LeaseId | None = None) -> list[str]:
        """The names of the events in the chain, of one lease if asked."""
        return [
            type(event).__name__
            for _, event, _ in self.chain()
            if lease_id is None or getattr(event, "lease_id", None) == lease_id
        ]

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[Host]:
        """The reaper runs; agents come and go."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.reaper.run)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()
        self.reaper.close()

    @contextlib.asynccontextmanager
    async def agent(self, **settings: int) -> AsyncIterator[Agent]:
        """One run of the agent, killed at the end of the block."""
        agent = Agent(self, **settings)
        try:
            async with trio.open_nursery() as nursery:
                await agent.boot()
                await agent.start(nursery)
                yield agent
                nursery.cancel_scope.cancel()
        finally:
            agent.end()


def tenant_of(uid: int, gids: tuple[int, ...]) -> TenantId | None:
    """Who is whose here."""
    return TenantId(TENANTS[uid]) if uid in TENANTS else None


class NoOccupants:
    """`ports.Holders` that finds nobody."""

    async def scan(self, resource_ids: Sequence[str]) -> tuple[Holder, ...]:
        return ()


class Agent:
    """One run. Made by `Host.agent`."""

    def __init__(
        self, host: Host, *, commands_max: int = 256, batch_commands_max: int = 64
    ) -> None:
        self.host = host
        self.opened: OpenedLog = open_log(
            host.disk.directory,
            moment=host.clock.now(),
            entropy=host.entropy,
            machine_id=MACHINE,
            origin=ORIGIN,
            segment_bytes=host.segment_bytes,
            background=False,
            disk=host.disk,
            committer=lambda: DiskCommitter(host.disk),
        )
        self.journal = HeldJournal(self.opened.journal)
        self.lessor = Lessor(host.entropy, host.policy)
        self.sealer = self.opened.sealer()
        self.sequencer = Sequencer(
            lessor=self.lessor,
            sealer=self.sealer,
            journal=self.journal,
            clock=host.clock,
            hold=self._hold,
            start=self._start_effects,
            tell=self._tell,
            commands_max=commands_max,
            batch_commands_max=batch_commands_max,
            commit_at_once=self.journal.commit_at_once,
        )
        submit = self.sequencer.submit_own
        self.custodian = Custodian()
        self.told, self.lost_owners = list[Told](), list[LeaseId]()
        self.reports: list[tuple[LeaseId, str, bytes]] = []
        self.ticker = Ticker(lessor=self.lessor, clock=host.clock, submit=submit)
        self.holders = Holders(submit, self.lost_owners.append, self.ticker.is_due)
        self.feed = Feed(self.lessor.table.find)
        self.telemetry = Telemetry(
            clock=host.clock,
            custodian=self.custodian,
            live_leases=lambda: tuple(self.lessor.table.leases.values()),
            observer=host.observer,
            queue_depth=lambda: len(self.lessor.queue),
        )
        self.grantor = Grantor(
            devices=host.devices,
            reaper=host.reaper,
            custodian=self.custodian,
            holders=self.holders,
            submit=submit,
            board=host.reaper,
            outbox=self.sequencer.outbox,
        )
        self.reclaimer = Reclaimer(
            devices=host.devices,
            reaper=host.reaper,
            custodian=self.custodian,
            grantor=self.grantor,
            holders=self.holders,
            sampler=self.telemetry,
            submit=submit,
            tell_report=lambda *told: self.reports.append(told[:3]),
            withdrawal=host.peers,
            loosen=host.devices.adoptions.loosen,
        )
        self.notifier: Notifier | None = None
        self.listener: Listener | None = None
        self.dispatcher: Dispatcher | None = None
        self.chain_reader: ChainReader | None = None

    # -- its life ----------------------------------------------------------------------------------

    async def boot(self) -> None:
        """As `service.agent` does it."""
        recovery.replay(self.lessor, self.opened)
        roster = self.host.reaper.roster()
        known = recovery.take_custody(roster, self.custodian)
        table = self.lessor.table
        await self.host.devices.adopt(
            lease for lease in table.leases.values() if lease.lease_id in known
        )
        ground = recovery.Ground(
            b"n" * 16, "test", self.host.devices.offered, self.host.policy, b"p" * 32, b"r" * 32
        )
        await recovery.start(self.sequencer, self.opened, ground, known)
        now_ns = self.host.clock.now().boot_ns
        for lease_id, _ in recovery.rebind(roster, self.lessor, self.holders, now_ns):
            self.sequencer.submit_own(
                Revoke(NO_COMMAND, OPERATOR, lease_id, RevocationReason.REAPER_LOST)
            )
        await recovery.seal_repair(
            self.opened, self.sealer, self.journal, self.host.clock, self.host.entropy
        )

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the tasks that need no socket."""
        await nursery.start(self.sequencer.run)
        for task in (self.grantor.run, self.reclaimer.run, self.holders.run, self.ticker.run):
            nursery.start_soon(task)

    def policies(self, directory: Path) -> Policies:
        """Its documents, kept in `directory`."""
        return Policies(
            shelf=Shelf(directory / "policies"),
            clock=self.host.clock,
            config=lambda: Config(policy=self.host.policy),
            ask=self.sequencer.ask_own,
            in_force=lambda: self.lessor.table.policy_hash,
            document=lambda: self.lessor.policy,
            unbroken=self.sequencer.unbroken.scope,
            changed=lambda: None,
            say=lambda message: None,
        )

    def _policy_calls(self, directory: Path) -> PolicyCalls:
        policies = self.policies(directory)
        return PolicyCalls(policies, self.lessor, clock=self.host.clock, entropy=self.host.entropy)

    async def serve_on(
        self,
        nursery: trio.Nursery,
        doors: Sequence[tuple[socket.socket, Service, bool]],
        directory: Path,
        limits: Sockets | None = None,
    ) -> None:
        """Answer on `doors`."""
        clock, reaper = self.host.clock, self.host.reaper
        self.chain_reader = ChainReader(
            journal=self.journal, directory=directory, next_seq=self.sealer.head.size
        )
        self.notifier = Notifier(directory / "leases")
        streams = Streams(
            sequencer=self.sequencer,
            feed=self.feed,
            telemetry=self.telemetry,
            chain=self.chain_reader,
            clock=clock,
            entropy=self.host.entropy,
        )
        walls = Walls(
            leaves=self.host.devices,
            reaper=reaper,
            custodian=self.custodian,
            holders=self.holders,
            notifier=self.notifier,
            user_socket=directory / "socket",
            find=self.lessor.table.find,
            ask=self.sequencer.ask_own,
            clock=clock,
        )
        self.dispatcher = Dispatcher(
            sequencer=self.sequencer,
            walls=walls,
            streams=streams,
            questions=self._questions(streams),
            peering=Peering(
                remote=self.host.peers,
                ask=streams.ask,
                clock=clock,
                entropy=self.host.entropy,
            ),
            clock=clock,
            entropy=self.host.entropy,
            ttl_ns_default=lambda: self.host.policy.ttl_ns_default,
            handover=Handover(
                custodian=self.custodian,
                handout=self.host.devices.handout,
                access=self.host.devices.access,
                find=self.lessor.table.find,
            ),
            detachment=Detachment(
                drivers=self.host.devices, table=self.lessor.table, look=self._look
            ),
            adoption=self._adoption(walls, streams),
            policy_calls=self._policy_calls(directory),
        )
        await nursery.start(self.dispatcher.run)
        self.listener = Listener(
            doors=doors,
            dispatch=self.dispatcher,
            holders=self.holders,
            clock=clock,
            limits=limits or Sockets(),
            tenant_of=tenant_of,
            outbox=self.sequencer.outbox,
        )
        nursery.start_soon(self.listener.run)

    def _adoption(self, walls: Walls, streams: Streams) -> Adoption:
        return Adoption(
            ask=streams.ask,
            ask_own=self.sequencer.ask_own,
            adoptions=self.host.devices.adoptions,  # type: ignore[arg-type]
            walls=walls,
            entropy=self.host.entropy,
            tenant_of=tenant_of,
            ttl_ns_default=lambda: self.host.policy.ttl_ns_default,
        )

    def _look(self) -> None:
        """The inventory would be read now."""
        self.host.devices.looks += 1

    def _questions(self, streams: Streams) -> Questions:
        return Questions(
            chain=self.chain_reader,
            streams=streams,
            lessor=self.lessor,
            holders=NoOccupants(),
            resource_ids=lambda: tuple(self.lessor.table.pools.by_id),
            clock=self.host.clock,
            head=lambda: replies.HeadReply("00", 0, "00", "00"),
            prove=_no_proofs,
            status=_nothing_to_say,
            reload_config=trio.lowlevel.checkpoint,
            rotate_key=_no_rotation,
        )

    async def stop(self) -> None:
        """As `service.agent` does it."""
        self.sequencer.refuse_new()
        stopped = Box()
        self.sequencer.submit_own(Stop(NO_COMMAND), stopped)
        await stopped.reply()
        self.feed.close()

    def end(self) -> None:
        """The process is gone, and with it what it held."""
        self.custodian.drop_all()
        self.opened.close()

    # -- what tests ask ----------------------------------------------------------------------------

    def submit(self, command: Command) -> Box:
        """Leave a command; where its answer will be."""
        box = Box()
        self.sequencer.submit(command, box)
        return box

    def submit_turn(self, *commands: Command) -> list[Box]:
        """What the listener does with requests that it has read in one turn."""
        self.sequencer.begin_turn()
        boxes = [self.submit(command) for command in commands]
        self.sequencer.end_turn()
        return boxes

    async def ask(self, command: Command) -> Reply:
        """A command and its answer."""
        return await self.submit(command).reply()

    async def lease(self, pages: int = 1, **how: object) -> Lease:
        """An active lease."""
        reply = await self.ask(self.host.acquire(pages, **how))
        assert isinstance(reply, Granted), reply
        await self.until(reply.lease.lease_id, LeaseState.ACTIVE)
        return self.at(reply.lease.lease_id)

    def at(self, lease_id: LeaseId) -> Lease:
        """The lease as the table has it."""
        found = self.lessor.table.find(lease_id)
        assert found is not None
        return found

    async def until(self, lease_id: LeaseId, *states: LeaseState, within_s: float = 120) -> Lease:
        """Return when the lease is in one of `states`."""
        with trio.fail_after(within_s):
            with self.feed.subscribe() as subscription:
                while self.at(lease_id).state not in states:
                    await subscription.receive()
        return self.at(lease_id)

    @property
    def free(self) -> int:
        """Bytes of memory that nobody has."""
        return sum(pool.free for pool in self.lessor.table.pools.by_id.values())

    # -- what the sequencer tells ------------------------------------------------------------------

    def _hold(self, held: Sequence[Held]) -> None:
        self.grantor.hold(held)

    def _start_effects(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self.reclaimer.start(effect)
            if self.notifier is not None:
                self.notifier.start(effect, self.host.clock.now().boot_ns)

    def _tell(self, told: Told) -> None:
        self.told.append(told)
        if self.chain_reader is not None:
            self.chain_reader.next_seq = self.sealer.head.size
        if self.dispatcher is not None:
            self.dispatcher.note_moment(told.moment)
        self.opened.note(told.events, told.sequences)
        self.feed.tell(told)
        self.ticker.look_again()


async def _no_proofs(sequence: int, size: int | None) -> Proof:
    raise StateError("nobody proves anything here")


async def _no_rotation() -> tuple[NoteKey, NoteKey]:
    raise StateError("nobody signs anything here")


def _nothing_to_say() -> replies.StatusReply:
    raise AssertionError("nobody asks for the status here")
