# SPDX-License-Identifier: Apache-2.0
"""How leases end: by time, by the holder, by others; and the teardown that every end leads to."""

from __future__ import annotations

import pytest

from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.effect import Forget, Notify, Teardown
from leased.terms.event import Event
from leased.terms.lease import Ending, Lease, LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Changed, Done, Forbidden, Missing, Refusal, RefusalReason
from leased.terms.resource import Allotment, Health, Inventory, ResourceKind, TierKind
from leased.terms.teardown import StepReport, TeardownStep
from tests.doubles.desk import ACME, OPERATOR, PAGE, Desk, ask_mem, cores, mem

MEM_ID = "mem:node0:4096"


def kinds(happened: tuple[Event, ...]) -> list[str]:
    """The names of events."""
    return [type(event).__name__ for event in happened]


def revoke(desk: Desk, lease: Lease, grace: float = 0) -> object:
    """An operator takes it back."""
    return desk.say(
        commands.Revoke(
            desk.command_id(), OPERATOR, lease.lease_id, grace_ns=round(grace * NS_PER_S)
        )
    )


# ---- by time -------------------------------------------------------------------------------------


def test_an_expiry_takes_effect_at_the_deadline_however_late_it_is_seen() -> None:
    desk = Desk()
    lease = desk.lease(ttl=10)
    desk.sleep(9.999)
    assert desk.tick().events == ()
    desk.sleep(100)
    proposal = desk.tick()
    assert kinds(proposal.events) == ["Expired", "TeardownBegun"]
    assert [event.effective_ns for event in proposal.events] == [lease.deadline_ns] * 2
    after = desk.at(lease)
    assert (after.state, after.ended, after.reason) == (
        LeaseState.REVOKING,
        Ending.EXPIRED,
        None,
    )
    assert proposal.effects == (Teardown(after),)
    assert desk.tick().events == ()


def test_a_tick_ends_at_most_so_many_and_the_rest_stays_due() -> None:
    desk = Desk(expiries_max=3)
    for _ in range(8):
        desk.lease(ttl=10)
    desk.sleep(11)
    ended = []
    while (due := desk.lessor.next_deadline_ns()) is not None and due <= desk.now_ns:
        ended.append(len(desk.tick().effects))
    assert ended == [3, 3, 2]
    assert desk.lessor.next_deadline_ns() is None


@pytest.mark.parametrize("how", ["release", "revoke", "gone", "lost"])
def test_whatever_comes_after_the_deadline_finds_an_expired_lease(how: str) -> None:
    desk = Desk()
    lease = desk.lease(ttl=10)
    desk.sleep(15)
    if how == "release":
        desk.release(lease)
    elif how == "revoke":
        revoke(desk, lease)
    elif how == "gone":
        desk.say(commands.HolderGone(desk.command_id(), lease.lease_id))
    else:
        desk.say(commands.ObserveHealth(desk.command_id(), MEM_ID, Health.GONE, 1))
    after = desk.at(lease)
    assert after.ended is Ending.EXPIRED
    assert desk.table.tenancies[lease.lease_id].ended_ns == lease.deadline_ns


# ---- by the holder -------------------------------------------------------------------------------


def test_a_release_is_told_and_repeating_it_changes_nothing() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.sleep(3)
    reply = desk.release(lease)
    assert isinstance(reply, Changed) and reply.lease.ended is Ending.RELEASED
    assert desk.table.tenancies[lease.lease_id].ended_ns == desk.now_ns
    sealed = len(desk.history)
    assert desk.release(lease) == reply
    assert len(desk.history) == sealed
    desk.reclaim(lease)
    assert isinstance(desk.release(lease), Changed)


def test_an_operator_gives_back_what_is_not_theirs_by_revoking() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.release(lease, caller=OPERATOR)
    after = desk.at(lease)
    assert (after.ended, after.reason) == (Ending.REVOKED, RevocationReason.OPERATOR_REVOKE)


