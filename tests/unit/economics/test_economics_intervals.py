# SPDX-License-Identifier: Apache-2.0
"""The fold: who pays from when to when, case by case."""

from __future__ import annotations

import pytest

from leased.economics.intervals import Ledger, fold
from leased.economics.peaks import idle
from leased.economics.pools import Interval, Pool
from leased.terms.errors import ChainError
from tests.doubles.economics_history import History, boot, lease_id, memory, subject


def told(intervals: list[Interval], *pools: Pool) -> list[tuple[str, int, int, int]]:
    """(pool, capacity, start, end) of the intervals in `pools`."""
    return [
        (i.pool.name, i.allotment.capacity, i.start_ns, i.end_ns)
        for i in intervals
        if i.pool in (pools or (Pool.TENANT, Pool.TEARDOWN, Pool.FENCED))
    ]


def test_the_tenant_pays_to_the_deadline_and_the_teardown_pool_to_the_proof() -> None:
    history = History()
    granted = history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 130
    begun = history.end(1, effective_ns=100)
    history.boot_ns = 150
    closed = history.reclaim(1, held=(1000,))
    ledger, found = fold(history.records)
    assert told(found) == [("TENANT", 10, 0, 100), ("TEARDOWN", 10, 100, 150)]
    assert (found[0].opened_by, found[0].closed_by) == (granted, begun)
    assert (found[1].opened_by, found[1].closed_by) == (begun, closed)
    assert found[0].lease_id == lease_id(1)
    assert not ledger.disagreements and not ledger.orphans and not ledger.clamped


def test_a_sealed_usage_summary_that_disagrees_is_named() -> None:
    history = History()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 100
    history.end(1)
    closing = history.reclaim(1, held=(999,))
    ledger, _ = fold(history.records)
    (found,) = ledger.disagreements
    assert (found.sequence, found.sealed, found.folded) == (closing, (999,), (1000,))


def test_an_open_lease_is_provisional_and_ends_at_its_deadline() -> None:
    history = History()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 60
    history.renew(1, deadline_ns=120)
    history.boot_ns = 200
    history.touch()
    _, found = fold(history.records)
    assert told(found) == [("TENANT", 10, 0, 120), ("TEARDOWN", 10, 120, 200)]
    assert all(interval.provisional for interval in found)


def test_a_drained_lease_is_provisional_to_the_end_of_its_grace() -> None:
    history = History()
    history.allocate(1, subject(memory(1)), deadline_ns=100)
    history.drain(1, drain_deadline_ns=30)
    history.boot_ns = 50
    history.touch()
    _, found = fold(history.records)
    assert told(found) == [("TENANT", 1, 0, 30), ("TEARDOWN", 1, 30, 50)]


def test_asking_for_what_is_open_changes_nothing() -> None:
    history = History()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    ledger = Ledger()
    for record in history.records:
        ledger.observe(*record)
    before = ledger.open_intervals()
    assert before == ledger.open_intervals()


def test_only_what_was_fenced_stays_fenced() -> None:
    history = History()
    history.allocate(1, subject(memory(10), memory(5, name="mem:node1:4096")), deadline_ns=100)
    history.boot_ns = 10
    history.end(1)
    history.boot_ns = 20
    history.fence(1, memory(5, name="mem:node1:4096"))
    history.boot_ns = 50
    history.unfence(1)
    _, found = fold(history.records)
    assert told(found, Pool.FENCED) == [("FENCED", 5, 20, 50)]
    assert told(found, Pool.TEARDOWN) == [("TEARDOWN", 10, 10, 20), ("TEARDOWN", 5, 10, 20)]


def test_another_boot_ends_the_tenant_at_the_last_sealed_moment() -> None:
    history = History()
    history.start()
    history.allocate(1, subject(memory(10)), deadline_ns=1000)
    history.allocate(2, subject(memory(3)), deadline_ns=40)
    history.boot_ns = 70
    history.touch()
    history.boot_number, history.boot_ns = 2, 5
    history.start()
    history.boot_ns = 9
    history.end(1, effective_ns=5)
    history.boot_ns = 25
    history.reclaim(1)
    ledger, found = fold(history.records)
    first = [i for i in found if i.boot_id == boot(1)]
    assert told(first) == [
        ("TENANT", 10, 0, 70),
        ("TENANT", 3, 0, 40),
        ("TEARDOWN", 3, 40, 70),
    ]
    second = [i for i in found if i.boot_id == boot(2)]
    assert told(second) == [("TEARDOWN", 10, 5, 25), ("TEARDOWN", 3, 5, 25)]
    assert ledger.watermark_ns == 25


