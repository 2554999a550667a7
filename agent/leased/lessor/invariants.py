# SPDX-License-Identifier: Apache-2.0
"""Invariants: what must be true of every lease table, as named predicates.

Rule: a predicate recomputes from the leases what the table keeps as counters, and says in words
what does not agree. None of them trusts another column of the same table. Used by tests, by the
simulator and at the start of a run.

Does not repair anything: a table that breaks one is our own mistake, and the process ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from leased.lessor.accounts import KIND_COUNT
from leased.lessor.lifecycle import LIVE, TEARDOWN
from leased.lessor.table import LeaseTable, end_ns
from leased.terms.errors import InvariantError
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import LeaseState, Level, Priority
from leased.terms.resource import capacity_id

Predicate = Callable[[LeaseTable], Iterator[str]]


def capacity_adds_up(table: LeaseTable) -> Iterator[str]:
    """free + leased + teardown + fenced = capacity per resource, each column as the leases say."""
    columns: dict[str, list[int]] = {
        resource_id: [0, 0, pool.fenced_by_operator]
        for resource_id, pool in table.pools.by_id.items()
        if pool.counted is pool
    }
    for lease in table.leases.values():
        if lease.state is LeaseState.FENCED:
            shares, column = lease.fenced, 2
        else:
            shares, column = lease.subject.allotments, 0 if lease.state in LIVE else 1
        for allotment in shares:
            counted_by = capacity_id(allotment.resource_id)
            columns.setdefault(counted_by, [0, 0, 0])[column] += allotment.capacity
    for resource_id, expected in columns.items():
        pool = table.pools.by_id.get(resource_id)
        if pool is None:
            yield f"{resource_id}: held, but has no pool"
            continue
        if [pool.leased, pool.teardown, pool.fenced] != expected:
            kept = [pool.leased, pool.teardown, pool.fenced]
            yield f"{resource_id}: leased, teardown, fenced are {kept}, the leases say {expected}"
        if pool.free + sum(expected) != pool.capacity:
            yield f"{resource_id}: the columns do not add up to {pool.capacity}"
        if pool.capacity != (pool.resource.capacity if pool.present else 0):
            yield f"{resource_id}: the capacity is not the inventory's"


def tenants_add_up(table: LeaseTable) -> Iterator[str]:
    """What is on a tenant's account is what its leases have, from the grant to the proof."""
    leases: dict[TenantId, int] = {}
    capacities: dict[TenantId, list[int]] = {}
    teardowns: dict[TenantId, list[int]] = {}
    for lease in table.leases.values():
        if lease.state is LeaseState.FENCED:
            continue
        tenant = lease.subject.tenant
        leases[tenant] = leases.get(tenant, 0) + (lease.state in LIVE)
        held = capacities.setdefault(tenant, [0] * KIND_COUNT)
        cleaned = teardowns.setdefault(tenant, [0] * KIND_COUNT)
        for allotment in lease.subject.allotments:
            held[allotment.kind] += allotment.capacity
            cleaned[allotment.kind] += allotment.capacity * (lease.state in TEARDOWN)
    for tenant, account in table.accounts.items():
        if account.leases != leases.get(tenant, 0):
            yield f"tenant {tenant}: {account.leases} leases, the table has {leases.get(tenant, 0)}"
        if account.capacities != capacities.get(tenant, [0] * KIND_COUNT):
            yield f"tenant {tenant}: the capacities are not those of its leases"
        if account.teardown != teardowns.get(tenant, [0] * KIND_COUNT):
            yield f"tenant {tenant}: what is being cleaned is not what its leases had"
        cells = [0] * KIND_COUNT
        for cell, capacity in account.cells.items():
            cells[cell[0]] += capacity
        if cells != account.capacities or any(capacity <= 0 for capacity in account.cells.values()):
            yield f"tenant {tenant}: the cells do not add up to the capacities"
    for tenant in leases:
        if table.accounts.get(tenant) is None:
            yield f"tenant {tenant}: holds leases without an account"


def live_leases_have_a_deadline(table: LeaseTable) -> Iterator[str]:
    """Exactly the live leases are due some time, each at its own end."""
    current = table.deadlines.current
    for lease_id, lease in table.leases.items():
        due_ns = current.get(lease_id)
        if lease.state in LIVE and due_ns != end_ns(lease):
            yield f"{lease_id.hex()}: is due at {due_ns}, ends at {end_ns(lease)}"
        if lease.state not in LIVE and due_ns is not None:
            yield f"{lease_id.hex()}: is due although it has ended"
    for lease_id in current:
        if lease_id not in table.leases:
            yield f"{lease_id.hex()}: is due although it is closed"