@pytest.mark.parametrize("active", [False, True])
def test_a_lost_holder_ends_the_lease_at_once(active: bool) -> None:
    desk = Desk()
    lease = desk.grant()
    if active:
        lease = desk.activate(lease)
    desk.say(commands.HolderGone(desk.command_id(), lease.lease_id))
    after = desk.at(lease)
    assert (after.state, after.reason) == (LeaseState.REVOKING, RevocationReason.HOLDER_LOST)


# ---- by others -----------------------------------------------------------------------------------


def test_a_revocation_without_grace_is_at_once() -> None:
    desk = Desk()
    lease = desk.lease()
    reply = revoke(desk, lease)
    assert isinstance(reply, Changed)
    assert (reply.lease.ended, reply.lease.reason) == (
        Ending.REVOKED,
        RevocationReason.OPERATOR_REVOKE,
    )


def test_a_revocation_with_grace_tells_the_holder_and_refuses_renewals() -> None:
    desk = Desk()
    lease = desk.lease(ttl=600)
    reply = revoke(desk, lease, grace=20)
    until_ns = desk.now_ns + 20 * NS_PER_S
    draining = desk.at(lease)
    assert reply == Changed(draining)
    assert (draining.state, draining.drain_deadline_ns) == (LeaseState.DRAINING, until_ns)
    assert desk.effects[-1] == Notify(draining, RevocationReason.OPERATOR_REVOKE, until_ns)
    refused = desk.renew(lease)
    assert isinstance(refused, Refusal) and refused.reason is RefusalReason.DRAINING
    assert desk.lessor.next_deadline_ns() == until_ns
    desk.sleep(25)
    proposal = desk.tick()
    assert kinds(proposal.events) == ["Revoked", "TeardownBegun"]
    revoked = proposal.events[0]
    assert isinstance(revoked, events.Revoked)
    assert (revoked.effective_ns, revoked.reason) == (until_ns, RevocationReason.OPERATOR_REVOKE)


def test_while_draining_the_holder_may_be_done_early() -> None:
    desk = Desk()
    lease = desk.lease(ttl=600)
    revoke(desk, lease, grace=20)
    desk.sleep(5)
    desk.release(lease)
    after = desk.at(lease)
    assert (after.ended, after.reason) == (Ending.RELEASED, RevocationReason.OPERATOR_REVOKE)


@pytest.mark.parametrize("grace", [20, 21, 300])
def test_a_lease_that_ends_within_the_grace_is_not_revoked_but_not_renewed(grace: float) -> None:
    desk = Desk()
    lease = desk.lease(ttl=20)
    revoke(desk, lease, grace=grace)
    draining = desk.at(lease)
    assert (draining.state, draining.drain_deadline_ns) == (
        LeaseState.DRAINING,
        lease.deadline_ns,
    )
    refused = desk.renew(lease)
    assert isinstance(refused, Refusal) and refused.reason is RefusalReason.DRAINING
    desk.sleep(20)
    assert kinds(desk.tick().events) == ["Expired", "TeardownBegun"]
    assert desk.at(lease).reason is RevocationReason.OPERATOR_REVOKE


def test_a_second_notice_may_only_shorten() -> None:
    desk = Desk()
    lease = desk.lease(ttl=600)
    revoke(desk, lease, grace=50)
    sealed = len(desk.history)
    revoke(desk, lease, grace=100)
    assert len(desk.history) == sealed
    revoke(desk, lease, grace=10)
    assert desk.at(lease).drain_deadline_ns == desk.now_ns + 10 * NS_PER_S
    revoke(desk, lease)
    assert desk.at(lease).ended is Ending.REVOKED


