# SPDX-License-Identifier: Apache-2.0
"""Each invariant notices the damage it is there for, and the table refuses what cannot follow."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from leased.lessor import invariants
from leased.lessor.table import LeaseTable
from leased.terms import event as events
from leased.terms.errors import InvariantError
from leased.terms.lease import Ending, LeaseState, Level
from tests.doubles.desk import EVIDENCE, Desk, ask_mem


def damaged_desk() -> Desk:
    """One live lease, one in teardown, one fenced, one closed."""
    desk = Desk()
    leases = [desk.lease(ask_mem(n)) for n in (1, 2, 3, 4)]
    for lease in leases[1:]:
        desk.release(lease)
    desk.cut_failed(leases[2])
    desk.reclaim(leases[3])
    return desk


def _more_free(table: LeaseTable) -> None:
    table.pools.by_id["mem:node0:4096"].free += 4096


def _moved_share(table: LeaseTable) -> None:
    pool = table.pools.by_id["mem:node0:4096"]
    pool.leased += 4096
    pool.teardown -= 4096


def _lost_pool(table: LeaseTable) -> None:
    table.pools.by_id.clear()


def _wrong_count(table: LeaseTable) -> None:
    table.accounts._tenants["acme"].leases += 1


def _wrong_capacity(table: LeaseTable) -> None:
    table.accounts._tenants["acme"].capacities[0] -= 1


def _no_account(table: LeaseTable) -> None:
    table.accounts._tenants.clear()


def _no_deadline(table: LeaseTable) -> None:
    table.deadlines.discard(next(iter(table.leases)))


def _due_again(table: LeaseTable) -> None:
    table.deadlines.set(next(iter(table.closed)), 5)


def _due_in_teardown(table: LeaseTable) -> None:
    table.deadlines.set(list(table.leases)[1], 5)


def _ended_and_live(table: LeaseTable) -> None:
    lease_id, lease = next(iter(table.leases.items()))
    table.leases[lease_id] = msgspec.structs.replace(lease, ended=Ending.EXPIRED)


def _draining_for_ever(table: LeaseTable) -> None:
    lease_id, lease = next(iter(table.leases.items()))
    table.leases[lease_id] = msgspec.structs.replace(lease, state=LeaseState.DRAINING)


def _wrong_fence_count(table: LeaseTable) -> None:
    table.fenced_count = 0


def _lost_request(table: LeaseTable) -> None:
    table.requests.clear()


def _forgotten_closed(table: LeaseTable) -> None:
    table.closed.clear()


def _yields_to_nobody(table: LeaseTable) -> None:
    table.yielders.leave(next(iter(table.leases.values())))


def _yields_twice(table: LeaseTable) -> None:
    lease = next(iter(table.leases.values()))
    table.yielders.enter(lease, Level.NORMAL)


def _wrong_draining(table: LeaseTable) -> None:
    next(iter(table.pools.by_id.values())).draining += 1


def _too_many_closed(table: LeaseTable) -> None:
    table.closed_max = 0


@pytest.mark.parametrize(
    ("damage", "predicate"),
    [
        (_more_free, "capacity_adds_up"),
        (_moved_share, "capacity_adds_up"),
        (_lost_pool, "capacity_adds_up"),
        (_wrong_count, "tenants_add_up"),
        (_wrong_capacity, "tenants_add_up"),
        (_no_account, "tenants_add_up"),
        (_no_deadline, "live_leases_have_a_deadline"),
        (_due_again, "live_leases_have_a_deadline"),
        (_due_in_teardown, "live_leases_have_a_deadline"),
        (_ended_and_live, "states_are_consistent"),
        (_draining_for_ever, "states_are_consistent"),
        (_wrong_fence_count, "states_are_consistent"),
        (_lost_request, "requests_find_their_leases"),
        (_forgotten_closed, "requests_find_their_leases"),
        (_too_many_closed, "requests_find_their_leases"),
        (_yields_to_nobody, "yielders_are_in_order"),
        (_yields_twice, "yielders_are_in_order"),
        (_wrong_draining, "yielders_are_in_order"),
    ],
)
def test_damage_is_noticed(damage: Callable[[LeaseTable], None], predicate: str) -> None:
    table = damaged_desk().table
    assert invariants.violations(table) == []
    damage(table)
    assert any(found.startswith(predicate) for found in invariants.violations(table))
    with pytest.raises(InvariantError, match=predicate):
        invariants.check(table)


def test_every_predicate_has_a_damage_that_it_notices() -> None:
    names = {predicate.__name__ for predicate in invariants.INVARIANTS}
    parameters = test_damage_is_noticed.pytestmark[0].args[1]
    assert {predicate for _, predicate in parameters} == names


def test_an_event_that_cannot_follow_is_refused() -> None:
    desk = damaged_desk()
    live, torn, fenced = list(desk.table.leases.values())
    closed = next(iter(desk.table.closed.values()))

    def head(lease: object) -> tuple[object, ...]:
        return (b"e" * 16, lease.lease_id, lease.subject, 0, desk.now_ns)

    impossible = [
        events.AccessCut(*head(live), False, EVIDENCE),
        events.TeardownBegun(*head(live)),
        events.Renewed(*head(torn), 1, 2),
        events.TeardownBegun(*head(torn)),
        events.Scrubbed(*head(torn), 1, EVIDENCE),
        events.Unfenced(*head(torn), 0, EVIDENCE),
        events.Expired(*head(fenced)),
        events.Released(*head(closed)),
        events.Allocated(*head(closed), b"c" * 16, 1, 2, 0, 0),
        events.Allocated(*head(live), b"c" * 16, 1, 2, 0, 0),
    ]
    for event in impossible:
        with pytest.raises(InvariantError):
            desk.table.apply(event, desk.moment)
    assert invariants.violations(desk.table) == []
