# SPDX-License-Identifier: Apache-2.0
"""A desk: a Lessor with everything around it played by hand, so that a test reads as a story.

Rule: it keeps the whole history that a log would keep (`history`), checks every invariant after
every command, and argues back: a proposal that answers the same command twice or leaves a
command unanswered fails the test. Time stands still unless the test moves it.

Does not decide anything and hides no state: `lessor` and `table` are the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from leased.lessor import invariants
from leased.lessor.draft import Proposal
from leased.lessor.lessor import Lessor
from leased.lessor.table import LeaseTable
from leased.terms import command as commands
from leased.terms.command import Caller, Command
from leased.terms.effect import Effect
from leased.terms.event import Event
from leased.terms.identity import BootId, CommandId, LeaseId, TenantId
from leased.terms.lease import Lease, LeaseState, Level, Priority
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import Policy, TenantLimits
from leased.terms.policy_check import check
from leased.terms.reply import Granted, Refusal, Reply
from leased.terms.resource import Allotment, Ask, Inventory, Resource, ResourceKind, TierKind
from leased.terms.teardown import CutReport, ProofReport, ScrubReport, StepReport, Utilization

PAGE = 4096
HUGE = 2 << 20
ANY_LEVEL = Policy(tenant_default=TenantLimits(level_max=Level.CRITICAL))
EVIDENCE = b"\xee" * 32
WALL_NS = 1_700_000_000 * NS_PER_S


def boot(number: int) -> BootId:
    """The id of the n-th boot of a test."""
    return BootId(number.to_bytes(16, "big"))


def tenant(name: str, uid: int = 1000, *, operator: bool = False) -> Caller:
    """A caller as the kernel would describe them."""
    return Caller(uid, uid, 4242, TenantId(name), operator)


ACME, BETA = tenant("acme", 1000), tenant("beta", 2000)
OPERATOR = tenant("ops", 0, operator=True)


def mem(node: int, pages: int, *, tier: TierKind = TierKind.DRAM, page: int = PAGE) -> Resource:
    """A memory resource of `pages` pages."""
    return Resource(f"mem:node{node}:{page}", ResourceKind.MEM, tier, pages * page, page, node)


def cores(count: int, *, per_node: int = 4) -> tuple[Resource, ...]:
    """`count` cores, `per_node` of them on each NUMA node."""
    return tuple(
        Resource(f"cpu:{core}", ResourceKind.CPU, None, 1000, 1, core // per_node)
        for core in range(count)
    )


def ask_mem(pages: int, *, node: int | None = None, tier: TierKind | None = None) -> Ask:
    """So many small pages."""
    return Ask(ResourceKind.MEM, pages * PAGE, tier, node)


class Numbers:
    """Entropy that counts: 16 bytes, never the same twice, the same in every run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return b"\x1d" + self.count.to_bytes(15, "big")