def test_a_drain_tells_every_holder_and_lets_them_run_to_their_end() -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    here = [desk.lease(ask_mem(1, node=0), ttl=ttl) for ttl in (10, 20)]
    unborn = desk.grant(ask_mem(1, node=0), ttl=30)
    there = desk.lease(ask_mem(1, node=1))
    reply = desk.say(commands.Drain(desk.command_id(), OPERATOR, MEM_ID))
    assert reply == Done(tuple(lease.lease_id for lease in (*here, unborn)))
    assert desk.at(there).state is LeaseState.ACTIVE
    assert desk.at(unborn).state is LeaseState.DRAINING
    assert desk.activate(unborn).state is LeaseState.DRAINING
    desk.sleep(40)
    desk.tick()
    assert {desk.at(lease).ended for lease in (*here, unborn)} == {Ending.EXPIRED}
    again = desk.say(commands.Drain(desk.command_id(), OPERATOR, MEM_ID))
    assert again == Done(), "nobody is left to tell, and the cordon is already there"


def test_a_drain_with_no_grace_ends_them_now() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.say(commands.Drain(desk.command_id(), OPERATOR, "", grace_ns=0))
    after = desk.at(lease)
    assert (after.ended, after.reason) == (Ending.REVOKED, RevocationReason.OPERATOR_DRAIN)


@pytest.mark.parametrize("how", ["unplugged", "gone"])
def test_a_lost_device_ends_its_leases(how: str) -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    here, there = desk.lease(ask_mem(1, node=0)), desk.lease(ask_mem(1, node=1))
    if how == "unplugged":
        desk.inventory = Inventory((mem(1, 10),))
        desk.say(commands.Observe(desk.command_id(), desk.inventory))
    else:
        desk.say(commands.ObserveHealth(desk.command_id(), MEM_ID, Health.GONE, 79))
    after = desk.at(here)
    assert (after.ended, after.reason) == (Ending.REVOKED, RevocationReason.DEVICE_UNHEALTHY)
    assert desk.at(there).ended is None
    desk.reclaim(here)
    if how == "unplugged":
        assert MEM_ID not in desk.table.pools.by_id, "its pool goes with the last share of it"


# ---- teardown ------------------------------------------------------------------------------------


def test_capacity_returns_only_with_the_proof() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    pool = desk.table.pools.by_id[MEM_ID]
    desk.release(lease)
    assert (pool.free, pool.leased, pool.teardown) == (6 * PAGE, 0, 4 * PAGE)
    desk.cut(lease)
    desk.scrub(lease)
    assert pool.free == 6 * PAGE
    desk.prove(lease)
    assert (pool.free, pool.teardown) == (10 * PAGE, 0)


def test_the_closing_record_sums_the_lease_up() -> None:
    desk = Desk(mem(0, 10), *cores(1))
    asked_cpu = commands.Ask(ResourceKind.CPU, 500)
    lease = desk.lease(ask_mem(4), asked_cpu, ttl=60)
    desk.sleep(7)
    desk.release(lease)
    ended_ns = desk.now_ns
    desk.sleep(0.25)
    desk.cut(lease)
    desk.sleep(1)
    desk.scrub(lease)
    desk.sleep(1)
    closing = desk.prove(lease).events[-1]
    assert isinstance(closing, events.Reclaimed)
    assert closing.held_capacity_ns == (4 * PAGE * 7 * NS_PER_S, 500 * 7 * NS_PER_S)
    assert closing.cut_lag_ns == NS_PER_S // 4
    assert closing.proof_lag_ns == 2 * NS_PER_S
    assert (closing.utilization_mean_pm, closing.sample_count, closing.coverage_pm) == (
        500,
        10,
        1000,
    )
    assert closing.effective_ns == desk.now_ns > ended_ns
    assert desk.effects[-1] == Forget(lease.lease_id)
    assert desk.at(lease).state is LeaseState.RECLAIMED


def test_a_cut_takes_effect_when_the_last_process_was_gone() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.release(lease)
    cut_ns = desk.now_ns + 5_000_000
    desk.sleep(1)
    event = desk.cut(lease, at_ns=cut_ns, by_reaper=True).events[0]
    assert isinstance(event, events.AccessCut)
    assert (event.effective_ns, event.by_reaper) == (cut_ns, True)
    assert desk.at(lease).cut_ns == cut_ns


