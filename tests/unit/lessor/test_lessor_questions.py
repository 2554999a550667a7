# SPDX-License-Identifier: Apache-2.0
"""Questions change nothing, and nobody learns of what is not theirs."""

from __future__ import annotations

import msgspec

from leased.lessor.questions import REFUSED_KEPT
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.bounds import Bounds, publish
from leased.terms.identity import LeaseId
from leased.terms.lease import LeaseState, Priority, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy, TenantLimits
from leased.terms.reply import (
    Assumption,
    Changed,
    Done,
    Explained,
    Granted,
    Inventoried,
    Listed,
    Missing,
    Planned,
    Refusal,
    RefusalReason,
)
from leased.terms.resource import ResourceKind
from tests.doubles.desk import ACME, ANY_LEVEL, BETA, OPERATOR, PAGE, Desk, ask_mem, cores, mem


def test_a_lease_is_shown_to_its_tenant_and_to_operators_only() -> None:
    desk = Desk()
    lease = desk.lease()
    for caller, expected in (
        (ACME, Changed(lease)),
        (OPERATOR, Changed(lease)),
        (BETA, Missing(lease.lease_id)),
    ):
        asked = commands.Describe(desk.command_id(), caller, lease.lease_id)
        assert desk.say(asked) == expected
        why = desk.say(commands.Why(desk.command_id(), caller, lease.lease_id))
        assert (why == Missing(lease.lease_id)) == (caller is BETA)


def test_a_closed_lease_says_why_it_ended() -> None:
    desk = Desk()
    lease = desk.lease()
    desk.say(commands.Revoke(desk.command_id(), OPERATOR, lease.lease_id))
    desk.reclaim(lease)
    reply = desk.say(commands.Why(desk.command_id(), ACME, lease.lease_id))
    assert isinstance(reply, Explained) and reply.lease is not None
    assert (reply.lease.state, reply.lease.reason) == (
        LeaseState.RECLAIMED,
        RevocationReason.OPERATOR_REVOKE,
    )


def test_a_list_is_oldest_first_and_ones_own() -> None:
    desk = Desk(mem(0, 3))
    mine = [desk.lease(ttl=100), desk.lease(ttl=50)]
    other = desk.lease(caller=BETA)
    waiting = desk.acquire(ask_mem(2), wait=60)
    desk.propose(waiting)

    def listed(caller: commands.Caller, closed: bool = False) -> Listed:
        reply = desk.say(commands.ListLeases(desk.command_id(), caller, closed))
        assert isinstance(reply, Listed)
        return reply

    assert listed(ACME).leases == tuple(mine)
    assert listed(ACME).waiting == ((waiting.command_id, 1, RefusalReason.NO_CAPACITY),)
    assert listed(BETA) == Listed((other,), ())
    assert listed(OPERATOR).leases == (*mine, other)
    desk.release(mine[0])
    desk.reclaim(mine[0])
    assert len(listed(ACME).leases) == 1
    ids = [lease.lease_id for lease in listed(ACME, closed=True).leases]
    assert ids == [lease.lease_id for lease in mine]


def test_the_use_of_a_resource_adds_up_in_every_phase() -> None:
    desk = Desk(mem(0, 10), *cores(1))
    leases = [desk.lease(ask_mem(n)) for n in (1, 2, 3)]
    desk.release(leases[1])
    desk.release(leases[2])
    desk.cut_failed(leases[2])
    reply = desk.say(commands.ListResources(desk.command_id(), ACME))
    assert isinstance(reply, Inventoried)
    first = reply.use[0]
    assert (first.free, first.leased, first.teardown, first.fenced) == (
        4 * PAGE,
        PAGE,
        2 * PAGE,
        3 * PAGE,
    )
    assert first.free + first.leased + first.teardown + first.fenced == 10 * PAGE
    assert [use.cordoned for use in reply.use] == [False, False]
    desk.say(commands.Drain(desk.command_id(), OPERATOR, "cpu:0"))
    reply = desk.say(commands.ListResources(desk.command_id(), ACME))
    assert isinstance(reply, Inventoried) and [use.cordoned for use in reply.use] == [False, True]


