# SPDX-License-Identifier: Apache-2.0
"""Whatever happened: replaying the events gives the same table, and deciding again the same events.

Rule: stories are drawn from a seed by `random.Random`, so that a failure names the seed to repeat.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec
import pytest

from leased.lessor.ledger import rows_of
from leased.lessor.lessor import Lessor
from leased.lessor.table import LeaseTable
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.command import Command
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, Level, Priority
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import (
    Allocation,
    Borrowing,
    Budget,
    Calendar,
    CapacityLimit,
    Group,
    LimitSet,
    Mode,
    Period,
    Policy,
    Preemption,
    Price,
    Running,
    Strategy,
    TenantLimits,
    WhenOver,
)
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import Ask, Health, Inventory, ResourceKind
from leased.terms.teardown import CutReport, ProofReport, ScrubReport, TeardownStep
from tests.doubles.desk import ACME, BETA, OPERATOR, PAGE, Desk, Numbers, ask_mem, cores, mem

POLICY = Policy(
    leases_max=20,
    closed_leases_kept=1000,
    tenant_default=TenantLimits(
        leases_max=8, capacities=(CapacityLimit(ResourceKind.MEM, 60 * PAGE),)
    ),
)
RICH = Policy(
    leases_max=30,
    closed_leases_kept=1000,
    overage_ns=20 * NS_PER_S,
    when_over=WhenOver.QUEUE,
    borrowing=Borrowing(enabled=True, grace_ns=5 * NS_PER_S),
    preemption=Preemption(runtime_ns_min_standard=NS_PER_S, cooldown_ns=2 * NS_PER_S),
    allocations=(
        Allocation(ResourceKind.MEM, strategy=Strategy.FAIR_SHARE, max_share_pm=900),
        Allocation(
            ResourceKind.CPU,
            strategy=Strategy.RESERVATION,
            reservations=((ACME.tenant, 1000),),
            opportunistic=2000,
        ),
    ),
    groups=(
        (
            "both",
            Group(
                together=LimitSet(
                    leases_max=24,
                    capacities=(CapacityLimit(ResourceKind.MEM, 70 * PAGE),),
                    budgets=(Budget(Period.WEEK, cost_nano=10**12),),
                ),
                each=LimitSet(level_max=Level.CRITICAL, grace_ns_cut=3 * NS_PER_S),
            ),
        ),
    ),
    tenants=(
        (
            ACME.tenant,
            TenantLimits(
                group="both",
                duration_ns_max=90 * NS_PER_S,
                capacities=(
                    CapacityLimit(
                        ResourceKind.MEM,
                        20 * PAGE,
                        mode=Mode.BURST,
                        burst_capacity=40 * PAGE,
                        burst_ns=9 * NS_PER_S,
                    ),
                    CapacityLimit(ResourceKind.CPU, 2000),
                ),
                budgets=(
                    Budget(Period.DAY, ResourceKind.MEM, capacity_ns=50_000 * PAGE * NS_PER_S),
                ),
            ),
        ),
        (
            BETA.tenant,
            TenantLimits(
                group="both",
                capacities=(
                    CapacityLimit(ResourceKind.MEM, 25 * PAGE, mode=Mode.SOFT),
                    CapacityLimit(ResourceKind.MEM, 22 * PAGE, node=0),
                    CapacityLimit(ResourceKind.CPU, 2000),
                ),
            ),
        ),
    ),
)
CUT = msgspec.structs.replace(
    RICH,
    tenants=(
        *RICH.tenants[:1],
        (
            BETA.tenant,
            TenantLimits(group="both", capacities=(CapacityLimit(ResourceKind.MEM, 5 * PAGE),)),
        ),
    ),
)
PRICES = tuple(
    Price(kind, -1, int(priority), 10**13 * (1 + priority))
    for kind in ResourceKind
    for priority in Priority
)
POLICIES = pytest.mark.parametrize("policy", [POLICY, RICH], ids=["plain", "rich"])
RESOURCES = (mem(0, 50), mem(1, 30), *cores(4, per_node=2))
SMALLER = Inventory((mem(0, 20), *cores(4, per_node=2)))


def _unnumbered(leases: Mapping[LeaseId, Lease]) -> dict[LeaseId, Lease]:
    """Without the number of the granting record, which is a label put on afterwards."""
    return {
        lease_id: msgspec.structs.replace(lease, granted_sequence=-1)
        for lease_id, lease in leases.items()
    }


def snapshot(table: LeaseTable) -> dict[str, object]:
    """Everything that decisions depend on."""
    return {
        "leases": _unnumbered(table.leases),
        "closed": _unnumbered(table.closed),
        "pools": {
            pool.resource_id: (
                pool.resource,
                pool.capacity,
                pool.free,
                pool.leased,
                pool.teardown,
                pool.fenced,
                pool.fenced_by_operator,
                pool.present,
                pool.draining,
            )
            for pool in table.pools.by_id.values()
        },
        "accounts": {
            tenant: (account.leases, account.charges, account.capacities, account.cells)
            for tenant, account in table.accounts.items()
            if account.charges
        },
        "due": table.deadlines.current,
        "cordoned": table.pools.cordoned,
        "requests": table.requests,
        "tenancies": {
            lease_id: (tenancy.ended_ns, tenancy.begun_ns, tenancy.begun_boot, tenancy.cut_boot)
            for lease_id, tenancy in table.tenancies.items()
        },
        "terms": {one: table.terms[one] for one in table.terms if one in table.leases},
        "closed_terms": {one: table.terms[one] for one in table.terms if one in table.closed},
        "overages": dict(table.overages.items()),
        "ledger": (
            {
                tenant: [row for row in rows_of(table.ledger.meter(tenant)) if any(row[-1])]
                for tenant in table.ledger.tenants()
            },
            table.ledger.began_ns,
            table.ledger.began_wall_ns,
        ),
        "node": (
            table.policy_generation,
            table.boot_id,
            table.epoch,
            table.policy_hash,
            table.rate_hash,
        ),
    }


def some_lease(rng: random.Random, desk: Desk) -> LeaseId:
    """Any lease, most likely an open one, now and then one that does not exist."""
    known = list(desk.table.leases)
    if rng.random() < 0.2 or not known:
        known = [*known, *desk.table.closed]
    return rng.choice(known) if known and rng.random() < 0.97 else LeaseId(rng.randbytes(16))


def draw(rng: random.Random, desk: Desk) -> Command:
    """A command, likely or not."""
    command_id, lease_id = desk.command_id(), some_lease(rng, desk)
    caller = rng.choice((ACME, BETA, OPERATOR))
    resource_id = rng.choice(("mem:node0:4096", "mem:node1:4096", "cpu:1", "cpu:9", ""))
    asks: list[Ask] = [
        rng.choice(
            (
                ask_mem(rng.randrange(1, 30)),
                ask_mem(rng.randrange(1, 30), node=rng.randrange(2)),
                Ask(ResourceKind.CPU, rng.randrange(1, 2500)),
                Ask(ResourceKind.CPU, 1000 * rng.randrange(1, 3), exclusive=True),
            )
        )
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    acquire = desk.acquire(
        *asks,
        caller=caller,
        ttl=rng.randrange(1, 60),
        wait=rng.choice((0, 10, 40)),
        level=rng.choice(list(Level)),
        requeue_of=lease_id if rng.random() < 0.05 else None,
    )
    clean = rng.random() < 0.9
    lease = desk.table.leases.get(lease_id)
    unproven = () if clean or lease is None else lease.subject.allotments[:1]
    fenced = [one.lease_id for one in desk.table.leases.values() if one.fenced]
    now_ns, evidence = desk.now_ns, b"e" * 32
    day = Calendar((), (Running(Period.DAY, rng.randrange(3), desk.now_ns + NS_PER_S),))
    likely: list[Command] = [
        acquire,
        commands.Activate(command_id, lease_id, evidence),
        commands.Renew(command_id, caller, lease_id, rng.choice((None, 5 * NS_PER_S, 1))),
        commands.Tick(command_id),
        commands.CutEnded(command_id, CutReport(lease_id, now_ns, True, clean, ()), evidence),
        commands.ScrubEnded(command_id, ScrubReport(lease_id, now_ns, 9, clean, ()), evidence),
        commands.ProofEnded(command_id, ProofReport(lease_id, now_ns, unproven, ()), evidence),
    ]
    seldom: list[Command] = [
        commands.Release(command_id, caller, lease_id),
        commands.CancelWait(command_id, acquire.command_id),
        commands.GrantFailed(command_id, lease_id, Refusal(RefusalReason.BUSY, "")),
        commands.HolderGone(command_id, lease_id),
        commands.Revoke(command_id, caller, lease_id, grace_ns=rng.choice((0, 3 * NS_PER_S))),
        commands.Drain(command_id, caller, resource_id, rng.choice((None, 0, NS_PER_S))),
        commands.Resume(command_id, OPERATOR, resource_id),
        commands.Fence(command_id, caller, resource_id, rng.choice((PAGE, 100, 0))),
        commands.Unfence(command_id, OPERATOR, None, resource_id),
        commands.Unfence(command_id, OPERATOR, rng.choice(fenced or [lease_id])),
        commands.TeardownFailed(command_id, lease_id, rng.choice(list(TeardownStep)), 5, evidence),
        commands.Observe(command_id, rng.choice((Inventory(RESOURCES), SMALLER))),
        commands.ObserveHealth(command_id, resource_id, rng.choice(list(Health)), 3),
        commands.ObserveClockStep(command_id, 7),
        commands.SetPolicy(
            command_id,
            OPERATOR,
            rng.choice((desk.policy, CUT)),
            rng.randbytes(32),
            b"R",
            PRICES,
            day,
        ),
        commands.Turn(command_id, day),
        commands.Plan(command_id, acquire),
        commands.Why(command_id, caller, lease_id),
        commands.ListLeases(command_id, caller, closed=True),
    ]
    return rng.choice(likely if rng.random() < 0.7 else seldom)


def story(
    seed: int, policy: Policy = POLICY, length: int = 250
) -> tuple[Desk, list[tuple[Command, Moment]]]:
    """A desk after a story, and the story. Every invariant has been checked after every command."""
    rng = random.Random(seed)
    desk = Desk(*RESOURCES, policy=policy)
    told: list[tuple[Command, Moment]] = []
    for number in range(length):
        desk.sleep(rng.choice((0, 0.1, 1, 4)))
        if rng.random() < 0.01:
            known = [lease_id for lease_id in desk.table.leases if rng.random() < 0.8]
            boot_number = 2 + number if rng.random() < 0.3 else None
            desk.restart(known=known, boot_number=boot_number)
            told.clear()
        else:
            command = draw(rng, desk)
            told.append((command, desk.moment))
            desk.propose(command)
    return desk, told


@POLICIES
@pytest.mark.parametrize("seed", range(20))
def test_replaying_the_events_gives_the_same_table(seed: int, policy: Policy) -> None:
    desk, _ = story(seed, policy)
    again = Lessor(Numbers(), policy)
    for event, moment in desk.history:
        again.replay(event, moment)
    assert snapshot(again.table) == snapshot(desk.table)


@POLICIES
@pytest.mark.parametrize("seed", range(20))
def test_leases_that_are_closed_can_be_left_out_of_the_replay(seed: int, policy: Policy) -> None:
    desk, _ = story(seed, policy)
    closed = {
        event.lease_id
        for event, _ in desk.history
        if isinstance(event, events.Reclaimed | events.Unfenced)
    }
    again = Lessor(Numbers(), policy)
    for event, moment in desk.history:
        if getattr(event, "lease_id", None) not in closed:
            again.replay(event, moment)
    left_out = ("closed", "closed_terms", "requests")
    was = {key: value for key, value in snapshot(desk.table).items() if key not in left_out}
    now = {key: value for key, value in snapshot(again.table).items() if key not in left_out}
    assert now == was


@POLICIES
@pytest.mark.parametrize("seed", range(10))
def test_the_same_commands_lead_to_the_same_proposals(seed: int, policy: Policy) -> None:
    def tell() -> list[object]:
        desk = Desk(*RESOURCES, policy=policy)
        rng = random.Random(seed)
        proposals: list[object] = []
        for _ in range(200):
            desk.sleep(rng.choice((0, 1, 4)))
            proposals.append(desk.propose(draw(rng, desk)))
        return proposals

    assert tell() == tell()


@pytest.mark.parametrize("seed", range(20))
def test_no_limit_is_ever_exceeded(seed: int) -> None:
    desk, _ = story(seed)
    held: dict[str, tuple[int, int]] = {}
    open_leases: dict[bytes, bool] = {}
    capacity: dict[str, int] = {}
    used: dict[str, int] = {}
    shares: dict[bytes, dict[str, int]] = {}
    for event, _ in desk.history:
        if isinstance(event, events.InventoryChanged):
            capacity = {one.resource_id: one.capacity for one in event.inventory.resources}
        elif isinstance(event, events.Allocated):
            tenant = event.subject.tenant
            leases, pages = held.get(tenant, (0, 0))
            memory = sum(a.capacity for a in event.subject.allotments if a.kind == 0)
            held[tenant] = (leases + 1, pages + memory)
            assert held[tenant][0] <= 8 and held[tenant][1] <= 60 * PAGE
            open_leases[event.lease_id] = True
            assert len(open_leases) <= 20
            mine = shares[event.lease_id] = {}
            for a in event.subject.allotments:
                mine[a.resource_id] = mine.get(a.resource_id, 0) + a.capacity
                used[a.resource_id] = used.get(a.resource_id, 0) + a.capacity
                assert used[a.resource_id] <= capacity[a.resource_id], "a unit was granted twice"
        elif isinstance(event, events.TeardownBegun):
            leases, pages = held[event.subject.tenant]
            memory = sum(a.capacity for a in event.subject.allotments if a.kind == 0)
            held[event.subject.tenant] = (leases - 1, pages - memory)
        elif isinstance(event, events.Reclaimed | events.Unfenced | events.Fenced):
            open_leases.pop(event.lease_id, None)
            kept = shares[event.lease_id]
            fenced: dict[str, int] = {}
            for a in event.fenced if isinstance(event, events.Fenced) else ():
                fenced[a.resource_id] = fenced.get(a.resource_id, 0) + a.capacity
            for resource_id, amount in kept.items():
                used[resource_id] -= amount - fenced.get(resource_id, 0)
            shares[event.lease_id] = fenced
    assert len(desk.lessor.queue) <= POLICY.waiting_max


def test_stories_reach_every_kind_of_event_that_a_table_keeps() -> None:
    kinds: set[type] = set()
    for seed in range(40):
        desk, _ = story(seed, RICH)
        kinds |= {type(event) for event, _ in desk.history}
    lease_kinds = {kind for kind, number in events.KIND.items() if number in events.LEASE_KINDS}
    assert lease_kinds - kinds == {events.Adopted}, "nobody adopts here"
    assert {events.OverageBegan, events.OverageEnded, events.Metered, events.PeriodBegan} <= kinds