@pytest.mark.parametrize("draining", [False, True])
def test_the_reaper_may_cut_before_the_tick(draining: bool) -> None:
    desk = Desk()
    lease = desk.lease(ttl=60)
    if draining:
        revoke(desk, lease, grace=10)
    desk.sleep(61)
    cut_ns = lease.deadline_ns + 2_000_000
    proposal = desk.cut(lease, at_ns=cut_ns, by_reaper=True)
    end = "Revoked" if draining else "Expired"
    assert kinds(proposal.events) == [end, "TeardownBegun", "AccessCut"]
    ended_ns = desk.at(lease).drain_deadline_ns if draining else lease.deadline_ns
    assert [event.effective_ns for event in proposal.events] == [ended_ns, ended_ns, cut_ns]
    assert [type(effect) for effect in proposal.effects] == [Teardown]
    assert desk.tick().events == ()


def test_a_cut_before_the_end_means_that_the_reaper_could_not_hold_it() -> None:
    desk = Desk()
    lease = desk.lease(ttl=60)
    desk.sleep(5)
    proposal = desk.cut(lease, by_reaper=True)
    assert kinds(proposal.events) == ["Revoked", "TeardownBegun", "AccessCut"]
    after = desk.at(lease)
    assert (after.state, after.reason) == (LeaseState.SCRUBBING, RevocationReason.REAPER_LOST)


def test_a_report_that_comes_twice_or_too_late_changes_nothing() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.release(lease)
    for report in (desk.cut, desk.scrub, desk.prove):
        report(lease)
        sealed = len(desk.history)
        report(lease)
        desk.cut(lease)
        desk.scrub(lease)
        if desk.at(lease).state is not LeaseState.VERIFYING:
            assert len(desk.history) in (sealed, sealed + 1)
    assert desk.at(lease).state is LeaseState.RECLAIMED
    sealed = len(desk.history)
    desk.cut_failed(lease)
    desk.scrub(lease, clean=False)
    assert len(desk.history) == sealed


# ---- the fence -----------------------------------------------------------------------------------


def test_what_could_not_be_cut_is_fenced_whole() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    desk.release(lease)
    step = StepReport(TeardownStep.KILL, 62, 1, 2)
    proposal = desk.cut_failed(lease, StepReport(TeardownStep.DENY, 0, 1, 1), step)
    [event] = proposal.events
    assert isinstance(event, events.Fenced)
    assert event.fenced == lease.subject.allotments
    assert (event.step, event.errno) == (int(TeardownStep.KILL), 62)
    assert proposal.effects == (), "the reaper keeps it, for access has not ended"
    pool = desk.table.pools.by_id[MEM_ID]
    assert (pool.free, pool.teardown, pool.fenced) == (6 * PAGE, 0, 4 * PAGE)


@pytest.mark.parametrize(
    "step", [TeardownStep.KILL, TeardownStep.SCRUB, TeardownStep.COUNTERS, TeardownStep.WORKER]
)
@pytest.mark.parametrize("after", ["release", "cut", "scrub"])
def test_a_step_that_failed_fences_in_every_phase(step: TeardownStep, after: str) -> None:
    desk = Desk()
    lease = desk.lease()
    desk.release(lease)
    if after != "release":
        desk.cut(lease)
    if after == "scrub":
        desk.scrub(lease)
    desk.say(commands.TeardownFailed(desk.command_id(), lease.lease_id, step, 110, b"f" * 32))
    assert desk.at(lease).state is LeaseState.FENCED
    assert desk.at(lease).fenced == lease.subject.allotments


def test_exactly_what_was_not_proven_is_fenced_and_the_rest_is_free() -> None:
    desk = Desk(mem(0, 10), *cores(1))
    lease = desk.lease(ask_mem(4), commands.Ask(ResourceKind.CPU, 500))
    desk.release(lease)
    desk.cut(lease)
    desk.scrub(lease)
    unproven = Allotment(MEM_ID, ResourceKind.MEM, TierKind.DRAM, PAGE)
    desk.prove(lease, unproven)
    assert desk.at(lease).fenced == (unproven,)
    pools = desk.table.pools.by_id
    assert (pools[MEM_ID].free, pools[MEM_ID].fenced) == (9 * PAGE, PAGE)
    assert (pools["cpu:0"].free, pools["cpu:0"].fenced) == (1000, 0)


