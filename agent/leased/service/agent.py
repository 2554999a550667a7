# SPDX-License-Identifier: Apache-2.0
"""The agent put together: every part, who is handed what, and the tasks they run as.

Rule: parts know each other only through what they are handed here. `build` returns when the agent
serves: the log is verified and repaired, the table rebuilt, the reaper there and in agreement,
`NodeStarted` sealed. Tasks start from the disk outwards: the sequencer first, the doors last.

Does not parse arguments and does not wait for signals (`daemon`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import trio

from leased import __version__
from leased.chain.sealer import Sealer
from leased.durable.log import OpenedLog
from leased.hardware import hotplug
from leased.hardware.devices import Devices
from leased.lessor.lessor import Lessor
from leased.service import recovery
from leased.service.api.doors import Door, open_doors
from leased.service.api.listener import Listener
from leased.service.api.reception import make_dispatcher
from leased.service.batch import Told
from leased.service.config import Config
from leased.service.custody import Custodian
from leased.service.detachment import Detachment
from leased.service.evidence import NO_COMMAND
from leased.service.fleet.fleet import make_fleet
from leased.service.grantor import Grantor
from leased.service.holders import Holders
from leased.service.lifeline import Lifeline
from leased.service.log.reader import ChainReader
from leased.service.log.upkeep import make_upkeep
from leased.service.notifier import Notifier
from leased.service.opening import Footing, Opened
from leased.service.policy.calendar import calendar_at, prices_of
from leased.service.policy.policies import make_policies
from leased.service.policy.uplink import make_uplink
from leased.service.reaper.link import ANSWER_S, ReaperLink
from leased.service.reaper.process import ReaperStarter
from leased.service.reclaimer import Reclaimer
from leased.service.sequencer import Sequencer
from leased.service.telemetry.outlets import Outlets
from leased.service.telemetry.sampling import Telemetry
from leased.service.telling.feed import Feed
from leased.service.telling.vitals import Vitals
from leased.service.ticker import LATE_NS, Ticker
from leased.service.watcher import Watcher, first_look
from leased.terms.command import Caller, Heartbeat, Revoke, Stop
from leased.terms.effect import Effect
from leased.terms.errors import StateError
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import digest

REAPER_WAIT_S = 30
"""systemd starts the reaper first; half a minute is a machine that is very busy booting."""


async def build(
    config: Config,
    footing: Footing,
    opened: Opened,
    *,
    handed: Mapping[str, Sequence[int]],
    lifeline: Lifeline,
    nursery: trio.Nursery,
    reread: Callable[[], Config],
) -> Agent:
    """Recover, wire everything together, start every task; return when the agent serves. Raises
    LeasedError."""
    log, entropy = opened.log, footing.entropy
    lessor = Lessor(entropy, config.policy)
    replayed = recovery.replay(lessor, log)
    sealer = log.sealer()
    agent = Agent(config, footing, log, lessor, sealer, lifeline, reread)
    lifeline.status("asking the reaper")
    await agent.connect(nursery)
    await agent.recover()
    await recovery.settle(log, sealer, config, footing.clock, entropy, agent.say)
    agent.note_sealed()
    agent.fleet.open(handed)
    await agent.start(nursery, opened.doors or open_doors(config, handed, __version__))
    agent.replayed = replayed
    return agent


class Agent:
    """Everything there is one of. Made by `build`."""

    def __init__(
        self,
        config: Config,
        footing: Footing,
        opened: OpenedLog,
        lessor: Lessor,
        sealer: Sealer,
        lifeline: Lifeline,
        reread: Callable[[], Config],
    ) -> None:
        self.config, self.opened, self.lifeline, self._reread = config, opened, lifeline, reread
        self.clock, self.entropy, _, self.node, self.journald = footing
        clock = self.clock
        self.sealer, self.custodian = sealer, Custodian()
        self.devices = Devices(config.hardware, cut_budget_ns=config.timing.cut_ns)
        self._starter = ReaperStarter(config, self.journald.say)
        self.reaper = ReaperLink(
            config.paths.reaper_socket,
            restart=None if lifeline.connected else self._starter,
            lost=self._lose_lease,
            cut=lambda: self.ticker.note_cut(),
            cut_s=config.timing.cut_ns / NS_PER_S + ANSWER_S,
        )
        self.sequencer = Sequencer(
            lessor=lessor,
            sealer=sealer,
            journal=opened.journal,
            clock=clock,
            hold=lambda held: self.grantor.hold(held),
            start=self._start_effects,
            tell=self._tell,
            commands_max=config.sequencing.commands_max,
            batch_commands_max=config.sequencing.batch_commands_max,
            commit_at_once=opened.journal.commit_at_once,
            end_epoch=self._end_epoch,
        )
        submit = self.sequencer.submit_own
        self.upkeep = make_upkeep(self)
        self.chain = ChainReader(
            journal=opened.journal, directory=config.paths.audit_dir, next_seq=sealer.head.size
        )
        self.feed = Feed(lessor.table.find)
        self.ticker = Ticker(lessor=lessor, clock=clock, submit=submit, late_ns=LATE_NS)
        self.holders = Holders(submit, self._lose_owner, self.ticker.is_due)
        self.notifier = Notifier(config.paths.leases_dir)
        self.telemetry = self._make_telemetry()
        self.outlets = self._make_outlets()
        self.grantor, self.reclaimer = self._make_hands()
        self.detachment = self._make_detachment()
        self.listener: Listener | None = None
        self.reaper_pid = self.replayed = 0
        self.vitals = Vitals(
            opened=opened,
            lessor=lessor,
            clock=clock,
            node_id=self.node,
            tree=sealer.frontier,
            reaper_connected=lambda: self.reaper.connected,
            connections=lambda: self.listener.connections if self.listener is not None else 0,
        )
        self.policies, self.calendar = make_policies(self)
        self.fleet = make_fleet(self)
        self.dispatcher = make_dispatcher(self)

    def _make_hands(self) -> tuple[Grantor, Reclaimer]:
        submit = self.sequencer.submit_own
        grantor = Grantor(
            devices=self.devices,
            reaper=self.reaper,
            custodian=self.custodian,
            holders=self.holders,
            submit=submit,
            board=self.reaper,
            outbox=self.sequencer.outbox,
        )
        reclaimer = Reclaimer(
            devices=self.devices,
            reaper=self.reaper,
            custodian=self.custodian,
            grantor=grantor,
            holders=self.holders,
            sampler=self.telemetry,
            submit=submit,
            tell_report=self.journald.tell_report,
            withdrawal=self.devices,
            loosen=self.devices.adoptions.loosen,
            say=self.say,
        )
        return grantor, reclaimer

    def _make_telemetry(self) -> Telemetry:
        return Telemetry(
            clock=self.clock,
            custodian=self.custodian,
            live_leases=self._leases,
            observer=self.devices.observer,
            settings=self.config.telemetry,
            queue_depth=lambda: len(self.sequencer.lessor.queue),
        )

    def _leases(self) -> Sequence[Lease]:
        return tuple(self.sequencer.lessor.table.leases.values())

    def _make_outlets(self) -> Outlets:
        return Outlets(
            settings=self.config.telemetry,
            telemetry=self.telemetry,
            clock=self.clock,
            entropy=self.entropy,
            node_id=self.node,
            version=__version__,
            say=self.journald.say,
            gpu_indices=self.devices.observer.gpu_indices,
            live_leases=self._leases,
        )

    def _make_detachment(self) -> Detachment:
        table = self.sequencer.lessor.table
        return Detachment(drivers=self.devices, table=table, look=lambda: self.watcher.notice())

    # -- start -------------------------------------------------------------------------------------

    async def connect(self, nursery: trio.Nursery) -> None:
        """Have workers and a reaper."""
        with trio.move_on_after(REAPER_WAIT_S) as waited:
            await nursery.start(self.reaper.run)
        if waited.cancelled_caught:
            where = self.config.paths.reaper_socket
            why = self._starter.trouble or "start leased-reaper.service"
            raise StateError(f"no reaper answers at {where}; {why}")
        self.reaper_pid = (await self.reaper.ping()).pid
        self.devices.exempt(self.reaper_pid)
        await self.devices.warm()
        await self.detachment.restore(self.say)
        table = self.sequencer.lessor.table
        self.devices.recall(table.leases.values(), table.pools.inventory)
        self.inventory, seen = await first_look(self.devices, table.pools.inventory, self.say)
        self.watcher = Watcher(
            devices=self.devices,
            clock=self.clock,
            submit=self.sequencer.submit_own,
            inventory=self.inventory,
            seen=seen,
            notices=hotplug.watch,
            clock_steps=self.clock.steps,
            say=self.journald.say,
            contents=self.config.hardware.block.by_contents,
            quiet=self.reclaimer.quiet,
        )

    async def recover(self) -> None:
        """Agree with the reaper about what is held, and seal that the node serves."""
        roster = await self.reaper.roster()
        known = recovery.take_custody(roster, self.custodian)
        table = self.sequencer.lessor.table
        await self.devices.adopt(one for one in table.leases.values() if one.lease_id in known)
        policy = await trio.to_thread.run_sync(self.policies.resumed, table.policy_hash)
        ground = recovery.Ground(
            node_id=self.node,
            version=__version__,
            inventory=self.inventory,
            policy=policy,
            policy_hash=digest(policy),
            rate_hash=self.config.rates.digest(),
            prices=prices_of(self.config.rates),
            calendar=calendar_at(policy, self.clock.now()),
        )
        leaves = tuple(lease.subject.cgroup for lease in table.leases.values())
        strays = await recovery.end_strays(self.devices.end_strays, leaves, self.say)
        await recovery.start(self.sequencer, self.opened, ground, known)
        await recovery.note_strays(self.sequencer, strays)
        now_ns = self.clock.now().boot_ns
        for lost in recovery.rebind(roster, self.sequencer.lessor, self.holders, now_ns):
            self._lose_lease(*lost)

    async def start(self, nursery: trio.Nursery, doors: Sequence[Door]) -> None:
        """Start every task; the doors last."""
        await nursery.start(self.sequencer.run)
        for task in (
            self.grantor.run,
            self.reclaimer.run,
            self.holders.run,
            self.ticker.run,
            self.watcher.run,
            self.telemetry.run,
            self.outlets.run,
            self.journald.run,
            self.calendar.run,
            self.fleet.run,
            self.upkeep.run,
        ):
            nursery.start_soon(task)
        nursery.start_soon(self.devices.watch, self.watcher.notice)
        nursery.start_soon(self.lifeline.run, self._beat, self.config.timing.heartbeat_ns)
        if self.config.collector.url:
            nursery.start_soon(make_uplink(self).run)
        await nursery.start(self.dispatcher.run)
        self.listener = Listener(
            doors=doors,
            dispatch=self.dispatcher,
            holders=self.holders,
            clock=self.clock,
            limits=self.config.sockets,
            tenant_of=self.tenant_of,
            outbox=self.sequencer.outbox,
            cgroup_root=self.config.hardware.cgroup_root,
            begin_turn=self.sequencer.begin_turn,
            end_turn=self.sequencer.end_turn,
        )
        nursery.start_soon(self.listener.run)

    def _lose_lease(self, lease_id: LeaseId, error_number: int) -> None:
        """A reaper that came back could not be given the lease again: it is enforced by nobody."""
        self.journald.say(
            f"lease {lease_id.hex()}: the reaper cannot hold it any more"
            f" ({os.strerror(error_number)}); it is taken back",
        )
        revoke = Revoke(NO_COMMAND, self._operator(), lease_id, RevocationReason.REAPER_LOST)
        self.sequencer.submit_own(revoke)

    def _lose_owner(self, lease_id: LeaseId) -> None:
        """The process that held what the lease comes with has ended, and nobody told it to."""
        self.journald.say(f"lease {lease_id.hex()}: what held its hardware has ended; it is over")
        reason = RevocationReason.DEVICE_UNHEALTHY
        self.sequencer.submit_own(Revoke(NO_COMMAND, self._operator(), lease_id, reason))

    @staticmethod
    def _operator() -> Caller:
        """The agent itself, where a command wants an operator."""
        return Caller(os.geteuid(), os.getegid(), os.getpid(), TenantId("root"), operator=True)

    # -- what the sequencer tells ------------------------------------------------------------------

    def _start_effects(self, effects: Sequence[Effect]) -> None:
        now_ns = self.clock.now().boot_ns
        for effect in effects:
            self.reclaimer.start(effect)
            self.notifier.start(effect, now_ns)

    def _tell(self, told: Told) -> None:
        self.note_sealed()
        self.dispatcher.note_moment(told.moment)
        self.opened.note(told.events, told.sequences)
        self.feed.tell(told)
        self.journald.tell(told)
        self.fleet.tell(told)
        self.watcher.tell(told.events)
        self.ticker.look_again()

    def _end_epoch(self) -> None:
        self.note_sealed()
        self.fleet.end_epoch()
        self.upkeep.end_epoch()

    def note_sealed(self) -> None:
        """Between a commit and the next seal: what is sealed is anchored, and may be shown."""
        self.vitals.tree = self.sealer.frontier
        self.chain.next_seq = self.vitals.tree.size
        self.fleet.wake()

    async def _beat(self) -> None:
        """A heartbeat through the sequencer and back."""
        await self.sequencer.ask_own(Heartbeat(NO_COMMAND))

    # -- what the doors ask ------------------------------------------------------------------------

    def tenant_of(self, uid: int, gids: tuple[int, ...]) -> TenantId | None:
        """By the configuration in force."""
        return self.config.tenant_of(uid, gids)

    async def reload(self) -> None:
        """Read the configuration again; policy, rates, tenants and certificates take force, the
        rest at the next start. All of it, or nothing."""
        await self.policies.reconfigure(
            lambda: self.fleet.check(self._reread()), self._adopt, self._operator()
        )

    def _adopt(self, fresh: Config) -> None:
        self.config = fresh
        self.fleet.reload(fresh.listener)

    # -- what the daemon asks ---------------------------------------------------------------------

    @property
    def leases_live(self) -> int:
        """Leases whose holder still has access."""
        return self.sequencer.lessor.table.live

    def say(self, message: str) -> None:
        """One line for the operator."""
        self.journald.say(message)

    async def stop(self) -> None:
        """Take no more, seal that the node stops, end every stream. Leases go on."""
        self.sequencer.refuse_new()
        await self.sequencer.ask_own(Stop(NO_COMMAND))
        self.feed.close()

    def close(self) -> None:
        """Release what the process holds. Call when no task runs any more."""
        self.upkeep.close()
        self.devices.close()
        self.custodian.drop_all()
        self.journald.close()