class Desk:
    """A started lessor. `inventory` defaults to 1000 pages of memory on node 0."""

    def __init__(
        self,
        *resources: Resource,
        policy: Policy | None = None,
        expiries_max: int = 512,
        boot_number: int = 1,
    ) -> None:
        self.policy = check(policy if policy is not None else Policy())
        self.inventory = Inventory(resources or (mem(0, 1000),))
        self.ids = Numbers()
        self.now_ns = 1000 * NS_PER_S
        self.boot_id = boot(boot_number)
        self.history: list[tuple[Event, Moment]] = []
        self.answers: dict[bytes, Reply] = {}
        self.effects: list[Effect] = []
        self._commands = 0
        self._expiries_max = expiries_max
        self.lessor = self._new_lessor()
        self.start()

    def _new_lessor(self) -> Lessor:
        return Lessor(self.ids, self.policy, expiries_max=self._expiries_max)

    @property
    def table(self) -> LeaseTable:
        """The real table."""
        return self.lessor.table

    @property
    def moment(self) -> Moment:
        """Now."""
        return Moment(self.boot_id, self.now_ns, WALL_NS + self.now_ns)

    def command_id(self) -> CommandId:
        """A fresh one, as a client would choose it."""
        self._commands += 1
        return CommandId(b"\xc0" + self._commands.to_bytes(15, "big"))

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.now_ns += round(seconds * NS_PER_S)

    def propose(self, command: Command) -> Proposal:
        """Let the lessor decide, and hold it to what a proposal promises."""
        proposal = self.lessor.propose(command, self.moment)
        self.history += [(event, self.moment) for event in proposal.events]
        self.effects += proposal.effects
        answered = [command_id for command_id, _ in proposal.answers]
        assert len(set(answered)) == len(answered), "a command was answered twice"
        if not isinstance(command, commands.Acquire):
            assert answered and answered[0] == command.command_id, "the own answer comes first"
        self.answers.update(proposal.answers)
        assert invariants.violations(self.table) == []
        return proposal

    def say(self, command: Command) -> Reply | None:
        """The answer to `command`; None if it has to wait."""
        proposal = self.propose(command)
        return dict(proposal.answers).get(command.command_id)

    # ---- a run -----------------------------------------------------------------------------------

    def start(self, known: Sequence[LeaseId] = ()) -> Proposal:
        """Begin a run."""
        return self.propose(
            commands.Start(
                self.command_id(),
                node_id=b"n" * 16,
                version="0",
                filesystem="ext4",
                durability="full",
                inventory=self.inventory,
                policy=self.policy,
                policy_hash=b"p" * 32,
                rate_hash=b"r" * 32,
                known_to_reaper=frozenset(known),
            )
        )

    def restart(self, *, known: Sequence[LeaseId] = (), boot_number: int | None = None) -> Proposal:
        """Kill the agent and begin again from the history."""
        self.lessor = self._new_lessor()
        for sequence, (event, moment) in enumerate(self.history):
            self.lessor.replay(event, moment, sequence)
        if boot_number is not None:
            self.boot_id = boot(boot_number)
            self.now_ns = 5 * NS_PER_S
        return self.start(known)

    # ---- clients ---------------------------------------------------------------------------------

    def acquire(
        self,
        *asks: Ask,
        caller: Caller = ACME,
        ttl: float = 60,
        wait: float = 0,
        priority: Priority = Priority.STANDARD,
        grace: float | None = None,
        command_id: CommandId | None = None,
        level: Level | None = None,
        requeue_of: LeaseId | None = None,
    ) -> commands.Acquire:
        """A request, not yet made. Without asks, one page of memory."""
        return commands.Acquire(
            self.command_id() if command_id is None else command_id,
            caller,
            asks or (ask_mem(1),),
            round(ttl * NS_PER_S),
            priority if level is None else level.priority,
            round(wait * NS_PER_S),
            None if grace is None else round(grace * NS_PER_S),
            level=level,
            requeue_of=requeue_of,
        )

    def ask(self, *asks: Ask, **how: object) -> Reply | None:
        """Make a request."""
        return self.say(self.acquire(*asks, **how))

    def grant(self, *asks: Ask, **how: object) -> Lease:
        """A lease, granted but not yet active."""
        reply = self.ask(*asks, **how)
        assert isinstance(reply, Granted), reply
        return reply.lease

    def lease(self, *asks: Ask, **how: object) -> Lease:
        """An active lease."""
        return self.activate(self.grant(*asks, **how))

    def refused(self, *asks: Ask, **how: object) -> Refusal:
        """The refusal of a request."""
        reply = self.ask(*asks, **how)
        assert isinstance(reply, Refusal), reply
        return reply

    def activate(self, lease: Lease) -> Lease:
        """The hardware is ready and the reaper armed."""
        self.say(commands.Activate(self.command_id(), lease.lease_id, EVIDENCE))
        return self.at(lease)

    def renew(self, lease: Lease, ttl: float | None = None, caller: Caller = ACME) -> Reply | None:
        """Ask for more time."""
        ttl_ns = None if ttl is None else round(ttl * NS_PER_S)
        return self.say(commands.Renew(self.command_id(), caller, lease.lease_id, ttl_ns))

    def release(self, lease: Lease, caller: Caller = ACME) -> Reply | None:
        """Give it back."""
        return self.say(commands.Release(self.command_id(), caller, lease.lease_id))

    def tick(self) -> Proposal:
        """Time has passed."""
        return self.propose(commands.Tick(self.command_id()))

    def at(self, lease: Lease) -> Lease:
        """The lease as it is now."""
        found = self.table.find(lease.lease_id)
        assert found is not None
        return found

    # ---- teardown --------------------------------------------------------------------------------

    def cut(self, lease: Lease, *, at_ns: int | None = None, by_reaper: bool = False) -> Proposal:
        """Access has ended."""
        report = CutReport(
            lease.lease_id, self.now_ns if at_ns is None else at_ns, by_reaper, True, ()
        )
        return self.propose(commands.CutEnded(self.command_id(), report, EVIDENCE))

    def cut_failed(self, lease: Lease, *steps: StepReport) -> Proposal:
        """Access could not be ended."""
        report = CutReport(lease.lease_id, 0, False, False, steps)
        return self.propose(commands.CutEnded(self.command_id(), report, EVIDENCE))

    def scrub(self, lease: Lease, *, clean: bool = True) -> Proposal:
        """The hardware was overwritten."""
        report = ScrubReport(lease.lease_id, self.now_ns, 4096, clean, ())
        return self.propose(commands.ScrubEnded(self.command_id(), report, EVIDENCE))

    def prove(self, lease: Lease, *unproven: Allotment) -> Proposal:
        """Another source has looked."""
        report = ProofReport(lease.lease_id, self.now_ns, unproven, ())
        used = Utilization(500, 900, 700, 10, 1000)
        return self.propose(commands.ProofEnded(self.command_id(), report, EVIDENCE, used))

    def reclaim(self, lease: Lease) -> Lease:
        """The whole teardown of a lease that has ended."""
        if self.at(lease).state is LeaseState.REVOKING:
            self.cut(lease)
        self.scrub(lease)
        self.prove(lease)
        return self.at(lease)

    def free(self, resource_id: str = "mem:node0:4096") -> int:
        """What is free of a resource, in its raw unit."""
        return self.table.pools.by_id[resource_id].free
