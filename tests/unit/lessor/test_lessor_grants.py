# SPDX-License-Identifier: Apache-2.0
"""From a request to an active lease, and what repeating any of it does."""

from __future__ import annotations

import pytest

from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.effect import MoveDeadline, Prepare, Teardown
from leased.terms.lease import AccountingTag, Ending, LeaseState, RevocationReason, Trust
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy
from leased.terms.reply import Changed, Granted, Missing, Refusal, RefusalReason
from leased.terms.teardown import TeardownStep
from tests.doubles.desk import ACME, BETA, EVIDENCE, OPERATOR, Desk, ask_mem, tenant


def test_a_grant_says_whose_what_and_until_when() -> None:
    desk = Desk()
    caller = commands.Caller(7, 8, 9, "acme", trust=Trust.ROOT)
    tag = AccountingTag("cc-1", "proj")
    acquire = commands.Acquire(
        desk.command_id(),
        caller,
        (ask_mem(3),),
        60 * NS_PER_S,
        workload="train",
        tag=tag,
        bind_pid=9,
    )
    proposal = desk.propose(acquire)
    [event] = proposal.events
    assert isinstance(event, events.Allocated)
    [(command_id, reply)] = proposal.answers
    assert command_id == acquire.command_id and isinstance(reply, Granted)
    lease = reply.lease
    assert proposal.effects == (Prepare(lease),)
    assert lease.state is LeaseState.GRANTED and not reply.attached
    assert (lease.granted_ns, lease.deadline_ns) == (desk.now_ns, desk.now_ns + 60 * NS_PER_S)
    assert (lease.generation, lease.pid, lease.boot_id) == (0, 9, desk.boot_id)
    assert lease.granted_wall_ns == desk.moment.wall_ns
    subject = lease.subject
    assert (subject.uid, subject.gid, subject.trust) == (7, 8, Trust.ROOT)
    assert (subject.workload, subject.tag, subject.rate_hash) == ("train", tag, b"r" * 32)
    assert subject.cgroup == lease.lease_id.hex()
    assert event.subject == subject


@pytest.mark.parametrize(
    ("asked", "given"), [(None, 30), (5, 5), (0, 0), (-3, 0), (300, 300), (9999, 300)]
)
def test_the_grace_is_the_callers_within_the_policy(asked: float | None, given: int) -> None:
    assert Desk().grant(grace=asked).grace_ns == given * NS_PER_S


def test_activation_is_sealed_once() -> None:
    desk = Desk()
    lease = desk.activate(desk.grant())
    assert lease.state is LeaseState.ACTIVE
    event = desk.history[-1][0]
    assert isinstance(event, events.Activated) and event.evidence == EVIDENCE
    sealed = len(desk.history)
    again = desk.say(commands.Activate(desk.command_id(), lease.lease_id, EVIDENCE))
    assert again == Changed(lease)
    assert len(desk.history) == sealed


def test_a_failed_grant_is_torn_down_and_told() -> None:
    desk = Desk()
    acquire = desk.acquire()
    reply = desk.say(acquire)
    assert isinstance(reply, Granted)
    short = Refusal(RefusalReason.NO_CAPACITY, "mem:node0:4096", 8, 4, 6)
    proposal = desk.propose(commands.GrantFailed(desk.command_id(), reply.lease.lease_id, short))
    assert [answer for _, answer in proposal.answers] == [short]
    assert [type(event) for event in proposal.events] == [events.Revoked, events.TeardownBegun]
    lease = desk.at(reply.lease)
    assert proposal.effects == (Teardown(lease),)
    assert (lease.ended, lease.reason) == (Ending.REVOKED, RevocationReason.GRANT_FAILED)
    late = desk.say(commands.Activate(desk.command_id(), lease.lease_id, EVIDENCE))
    assert isinstance(late, Refusal), "the grantor must not answer the caller with a lease"
    assert desk.say(acquire) == short, "the same request is told the same"


def test_an_activation_after_the_deadline_grants_nothing() -> None:
    desk = Desk()
    lease = desk.grant(ttl=5)
    desk.sleep(5)
    reply = desk.say(commands.Activate(desk.command_id(), lease.lease_id, EVIDENCE))
    assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEADLINE_PASSED
    after = desk.at(lease)
    assert (after.state, after.ended) == (LeaseState.REVOKING, Ending.EXPIRED)


@pytest.mark.parametrize("kind", ["activate", "failed", "gone", "cut"])
def test_a_report_about_no_lease_says_so(kind: str) -> None:
    desk = Desk()
    nobody = b"\x00" * 16
    report: dict[str, commands.Command] = {
        "activate": commands.Activate(desk.command_id(), nobody, EVIDENCE),
        "failed": commands.GrantFailed(desk.command_id(), nobody, Refusal(RefusalReason.BUSY, "")),
        "gone": commands.HolderGone(desk.command_id(), nobody),
        "cut": commands.TeardownFailed(
            desk.command_id(),
            nobody,
            TeardownStep.KILL,
            1,
            EVIDENCE,
        ),
    }
    assert desk.say(report[kind]) == Missing(nobody)


# ---- twice ---------------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_same_lease() -> None:
    desk = Desk()
    acquire = desk.acquire(ask_mem(10))
    first = desk.say(acquire)
    free, sealed = desk.free(), len(desk.history)
    second = desk.say(acquire)
    assert isinstance(first, Granted) and isinstance(second, Granted)
    assert second == Granted(first.lease, attached=True)
    assert (desk.free(), len(desk.history)) == (free, sealed)
    desk.activate(first.lease)
    third = desk.say(acquire)
    assert isinstance(third, Granted) and third.lease.state is LeaseState.ACTIVE