@pytest.mark.parametrize(
    "unproven",
    [
        Allotment("mem:node7:4096", ResourceKind.MEM, None, PAGE),
        Allotment(MEM_ID, ResourceKind.MEM, TierKind.DRAM, 5 * PAGE),
        Allotment(MEM_ID, ResourceKind.MEM, TierKind.DRAM, 0),
    ],
)
def test_a_proof_that_names_what_was_not_held_fences_everything(unproven: Allotment) -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    desk.release(lease)
    desk.cut(lease)
    desk.scrub(lease)
    desk.prove(lease, unproven)
    assert desk.at(lease).fenced == lease.subject.allotments


def test_an_operator_opens_a_fence() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    desk.release(lease)
    desk.cut(lease)
    assert desk.scrub(lease, clean=False).effects == (Forget(lease.lease_id),)
    by_holder = commands.Unfence(desk.command_id(), ACME, lease.lease_id)
    assert desk.say(by_holder) == Forbidden()
    proposal = desk.propose(commands.Unfence(desk.command_id(), OPERATOR, lease.lease_id))
    [event] = proposal.events
    assert isinstance(event, events.Unfenced) and event.operator_uid == OPERATOR.uid
    assert proposal.effects == (Forget(lease.lease_id),)
    assert desk.at(lease).state is LeaseState.RECLAIMED
    assert desk.free() == 10 * PAGE
    again = desk.say(commands.Unfence(desk.command_id(), OPERATOR, lease.lease_id))
    assert isinstance(again, Refusal) and again.reason is RefusalReason.NOT_FENCED


def test_hardware_that_was_away_and_is_back_is_proven_again() -> None:
    desk = Desk(mem(0, 10), *cores(1))
    lease = desk.lease(ask_mem(4))
    there, away = desk.table.pools.inventory, Inventory(tuple(cores(1)))
    desk.say(commands.Observe(desk.command_id(), away))
    assert desk.at(lease).state is LeaseState.REVOKING
    desk.cut(lease)
    desk.scrub(lease, clean=False)
    proposal = desk.propose(commands.Observe(desk.command_id(), there))
    assert proposal.effects == (Teardown(desk.at(lease)),)
    desk.scrub(lease, clean=False)
    assert desk.at(lease).state is LeaseState.FENCED, "what fails again changes nothing"
    more = Inventory((*there.resources, mem(1, 1)))
    assert desk.propose(commands.Observe(desk.command_id(), more)).effects == ()
    [event] = desk.prove(lease).events
    assert isinstance(event, events.Unfenced) and event.operator_uid == -1
    assert desk.free() == 10 * PAGE


@pytest.mark.parametrize("ill", [Health.GONE, Health.SICK])
def test_hardware_that_was_lost_or_sick_and_is_well_is_proven_again(ill: Health) -> None:
    """A GPU that fell off the bus stays in the inventory, as gone: its lease stayed fenced when the
    GPU was back."""
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    name = lease.subject.allotments[0].resource_id
    desk.say(commands.ObserveHealth(desk.command_id(), name, ill, cause=0))
    desk.release(lease)
    desk.cut(lease)
    desk.scrub(lease, clean=False)
    assert desk.at(lease).state is LeaseState.FENCED
    well = commands.ObserveHealth(desk.command_id(), name, Health.OK, cause=0)
    proposal = desk.propose(well)
    assert proposal.effects == (Teardown(desk.at(lease)),)
    again = commands.Observe(desk.command_id(), desk.table.pools.inventory)
    assert desk.propose(again).effects == ()
    desk.prove(lease)
    assert desk.free() == 10 * PAGE


