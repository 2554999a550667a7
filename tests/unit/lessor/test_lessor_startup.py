# SPDX-License-Identifier: Apache-2.0
"""Restarts: what the history and the reaper say decides about each lease; all else is torn down."""

from __future__ import annotations

import pytest

from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.effect import Forget, MoveDeadline, Notify, Teardown
from leased.terms.lease import Ending, LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import Policy
from leased.terms.reply import Changed, Granted, RefusalReason
from leased.terms.resource import Inventory
from tests.doubles.desk import ACME, OPERATOR, PAGE, Desk, ask_mem, boot, mem


def test_the_first_start_seals_what_the_node_is() -> None:
    desk = Desk()
    kinds = [type(event) for event, _ in desk.history]
    assert kinds == [events.NodeStarted, events.InventoryChanged, events.PolicyChanged]
    started = desk.history[0][0]
    assert isinstance(started, events.NodeStarted)
    assert (started.epoch, started.boot_id) == (1, desk.boot_id)


def test_a_restart_seals_only_what_changed() -> None:
    desk = Desk()
    proposal = desk.restart()
    assert [type(event) for event in proposal.events] == [events.NodeStarted]
    assert proposal.events[0].epoch == 2
    desk.inventory = Inventory((mem(0, 2000),))
    proposal = desk.restart()
    assert [type(event) for event in proposal.events] == [
        events.NodeStarted,
        events.InventoryChanged,
    ]


def test_what_the_reaper_still_holds_goes_on_with_the_same_deadline() -> None:
    desk = Desk()
    lease = desk.lease(ttl=60)
    desk.renew(lease, 90)
    before = desk.at(lease)
    desk.sleep(30)
    proposal = desk.restart(known=[lease.lease_id])
    after = desk.at(lease)
    assert (after.state, after.deadline_ns, after.generation) == (
        LeaseState.ACTIVE,
        before.deadline_ns,
        1,
    )
    assert proposal.effects == (MoveDeadline(lease.lease_id, 1, before.deadline_ns),)
    assert desk.lessor.next_deadline_ns() == before.deadline_ns
    assert isinstance(desk.renew(lease), Changed)


def test_a_grant_that_was_armed_but_not_sealed_as_active_becomes_active() -> None:
    desk = Desk()
    acquire = desk.acquire()
    reply = desk.say(acquire)
    assert isinstance(reply, Granted)
    desk.restart(known=[reply.lease.lease_id])
    again = desk.say(acquire)
    assert isinstance(again, Granted) and again.attached
    assert again.lease.state is LeaseState.ACTIVE
    assert again.sequence == 3, "the number of its Allocated record comes with the history"


@pytest.mark.parametrize(
    ("active", "reason"),
    [(False, RevocationReason.GRANT_FAILED), (True, RevocationReason.REAPER_LOST)],
)
def test_what_nobody_holds_is_torn_down(active: bool, reason: RevocationReason) -> None:
    desk = Desk()
    lease = desk.lease() if active else desk.grant()
    desk.sleep(2)
    proposal = desk.restart()
    after = desk.at(lease)
    assert (after.state, after.ended, after.reason) == (
        LeaseState.REVOKING,
        Ending.REVOKED,
        reason,
    )
    assert proposal.effects == (Teardown(after),)
    desk.reclaim(lease)
    assert desk.free() == 1000 * PAGE


def test_a_deadline_that_passed_in_between_counts() -> None:
    desk = Desk()
    lost, held = desk.lease(ttl=10), desk.lease(ttl=10)
    desk.sleep(15)
    desk.restart(known=[held.lease_id])
    assert desk.at(lost).ended is Ending.EXPIRED
    assert desk.table.tenancies[lost.lease_id].ended_ns == lost.deadline_ns
    desk.tick()
    assert desk.at(held).ended is Ending.EXPIRED


def test_a_grant_that_was_never_armed_is_not_taken_for_one_that_expired() -> None:
    """Nothing was made for it, so nothing is missing of it: a restart that takes longer than the
    lease would have lasted fences nothing."""
    desk = Desk()
    lease = desk.grant(ttl=10)
    desk.sleep(15)
    desk.restart()
    after = desk.at(lease)
    assert (after.ended, after.reason) == (Ending.REVOKED, RevocationReason.GRANT_FAILED)
    tenancy = desk.table.tenancies[lease.lease_id]
    assert tenancy.ended_ns == tenancy.begun_ns == lease.deadline_ns
    desk.reclaim(lease)
    assert desk.free() == 1000 * PAGE


@pytest.mark.parametrize("known", [False, True])
def test_a_grant_that_was_told_to_leave_before_it_was_armed_is_a_grant(known: bool) -> None:
    """Unknown to the reaper nothing was made for it; known to it, it is somebody's."""
    desk = Desk()
    lease = desk.grant(ttl=600)
    desk.say(commands.Revoke(desk.command_id(), OPERATOR, lease.lease_id, grace_ns=60 * NS_PER_S))
    desk.restart(known=[lease.lease_id] if known else [])
    after = desk.at(lease)
    assert after.activated is known
    assert after.reason is (
        RevocationReason.OPERATOR_REVOKE if known else RevocationReason.GRANT_FAILED
    )