def test_the_same_id_of_another_caller_is_another_request() -> None:
    desk = Desk()
    acquire = desk.acquire()
    first = desk.say(acquire)
    second = desk.ask(command_id=acquire.command_id, caller=BETA)
    assert isinstance(first, Granted) and isinstance(second, Granted)
    assert first.lease.lease_id != second.lease.lease_id and not second.attached


def test_an_ended_lease_is_found_again_as_it_was() -> None:
    desk = Desk()
    acquire = desk.acquire()
    reply = desk.say(acquire)
    assert isinstance(reply, Granted)
    lease = desk.activate(reply.lease)
    desk.release(lease)
    desk.reclaim(lease)
    again = desk.say(acquire)
    assert isinstance(again, Granted) and again.attached
    assert (again.lease.state, again.lease.ended) == (LeaseState.RECLAIMED, Ending.RELEASED)


def test_the_memory_of_ended_leases_is_bounded() -> None:
    desk = Desk(policy=Policy(closed_leases_kept=3))
    requests = [desk.acquire() for _ in range(5)]
    for acquire in requests:
        reply = desk.say(acquire)
        assert isinstance(reply, Granted)
        desk.release(desk.activate(reply.lease))
        desk.reclaim(reply.lease)
    assert len(desk.table.closed) == 3 == len(desk.table.requests)
    oldest = desk.say(requests[0])
    assert isinstance(oldest, Granted) and not oldest.attached, "forgotten: a new lease"
    newest = desk.say(requests[-1])
    assert isinstance(newest, Granted) and newest.attached


def test_the_record_that_granted_is_told_again() -> None:
    desk = Desk()
    acquire = desk.acquire()
    reply = desk.say(acquire)
    assert isinstance(reply, Granted)
    desk.lessor.number(reply.lease.lease_id, 41)
    again = desk.say(acquire)
    assert isinstance(again, Granted) and again.sequence == 41


# ---- renewals ------------------------------------------------------------------------------------


def test_a_renewal_moves_the_deadline_from_now() -> None:
    desk = Desk()
    lease = desk.lease(ttl=60)
    desk.sleep(20)
    proposal = desk.propose(commands.Renew(desk.command_id(), ACME, lease.lease_id))
    after = desk.at(lease)
    assert after.deadline_ns == desk.now_ns + 60 * NS_PER_S
    assert after.generation == lease.generation + 1
    assert proposal.effects == (MoveDeadline(lease.lease_id, 1, after.deadline_ns),)
    [event] = proposal.events
    assert isinstance(event, events.Renewed)
    assert (event.generation, event.effective_ns, event.deadline_ns) == (
        1,
        desk.now_ns,
        after.deadline_ns,
    )
    desk.renew(lease, 5)
    assert desk.at(lease).deadline_ns == desk.now_ns + 5 * NS_PER_S
    assert desk.at(lease).ttl_ns == 5 * NS_PER_S


@pytest.mark.parametrize(
    ("ttl", "reason"),
    [
        (0.5, RefusalReason.TTL_TOO_SHORT),
        (-1, RefusalReason.TTL_TOO_SHORT),
        (14_401, RefusalReason.TTL_TOO_LONG),
    ],
)
def test_a_renewal_keeps_to_the_floor_and_the_ceiling(ttl: float, reason: RefusalReason) -> None:
    desk = Desk()
    lease = desk.lease()
    reply = desk.renew(lease, ttl)
    assert isinstance(reply, Refusal) and reply.reason is reason
    assert desk.at(lease) == lease


def test_a_late_renewal_loses_even_before_the_tick() -> None:
    desk = Desk()
    lease = desk.lease(ttl=10)
    desk.sleep(10)
    reply = desk.renew(lease)
    assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEADLINE_PASSED
    desk.tick()
    reply = desk.renew(lease)
    assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEADLINE_PASSED


def test_what_cannot_be_renewed() -> None:
    desk = Desk()
    granted = desk.grant()
    released = desk.lease()
    desk.release(released)
    closed = desk.lease()
    desk.release(closed)
    desk.reclaim(closed)
    for lease in (granted, released, closed):
        reply = desk.renew(lease)
        assert isinstance(reply, Refusal) and reply.reason is RefusalReason.NOT_RENEWABLE


@pytest.mark.parametrize("caller", [BETA, tenant("acme2", 1000)])
def test_nobody_elses_lease_can_be_touched(caller: commands.Caller) -> None:
    desk = Desk()
    lease = desk.lease()
    sealed = len(desk.history)
    assert desk.renew(lease, caller=caller) == Missing(lease.lease_id)
    assert desk.release(lease, caller=caller) == Missing(lease.lease_id)
    assert len(desk.history) == sealed
    assert isinstance(desk.renew(lease, caller=OPERATOR), Changed)


def test_an_adoption_is_on_record_and_changes_nothing() -> None:
    desk = Desk()
    lease = desk.lease()
    before = desk.at(lease)
    note = commands.NoteAdoption(desk.command_id(), lease.lease_id, 0, 4711, 3)
    [event] = desk.propose(note).events
    assert isinstance(event, events.Adopted) and event.subject == lease.subject
    assert (event.operator_uid, event.pid, event.processes) == (0, 4711, 3)
    assert desk.at(lease) == before