def test_what_is_fenced_in_part_is_not_torn_down_again_when_it_returns() -> None:
    """The rest of the lease is somebody else's by then."""
    desk = Desk(mem(0, 10), *cores(1))
    lease = desk.lease(ask_mem(4), commands.Ask(ResourceKind.CPU, 500))
    desk.release(lease)
    desk.cut(lease)
    desk.scrub(lease)
    there = desk.table.pools.inventory
    desk.prove(lease, lease.subject.allotments[0])
    assert desk.at(lease).state is LeaseState.FENCED
    desk.say(commands.Observe(desk.command_id(), Inventory(tuple(cores(1)))))
    assert desk.propose(commands.Observe(desk.command_id(), there)).effects == ()


def test_a_fence_does_not_open_while_the_tenant_may_have_access() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    desk.release(lease)
    desk.cut_failed(lease)
    proposal = desk.propose(commands.Unfence(desk.command_id(), OPERATOR, lease.lease_id))
    [(_, reply)] = proposal.answers
    assert isinstance(reply, Refusal) and reply.reason is RefusalReason.STILL_HELD
    assert proposal.effects == (Teardown(desk.at(lease)),), "it is tried once more"
    desk.scrub(lease)
    assert desk.at(lease).state is LeaseState.FENCED
    [event] = desk.prove(lease).events
    assert isinstance(event, events.Unfenced) and event.operator_uid == -1
    assert desk.effects[-1] == Forget(lease.lease_id)
    assert desk.free() == 10 * PAGE


def test_a_reboot_ends_the_access_that_no_cut_could() -> None:
    desk = Desk(mem(0, 10))
    lease = desk.lease(ask_mem(4))
    desk.release(lease)
    desk.cut_failed(lease)
    desk.restart(boot_number=2)
    reply = desk.say(commands.Unfence(desk.command_id(), OPERATOR, lease.lease_id))
    assert isinstance(reply, Changed) and desk.free() == 10 * PAGE


def test_an_operator_fences_and_unfences_free_capacity() -> None:
    desk = Desk(mem(0, 10))
    desk.lease(ask_mem(4))

    def fence(capacity: int, resource_id: str = MEM_ID) -> object:
        order = commands.Fence(desk.command_id(), OPERATOR, resource_id, capacity)
        return desk.say(order)

    for capacity, resource_id, reason in (
        (7 * PAGE, MEM_ID, RefusalReason.NO_CAPACITY),
        (1, MEM_ID, RefusalReason.CAPACITY_GRANULE),
        (0, MEM_ID, RefusalReason.CAPACITY_GRANULE),
        (-PAGE, MEM_ID, RefusalReason.CAPACITY_GRANULE),
        (PAGE, "mem:node5:4096", RefusalReason.NO_SUCH_RESOURCE),
    ):
        refusal = fence(capacity, resource_id)
        assert isinstance(refusal, Refusal) and refusal.reason is reason
    assert fence(6 * PAGE) == Done()
    assert desk.refused(ask_mem(1)).reason is RefusalReason.NO_CAPACITY
    assert desk.say(commands.Unfence(desk.command_id(), OPERATOR, None, MEM_ID)) == Done()
    assert desk.free() == 6 * PAGE
    empty = desk.say(commands.Unfence(desk.command_id(), OPERATOR, None, MEM_ID))
    assert isinstance(empty, Refusal) and empty.reason is RefusalReason.NOT_FENCED


def test_orders_are_for_operators() -> None:
    desk = Desk()
    lease = desk.lease()
    orders = (
        commands.Revoke(desk.command_id(), ACME, lease.lease_id),
        commands.Drain(desk.command_id(), ACME, ""),
        commands.Resume(desk.command_id(), ACME, ""),
        commands.Fence(desk.command_id(), ACME, MEM_ID, PAGE),
        commands.Unfence(desk.command_id(), ACME, None, MEM_ID),
        commands.SetPolicy(desk.command_id(), ACME, desk.policy, b"", b""),
    )
    sealed = len(desk.history)
    assert [desk.say(order) for order in orders] == [Forbidden()] * len(orders)
    assert len(desk.history) == sealed
    nobody = commands.Revoke(desk.command_id(), OPERATOR, b"x" * 16)
    assert desk.say(nobody) == Missing(b"x" * 16)