def test_a_plan_says_what_would_happen_and_changes_nothing() -> None:
    desk = Desk(mem(0, 10), mem(1, 5))
    sealed, free = len(desk.history), desk.free()
    plan = desk.acquire(ask_mem(4))
    assert desk.say(commands.Plan(desk.command_id(), plan)) == Planned(None, ("mem:node1:4096",))
    assert (len(desk.history), desk.free()) == (sealed, free)
    lease = desk.lease(ask_mem(8))
    reply = desk.say(commands.Plan(desk.command_id(), desk.acquire(ask_mem(6), wait=60)))
    assert isinstance(reply, Planned) and reply.refusal is not None
    assert (reply.refusal.reason, reply.position) == (RefusalReason.NO_CAPACITY, 1)
    assert reply.refusal.retry_at_ns == lease.deadline_ns
    reply = desk.say(commands.Plan(desk.command_id(), desk.acquire(ask_mem(6))))
    assert isinstance(reply, Planned) and reply.position is None
    assert len(desk.lessor.queue) == 0


def test_a_plan_shows_operators_who_would_have_to_go() -> None:
    desk = Desk(mem(0, 10), mem(1, 10), policy=ANY_LEVEL)
    old = desk.lease(ask_mem(5, node=0), ttl=600, priority=Priority.STANDARD)
    desk.sleep(100)
    scavenger = desk.lease(ask_mem(5, node=0), ttl=500, priority=Priority.SCAVENGER)
    desk.lease(ask_mem(10, node=1), ttl=5, priority=Priority.SCAVENGER)

    def victims(
        pages: int, caller: commands.Caller, priority: Priority
    ) -> tuple[bytes | None, ...]:
        acquire = desk.acquire(ask_mem(pages, node=0), caller=caller, priority=priority)
        reply = desk.say(commands.Plan(desk.command_id(), acquire))
        assert isinstance(reply, Planned)
        return tuple(victim.lease_id for victim in reply.victims)

    assert victims(5, OPERATOR, Priority.STANDARD) == (scavenger.lease_id,)
    assert victims(10, OPERATOR, Priority.STANDARD) == ()
    assert victims(10, OPERATOR, Priority.GUARANTEED) == (scavenger.lease_id, old.lease_id)
    assert victims(5, OPERATOR, Priority.SCAVENGER) == ()
    assert victims(5, BETA, Priority.GUARANTEED) == (None,), "how many, but not whose"
    assert victims(5, ACME, Priority.GUARANTEED) == (scavenger.lease_id,), "its own"


def test_a_plan_says_by_when_and_what_that_takes_for_granted() -> None:
    bounds = Bounds(NS_PER_S, NS_PER_S, NS_PER_S, NS_PER_S)
    desk = Desk(publish(mem(0, 10), bounds), policy=ANY_LEVEL)

    def planned(pages: int, **how: object) -> Planned:
        reply = desk.say(commands.Plan(desk.command_id(), desk.acquire(ask_mem(pages), **how)))
        assert isinstance(reply, Planned)
        return reply

    assert planned(5).assumes == (), "nothing is estimated where it would be granted"
    lesser = desk.lease(ask_mem(10), ttl=500, priority=Priority.SCAVENGER, grace=30)
    alone = planned(5, wait=60)
    assert alone.assumes == (Assumption.DEADLINES, Assumption.GRACE)
    assert alone.within_ns == desk.now_ns + 30 * NS_PER_S + bounds.total_ns
    assert alone.refusal is not None and alone.refusal.retry_at_ns == lesser.deadline_ns
    desk.propose(desk.acquire(ask_mem(10), caller=BETA, wait=600, priority=Priority.SCAVENGER))
    behind = planned(5, wait=60, priority=Priority.SCAVENGER)
    assert (behind.position, behind.within_ns) == (2, None), "nobody would leave for it"
    assert behind.assumes == (Assumption.DEADLINES, Assumption.QUEUE)


def test_a_plan_of_a_request_that_was_made_shows_its_lease() -> None:
    desk = Desk()
    acquire = desk.acquire()
    desk.propose(acquire)
    planned = desk.say(commands.Plan(desk.command_id(), acquire))
    assert planned == Planned(None, ("mem:node0:4096",))