def test_a_voided_grant_is_the_operators_from_its_start() -> None:
    history = History()
    history.start()
    history.boot_ns = 10
    granted = history.allocate(1, subject(memory(10)), deadline_ns=1000)
    history.boot_ns = 50
    history.start()
    history.recover()
    history.void(granted)
    history.boot_ns = 60
    history.touch()
    _, found = fold(history.records)
    assert told(found) == [("TEARDOWN", 10, 10, 60)]


def test_a_restart_within_a_boot_changes_nothing() -> None:
    history = History()
    history.start()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 50
    history.start()
    history.boot_ns = 80
    history.end(1)
    _, found = fold(history.records)
    assert told(found) == [("TENANT", 10, 0, 80)]


def test_a_renewal_on_other_terms_splits_the_interval() -> None:
    history = History()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 30
    renewed = history.renew(1, 100, subject(memory(20)))
    history.boot_ns = 50
    history.end(1)
    _, found = fold(history.records)
    assert told(found) == [("TENANT", 10, 0, 30), ("TENANT", 20, 30, 50)]
    assert found[1].opened_by == renewed


def test_an_operators_fence_adds_up_per_resource() -> None:
    history = History()
    history.inventory(memory(100))
    history.boot_ns = 10
    history.fence_resource(memory(30), fenced=True)
    history.boot_ns = 20
    history.fence_resource(memory(10), fenced=True)
    history.boot_ns = 30
    history.fence_resource(memory(40), fenced=False)
    history.boot_ns = 40
    history.touch()
    _, found = fold(history.records)
    assert told(found, Pool.FENCED) == [("FENCED", 30, 10, 20), ("FENCED", 40, 20, 30)]
    assert told(idle(found), Pool.IDLE) == [
        ("IDLE", 100, 0, 10),
        ("IDLE", 70, 10, 20),
        ("IDLE", 60, 20, 30),
        ("IDLE", 100, 30, 40),
    ]


def test_a_device_that_vanishes_under_a_lease_shows_as_negative_idle() -> None:
    history = History()
    history.inventory(memory(10))
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 10
    history.inventory()
    history.boot_ns = 15
    history.end(1)
    _, found = fold(history.records)
    assert told(idle(found), Pool.IDLE) == [("IDLE", -10, 10, 15)]


def test_an_effect_outside_its_bounds_is_held_inside_and_counted() -> None:
    history = History()
    history.boot_ns = 50
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 60
    history.end(1, effective_ns=999)
    ledger, found = fold(history.records)
    assert told(found) == [("TENANT", 10, 50, 60)]
    assert ledger.clamped == 1


def test_events_of_a_lease_without_its_grant_are_counted_not_guessed() -> None:
    history = History()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 10
    history.end(1)
    history.reclaim(1)
    ledger, found = fold(history.records[1:])
    assert not told(found)
    assert ledger.orphans == 2


def test_what_is_not_an_event_is_carried_and_counted() -> None:
    history = History()
    history.touch()
    (_, _, moment) = history.records[0]
    ledger, found = fold([(0, object(), moment)])
    assert ledger.unknown == 1 and not found


def test_contradictions_stop_the_fold() -> None:
    history = History()
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    with pytest.raises(ChainError, match="granted twice"):
        fold(history.records)
    with pytest.raises(ChainError, match="sequence order"):
        fold([history.records[0], history.records[0]])


def test_more_unfenced_than_fenced_is_nothing_fenced() -> None:
    """No node does it; one that says so is not to end the usage of a fleet."""
    history = History()
    history.fence_resource(memory(10), fenced=True)
    history.boot_ns += 5
    history.fence_resource(memory(11), fenced=False)
    history.touch()
    ledger, found = fold(history.records)
    assert ledger.orphans == 1 and not ledger.open_intervals()
    assert [(one.pool, one.allotment.capacity) for one in found] == [(Pool.FENCED, 10)]
