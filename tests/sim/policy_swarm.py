# SPDX-License-Identifier: Apache-2.0
"""Thousands of tenants on one lessor, some of them hostile: `python -m tests.sim.policy_swarm`.

Rule: everything is drawn from one seed, which is printed: the same seed is the same history. What
may not be is checked from outside, from the sealed events alone: nobody is ever above a hard limit,
counting what is being cleaned; a preemptor's level is above its victim's; nobody outlives its
longest duration; whoever waits at the head is served or told; and a replay of the events is the
table.

The hostile ones: storms of renewals, requests split into many small ones, levels that change with
every request, requests without end that are given up, and leases that are held to the last instant.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable

from leased.lessor import invariants
from leased.lessor.lessor import Lessor
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.bounds import Bounds, publish
from leased.terms.command import Caller, Command
from leased.terms.event import Event
from leased.terms.identity import BootId, CommandId, LeaseId, NodeId, TenantId
from leased.terms.lease import LEVEL_OF, LeaseState, Level, RevocationReason
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import Policy
from leased.terms.policy_text import read_policy
from leased.terms.reply import Granted, Refusal, Reply
from leased.terms.resource import Ask, Inventory, Resource, ResourceKind, TierKind
from leased.terms.teardown import CutReport, ProofReport, ScrubReport, Utilization

PAGE = 4096
PAGES = 4_000
GPUS = 64
OWN_PAGES = 12
DURATION_NS = 1_800 * NS_PER_S
BOOT = BootId(b"s" * 16)
WALL_NS = 1_700_000_000 * NS_PER_S
CLOSED_KEPT = 64

TEMPERS = ("honest", "honest", "honest", "storm", "split", "flapping", "fickle", "clinging")


def swarm_policy(tenants: int) -> Policy:
    """Limits for everybody, fair shares of memory, GPUs by priority, a few who may preempt."""
    named = {
        f"t{n}": {
            "level_max": "critical" if n % 16 == 0 else "normal",
            "mem": f"{OWN_PAGES * 4}KiB",
            "leases_max": 8,
            "waiting_max": 4,
            "duration_max": "30min",
            "submit_rate": "30/min",
        }
        for n in range(tenants)
    }
    return read_policy(
        {
            "ttl_max_scavenger": "15min",
            "waiting_max": 512,
            "closed_leases_kept": CLOSED_KEPT,
            "allocation": {"mem": {"strategy": "fair_share", "min_share": "0%", "window": "1h"}},
            "tenants": named,
        }
    )


class Swarm:
    """The node and everybody on it. `findings` is what may not be and was."""

    def __init__(
        self, seed: int, tenants: int, *, pages: int = PAGES, tempers: tuple[str, ...] = TEMPERS
    ) -> None:
        self.rng = random.Random(seed)
        self.tempers = [self.rng.choice(tempers) for _ in range(tenants)]
        self.policy = swarm_policy(tenants)
        self.now_ns = 1_000 * NS_PER_S
        self.count = 0
        self.history: list[tuple[Event, Moment]] = []
        self.lessor = Lessor(self.next_id, self.policy)
        self.live: dict[LeaseId, int] = {}
        self.waiting: dict[CommandId, tuple[int, int]] = {}
        self.held: Counter[int] = Counter()
        self.charge: dict[LeaseId, tuple[int, int]] = {}
        self.levels: dict[LeaseId, Level] = {}
        self.granted_ns: dict[LeaseId, int] = {}
        self.made_way = 0
        self.findings: list[str] = []
        self.said: Counter[str] = Counter()
        self.used_ns: Counter[int] = Counter()
        size = pages * PAGE
        memory = Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, size, PAGE, 0)
        gpus = (
            Resource(f"gpu:{n}", ResourceKind.GPU, None, 1000, 1000, n // 8) for n in range(GPUS)
        )
        bounds = Bounds(NS_PER_S, NS_PER_S, 5 * NS_PER_S, 5 * NS_PER_S)
        self.inventory = Inventory(tuple(publish(one, bounds) for one in (memory, *gpus)))
        self.propose(self._start())

    def next_id(self) -> bytes:
        """Sixteen bytes, the same in every run of the seed."""
        self.count += 1
        return self.count.to_bytes(16, "big")

    def _start(self) -> Command:
        return commands.Start(
            CommandId(self.next_id()),
            node_id=NodeId(b"n" * 16),
            version="0",
            filesystem="ext4",
            durability="full",
            inventory=self.inventory,
            policy=self.policy,
            policy_hash=b"p" * 32,
            rate_hash=b"r" * 32,
            known_to_reaper=frozenset(self.live),
        )

    def caller(self, n: int) -> Caller:
        """One tenant."""
        return Caller(1_000 + n, 1_000, 7, TenantId(f"t{n}"))

    # ---- what is done ----------------------------------------------------------------------------

    def propose(self, command: Command) -> Reply | None:
        """Decide, seal, and hold it to what may not be."""
        moment = Moment(BOOT, self.now_ns, WALL_NS + self.now_ns)
        proposal = self.lessor.propose(command, moment)
        for event in proposal.events:
            self.history.append((event, moment))
            self._judge(event)
        for command_id, reply in proposal.answers:
            self.waiting.pop(command_id, None)
            self.said[_name(reply)] += 1
            if isinstance(reply, Granted):
                self.propose(
                    commands.Activate(CommandId(self.next_id()), reply.lease.lease_id, b"")
                )
        return dict(proposal.answers).get(command.command_id)

    def _judge(self, event: Event) -> None:
        if isinstance(event, events.Allocated):
            n = event.subject.uid - 1_000
            pages = sum(a.capacity for a in event.subject.allotments if a.kind is ResourceKind.MEM)
            self.held[n] += pages
            self.charge[event.lease_id] = (n, pages)
            self.live[event.lease_id] = n
            self.granted_ns[event.lease_id] = event.effective_ns
            self.levels[event.lease_id] = LEVEL_OF[event.subject.priority]
            if self.held[n] > OWN_PAGES * PAGE:
                self.findings.append(f"t{n} has {self.held[n]} bytes: above its hard limit")
        elif isinstance(event, events.Admitted):
            self.levels[event.lease_id] = Level(event.level)
        elif isinstance(event, events.Renewed):
            if event.deadline_ns - self.granted_ns[event.lease_id] > DURATION_NS:
                self.findings.append("a lease was renewed beyond its longest duration")
        elif isinstance(event, events.Preempted):
            self.made_way += 1
            levels = [
                one.level for one in self.lessor.queue if one.lease_id == event.preemptor_lease_id
            ]
            lease = self.lessor.table.find(event.lease_id)
            if lease is not None and lease.reason is RevocationReason.QUOTA_RECLAIM:
                return  # above its fair part, which is no matter of levels
            if not levels or self.levels[event.lease_id] >= levels[0]:
                self.findings.append("a lease made way for a level that is not higher")
        elif isinstance(event, events.Reclaimed | events.Fenced):
            n, held = self.charge.pop(event.lease_id)
            self.held[n] -= held
            self.used_ns[n] += held // PAGE * (self.now_ns - self.granted_ns[event.lease_id])
        elif isinstance(event, events.Released | events.Expired | events.Revoked):
            self.live.pop(event.lease_id, None)

    def settle(self) -> None:
        """Some of what ended is proven clean by now; the rest later."""
        for lease in tuple(self.lessor.table.leases.values()):
            if lease.state is LeaseState.REVOKING and self.rng.random() < 0.8:
                self._teardown(lease.lease_id)

    def _teardown(self, lease_id: LeaseId) -> None:
        at_ns = self.now_ns
        cut, scrub = (
            CutReport(lease_id, at_ns, False, True, ()),
            ScrubReport(lease_id, at_ns, PAGE, True, ()),
        )
        proof, used = ProofReport(lease_id, at_ns, (), ()), Utilization(0, 0, 0, 0, 0)
        self.propose(commands.CutEnded(CommandId(self.next_id()), cut, b""))
        self.propose(commands.ScrubEnded(CommandId(self.next_id()), scrub, b""))
        self.propose(commands.ProofEnded(CommandId(self.next_id()), proof, b"", used))

    def ask(self, n: int, level: Level, *, pages: int = 0, gpus: int = 0, wait_s: int = 0) -> None:
        """A request of one tenant."""
        asks = [Ask(ResourceKind.MEM, pages * PAGE)] if pages else []
        asks += [Ask(ResourceKind.GPU, 1000 * gpus)] if gpus else []
        command_id = CommandId(self.next_id())
        caller = self.caller(n)
        acquire = commands.Acquire(
            command_id,
            caller,
            tuple(asks),
            self.rng.randrange(30, 600) * NS_PER_S,
            level.priority,
            wait_s * NS_PER_S,
            level=level,
        )
        if self.propose(acquire) is None:
            self.waiting[command_id] = (n, self.now_ns + wait_s * NS_PER_S)

    def renew(self, n: int, times: int) -> None:
        """Renew leases of one tenant again and again."""
        mine = [one for one, owner in self.live.items() if owner == n]
        for lease_id in mine[:4]:
            for _ in range(times):
                self.propose(
                    commands.Renew(CommandId(self.next_id()), self.caller(n), lease_id, None)
                )

    def release(self, n: int) -> None:
        """Give back whatever one tenant has."""
        for lease_id in [one for one, owner in self.live.items() if owner == n]:
            self.propose(commands.Release(CommandId(self.next_id()), self.caller(n), lease_id))

    # ---- how tenants are -------------------------------------------------------------------------

    def step(self) -> None:
        """One tenant does what it does, and time goes on."""
        self.now_ns += self.rng.randrange(1, 400) * NS_PER_S // 1_000
        due_ns = self.lessor.next_deadline_ns()
        if due_ns is not None and due_ns <= self.now_ns:
            self.propose(commands.Tick(CommandId(self.next_id())))
        n = self.rng.randrange(len(self.tempers))
        ACTS[self.tempers[n]](self, n)
        if self.rng.random() < 0.3:
            self.settle()
        overdue = [at for _, at in self.waiting.values() if self.now_ns - at > 600 * NS_PER_S]
        if overdue:
            self.findings.append("somebody waits long after its wait was over")

    def finish(self) -> list[str]:
        """What is left to check at the end."""
        self.findings += invariants.violations(self.lessor.table)
        again = Lessor(self.next_id, self.policy)
        for event, moment in self.history:
            again.replay(event, moment)
        if again.table.leases != self.lessor.table.leases:
            self.findings.append("a replay of the events is another table")
        return self.findings


def _name(reply: Reply) -> str:
    return reply.reason.name.lower() if isinstance(reply, Refusal) else type(reply).__name__.lower()


def _honest(swarm: Swarm, n: int) -> None:
    draw = swarm.rng.random()
    top = Level.CRITICAL if n % 16 == 0 and draw < 0.1 else Level.NORMAL
    if draw < 0.5:
        swarm.ask(n, top, pages=swarm.rng.randrange(1, OWN_PAGES), wait_s=120)
    elif draw < 0.7:
        swarm.ask(n, top, gpus=1, wait_s=300)
    elif draw < 0.9:
        swarm.renew(n, 1)
    else:
        swarm.release(n)


def _storm(swarm: Swarm, n: int) -> None:
    swarm.ask(n, Level.NORMAL, pages=2)
    swarm.renew(n, 20)


def _split(swarm: Swarm, n: int) -> None:
    for _ in range(24):
        swarm.ask(n, Level.NORMAL, pages=1, wait_s=swarm.rng.choice((0, 60)))


def _flapping(swarm: Swarm, n: int) -> None:
    for level in swarm.rng.sample(list(Level), 3):
        swarm.ask(n, level, gpus=swarm.rng.randrange(1, 4), wait_s=60)


def _fickle(swarm: Swarm, n: int) -> None:
    swarm.ask(n, Level.LOW, pages=OWN_PAGES, gpus=2, wait_s=3_000)
    mine = [one for one, (owner, _) in swarm.waiting.items() if owner == n]
    for command_id in mine:
        if swarm.rng.random() < 0.7:
            swarm.propose(commands.CancelWait(CommandId(swarm.next_id()), command_id))
            swarm.waiting.pop(command_id, None)


def _clinging(swarm: Swarm, n: int) -> None:
    swarm.ask(n, Level.BACKGROUND, pages=OWN_PAGES, wait_s=60)
    swarm.renew(n, 2)


def _steady(swarm: Swarm, n: int) -> None:
    for _ in range(3):
        swarm.ask(n, Level.NORMAL, pages=OWN_PAGES // 3, wait_s=300)
    swarm.renew(n, 1)


def _steady_storm(swarm: Swarm, n: int) -> None:
    _steady(swarm, n)
    swarm.renew(n, 20)


def _steady_flapping(swarm: Swarm, n: int) -> None:
    for level in swarm.rng.sample(list(Level), 3):
        swarm.ask(n, level, pages=OWN_PAGES // 3, wait_s=300)
    swarm.renew(n, 1)


ACTS: dict[str, Callable[[Swarm, int], None]] = {
    "honest": _honest,
    "storm": _storm,
    "split": _split,
    "flapping": _flapping,
    "fickle": _fickle,
    "clinging": _clinging,
    "steady": _steady,
    "steady-storm": _steady_storm,
    "steady-flapping": _steady_flapping,
}
CONTEST = ("steady", "steady", "steady-storm", "split", "steady-flapping")
"""Everybody wants all that it may have of memory that is a third of that; some by a trick."""


def run(seed: int, tenants: int, steps: int) -> Swarm:
    """A whole history."""
    swarm = Swarm(seed, tenants)
    for number in range(steps):
        swarm.step()
        if number % 500 == 0:
            swarm.findings += invariants.violations(swarm.lessor.table)
        if swarm.findings:
            break
    swarm.finish()
    return swarm


def contest(seed: int, tenants: int, steps: int) -> dict[str, float]:
    """What a tenant of each temper had of scarce memory, in shares of what a steady one had."""
    swarm = Swarm(seed, tenants, pages=tenants * OWN_PAGES // 3, tempers=CONTEST)
    for _ in range(steps):
        swarm.step()
    assert swarm.finish() == []
    had: dict[str, list[int]] = {}
    for n, temper in enumerate(swarm.tempers):
        if n % 16:  # the others may take levels that win: their right, not a trick
            had.setdefault(temper, []).append(swarm.used_ns[n])
    means = {temper: sum(all_of) / len(all_of) for temper, all_of in had.items()}
    return {temper: mean / means["steady"] for temper, mean in means.items()}


def main() -> int:
    """Play one seed, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--tenants", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.tenants} tenants, {options.steps} steps", flush=True)
    swarm = run(options.seed, options.tenants, options.steps)
    print(f"{len(swarm.history)} events, {swarm.made_way} leases made way")
    print(dict(swarm.said.most_common()))
    for finding in swarm.findings:
        print(f"FOUND: {finding}")
    return 1 if swarm.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
