# SPDX-License-Identifier: Apache-2.0
"""One run of the agent: the real lessor, sealer, sequencer, grantor, reclaimer and ticker over the
simulated world.

Rule: what runs here is what the daemon composes, task for task; only ports are replaced. A run ends
by `AgentDied`, as a process does: nothing of it is tidied up.

Does not contain the daemon's sockets, custody of descriptors or notices: leases have none here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import msgspec
import trio

from leased.chain.canonical import decode
from leased.chain.recovery import choose_slot
from leased.chain.segment import parse_log_id
from leased.chain.verifier import Verifier
from leased.durable.anchor import read_slots
from leased.durable.frames import read_frames
from leased.durable.genesis import LOG_ID
from leased.durable.log import open_log
from leased.lessor.invariants import check as check_invariants
from leased.lessor.lessor import Lessor
from leased.ports import Journal
from leased.service import recovery
from leased.service.batch import Held, Told
from leased.service.custody import Custodian
from leased.service.grantor import Grantor
from leased.service.notifier import Notifier
from leased.service.policy.calendar import CalendarWatch
from leased.service.reclaimer import Reclaimer
from leased.service.sequencer import Sequencer
from leased.service.ticker import LATE_NS, Ticker
from leased.service.walls import Walls
from leased.terms.command import Caller, Command, HolderGone, SetPolicy
from leased.terms.effect import Effect, Notify
from leased.terms.errors import CallerError, DeviceError
from leased.terms.event import EpochSealed
from leased.terms.identity import BootId, CommandId, LeaseId, TenantId
from leased.terms.lease import Lease
from leased.terms.moment import Moment
from leased.terms.policy import Policy
from leased.terms.reply import Reply
from leased.terms.teardown import Utilization
from tests.sim.auditor import Sealed
from tests.sim.clock import SimClock
from tests.sim.disk import MemoryDisk, SimCommitter
from tests.sim.faults import AgentDied, Faults
from tests.sim.hardware import SimDevices, inventory
from tests.sim.reaper import SimReaper

NO_COMMAND = CommandId(bytes(16))
OPERATOR = Caller(0, 0, 1, TenantId("operator"), operator=True)
ORIGIN = "sim.example/leased"
SEGMENT_BYTES = 2 << 20
"""Large enough that no run fills one: switching would take a thread."""


class Site(msgspec.Struct, frozen=True):
    """Where the agent lives: everything that outlasts one run of it."""

    clock: SimClock
    disk: MemoryDisk
    devices: SimDevices
    reaper: SimReaper
    faults: Faults
    policy: Policy
    random: Random

    def entropy(self) -> bytes:
        """Sixteen bytes, from the seed."""
        return self.random.randbytes(16)


class NoHolders:
    """`service.holders` without processes: the world says itself who has gone."""

    def expect(self, lease_id: LeaseId, pid: int) -> None:
        pass

    def pidfd_for(self, pid: int) -> int | None:
        return None

    def bind(self, lease_id: LeaseId, pid: int) -> None:
        pass

    def watch_owners(self, lease_id: LeaseId, cgroup: str) -> None:
        pass

    def forget(self, lease_id: LeaseId) -> None:
        pass


class Unsampled:
    """`ports.Sampler` that saw nothing."""

    def utilization(self, lease: Lease) -> Utilization:
        return Utilization()


class Leaves:
    """`service.walls.Leaves` without cgroups."""

    async def make_leaf(self, lease: Lease) -> str:
        await trio.lowlevel.checkpoint()
        return lease.subject.cgroup or "leaf"


class ShortJournal:
    """`ports.Journal`; now and then there is room for the ends of leases only."""

    def __init__(self, journal: Journal, faults: Faults) -> None:
        self.commit, self.frames, self.close = journal.commit, journal.frames, journal.close
        self._journal, self._faults = journal, faults

    def reserve_ok(self, live_leases: int) -> bool:
        room = self._journal.reserve_ok(live_leases)
        return room and not self._faults.strikes("log is short", 5)


class Agent:
    """Built dead; `boot` and then `run` it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.scope = trio.CancelScope()
        self._death: Exception | None = None
        self._tasks: trio.Nursery | None = None
        self.notified: list[LeaseId] = []
        self._committer = SimCommitter(site.disk, site.faults)
        self._opened = open_log(
            site.disk.directory,
            moment=site.clock.now(),
            entropy=site.entropy,
            machine_id=b"m" * 16,
            origin=ORIGIN,
            segment_bytes=SEGMENT_BYTES,
            background=False,
            disk=site.disk,
            committer=lambda: self._committer,
        )
        self.lessor = Lessor(site.entropy, site.policy)
        self._sealer = self._opened.sealer()
        self.sequencer = Sequencer(
            lessor=self.lessor,
            sealer=self._sealer,
            journal=ShortJournal(self._opened.journal, site.faults),
            clock=site.clock,
            hold=self._hold,
            start=self._start,
            tell=self._tell,
            commands_max=256,
            batch_commands_max=32,
            commit_at_once=self._opened.journal.commit_at_once,
        )
        submit = self.sequencer.submit_own
        custodian = Custodian()
        self._custodian = custodian
        self._grantor = Grantor(
            devices=site.devices,
            reaper=site.reaper,
            custodian=custodian,
            holders=NoHolders(),
            submit=submit,
            board=site.reaper,
        )
        self._reclaimer = Reclaimer(
            devices=site.devices,
            reaper=site.reaper,
            custodian=custodian,
            grantor=self._grantor,
            holders=NoHolders(),
            sampler=Unsampled(),
            submit=submit,
        )
        self._walls = self._make_walls()
        self._ticker = Ticker(
            lessor=self.lessor, clock=site.clock, submit=submit, late_ns=LATE_NS
        )
        self._calendar = CalendarWatch(
            clock=site.clock,
            submit=submit,
            policy=lambda: self.lessor.policy,
            floor=lambda: SetPolicy(NO_COMMAND, OPERATOR, site.policy, b"p" * 32, b"r" * 32),
            prices=tuple,
        )

    def _make_walls(self) -> Walls:
        return Walls(
            leaves=Leaves(),  # type: ignore[arg-type]
            reaper=self._site.reaper,
            custodian=self._custodian,
            holders=NoHolders(),  # type: ignore[arg-type]
            notifier=Notifier(Path("/nowhere")),
            user_socket=Path("/nowhere"),
            find=self.lessor.table.find,
            ask=self.sequencer.ask_own,
            clock=self._site.clock,
        )

    async def boot(self) -> None:
        """As `service.agent.build`: replay, agree with the reaper, seal that the node serves."""
        recovery.replay(self.lessor, self._opened)
        ground = recovery.Ground(
            b"n" * 16, "sim", inventory(), self._site.policy, b"p" * 32, b"r" * 32
        )
        known = frozenset(self._site.reaper.slots)
        await recovery.start(self.sequencer, self._opened, ground, known)
        await recovery.seal_repair(
            self._opened, self._sealer, self._opened.journal, self._site.clock, self._site.entropy
        )

    async def run(self) -> None:
        """Serve until the process dies. Raises what it died of."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                self._tasks = nursery
                nursery.start_soon(self.sequencer.run)
                nursery.start_soon(self._grantor.run)
                nursery.start_soon(self._reclaimer.run)
                nursery.start_soon(self._ticker.run)
                nursery.start_soon(self._calendar.run)
        if self._death is not None:
            raise ExceptionGroup("died of a request", [self._death])

    def kill(self) -> None:
        """SIGKILL: a commit under way ends as the disk says, everything else just stops."""
        self._committer.dead = True
        self.scope.cancel()

    def submit(self, command: Command, deliver: Callable[[Reply], None] | None = None) -> None:
        """Onto the channel."""
        self.sequencer.begin_turn()
        self.sequencer.submit(command, deliver)
        try:
            self.sequencer.end_turn()
        except (AgentDied, OSError) as death:
            self._death = death
            self.kill()

    def lose_holder(self, lease_id: LeaseId) -> None:
        """The process that a lease is bound to has exited."""
        self.sequencer.submit_own(HolderGone(NO_COMMAND, lease_id))

    def join(self, lease_id: LeaseId) -> None:
        """Somebody wants to enter: the reaper is to hold the leaf first."""
        lease = self.lessor.table.find(lease_id)
        if lease is not None and self._tasks is not None:
            self._tasks.start_soon(self._open_leaf, lease)

    async def _open_leaf(self, lease: Lease) -> None:
        with contextlib.suppress(CallerError, DeviceError):
            await self._walls.open_leaf(lease)

    def _hold(self, held: Sequence[Held]) -> None:
        self._grantor.hold(held)

    def _start(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Notify):
                self.notified.append(effect.lease.lease_id)
            self._reclaimer.start(effect)

    def _tell(self, told: Told) -> None:
        check_invariants(self.lessor.table)
        self._ticker.look_again()


def read_chain(disk: MemoryDisk) -> list[Sealed]:
    """Every anchored record, judged by the real verifier with the key that the log names."""
    identity = parse_log_id(disk.read(LOG_ID), LOG_ID)
    slot, _ = choose_slot(read_slots(disk, direct=True), identity.log_id, LOG_ID)
    verifier = Verifier(
        identity.log_id,
        origin=identity.origin,
        public_key=identity.public_key,
        epoch_ns=identity.epoch_ns,
    )
    records: list[Sealed] = []
    boot_id, boot_ns = BootId(bytes(16)), 0
    for chunk in read_frames(disk, 0, slot):
        walk = verifier.feed(chunk)
        for index in range(len(walk.offsets)):
            record = walk.record(index)
            event = decode(record.kind, record.schema, record.body)
            boot_id = getattr(event, "boot_id", boot_id)
            if not isinstance(event, EpochSealed):
                # A seal may have been written by the boot that the next NodeStarted names.
                boot_ns = record.boot_ns
            moment = Moment(boot_id, boot_ns, record.wall_ns)
            records.append(Sealed(record.sequence, event, moment, record.hash))
    assert verifier.verified().whole, "the anchored chain ends within a batch"
    return records