def test_a_draining_lease_is_told_again() -> None:
    desk = Desk()
    lease = desk.lease(ttl=600)
    desk.say(commands.Revoke(desk.command_id(), OPERATOR, lease.lease_id, grace_ns=60 * NS_PER_S))
    proposal = desk.restart(known=[lease.lease_id])
    draining = desk.at(lease)
    assert draining.state is LeaseState.DRAINING
    assert [type(effect) for effect in proposal.effects] == [MoveDeadline, Notify]
    assert desk.lessor.next_deadline_ns() == draining.drain_deadline_ns


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("reboot", [False, True])
def test_a_teardown_is_begun_again_until_it_has_ended(steps: int, reboot: bool) -> None:
    desk = Desk()
    lease = desk.lease()
    desk.release(lease)
    for step in (desk.cut, desk.scrub)[:steps]:
        step(lease)
    state = desk.at(lease).state
    proposal = desk.restart(known=[lease.lease_id], boot_number=2 if reboot else None)
    assert desk.at(lease).state is state
    assert proposal.effects == (Teardown(desk.at(lease)),)
    desk.cut(lease)
    desk.scrub(lease)
    desk.prove(lease)
    assert desk.at(lease).state is LeaseState.RECLAIMED
    assert desk.free() == 1000 * PAGE


def test_another_boot_ends_every_lease_at_the_last_moment_of_its_own() -> None:
    desk = Desk()
    lease = desk.lease(ask_mem(2), ttl=60)
    short = desk.lease(ask_mem(3), ttl=5)
    desk.sleep(20)
    other = desk.lease(ask_mem(1))
    last_ns = desk.now_ns
    proposal = desk.restart(boot_number=2, known=[lease.lease_id])
    ends = {
        event.lease_id: event.effective_ns
        for event in proposal.events
        if isinstance(event, events.Revoked)
    }
    assert ends == {
        lease.lease_id: last_ns,
        short.lease_id: short.deadline_ns,
        other.lease_id: last_ns,
    }
    for event in proposal.events:
        if isinstance(event, events.TeardownBegun):
            assert event.effective_ns == desk.now_ns
    assert {desk.at(one).reason for one in (lease, short, other)} == {RevocationReason.NODE_REBOOT}
    assert sum(isinstance(effect, Teardown) for effect in proposal.effects) == 3
    desk.sleep(1)
    desk.cut(lease)
    desk.sleep(1)
    desk.scrub(lease)
    closing = desk.prove(lease).events[-1]
    assert isinstance(closing, events.Reclaimed)
    assert closing.held_capacity_ns == (2 * PAGE * 20 * NS_PER_S,)
    assert (closing.cut_lag_ns, closing.proof_lag_ns) == (NS_PER_S, NS_PER_S)


def test_records_that_replay_did_not_show_still_tell_the_time() -> None:
    desk = Desk()
    lease = desk.lease(ttl=600)
    later = Moment(desk.boot_id, desk.now_ns + 7 * NS_PER_S, 0)
    desk.lessor = desk._new_lessor()
    for event, moment in desk.history:
        desk.lessor.replay(event, moment)
    desk.lessor.witness(later)
    desk.boot_id, desk.now_ns = boot(9), 3 * NS_PER_S
    proposal = desk.start()
    [revoked] = [event for event in proposal.events if isinstance(event, events.Revoked)]
    assert revoked.effective_ns == lease.granted_ns + 7 * NS_PER_S


def test_a_lag_across_a_reboot_is_not_made_up() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.release(lease)
    desk.cut(lease)
    desk.restart(boot_number=2)
    desk.scrub(lease)
    closing = desk.prove(lease).events[-1]
    assert isinstance(closing, events.Reclaimed)
    assert (closing.cut_lag_ns, closing.proof_lag_ns) == (0, 0)


def test_the_reaper_is_told_to_forget_what_is_closed_or_fenced() -> None:
    desk = Desk()
    fenced, closed, kept = desk.lease(), desk.lease(), desk.lease()
    desk.release(fenced)
    desk.cut(fenced)
    desk.scrub(fenced, clean=False)
    desk.release(closed)
    desk.reclaim(closed)
    uncut = desk.lease()
    desk.release(uncut)
    desk.cut_failed(uncut)
    known = [fenced.lease_id, closed.lease_id, kept.lease_id, uncut.lease_id]
    proposal = desk.restart(known=known)
    forgotten = [effect for effect in proposal.effects if isinstance(effect, Forget)]
    assert forgotten == [Forget(fenced.lease_id), Forget(closed.lease_id)]


def test_a_fence_and_a_cordon_outlive_a_reboot() -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    lease = desk.lease(ask_mem(4, node=0))
    desk.release(lease)
    desk.cut_failed(lease)
    desk.say(commands.Fence(desk.command_id(), OPERATOR, "mem:node0:4096", PAGE))
    desk.say(commands.Drain(desk.command_id(), OPERATOR, "mem:node1:4096"))
    desk.restart(boot_number=2)
    assert desk.free("mem:node0:4096") == 5 * PAGE
    assert desk.refused(ask_mem(1, node=1)).reason is RefusalReason.CORDONED
    desk.say(commands.Unfence(desk.command_id(), OPERATOR, lease.lease_id))
    assert desk.free("mem:node0:4096") == 9 * PAGE


def test_a_resource_that_is_gone_after_a_restart_ends_its_leases() -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    lease = desk.lease(ask_mem(4, node=0))
    desk.inventory = Inventory((mem(1, 10),))
    desk.restart(known=[lease.lease_id])
    assert desk.at(lease).reason is RevocationReason.DEVICE_UNHEALTHY


def test_the_policy_of_the_start_is_in_force() -> None:
    desk = Desk()
    desk.lease()
    desk.policy = Policy(leases_max=1)
    desk.restart(known=list(desk.table.leases))
    assert desk.refused(caller=ACME).reason is RefusalReason.NODE_LEASES