def states_are_consistent(table: LeaseTable) -> Iterator[str]:
    """A lease says how it ended exactly when it has; only a fenced one lists what is fenced."""
    for lease_id, lease in table.leases.items():
        name = lease_id.hex()
        if lease_id != lease.lease_id:
            yield f"{name}: kept under another id"
        if lease.state is LeaseState.RECLAIMED:
            yield f"{name}: reclaimed, but not closed"
        if (lease.ended is None) != (lease.state in LIVE):
            yield f"{name}: {lease.state.name}, but ended is {lease.ended}"
        if (lease.state is LeaseState.FENCED) != bool(lease.fenced):
            yield f"{name}: {lease.state.name}, but fenced is {lease.fenced}"
        if (lease.state is LeaseState.DRAINING) and lease.drain_deadline_ns is None:
            yield f"{name}: draining without an end"
        begun = lease_id in table.tenancies and table.tenancies[lease_id].begun_ns is not None
        if begun == (lease.state in LIVE):
            yield f"{name}: {lease.state.name}, but teardown begun is {begun}"
    fenced = sum(lease.state is LeaseState.FENCED for lease in table.leases.values())
    if table.fenced_count != fenced:
        yield f"{table.fenced_count} leases counted as fenced, {fenced} are"
    teardown = sum(lease.state in TEARDOWN for lease in table.leases.values())
    if table.live + teardown != table.occupied:
        yield f"{table.occupied} places taken, by {table.live} live and {teardown} in teardown"


def requests_find_their_leases(table: LeaseTable) -> Iterator[str]:
    """Every lease is found by who asked and the id they chose, and nothing else is."""
    for lease in table.leases.values():
        if table.requests.get((lease.subject.uid, lease.command_id)) != lease.lease_id:
            yield f"{lease.lease_id.hex()}: its request does not find it"
    for lease_id in table.requests.values():
        if table.find(lease_id) is None:
            yield f"{lease_id.hex()}: found by a request, but forgotten"
    if len(table.closed) > table.closed_max:
        yield f"{len(table.closed)} closed leases kept, {table.closed_max} allowed"


def yielders_are_in_order(table: LeaseTable) -> Iterator[str]:
    """Who could leave for others is in the order that sorting the table gives, on every pool; and a
    pool knows how much of it is going to be free.
    """
    rows: dict[str, list[tuple[Level, int, int, LeaseId]]] = {}
    draining: dict[str, int] = {}
    for lease in table.leases.values():
        if lease.state not in LIVE:
            continue
        row = (table.level(lease), lease.deadline_ns, -lease.granted_ns, lease.lease_id)
        shares = [(capacity_id(a.resource_id), a.capacity) for a in lease.subject.allotments]
        for resource_id, capacity in shares:
            if lease.state is LeaseState.DRAINING:
                draining[resource_id] = draining.get(resource_id, 0) + capacity
        if lease.state is not LeaseState.DRAINING and lease.subject.priority < Priority.GUARANTEED:
            for resource_id, _ in dict(shares).items():
                rows.setdefault(resource_id, []).append(row)
    for pool in table.pools.by_id.values():
        if pool.counted is not pool:
            continue
        name = pool.resource_id
        if pool.draining != draining.get(name, 0):
            yield f"{name}: {pool.draining} is draining, the leases say {draining.get(name, 0)}"
        kept = list(table.yielders.below(Level.CRITICAL, [name], table.leases))
        if [one.lease_id for one in kept] != [row[-1] for row in sorted(rows.get(name, []))]:
            yield f"{name}: its yielders are not those of the table, or in another order"
        held = sum(
            allotment.capacity
            for one in kept
            for allotment in one.subject.allotments
            if capacity_id(allotment.resource_id) == name
        )
        if held != table.yielders.capacity_below(Level.CRITICAL, name):
            yield f"{name}: what its yielders have does not add up"


INVARIANTS: Final[tuple[Predicate, ...]] = (
    capacity_adds_up,
    tenants_add_up,
    live_leases_have_a_deadline,
    states_are_consistent,
    requests_find_their_leases,
    yielders_are_in_order,
)


def violations(table: LeaseTable) -> list[str]:
    """Everything that is not as it must be, each with the name of the predicate."""
    return [
        f"{predicate.__name__}: {what}" for predicate in INVARIANTS for what in predicate(table)
    ]


def check(table: LeaseTable) -> None:
    """Raise InvariantError if anything is not as it must be."""
    found = violations(table)
    if found:
        raise InvariantError("; ".join(found[:8]))
