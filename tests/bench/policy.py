# SPDX-License-Identifier: Apache-2.0
"""How long one decision takes with everything of a policy on: the lessor alone, one core, no disk.

Rule: the table is full (leases of every class, most tenants with limits of their own, groups,
borrowing, fair share and reservations) and the queue is too; every decision is timed by itself, in
the time of its own thread and with the garbage collector off; what a grant or a wait changed is
undone, untimed, so that all of them see the same load.

Does not measure the spine: `throughput` does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import msgspec

from leased.lessor.lessor import Lessor
from leased.lessor.victims import Surroundings, find_victims
from leased.lessor.yielding import leaving_of
from leased.terms import command as commands
from leased.terms.bounds import Bounds, publish
from leased.terms.command import Caller, Command
from leased.terms.identity import BootId, CommandId, LeaseId, NodeId, TenantId
from leased.terms.lease import LEVEL_OF, Level, Priority
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import (
    Allocation,
    Borrowing,
    Budget,
    CapacityLimit,
    Group,
    LimitSet,
    Mode,
    Period,
    Policy,
    Rate,
    Strategy,
    TenantLimits,
)
from leased.terms.policy_check import check
from leased.terms.reply import Granted
from leased.terms.resource import Ask, Inventory, Resource, ResourceKind, TierKind
from leased.terms.teardown import CutReport, ProofReport, ScrubReport, Utilization
from tests.bench.loadgen import Figures

PAGE = 4096
LEASES, TENANTS, WAITING = 10_000, 1_000, 1_000
GROUPS = 50
BOOT = BootId(b"b" * 16)
WALL_NS = 1_700_000_000 * NS_PER_S


def full_policy(tenants: int) -> Policy:
    """Everything that the language can say, for so many tenants."""
    kinds = (ResourceKind.MEM, ResourceKind.CPU)
    limits = LimitSet(
        leases_max=64,
        concurrent_max=64,
        waiting_max=64,
        duration_ns_max=8 * 3600 * NS_PER_S,
        submit_rate=Rate(1_000_000, NS_PER_S),
        api_rate=Rate(1_000_000, NS_PER_S),
        level_max=Level.CRITICAL,
        capacities=(
            CapacityLimit(ResourceKind.MEM, 48 * PAGE, mode=Mode.HARD),
            CapacityLimit(ResourceKind.CPU, 64_000, mode=Mode.SOFT),
            CapacityLimit(ResourceKind.MEM, 64 * PAGE, tier=TierKind.DRAM, mode=Mode.SOFT),
        ),
        budgets=(
            Budget(Period.DAY, ResourceKind.MEM, None, 10**24),
            Budget(Period.MONTH, cost_nano=10**18),
        ),
    )
    return check(
        Policy(
            leases_max=LEASES + 64,
            waiting_max=2 * WAITING,
            borrowing=Borrowing(enabled=True),
            allocations=(
                Allocation(kinds[0], strategy=Strategy.FAIR_SHARE, min_share_pm=0),
                Allocation(kinds[1], strategy=Strategy.RESERVATION, borrow_idle=True),
            ),
            groups=tuple(
                (f"g{n}", Group(together=LimitSet(leases_max=4096))) for n in range(GROUPS)
            ),
            tenants=tuple(
                (
                    TenantId(f"t{n}"),
                    TenantLimits(
                        **{name: getattr(limits, name) for name in LimitSet.__struct_fields__},
                        group=f"g{n % GROUPS}",
                    ),
                )
                for n in range(tenants)
            ),
        )
    )


class Floor:
    """A node under load: `lessor` with its leases and its queue, and a clock moved by hand. Every
    request wants so many `milli` of a core with each page, too.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        leases: int = LEASES,
        tenants: int = TENANTS,
        waiting: int = WAITING,
        milli: int = 0,
    ) -> None:
        self._count, self._milli = 0, milli
        self.now_ns = 100_000 * NS_PER_S
        self.leases, self.tenants = leases, tenants
        self.lessor = Lessor(self.next_id, policy)
        size = leases * PAGE  # all of it is leased
        memory = Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, size, PAGE, node=0)
        memory = publish(memory, Bounds(NS_PER_S, NS_PER_S, NS_PER_S, NS_PER_S))
        cpus = (Resource(f"cpu:{n}", ResourceKind.CPU, None, 1000, 1, n // 32) for n in range(64))
        self._start(Inventory((memory, *cpus)), policy)
        for n in range(leases):
            self.now_ns += 1_000_000
            priority = (Priority.SCAVENGER, Priority.STANDARD, Priority.GUARANTEED)[n % 3]
            ttl_ns = (600 + n % 293) * NS_PER_S
            granted = self.say(self.acquire(n % tenants, 1, priority=priority, ttl_ns=ttl_ns))
            assert isinstance(granted, Granted), granted
            self.say(commands.Activate(self.command_id(), granted.lease.lease_id, b""))
        self.now_ns += 120 * NS_PER_S
        for n in range(waiting):
            pages = 8 + n % 5
            self.say(self.acquire(n % tenants, pages, level=Level.BACKGROUND, wait_s=3600))

    def _start(self, inventory: Inventory, policy: Policy) -> None:
        start = commands.Start(
            self.command_id(),
            node_id=NodeId(b"n" * 16),
            version="0",
            filesystem="ext4",
            durability="full",
            inventory=inventory,
            policy=policy,
            policy_hash=b"p" * 32,
            rate_hash=b"r" * 32,
            known_to_reaper=frozenset(),
        )
        self.say(start)

    def next_id(self) -> bytes:
        """Sixteen bytes, never the same."""
        self._count += 1
        return self._count.to_bytes(16, "big")

    def command_id(self) -> CommandId:
        """The id of a command."""
        return CommandId(self.next_id())

    def caller(self, n: int) -> Caller:
        """One tenant."""
        return Caller(1000 + n, 1000, 4242, TenantId(f"t{n}"))

    def acquire(
        self,
        n: int,
        pages: int,
        *,
        level: Level | None = None,
        priority: Priority = Priority.STANDARD,
        ttl_ns: int = 600 * NS_PER_S,
        wait_s: int = 0,
    ) -> commands.Acquire:
        """A request of one tenant for memory, and for shares of cores."""
        asks = (Ask(ResourceKind.MEM, pages * PAGE, TierKind.DRAM),)
        if self._milli:
            asks = (*asks, Ask(ResourceKind.CPU, pages * self._milli))
        return commands.Acquire(
            self.command_id(),
            self.caller(n),
            asks,
            ttl_ns,
            priority if level is None else level.priority,
            wait_s * NS_PER_S,
            level=LEVEL_OF[priority] if level is None else level,
        )

    def say(self, command: Command) -> object:
        """The answer to a command."""
        moment = Moment(BOOT, self.now_ns, WALL_NS + self.now_ns)
        return dict(self.lessor.propose(command, moment).answers).get(command.command_id)

    def reclaim(self, lease_id: LeaseId) -> list[Command]:
        """What ends a lease, command by command."""
        return [
            commands.CutEnded(
                self.command_id(), CutReport(lease_id, self.now_ns, False, True, ()), b""
            ),
            commands.ScrubEnded(
                self.command_id(), ScrubReport(lease_id, self.now_ns, PAGE, True, ()), b""
            ),
            commands.ProofEnded(
                self.command_id(),
                ProofReport(lease_id, self.now_ns, (), ()),
                b"",
                Utilization(0, 0, 0, 0, 0),
            ),
        ]


def _timed(floor: Floor, command: Command, took: list[int]) -> object:
    began = time.thread_time_ns()
    answer = floor.say(command)
    took.append(time.thread_time_ns() - began)
    return answer


def _refusals(floor: Floor, n: int, took: list[int]) -> None:
    _timed(floor, floor.acquire(n % floor.tenants, 9 + n % 3), took)


def _waits(floor: Floor, n: int, took: list[int]) -> None:
    """A request takes its place in the full queue, and leaves it."""
    acquire = floor.acquire(n % floor.tenants, 9 + n % 3, level=Level.BACKGROUND, wait_s=60)
    assert _timed(floor, acquire, took) is None
    floor.say(commands.CancelWait(floor.command_id(), acquire.command_id))


def _renewals(floor: Floor, n: int, took: list[int]) -> None:
    leases = list(floor.lessor.table.leases.values())
    lease = leases[n * 7919 % len(leases)]
    caller = floor.caller(int(lease.subject.tenant[1:]))
    _timed(floor, commands.Renew(floor.command_id(), caller, lease.lease_id), took)


def _turnover(floor: Floor, n: int, took: list[int]) -> None:
    """A lease is released and proven clean: whoever waits is looked at, and one of them is told
    that it has the place.
    """
    leases = list(floor.lessor.table.leases.values())
    lease = leases[n * 7919 % len(leases)]
    caller = floor.caller(int(lease.subject.tenant[1:]))
    if lease.state.name not in ("ACTIVE", "GRANTED", "DRAINING"):
        return
    _timed(floor, commands.Release(floor.command_id(), caller, lease.lease_id), took)
    for command in floor.reclaim(lease.lease_id):
        _timed(floor, command, took)


def _searches(floor: Floor, n: int, took: list[int]) -> None:
    """Who would have to leave for something large, of the highest level: nobody is told."""
    _search(floor, max(1, floor.leases // (10_000, 1_000, 100, 10)[n % 4]), took)


def _large_searches(floor: Floor, n: int, took: list[int]) -> None:
    """The same, for half of the node."""
    _search(floor, floor.leases // 2 - 1 - n % 7, took)


def _search(floor: Floor, pages: int, took: list[int]) -> None:
    acquire = floor.acquire(floor.tenants + 1, pages, level=Level.CRITICAL, wait_s=60)
    asked = msgspec.structs.replace(
        acquire, caller=msgspec.structs.replace(acquire.caller, operator=True)
    )
    began = time.thread_time_ns()
    around = Surroundings(floor.lessor.table, floor.lessor.queue, floor.lessor.admission)
    leaving = leaving_of(floor.lessor.table)
    found = find_victims(floor.lessor.table, around, asked, leaving, floor.now_ns)
    took.append(time.thread_time_ns() - began)
    assert len(found.victims) == pages, len(found.victims)


def _grants(floor: Floor, n: int, took: list[int]) -> None:
    """A request for what nobody waits for is granted, and given back."""
    acquire = commands.Acquire(
        floor.command_id(),
        floor.caller(n % floor.tenants),
        (Ask(ResourceKind.CPU, 500),),
        600 * NS_PER_S,
        Priority.STANDARD,
        level=Level.NORMAL,
    )
    granted = _timed(floor, acquire, took)
    assert isinstance(granted, Granted), granted
    caller = acquire.caller
    floor.say(commands.Release(floor.command_id(), caller, granted.lease.lease_id))
    for command in floor.reclaim(granted.lease.lease_id):
        floor.say(command)


CASES: tuple[tuple[str, float | None, Callable[[Floor, int, list[int]], None]], ...] = (
    ("grant", 1, _grants),
    ("refuse", 1, _refusals),
    ("wait", 1, _waits),
    ("renew", 1, _renewals),
    ("victims, up to 1,000 of them", 5, _searches),
    ("victims, half of the node", 5, _large_searches),
    ("release and proof, the queue served", None, _turnover),
)
"""What is timed, and the most ms that it may take in the 99th percentile."""

SEVERAL: tuple[tuple[str, float | None, Callable[[Floor, int, list[int]], None]], ...] = (
    ("victims for memory and cores, up to 1,000", 5, _searches),
    ("victims for memory and cores, half of the node", 5, _large_searches),
)
"""The same of a node whose leases have shares of its 64 cores, too."""

MILLI = 6


def measure_policy(
    *,
    rounds: int,
    say: Callable[[str], None],
    floor: Floor | None = None,
    both: Floor | None = None,
) -> list[Figures]:
    """The median and the 99th percentile of each kind of decision, in ns."""
    floor = Floor(full_policy(TENANTS)) if floor is None else floor
    both = Floor(full_policy(TENANTS), milli=MILLI) if both is None else both
    rows: list[Figures] = []
    cases = [(floor, *case) for case in CASES] + [(both, *case) for case in SEVERAL]
    for under, name, bar_ms, decide in cases:
        took: list[int] = []
        gc.collect()
        gc.disable()
        try:
            for n in range(rounds):
                under.now_ns += 1_000_000
                decide(under, n, took)
        finally:
            gc.enable()
        rows.append({"what": name, "bar_ms": bar_ms, **_shares(took)})
        p50, p99, most = (rows[-1][share] / 1e6 for share in ("p50_ns", "p99_ns", "max_ns"))
        say(f"{name}: p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {most:.3f} ms")
    return rows


def _shares(took: Sequence[int]) -> Figures:
    took = sorted(took)
    return {
        "count": len(took),
        "p50_ns": took[len(took) // 2],
        "p99_ns": took[len(took) * 99 // 100],
        "max_ns": took[-1],
    }


if __name__ == "__main__":
    measure_policy(rounds=300, say=print)