def test_a_waiting_request_says_what_it_waits_for_and_its_place() -> None:
    policy = Policy(tenants=(("beta", TenantLimits(leases_max=0)),))
    desk = Desk(mem(0, 10), policy=policy)
    lease = desk.lease(ask_mem(8))
    first, second = desk.acquire(ask_mem(5), wait=60), desk.acquire(ask_mem(6), wait=60)
    desk.propose(first)
    desk.propose(second)
    reply = desk.say(commands.Why(desk.command_id(), ACME, second.command_id))
    assert isinstance(reply, Explained) and reply.refusal is not None
    assert (reply.position, reply.refusal.reason) == (2, RefusalReason.NO_CAPACITY)
    assert reply.refusal.retry_at_ns == lease.deadline_ns
    hidden = desk.say(commands.Why(desk.command_id(), BETA, second.command_id))
    assert hidden == Missing(second.command_id)


def why(desk: Desk, acquire: commands.Acquire, caller: commands.Caller = ACME) -> object:
    """The answer to Why of a request."""
    return desk.say(commands.Why(desk.command_id(), caller, LeaseId(acquire.command_id)))


def test_why_somebody_was_refused_is_known_after_a_restart_as_far_as_the_record_goes() -> None:
    desk = Desk(mem(0, 3), policy=Policy(tenant_default=TenantLimits(leases_max=1)))
    desk.lease()
    acquire, later = desk.acquire(), desk.acquire()
    desk.propose(acquire)
    told = why(desk, acquire)
    assert isinstance(told, Explained) and told.refusal is not None and told.refusal.rule
    event, moment = desk.history[-1]
    assert isinstance(event, events.Refused)
    unknown = msgspec.structs.replace(event, command_id=later.command_id, reason=255)
    desk.history.append((unknown, moment))
    desk.restart()
    known = Explained(refusal=Refusal(RefusalReason.TENANT_LEASES, "leases", 1, 1, 1))
    assert why(desk, acquire) == why(desk, acquire, OPERATOR) == known
    assert why(desk, acquire, BETA) == Missing(LeaseId(acquire.command_id))
    assert why(desk, later) == Missing(LeaseId(later.command_id)), "a later release's reason"


def test_a_refused_request_that_was_granted_later_is_not_called_refused() -> None:
    desk = Desk(mem(0, 1))
    lease = desk.lease()
    acquire = desk.acquire()
    desk.propose(acquire)
    assert isinstance(why(desk, acquire), Explained)
    desk.release(lease)
    desk.reclaim(lease)
    granted = desk.say(acquire)
    assert isinstance(granted, Granted)
    for _ in range(2):
        assert why(desk, acquire) == Missing(LeaseId(acquire.command_id))
        desk.restart(known=[granted.lease.lease_id])


def test_no_more_than_the_last_refused_requests_are_remembered() -> None:
    desk = Desk(mem(0, 1))
    desk.lease()
    first, *_, last = made = [desk.acquire() for _ in range(REFUSED_KEPT + 1)]
    for acquire in made:
        desk.propose(acquire)
    for _ in range(2):
        assert why(desk, first) == Missing(LeaseId(first.command_id))
        assert isinstance(why(desk, last), Explained)
        desk.restart()


def test_a_heartbeat_comes_back() -> None:
    desk = Desk()
    assert desk.say(commands.Heartbeat(desk.command_id())) == Done()


def test_a_lost_resource_is_shown_while_something_of_it_is_held() -> None:
    desk = Desk(mem(0, 10), mem(1, 10))
    lease = desk.lease(ask_mem(4, node=0))
    desk.inventory = type(desk.inventory)((mem(1, 10),))
    desk.say(commands.Observe(desk.command_id(), desk.inventory))
    reply = desk.say(commands.ListResources(desk.command_id(), OPERATOR))
    assert isinstance(reply, Inventoried)
    lost = {use.resource_id: use for use in reply.use}["mem:node0:4096"]
    assert (lost.free, lost.teardown, lost.kind) == (-4 * PAGE, 4 * PAGE, ResourceKind.MEM)
    desk.reclaim(lease)
